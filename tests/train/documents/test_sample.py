"""Samples of a person's data: folders of images and captions."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from samples import bad, good, png, read, write_jsonl
from train.documents.sample import Provenance, Sample, Skip
from train.documents.sources import open_source
from train.images.files import Entry


def test_a_folder_has_captions_in_text_or_json_beside_its_images(root: Path):
    (root / "below").mkdir()
    (root / "below" / "p3.PNG").write_bytes(png(3))
    (root / "below" / "p3.TXT").write_bytes(b"\xef\xbb\xbfa blue field\r\n")
    (root / "p0.txt").write_text("حقل", encoding="utf-8")
    (root / "p1.json").write_text('{"caption": "a field", "license": "MIT", "author": "me", "url": "https://x"}')
    (root / "p2.txt").write_text("from the text")
    (root / "p2.json").write_text('{"caption": "not this", "licence": "CC0-1.0", "language": "ar"}')
    source = open_source(root)
    assert good(source) == {
        "below/p3.PNG": ("a blue field", png(3)),
        "p0.png": ("حقل", png(0)),
        "p1.png": ("a field", png(1)),
        "p2.png": ("from the text", png(2)),
    }
    facts = {found.name: found.facts for found in read(source) if isinstance(found, Sample)}
    assert facts["p1.png"] == Provenance("https://x", "MIT", "me") and facts["p2.png"] == Provenance(
        "", "CC0-1.0", "", "ar"
    )


def test_what_is_wrong_in_a_folder_is_named(root: Path, monkeypatch: pytest.MonkeyPatch):
    (root / "p0.txt").write_text("good")
    (root / "p0.jpg").write_bytes(png())
    (root / "p1.txt").write_bytes(b"caf\xe9")
    (root / "alone.txt").write_text("no image")
    (root / "big.png").write_bytes(png())
    (root / "big.txt").write_text("x" * 1_000_001)
    (root / "broken.png").write_bytes(png())
    (root / "broken.json").write_text('{"caption": ')
    (root / "deep.png").write_bytes(png())
    (root / "deep.json").write_text("[" * 100_000)
    (root / "blank.png").write_bytes(png())
    (root / "blank.txt").write_text(" \n")
    with (root / "huge.png").open("wb") as file:
        file.truncate(300_000_000)
    (root / "huge.txt").write_text("a huge file")
    found = open_source(root)
    assert list(good(found)) == ["p0.jpg"]
    reasons = bad(found)
    assert reasons["p0.png"] == "second image of one name: p0.jpg is taken"
    assert reasons["p1.png"].startswith("not UTF-8: byte 3 of .txt is 0xe9")
    assert reasons["p2.png"].startswith("no caption: there is no .txt or .json")
    assert reasons["alone.txt"] == "caption without an image"
    assert reasons["big.png"].startswith("text too long: 1,000,001 bytes, the limit is 1,000,000")
    assert reasons["broken.png"].startswith("broken JSON") and reasons["deep.png"].startswith("broken JSON")
    assert reasons["blank.png"].startswith("no caption: it is empty")
    assert reasons["huge.png"] == "too many bytes: 300,000,000, the limit is 256,000,000"
    kinds = {found.kind for found in read(found) if isinstance(found, Skip)}
    assert {"not UTF-8", "no caption", "broken JSON", "too many bytes", "second image of one name"} <= kinds


def test_pipes_and_links_that_lead_nowhere_are_skipped_and_named(root: Path):
    (root / "p0.txt").write_text("a field")
    os.mkfifo(root / "pipe.png")
    (root / "link.png").symlink_to(root / "nothing.png")
    found = open_source(root)
    assert list(good(found)) == ["p0.png"]
    reasons = bad(found)
    assert reasons["pipe.png"] == "no file: a pipe, a socket or a device"
    assert reasons["link.png"] == "no file: a link that leads nowhere"
    assert [skip.kind for skip in found.skipped] == ["no file", "no file"]


def test_folders_without_captions_images_or_anything_are_refused(root: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"has 3 images and no caption: put cat\.txt beside cat\.jpg"):
        open_source(root)
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="holds nothing that can be read: want images"):
        open_source(tmp_path / "words")
    with pytest.raises(ValueError, match="does not exist"):
        open_source(tmp_path / "none")
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"a\.zip holds nothing that can be read"):
        open_source(tmp_path / "a.zip")
    with pytest.raises(ValueError, match="format 'zip': want one of auto"):
        open_source(root, format="zip")
    with pytest.raises(ValueError, match="nothing of the format parquet"):
        open_source(root, format="parquet")


def test_a_folder_of_two_layouts_asks_which(root: Path):
    (root / "p0.txt").write_text("one")
    write_jsonl(root / "table.jsonl", [{"image": "p1.png", "text": "two"}])
    with pytest.raises(ValueError, match=r"several layouts, folder \(4 files\), jsonl \(1 files\): choose .*--format"):
        open_source(root)
    assert good(open_source(root, format="folder")) == {"p0.png": ("one", png(0))}
    assert good(open_source(root, format="jsonl")) == {"table.jsonl:1": ("two", png(1))}


def test_a_link_that_goes_round_is_followed_once(root: Path):
    (root / "p0.txt").write_text("one")
    (root / "again").symlink_to(root)
    assert list(good(open_source(root))) == ["p0.png"]


def test_a_caption_that_is_a_link_to_elsewhere_is_not_read(root: Path, tmp_path_factory: pytest.TempPathFactory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "secret.txt").write_text("secret")
    (elsewhere / "inside.png").write_bytes(png(1))
    (elsewhere / "inside.txt").write_text("two")
    (root / "words.md").write_text("one")
    (root / "p0.txt").symlink_to("words.md")
    (root / "p1.txt").symlink_to(elsewhere / "secret.txt")
    (root / "shared").symlink_to(elsewhere)  # a folder that is a link is a folder
    source = open_source(root)
    assert good(source) == {"p0.png": ("one", png(0)), "shared/inside.png": ("two", png(1))}
    assert bad(source)["p1.png"] == "caption elsewhere: p1.txt is a link that leads out of the folder"


def test_nuls_and_byte_order_marks_are_no_words(root: Path):
    mark = "\ufeff"
    (root / "p0.txt").write_bytes(f"{mark}a{mark} red\0 apple{mark}".encode())
    (root / "p1.json").write_text(mark + json.dumps({"caption": f"{mark}a \0cat"}))
    (root / "more").mkdir()
    write_jsonl(root / "more" / "table.jsonl", [{"image": "../p1.png", "text": f"{mark}a dog\0"}])
    assert {words for words, _ in good(open_source(root, format="folder")).values()} == {"a red apple", "a cat"}
    assert {words for words, _ in good(open_source(root / "more")).values()} == {"a dog"}


def test_avif_images_are_images(root: Path):
    Image.new("RGB", (8, 8), "red").save(root / "new.avif")
    (root / "new.txt").write_text("a red square")
    assert list(good(open_source(root))) == ["new.avif"]


def test_the_listing_changes_with_the_content_and_not_with_the_place(root: Path, tmp_path: Path):
    table = write_jsonl(root / "t.jsonl", [{"image": "p0.png", "text": "a"}])
    before = open_source(table).listing
    assert open_source(table).listing == before
    write_jsonl(table, [{"image": "p0.png", "text": "b"}])
    assert open_source(table).listing != before


def test_entries_are_read_where_they_lie(root: Path):
    (root / "p0.txt").write_text("x")
    [found] = [found for found in read(open_source(root)) if isinstance(found, Sample)]
    assert found.pieces[1] == Entry("p0.png", str(root / "p0.png"), 0, len(png()))
