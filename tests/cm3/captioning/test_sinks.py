"""Text files beside images: what is never written over, and what is said where a text has no place."""

import os
from pathlib import Path

import pytest
from PIL import Image

from cm3.captioning.run import IMAGE_SUFFIXES
from cm3.captioning.sinks import Existing, Result, TextFiles

REPLACING: tuple[Existing, ...] = ("overwrite", "append", "prepend")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (20, 20), "red").save(tmp_path / "x.png")
    return tmp_path / "x.png"


@pytest.mark.parametrize("ending", [*IMAGE_SUFFIXES, ".PNG", ".heic", ".svg", ".caption.jpg", ".png "])
def test_no_text_gets_an_ending_of_images(ending: str):
    with pytest.raises(ValueError, match="images are never written over: choose another"):
        TextFiles(ending, "skip")


@pytest.mark.parametrize("existing", REPLACING)
def test_an_image_is_known_by_what_it_holds_and_not_written_over(image: Path, existing: Existing):
    Image.new("RGB", (20, 20), "blue").save(image.with_suffix(".txt"), "PNG")
    before = image.with_suffix(".txt").read_bytes()
    with pytest.raises(ValueError, match=r"x\.txt is an image, so no text is written over it"):
        TextFiles(".txt", existing).has(image)
    assert image.with_suffix(".txt").read_bytes() == before


@pytest.mark.parametrize("existing", REPLACING)
def test_a_file_that_is_read_or_lies_below_a_folder_that_is_read_stays(image: Path, existing: Existing):
    place = image.with_suffix(".txt")
    place.write_text("mine\n")
    for read in (place, place.parent):
        with pytest.raises(ValueError, match="is a file that this run reads"):
            TextFiles(".txt", existing, frozenset([Path(os.path.realpath(read))])).has(image)
    assert TextFiles(".txt", existing).has(image) is False


def test_a_pipe_is_no_place_for_a_text(image: Path):
    os.mkfifo(image.with_suffix(".txt"))
    with pytest.raises(ValueError, match="is no plain file"):
        TextFiles(".txt", "overwrite").has(image)


def test_a_folder_that_cannot_be_written_is_noticed_before_the_captioning(image: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cm3.captioning.sinks.os.access", lambda *_: False)  # as for people who are not root
    with pytest.raises(PermissionError):
        TextFiles(".txt", "skip").has(image)


@pytest.mark.parametrize("existing", ["skip", *REPLACING])
def test_two_images_of_one_name_do_not_share_a_text(image: Path, existing: Existing):
    sink, other = TextFiles(".txt", existing), image.with_suffix(".jpg")
    assert not sink.has(image) and not sink.has(image)
    with pytest.raises(ValueError, match=r"x\.txt is the text of x\.png already: rename one of the two, or .* --out"):
        sink.has(other)
    sink.add(Result(image, {"text": "red"}))
    again = TextFiles(".txt", existing)
    assert again.has(image) == (existing == "skip")
    with pytest.raises(ValueError, match=r"x\.txt is the text of x\.png already"):  # the next run says so too
        again.has(other)


@pytest.mark.parametrize("existing", ["append", "prepend"])
def test_nothing_is_joined_to_a_text_in_another_encoding(image: Path, existing: Existing):
    image.with_suffix(".txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(ValueError, match=r"x\.txt is not in UTF-8, so nothing is joined to it"):
        TextFiles(".txt", existing).add(Result(image, {"text": "red"}))
    assert image.with_suffix(".txt").read_bytes() == "café".encode("latin-1")
