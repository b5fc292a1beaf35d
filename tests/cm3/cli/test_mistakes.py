"""The command's mistakes, help and limits: one line, and nothing is written."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from PIL import Image

from cm3.cli import main as cli
from cm3.cli.files import grid
from commands import refused

WRONG_CALLS = [
    (["generate", ""], "prompt is empty"),
    (["generate", "apple " * 500], "leaves no room"),
    (["generate", "a", "-n", "0"], "'-n': Input should be greater than or equal to 1"),
    (["generate", "a", "-n", "10000"], "'-n': Input should be less than or equal to 64"),
    (["generate", "a", "-n", "many"], "-n"),
    (["generate", "a", "--temperature", "-1"], "'--temperature': Input should be greater than or equal to 0"),
    (["generate", "a", "--scale", "-1"], "'--scale': Input should be greater than or equal to 0"),
    (["generate", "a", "-o", "a.doc"], "must end with one of .png"),
    (["generate", "a", "-o", "no/a.png"], "there is no folder no"),
    (["generate", "a", "-o", "folder.png"], "folder.png"),
    (["generate", "a", "b"], "unexpected extra argument"),
    (["generate"], "prompt is empty"),
    (["generate", "a", "--guidance", "-1"], "'--guidance': Input should be greater than or equal to 0"),
    (["generate", "a", "--best-of", "0"], "'--best-of': Input should be greater than or equal to 1"),
    (["generate", "a", "--decoding", "beam"], "'beam' is not one of 'top-p', 'cd-k', 'both'"),
    (["generate", "a", "--box", "a cat"], "the box 'a cat' must be a name and four numbers"),
    (["generate", "a", "--box", "0.1 0.2 0.5 0.9"], "must be a name and four numbers"),
    (["generate", "a", "--box", "a cat 0.1 0.2 0.5 high"], "must be a name and four numbers"),
    (["generate", "a", "--box", "a cat 0.1 0.2 1.5 0.9"], "box of 'a cat' is (0.1, 0.2, 1.5, 0.9), but must be"),
    (["generate", "a", "--structure", "none.png"], "none.png: cannot be read"),
    (["generate", "a", "--structure", "red.png", "--kind", "depth"], "'depth' is not one of 'edges', 'segments'"),
    (["generate", "a", "--kind", "edges"], "--kind edges says what a structure shows: name its image"),
    (["infill", "red.png"], "Missing argument 'MASK'"),
    (["infill", "red.png", "none.png"], "none.png: cannot be read"),
    (["infill", "red.png", "black.png"], "black everywhere: paint white"),
    (["infill", "red.png", "wide.png"], "mask has 30 x 20 pixels, but the image 20 x 20"),
    (["infill", "red.png", "red.png", "-n", "0"], "'-n': Input should be greater than or equal to 1"),
    (["infill", "red.png", "mask.png", "-o", "a.doc"], "must end with one of .png"),
    (["edit", "red.png", " "], "instruction is empty"),
    (["edit", "red.png", "make it blue", "--text-guidance", "nan"], "'--text-guidance'"),
    (["edit", "none.png", "make it blue"], "none.png: cannot be read"),
    (["generate", "a", "--colour", "red"], "No such option"),
    (["caption", "none.png"], "none.png: cannot be read (No such file or directory)"),
    (["caption", "red.png", "--language", "xx"], "--lang is 'xx', but must be one of en, ar"),
    (["ask", "red.png", ""], "question is empty"),
    (["ask", "red.png", "What?", "--max-pixels", "399"], "red.png: too large: 20 x 20 pixels, the limit is 399"),
    (["ask", "notes.png", "What?"], "notes.png: not an image"),
]


@pytest.mark.parametrize(("args", "message"), WRONG_CALLS, ids=[" ".join(args)[:40] for args, _ in WRONG_CALLS])
def test_a_mistake_is_one_line_and_writes_nothing(
    cm3, image: str, mask: str, tmp_path: Path, args: list[str], message: str
):
    (tmp_path / "notes.png").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    Image.new("L", (20, 20)).save("black.png")
    Image.new("L", (30, 20), 255).save("wide.png")
    before = sorted(tmp_path.rglob("*"))
    refused(cm3(*args), message)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "expected"), [("cm3 capt", {"caption"}), ("cm3 generate --guid", {"--guidance", "--guidance-schedule"})]
)
def test_the_shell_completes_commands_and_options(words: str, expected: set[str]):
    asked = {"_CM3_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    shell = [sys.executable, "-c", "import sys; sys.argv[0] = 'cm3'; from cm3.cli.main import main; main()"]
    out = subprocess.run(shell, env=os.environ | asked, capture_output=True, text=True, timeout=60, check=True).stdout
    assert set(out.split()) == expected


@pytest.mark.parametrize("args", [[], ["draw", "a"]])
def test_no_such_command(cm3, args: list[str]):
    refused(cm3(*args, model=False), "ommand")


def test_no_such_model(cm3):
    refused(cm3("info", "nothing", model=False), "there is no model 'nothing'")


def test_a_failed_save_keeps_the_old_file(cm3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "out.png").write_text("old")

    def full(self: Image.Image, file: Path, format: str, **_: Any) -> None:
        Path(file).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    for options in ([], ["--overwrite"]):
        refused(cm3("generate", "a red apple", *options), "No space left on device")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out.png", "old")]


@pytest.mark.parametrize(("n", "size"), [(1, (10, 10)), (2, (20, 10)), (3, (20, 20)), (5, (30, 20)), (64, (80, 80))])
def test_grid_is_about_square(n: int, size: tuple[int, int]):
    assert grid([Image.new("RGB", (5, 5))] * n, 2).size == size


@pytest.mark.parametrize(
    ("size", "shown"),
    [((64, 64), (256, 256)), ((5, 3), (80, 48)), ((128, 100), (256, 200)), ((129, 8), (129, 8)), ((800, 9), (800, 9))],
)
def test_only_small_images_are_enlarged(size: tuple[int, int], shown: tuple[int, int]):
    assert grid([Image.new("RGB", size)], 0).size == shown


def test_the_installed_command_prints_nothing_else(tiny_folder: Path, image: str, tmp_path: Path):
    command = [sys.executable, "-c", "from cm3.cli.main import main; main()", "caption", "--model", str(tiny_folder)]
    good = subprocess.run([*command, image], cwd=tmp_path, capture_output=True, text=True)
    assert (good.returncode, good.stderr) == (0, "")
    bad = subprocess.run([*command, "none.png"], cwd=tmp_path, capture_output=True, text=True)
    refused((bad.returncode, bad.stdout, bad.stderr), "none.png")


def test_the_limits_of_the_command_are_those_of_the_packages():
    from cm3.engine.options import Language, Structure
    from cm3.tasks.plan_words import AND
    from cm3.tokens.templates import LANGUAGES, TEMPLATES
    from tokenizer_image.pixels import MAX_PIXELS

    assert cli.MAX_PIXELS == MAX_PIXELS
    assert get_args(Language) == tuple(AND) and {*LANGUAGES} <= {*AND} and {*get_args(Structure)} <= {*TEMPLATES}
