"""A page of documents decoded back: what it shows, and what it refuses to show."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from cm3.tokens.document import Answer, Document, Text
from cm3.tokens.document import Image as ImageItem
from cm3.tokens.text_tokenizer import TextTokenizer
from cm3.tokens.vocab import Vocab
from tokenizer_image import ImageTokenizer
from train import preview as module
from train.documents.shards import NUM_SPECIAL, Shards, ShardWriter, StoredDocument, Target, finish, questions
from train.preview import Shown, as_text, page, pick, read

IMAGES = [ImageItem(torch.full((4, 4), i)) for i in range(6)]


@pytest.fixture(scope="module")
def image(vq_folder: Path) -> ImageTokenizer:
    return ImageTokenizer.from_pretrained(vq_folder)


@pytest.fixture
def folder(image: ImageTokenizer, vq_folder: Path, tmp_path: Path) -> Path:
    """A drawing, a caption with its answer, and an interleaved document, of each of two samples."""
    text = TextTokenizer.train(["Caption: a red apple", "الوصف: تفاحة"], 300)
    writer = ShardWriter(text, Vocab(NUM_SPECIAL, len(text), 32))
    for i in (0, 3):
        writer.sample(name=f"sample {i}", licence="CC0-1.0")
        writer.add(Document((Text("تفاحة حمراء"), IMAGES[i])))
        writer.add(questions([Target("x", "Caption: ", "a red apple"), Target("x", "And: ", "more")], IMAGES[i + 1]))
        writer.add(Document((Text("before"), IMAGES[i + 2], IMAGES[i], Text("after"))))
    writer.save(tmp_path / "shards")
    finish(tmp_path / "shards", text, writer.vocab, image, image_tokenizer_name=str(vq_folder))
    return tmp_path / "shards"


def test_documents_are_taken_apart_as_people_read_them(folder: Path):
    first, second, third = pick(Shards(folder), 6, 0)[:3]
    assert list(first.items) == [Text("تفاحة حمراء"), IMAGES[0]]
    assert list(second.items) == [Text("Caption: "), Answer("a red apple"), Text(" And: "), Answer("more"), IMAGES[1]]
    assert list(third.items) == [Text("before"), IMAGES[2], IMAGES[0], Text("after")]
    assert first.sample["name"] == "sample 0" and first.tokens == Shards(folder).lengths[0]
    written = as_text([first, second], "train")
    assert "train 1: " in written and "Caption: [[a red apple]] And: [[more]]<image 4 x 4>" in written
    assert '"licence": "CC0-1.0"' in written


def test_an_image_that_is_not_whole_is_named(folder: Path):
    shards = Shards(folder)
    ids, _ = shards.document(0)
    with pytest.raises(ValueError, match="an image of 4 x 4 codes cannot go on with </image> after 15 codes"):
        read(StoredDocument([*ids[:-3], *ids[-2:]], []), shards.vocab(), shards.text_tokenizer(), (4, 4))


def test_the_page_shows_every_image_and_colours_answers(folder: Path, image: ImageTokenizer):
    shown = pick(Shards(folder), 6, 0)
    colours = {colour for _, colour in page(shown, image).getcolors(2**24) or []}
    assert module.ANSWER in colours and module.INK in colours
    for item in (IMAGES[0], IMAGES[4]):
        decoded = image.decode(item.codes)
        assert isinstance(decoded, Image.Image)
        assert {colour for _, colour in decoded.getcolors() or [(0, None)]} <= colours
    assert page(pick(Shards(folder), 1, 1), image).width < 400


@pytest.mark.parametrize("text", ["", " ", "x" * 5000, "word " * 5000, "\u0000\n\t\u202e", "漢字" * 300, "😀 🏳️‍🌈"])
def test_any_text_finds_room(image: ImageTokenizer, text: str):
    shown = [
        Shown(i, 3, Document((Answer(text) if i else Text(text), ImageItem(torch.zeros(4, 4, dtype=torch.long)))), {})
        for i in range(2)
    ]
    sheet = page(shown, image)
    assert sheet.width == module.GAP + 2 * (module.COLUMN + module.GAP) and sheet.height < 4000
    assert page([Shown(0, 3, Document((Text(text),)), {})], image).height < 4000


def test_the_same_seed_picks_the_same_documents_and_no_bad_ones(folder: Path):
    shards = Shards(folder)
    assert [one.number for one in pick(shards, 3, 0)] == [one.number for one in pick(shards, 3, 0)]
    assert {tuple(one.number for one in pick(shards, 3, seed)) for seed in range(9)} != {(0, 1, 2)}
    shards.lengths[:3] = 0
    assert [one.number for one in pick(shards, 10, 0)] == [3, 4, 5]


def test_the_command_writes_a_page_and_its_text(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    module.main(folder, tmp_path / "look" / "page.png", 4)
    assert Image.open(tmp_path / "look" / "page.png").width > 1000
    assert (tmp_path / "look" / "page.txt").read_text(encoding="utf-8").count("<image 4 x 4>") >= 4
    assert "4 of 6 documents in " in capsys.readouterr().out


def test_shards_of_other_tokenizers_are_refused_with_one_line(folder: Path, tmp_path: Path):
    for change, match in (
        (lambda: None, "another image tokenizer"),
        (lambda: TextTokenizer.train(["other"], 260).save(folder), "is not the text tokenizer"),
        (lambda: (folder / "meta.json").write_text(json.dumps({})), "damaged, or of an older version"),
        (lambda: (folder / "meta.json").unlink(), r"train\.prepare first"),
    ):
        change()
        named = "emoji" if "image" in match else ""
        with pytest.raises(SystemExit, match=f"^preview: .*{match}") as error:
            module.main(folder, tmp_path / "page.png", image_tokenizer=named)
        assert "\n" not in str(error.value.code) and not (tmp_path / "page.png").exists()
