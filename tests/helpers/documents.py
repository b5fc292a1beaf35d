"""Token shards of random documents with given lengths."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from cm3.tokens.document import Image
from cm3.tokens.encoding import image_ids, join
from cm3.tokens.text_tokenizer import TextTokenizer
from cm3.tokens.vocab import Vocab
from tokenizer_image import ImageTokenizer
from train.documents.shards import NUM_SPECIAL, ShardWriter, finish

WORDS = ["a red apple", "a blue car in the noto style", "What is this? a cat", "a bowl of noodles"]


def write_shards(
    folder: Path,
    image_tokenizer: Path,
    lengths: Iterable[int],
    held_out: Iterable[int] = (),
    asked: float = 0.3,
    per_shard: int = 1000,
    seed: int = 0,
) -> Path:
    """Shards of text with an image; a share `asked` of them has an answer to the image that is marked.

    Args:
        folder: to write to.
        image_tokenizer: folder of the image tokenizer.
        lengths: of the documents of the training split.
        held_out: of the other split.
        asked: see above.
        per_shard: documents a shard.
        seed: of ids.
    """
    image = ImageTokenizer.from_pretrained(image_tokenizer)
    text = TextTokenizer.train(WORDS, vocab_size=300)
    vocab, rng = Vocab(NUM_SPECIAL, len(text), image.num_codes), np.random.default_rng(seed)
    codes = image.grid[0] * image.grid[1]
    for split, sizes in (("train", list(lengths)), ("held_out", list(held_out))):
        for number, start in enumerate(range(0, len(sizes), per_shard)):
            writer = ShardWriter(text, vocab)
            for size in sizes[start : start + per_shard]:
                count = size - codes - 5  # <eos> <break> <image> </image> <eos>
                words = rng.integers(vocab.first_text, vocab.first_code, count if count > 1 else size - 2).tolist()
                writer.sample(place=start)
                if count < 2:
                    writer.add_ids(join([words], vocab).ids)
                    continue
                spans = [(1 + count // 2, 1 + count)] if rng.random() < asked else []
                codes_of_image = image_ids(Image(torch.from_numpy(rng.integers(0, vocab.num_codes, image.grid))), vocab)
                writer.add_ids(join([words, codes_of_image], vocab).ids, spans)
            writer.save(folder, split, number)
    finish(folder, text, vocab, image, image_tokenizer_name=str(image_tokenizer))
    return folder
