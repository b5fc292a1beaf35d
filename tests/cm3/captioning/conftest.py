"""The command in a folder of images."""

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from captions import COLOURS
from cm3.cli import main as cli


@pytest.fixture
def cm3(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run `cm3 caption` in a folder with images: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for i, colour in enumerate(COLOURS):
        Image.new("RGB", (20 + i, 20), colour).save(tmp_path / "in" / ("deep" if i == 4 else ".") / f"{colour}.png")
    (tmp_path / "in" / "notes.md").write_text("no image")

    def run(*args: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cm3", "caption", "--model", str(tiny_folder), *args])
        lines = io.BytesIO(stdin.encode(errors="surrogateescape"))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(lines, "utf-8"))
        with pytest.raises(SystemExit) as exit:
            cli.main()
        out, err = capsys.readouterr()
        return int(exit.value.code or 0), out, err

    return run
