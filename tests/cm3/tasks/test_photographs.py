"""Folders as people have them: large photographs, HEIC, and what is no file."""

import io
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from cm3 import CM3
from cm3.cli import common as cli_model
from cm3.cli import main as cli

HEIC = b"\0\0\0\x14ftypheic\0\0\0\0heic" + bytes(100)


@pytest.fixture
def cm3(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a command in a folder with a photograph of 24 million pixels: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    Image.radial_gradient("L").resize((6_000, 4_000)).save(tmp_path / "in" / "photo.jpg")

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cm3", *args, "--model", str(tiny_folder)])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        with pytest.raises(SystemExit) as exit:
            cli.main()
        out, err = capsys.readouterr()
        return int(exit.value.code or 0), out, err

    return run


def test_a_photograph_of_24_million_pixels_is_captioned_by_default(cm3, tiny: CM3):
    said = " ".join(tiny.caption("in/photo.jpg").split())
    assert cm3("caption", "in/photo.jpg") == (0, f"{said}\n", "")
    assert cm3("caption", "in") == (0, f"in/photo.jpg: {said}\n", "1 captioned, 0 skipped, 0 failed\n")


@pytest.mark.parametrize("source", ["in", "in/*"])
def test_what_cannot_be_captioned_is_counted_and_named(cm3, source: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # to import it is an error
    Path("in/phone.HEIC").write_bytes(HEIC)
    Path("in/link.png").symlink_to("nothing.png")
    Path("in/folder.png").mkdir()
    os.mkfifo("in/pipe.png")
    code, _, err = cm3("caption", source)
    assert code == 1
    assert err.splitlines() == [
        "cm3: in/link.png: cannot be read (a link that leads nowhere)",
        "cm3: in/phone.HEIC: HEIC needs a package: pip install pillow-heif, or save the image as JPEG",
        "cm3: in/pipe.png: cannot be read (a pipe, a socket or a device)",
        "1 captioned, 0 skipped, 3 failed",
    ]


@pytest.mark.parametrize(
    "args",
    [
        ("caption", "in/photo.jpg", "--max-pixels", "1000"),
        ("ask", "in/photo.jpg", "What is this?", "--max-pixels", "1000"),
        ("edit", "in/photo.jpg", "make it red"),
    ],
    ids=str,
)
def test_a_limit_is_named_as_the_command_names_it(cm3, args: tuple[str, ...]):
    code, out, err = cm3(*args)
    assert code and not out
    assert "too large: 6000 x 4000 pixels, the limit is" in err
    assert err.endswith("scale it down first, or raise --max-pixels\n")


def test_a_limit_is_named_as_python_names_it(tiny: CM3, tiny_folder: Path, tmp_path: Path):
    Image.new("L", (5_000, 4_000)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="or raise max_pixels$") as error:
        tiny.caption(tmp_path / "a.png")
    assert cli_model.in_options(str(error.value)).endswith("or raise --max-pixels")
    assert CM3.from_pretrained(tiny_folder, max_pixels=20_000_000).caption(tmp_path / "a.png")


def test_a_single_source_that_is_a_pipe_is_refused_and_not_waited_for(cm3):
    os.mkfifo("in/pipe.png")
    for args in (("caption", "in/pipe.png"), ("ask", "in/pipe.png", "What is this?")):
        assert cm3(*args) == (
            2,
            "",
            "cm3: in/pipe.png: cannot be read (it is a pipe); save the image in a file first\n",
        )
