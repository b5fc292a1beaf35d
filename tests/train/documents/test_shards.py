"""Token shards: what is written reads back, prompts are tokenised as the pipeline does, and damage is found."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from cm3.files import sha256
from cm3.tokens.document import Document, Image, Text
from cm3.tokens.encoding import from_ids
from cm3.tokens.templates import TEMPLATES
from cm3.tokens.text_tokenizer import TextTokenizer
from cm3.tokens.vocab import Vocab
from tokenizer_image import ImageTokenizer
from train.documents.shard_files import MAX_TARGETS, META, layout, read_meta, shard_facts
from train.documents.shards import NUM_SPECIAL, Shards, ShardWriter, Target, clear, finish, questions

CODES = torch.arange(16).view(4, 4)


@pytest.fixture(scope="module")
def image(vq_folder: Path) -> ImageTokenizer:
    return ImageTokenizer.from_pretrained(vq_folder)


@pytest.fixture(scope="module")
def text() -> TextTokenizer:
    return TextTokenizer.train([*TEMPLATES["caption"].values(), "red apple", "Question: What? Answer: noto"], 300)


@pytest.fixture
def writer(text: TextTokenizer) -> ShardWriter:
    return ShardWriter(text, Vocab(NUM_SPECIAL, len(text), 32))


@pytest.fixture
def four(text: TextTokenizer, image: ImageTokenizer, tmp_path: Path) -> Path:
    """Four shards of ten documents, and one of two that are held out."""
    vocab = Vocab(NUM_SPECIAL, len(text), 32)
    for split, number, count in [("train", i, 10) for i in range(4)] + [("held_out", 0, 2)]:
        writer = ShardWriter(text, vocab)
        for i in range(count):
            writer.sample(name=f"{split} {number} {i}")
            asked = Target("caption", "Caption: ", "apple " * (i + 1))
            writer.add(questions([asked], Image(torch.full((4, 4), number))))
        writer.save(tmp_path / "four", split, number)
    finish(tmp_path / "four", text, vocab, image, images=42)
    return tmp_path / "four"


def decode(writer: ShardWriter, ids: list[int]) -> str:
    return writer.text.decode(writer.vocab.ids_to_text(ids))


def test_questions_and_answers_alternate_before_the_image(writer: ShardWriter, image: ImageTokenizer, tmp_path: Path):
    asked = [Target("caption", "Caption: ", "red apple"), Target("style", "Question: What? Answer: ", "noto")]
    writer.sample(name="apple", licence="CC0-1.0")
    writer.add(questions(asked, Image(CODES)))
    writer.add(Document((Text("a red apple"), Image(CODES))))
    writer.save(tmp_path, note="x")
    meta = finish(tmp_path, writer.text, writer.vocab, image, images=1)
    shards = Shards(tmp_path)
    ids, spans = shards.document(0)
    assert [decode(writer, ids[start:end]) for start, end in spans] == ["red apple", "noto"]
    text, shown = from_ids(ids, writer.vocab, writer.text, (4, 4))
    assert text == Text("Caption: red apple Question: What? Answer: noto")
    assert shown == Image(CODES)
    ids, spans = shards.document(1)
    assert spans == [] and from_ids(ids, writer.vocab, writer.text, (4, 4))[0] == Text("a red apple")
    assert meta["documents"] == 2 and meta["images"] == 1 and meta["tokens"] == shards.lengths.sum()
    assert shards.texts.tolist() == shards.images.tolist() == [1, 1] and shards.vocab_size == len(writer.vocab)
    assert shards.sample(0) == shards.sample(1) == {"name": "apple", "licence": "CC0-1.0"}
    assert shard_facts(tmp_path / "train-00000.safetensors") == {"note": "x"}
    assert meta["vocab"] == layout(writer.vocab, (4, 4)) and meta["text_tokenizer"] == writer.text.fingerprint()


def test_runs_of_text_and_images_are_counted(writer: ShardWriter, image: ImageTokenizer, tmp_path: Path):
    words, shown = Text("red"), Image(CODES)
    writer.add(Document((words,)))
    writer.add(Document((words, shown, shown)))
    writer.add(Document((shown, words, shown, words, shown)))
    writer.save(tmp_path)
    finish(tmp_path, writer.text, writer.vocab, image)
    shards = Shards(tmp_path)
    assert shards.images.tolist() == [0, 2, 3] and shards.texts.tolist() == [1, 1, 2]


@pytest.mark.parametrize("language", TEMPLATES["caption"])
def test_a_prompt_is_tokenised_as_the_pipeline_does(writer: ShardWriter, language: str):
    prompt = TEMPLATES["caption"][language]
    writer.add(questions([Target("caption", prompt, "x")], Image(CODES)))
    start = writer.spans[0][0][0]
    assert writer.ids[1:start].tolist() == writer.vocab.text_to_ids(writer.text.encode(prompt))


def test_words_that_spell_special_tokens_stay_words(writer: ShardWriter):
    writer.add(Document((Text("<break> <image> <eos>"), Image(CODES))))
    assert writer.ids.count(writer.vocab.break_) == writer.ids.count(writer.vocab.image) == 1
    assert writer.ids.count(writer.vocab.eos) == 2
    assert from_ids(writer.ids.tolist(), writer.vocab, writer.text, (4, 4))[0] == Text("<break> <image> <eos>")


def test_more_answers_than_a_shard_has_room_for_are_a_mistake(writer: ShardWriter):
    with pytest.raises(AssertionError, match="at most"):
        writer.add(questions([Target("caption", "Caption: ", "x")] * (MAX_TARGETS + 1), Image(CODES)))


@pytest.mark.parametrize(("codes", "dtype"), [(2**16 - 1000, np.uint16), (2**16, np.uint32)])
def test_ids_take_the_room_that_the_vocabulary_needs(text: TextTokenizer, tmp_path: Path, codes: int, dtype: type):
    writer = ShardWriter(text, Vocab(NUM_SPECIAL, len(text), codes))
    writer.add(Document((Text("x"), Image(torch.full((4, 4), codes - 1)))))
    writer.save(tmp_path)
    ids = load_file(tmp_path / "train-00000.safetensors")["ids"]
    assert ids.dtype == dtype and ids.max() == len(writer.vocab) - 1


def test_splits_and_shards_follow_one_another(four: Path):
    shards = Shards(four)
    assert len(shards) == 40 and not shards.bad and len(Shards(four, "held_out")) == 2
    assert shards.sample(13)["name"] == "train 1 3"
    for number in (0, 9, 10, 39):
        document = shards.document(number)
        assert len(document.ids) == shards.lengths[number]
        assert document.ids[-3] == shards.vocab().code_to_id(number // 10)
    assert [path.name for path in four.glob("*.unfinished")] == []


def test_the_fingerprint_changes_with_the_content(four: Path, text: TextTokenizer, image: ImageTokenizer):
    before = Shards(four).fingerprint()
    assert Shards(four).fingerprint() == before
    (four / "train-00003.safetensors").unlink()
    assert Shards(four, max_bad=0.5).fingerprint() != before
    clear(four)
    assert not list(four.glob("train*")) and not (four / META).exists()
    with pytest.raises(ValueError, match=r"meta\.json is missing: run python -m train\.prepare first"):
        Shards(four)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 16
    path.write_bytes(data)


def no_shard(path: Path) -> None:
    path.write_bytes(b"nothing")


def changed(**new: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        arrays = load_file(path)
        save_file({name: new[name](array) if name in new else array for name, array in arrays.items()}, path)

    return damage


def without(part: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        save_file({name: array for name, array in load_file(path).items() if name != part}, path)

    return damage


def shifted(offsets: np.ndarray) -> np.ndarray:
    return np.concatenate([offsets[:1], offsets[1:-1] + offsets[-1], offsets[-1:]])


DAMAGE = [
    (Path.unlink, "missing"),
    (truncated, "not a whole shard"),
    (no_shard, "not a whole shard"),
    (without("spans"), "not a whole shard .*spans"),
    (changed(ids=lambda ids: ids.astype(np.int64)), "ids are I64 of shape"),
    (changed(ids=lambda ids: ids[None]), "not a vector of uint16"),
    (changed(ids=lambda ids: ids[:-1]), "its index does not fit"),
    (changed(offsets=shifted), "its index does not fit"),
    (changed(offsets=lambda offsets: offsets + 1), "its index does not fit"),
    (changed(offsets=lambda offsets: offsets.astype(np.float32)), "holds float32"),
    (changed(offsets=lambda offsets: offsets[:-1]), "its index is of"),
    (changed(spans=lambda spans: spans + 1000), "answers lie outside"),
    (changed(texts=lambda texts: texts[1:]), "its index is of"),
    (changed(images=lambda images: images[1:]), "its index is of"),
    (changed(images=lambda images: images.astype(np.float64)), "holds float64"),
    (changed(texts=lambda texts: texts.astype(np.int64) - 2), "a number of texts or images is negative"),
    (changed(images=lambda images: -images), "a number of texts or images is negative"),
    (without("images"), "not a whole shard .*images"),
]


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(("damage", "reason"), DAMAGE)
def test_a_damaged_shard_is_named_and_the_others_keep_their_numbers(
    four: Path, damage: Callable[[Path], None], reason: str, verify: bool
):
    whole = Shards(four)
    damage(four / "train-00001.safetensors")
    with pytest.raises(ValueError, match="1 of 4 shards with 10 of 40 documents are damaged, more than max_bad = 10%"):
        Shards(four, verify=verify)
    shards = Shards(four, verify=verify, max_bad=0.3)
    assert list(shards.bad) == ["train-00001.safetensors"]
    damaged = "damaged: .* hash" if verify and reason != "missing" else reason
    assert re.search(damaged, shards.bad["train-00001.safetensors"])
    assert shards.document(25) == whole.document(25) and (shards.lengths == 0).sum() == 10
    with pytest.raises(ValueError, match="document 12 is in a damaged shard"):
        shards.document(12)


def test_a_flipped_bit_is_found_by_its_hash(four: Path):
    flipped(four / "train-00002.safetensors")
    assert "hash" in Shards(four, max_bad=1).bad["train-00002.safetensors"]
    assert not Shards(four, verify=False).bad  # the structure is whole: only reading all of it would tell


def test_ids_outside_the_vocabulary_are_found(four: Path):
    path = four / "train-00000.safetensors"
    changed(ids=lambda ids: np.where(ids > 64, 60_000, ids).astype(np.uint16))(path)
    meta = json.loads((four / META).read_text())
    meta["splits"]["train"]["shards"][0]["sha256"] = sha256(path)
    (four / META).write_text(json.dumps(meta))
    assert "id 60000 is outside the vocabulary" in Shards(four, max_bad=1).bad[path.name]


def test_other_tokenizers_are_refused(four: Path, image: ImageTokenizer, tmp_path: Path):
    shards = Shards(four)
    shards.check_image_tokenizer(image)
    assert len(shards.text_tokenizer()) == shards.meta["vocab"]["text_vocab_size"]
    with pytest.raises(ValueError, match="made with another image tokenizer"):
        shards.check_image_tokenizer(ImageTokenizer.from_pretrained("emoji"))
    TextTokenizer.train(["other words"], 260).save(four)
    with pytest.raises(ValueError, match="is not the text tokenizer that made the shards"):
        shards.text_tokenizer()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"splits": {"train": {}}}', '{"splits": {"train": 3}}'])
def test_a_damaged_or_old_meta_is_named(four: Path, content: str):
    (four / META).write_text(content)
    with pytest.raises(ValueError, match=r"meta\.json is damaged, or of an older version .* prepare it anew"):
        read_meta(four)


def test_missing_shards_and_splits_are_named(four: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"meta\.json is missing"):
        Shards(tmp_path)
    with pytest.raises(ValueError, match="has no documents of the split 'test'"):
        Shards(four, "test")
