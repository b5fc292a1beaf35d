"""The command in an empty folder."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from cm3.cli import main as cli


@pytest.fixture
def cm3(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*args: str, model: bool = True) -> tuple[int, str, str]:
        tail = ["--model", str(tiny_folder)] if model else []
        if args and args[0] in ("generate", "infill", "edit") and "--seed" not in args:
            tail += ["--seed", "0"]
        monkeypatch.setattr(sys, "argv", ["cm3", args[0], *tail, *args[1:]] if args else ["cm3"])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        out, err = capsys.readouterr()
        return int(exit.value.code or 0), out, err

    return run


@pytest.fixture
def image(tmp_path: Path) -> str:
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    return "red.png"


@pytest.fixture
def mask(tmp_path: Path) -> str:
    mask = Image.new("L", (20, 20))
    mask.paste(255, (4, 4, 8, 8))
    mask.save(tmp_path / "mask.png")
    return "mask.png"
