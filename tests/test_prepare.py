"""A folder of captioned pictures becomes token shards, and a tokenizer and a model can be trained on it."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from cm3.document import Text, from_ids
from cm3.text import TextTokenizer
from cm3.vocab import Vocab
from tokenizer_image import ImageTokenizer
from train import image_tokenizer, lm
from train.prepare import prepare
from train.shards import read_shard


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three captioned pictures, one of them in a folder below; one without a caption; one that is no picture."""
    root = tmp_path / "pictures"
    (root / "more").mkdir(parents=True)
    for name, colour in (("a", "red"), ("b", "green"), ("more/c", "blue"), ("silent", "black")):
        Image.new("RGB", (20, 12), colour).save(root / f"{name}.png")
    for name, colour in (("a", "red"), ("b", "green"), ("more/c", "blue"), ("broken", "torn")):
        (root / f"{name}.txt").write_text(f"a {colour} field\n", encoding="utf-8")
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return root


def test_every_captioned_picture_gives_a_drawing_and_a_caption(folder: Path, vq_folder: Path, tmp_path: Path):
    meta = prepare(folder, tmp_path / "shards", ImageTokenizer.from_pretrained(vq_folder), text_vocab=300)
    shard, _ = read_shard(tmp_path / "shards")
    text = TextTokenizer.load(tmp_path / "shards")
    vocab = Vocab(64, len(text), 32)
    said = [from_ids(shard.document(i)[0], vocab, text, (4, 4))[0] for i in range(6)]
    assert said[::2] == [Text("a red field"), Text("a green field"), Text("a blue field")]
    assert said[1::2] == [Text(f"Caption: a {colour} field") for colour in ("red", "green", "blue")]
    assert meta["pictures"] == 3


def test_what_is_skipped_is_named_with_the_reason(folder: Path, vq_folder: Path, tmp_path: Path):
    meta = prepare(folder, tmp_path / "shards", ImageTokenizer.from_pretrained(vq_folder), text_vocab=300)
    broken, silent = meta["skipped"]
    assert "broken.jpg" in broken and "silent.png: no caption in silent.txt" in silent


def test_a_folder_without_captions_is_refused_and_nothing_is_written(vq_folder: Path, tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"cat\.txt"):
        prepare(tmp_path, tmp_path / "shards", ImageTokenizer.from_pretrained(vq_folder))
    with pytest.raises(ValueError, match="not a folder"):
        prepare(tmp_path / "none", tmp_path / "shards", ImageTokenizer.from_pretrained(vq_folder))
    assert not (tmp_path / "shards").exists()


def test_the_three_commands_make_a_model_that_draws_and_captions(folder: Path, tmp_path: Path):
    (folder / "broken.jpg").unlink()
    vq = image_tokenizer.Config(data=str(folder), preset="tiny", steps=2, batch_size=2, warmup=1, precision="fp32")
    tokenizer = image_tokenizer.train(vq, tmp_path / "vq")
    prepare(folder, tmp_path / "shards", tokenizer, text_vocab=300)
    run = lm.Config(data=str(tmp_path / "shards"), image_tokenizer=str(tmp_path / "vq" / "model"), preset="tiny",
                    steps=2, batch_size=4, warmup=1, precision="fp32", prompts=("a red field",))  # fmt: skip
    model = lm.train(run, tmp_path / "lm")
    (picture,) = model.generate("a red field")
    assert picture.size == (16, 16)
    assert isinstance(model.caption(picture), str)
    with pytest.raises(ValueError, match="fill a batch"):
        lm.train(replace(run, batch_size=100), tmp_path / "other")


def test_a_folder_with_too_few_pictures_cannot_train_a_tokenizer(tmp_path: Path):
    with pytest.raises(ValueError, match="at least two"):
        image_tokenizer.train(image_tokenizer.Config(data=str(tmp_path), preset="tiny"), tmp_path / "vq")
