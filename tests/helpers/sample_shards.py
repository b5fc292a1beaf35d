"""Token shards of the data sample: of each image two views, each with a caption and with a question."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from cm3.tokens.document import Document, Image, Text
from cm3.tokens.templates import LANGUAGES, TEMPLATES
from cm3.tokens.text_tokenizer import TextTokenizer
from cm3.tokens.vocab import Vocab
from tokenizer_image import ImageTokenizer
from train.documents.shards import NUM_SPECIAL, ShardWriter, Target, finish, questions
from train.images.codes import encode_views
from train.images.samples import read_split
from train.images.views import PLAIN, Augmentation

SPLITS = {"train": "train", "held_out": "held_out_pairs"}  # of the shards, and of the sample
QUESTIONS = {"en": "What is this?", "ar": "ما هذا؟"}


def targets(name: str, language: str) -> list[Target]:
    """The caption, and a question with its answer."""
    asked = TEMPLATES["answer"][language].format(words=QUESTIONS[language])
    return [Target("caption", TEMPLATES["caption"][language], name), Target("what", asked, name)]


def texts(sample: Path) -> Iterator[str]:
    for _, _, facts in read_split(sample / "train"):
        for language in LANGUAGES:
            yield facts["name"][language]
            yield from (target.prompt + target.answer for target in targets(facts["name"][language], language))


def sample_shards(sample: Path, vq_folder: Path, out: Path) -> Path:
    tokenizer, text = ImageTokenizer.from_pretrained(vq_folder), TextTokenizer.train(texts(sample), 600)
    vocab = Vocab(NUM_SPECIAL, len(text), tokenizer.num_codes)
    for split, folder in SPLITS.items():
        rng, writer = np.random.default_rng(0), ShardWriter(text, vocab)
        rows = list(read_split(sample / folder))
        views = [[PLAIN, Augmentation().sample(rng, tokenizer.size[0])] for _ in rows]
        codes: torch.Tensor = encode_views([drawing for _, drawing, _ in rows], views, tokenizer)
        for (key, _, facts), both in zip(rows, codes, strict=True):
            writer.sample(name=key, code=facts["code"], documents=4)
            for language, image in zip(LANGUAGES, both, strict=True):
                name = facts["name"][language]
                article = "a " if language == "en" else ""
                writer.add(Document((Text(f"{article}{name}, {facts['style']}"), Image(image))))
                writer.add(questions(targets(name, language), Image(image)))
        writer.save(out, split)
    finish(out, text, vocab, tokenizer)
    return out
