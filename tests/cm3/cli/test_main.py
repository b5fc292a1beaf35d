"""The `cm3` command, run in this process: what it prints, writes and returns."""

import inspect
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from PIL import Image

from cm3 import CM3
from cm3.cli import draw as cli_draw
from cm3.cli import main as cli
from cm3.cli.files import grid, places_for
from cm3.engine.options import GenerateOptions
from cm3.serving.schemas import Generation
from cm3.tasks.known_words import KnownWords
from models import build


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


def refused(result: tuple[int, str, str], message: str) -> None:
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("cm3: ")
    assert err.count("\n") == 1
    assert message in err


def test_generate_saves_one_grid_and_prints_its_path(cm3, tmp_path: Path):
    assert cm3("generate", "a red apple", "-n", "3", "-o", "apple.png", "--scale", "2") == (0, "apple.png\n", "")
    assert Image.open("apple.png").size == (64, 64)
    assert [path.name for path in tmp_path.iterdir()] == ["apple.png"]


def test_generate_gives_the_same_file_for_the_same_seed(cm3):
    for name in ("a.png", "b.png"):
        cm3("generate", "a red apple", "--seed", "5", "-o", name)
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_without_a_seed_any_is_taken_and_told(tiny_folder: Path, cm3, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(cli_draw.secrets, "randbits", lambda _: 77)
    monkeypatch.setattr(sys, "argv", ["cm3", "generate", "a cat", "-o", "a.png", "--model", str(tiny_folder)])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr() == ("a.png\n", "seed 77\n")
    cm3("generate", "a cat", "-o", "b.png", "--seed", "77")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_a_file_that_is_there_stays_and_a_number_is_added(cm3, image: str, mask: str):
    commands = [
        ["generate", "a cat", "-n", "1"],
        ["infill", image, mask],
        ["edit", image, "make it blue"],
        ["tour"],
    ]
    Path("out.png").write_text("mine")
    for number, command in enumerate(commands, 1):
        code, out, err = cm3(*command)
        assert (code, out.splitlines()[-1].removeprefix("images:   "), err) == (0, f"out-{number}.png", "")
    assert len({Path(f"out-{number}.png").read_bytes() for number in (1, 2, 3, 4)}) == 4
    assert Path("out.png").read_text() == "mine"
    for command in commands:
        Path("out.png").write_text("mine")
        assert cm3(*command, "--overwrite")[1].splitlines()[-1].removeprefix("images:   ") == "out.png"
        assert Image.open("out.png").format == "PNG"


def test_files_of_one_run_get_one_number(cm3):
    Path("a_1.png").write_text("mine")
    Path("a_0-1.png").write_text("mine too")
    code, out, _ = cm3("generate", "a cat", "-n", "2", "-o", "a_{i}.png", "--json")
    assert code == 0 and json.loads(out)["files"] == ["a_0-2.png", "a_1-2.png"]
    assert sorted(map(str, Path().glob("a_*"))) == ["a_0-1.png", "a_0-2.png", "a_1-2.png", "a_1.png"]


def test_two_runs_at_once_do_not_take_one_name(tmp_path: Path):
    names = [tmp_path / "out.png"]
    with places_for(names, overwrite=False) as first, places_for(names, overwrite=False) as second:
        assert (first, second) == (names, [tmp_path / "out-1.png"])
        second[0].write_text("drawn")
    assert [path.name for path in tmp_path.iterdir()] == ["out-1.png"]  # nothing was written to the first


def test_a_name_of_several_lines_is_printed_in_one(cm3):
    assert cm3("generate", "a cat", "-n", "1", "-o", "a\nb.png")[1] == "a\\nb.png\n"


def test_tour_takes_a_device(cm3):
    assert cm3("tour", "--device", "cpu")[0] == 0
    refused(cm3("tour", "--device", "cupboard"), "cupboard")


def test_each_image_in_its_own_file_says_how_it_was_made(cm3, tiny: CM3, tiny_folder: Path):
    code, out, err = cm3("generate", "تفاحة", "-n", "2", "-o", "out_{i}.png", "--scale", "1", "--seed", "9")
    assert (code, out, err) == (0, "out_0.png\nout_1.png\n", "")
    for i, wanted in enumerate(tiny.generate("تفاحة", n=2, seed=9)):
        saved: Any = Image.open(f"out_{i}.png")
        assert saved.tobytes() == wanted.tobytes()
        assert saved.text["prompt"] == "تفاحة" and saved.text["seed"] == "9"
        assert saved.text["model"] == str(tiny_folder) and saved.text["software"].startswith("cm3 ")


def test_what_was_drawn_is_told_as_json_or_not_at_all(cm3, tiny_folder: Path):
    out = cm3("generate", "a cat", "--json", "--seed", "3")[1]
    assert json.loads(out) == {"files": ["out.png"], "seed": 3, "prompt": "a cat", "model": str(tiny_folder)}
    assert cm3("generate", "a cat", "-q") == (0, "", "")


def test_a_prompt_may_come_from_stdin(cm3, tiny: CM3, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a red apple\n"))
    assert cm3("generate", "-", "-n", "1", "--scale", "1")[0] == 0
    assert Image.open("out.png").tobytes() == tiny.generate("a red apple", n=1)[0].tobytes()


def test_several_images_are_edited_into_as_many_files(cm3, tiny: CM3, image: str):
    Image.new("RGB", (20, 20), "blue").save("blue.png")
    assert cm3("edit", image, "blue.png", "make it green", "-o", "out_{i}.png")[1] == "out_0.png\nout_1.png\n"
    for i, edited in enumerate(tiny.edit([image, "blue.png"], "make it green")):
        assert Image.open(f"out_{i}.png").tobytes() == edited.tobytes()
    refused(cm3("edit", image, "blue.png", "make it green"), "2 images need as many names: put {i} into that of -o")


def test_several_questions_have_a_line_each(cm3, tiny: CM3, image: str):
    questions = ["What is this?", "What colour is it?"]
    assert cm3("ask", image, *questions)[1] == "".join(f"{tiny.answer(image, one)}\n" for one in questions)


def test_generate_is_what_the_pipeline_draws(cm3, tiny: CM3, image: str):
    boxes = [("a cat", (0.1, 0.2, 0.5, 0.9)), ("a dog", (0.6, 0.2, 0.9, 0.9))]
    args = ["--box", "a cat 0.1 0.2 0.5 0.9", "--box", " a dog  .6 .2 .9 .9 ", "--decoding", "both"]
    more = ["--structure", image, "--kind", "segments", "-n", "2", "--scale", "1"]
    assert cm3("generate", *args, *more)[0] == 0
    drawn = tiny.generate("", n=2, decoding="both", boxes=boxes, structure=image, kind="segments")
    assert Image.open("out.png").tobytes() == grid(drawn, 1).tobytes()


@pytest.fixture
def taught(tiny: CM3, tmp_path: Path) -> str:
    """A folder of the tiny model that has names."""
    known = KnownWords(["mouse", "a"], ["a mouse"])
    model = CM3(tiny.model, tiny.text_tokenizer, tiny.image_tokenizer, known_words=known)
    model.save_pretrained(tmp_path / "taught")
    return str(tmp_path / "taught")


def test_words_are_put_as_the_model_reads_them_shown_and_left_as_they_are(
    cm3, tiny: CM3, taught: str, image: str, mask: str
):
    tail = ["--model", taught, "--seed", "0", "--scale", "1", "--overwrite"]
    drawn = [
        (["generate", "MICE!", "-n", "1"], ["generate", "a mouse"], ["generate", "MICE!"]),
        (["infill", image, mask, "MICE!"], ["infill", image, mask, "a mouse"], ["infill", image, mask, "MICE!"]),
        (["edit", image, "MICE!"], ["edit", image, "a mouse"], ["edit", image, "MICE!"]),
    ]
    for command, put, plain in drawn:
        for more, (task, *args), read in (((), put, "a mouse"), (("--no-normalise",), plain, "MICE!")):
            assert cm3(*command, *more, *tail, model=False)[0] == 0
            expected = getattr(tiny, task)(*args)
            expected = expected[0] if isinstance(expected, list) else expected
            assert Image.open("out.png").tobytes() == expected.tobytes(), (command, more)
            said = cm3(*command, "--verbose", *more, *tail, model=False)[2]
            assert f"the model reads: {read}\n" in said
    assert "never read MICE" not in cm3("generate", "MICE!", *tail, model=False)[2]
    assert "never read mice" in cm3("generate", "MICE!", "--no-normalise", *tail, model=False)[2]
    args = ["generate", "", "--box", "MICE 0 0 1 1", "--negative", "Mice", "--verbose"]
    assert cm3(*args, *tail, model=False)[2].count("the model reads: a mouse\n") == 2


def test_each_face_draws_as_many_candidates_by_default():
    for face in (CM3.generate, cli_draw.generate, cli_draw.tour):
        assert inspect.signature(face).parameters["best_of"].default == GenerateOptions.best_of, face
    assert Generation.model_fields["best_of"].default == GenerateOptions.best_of


def test_infill_saves_the_image_at_its_size(cm3, tiny: CM3, image: str, mask: str):
    assert cm3("infill", image, mask, "-o", "a.png") == (0, "a.png\n", "")
    assert Image.open("a.png").tobytes() == tiny.infill(image, mask)[0].tobytes()
    args = ["a cat", "-n", "2", "--seed", "5", "--guidance", "2", "--temperature", "1", "--top-k", "9", "--scale", "1"]
    assert cm3("infill", image, mask, *args)[0] == 0
    expected = tiny.infill(image, mask, "a cat", n=2, seed=5, guidance=2, temperature=1, top_k=9)
    assert Image.open("out.png").tobytes() == grid(expected, 1).tobytes()


def test_edit_saves_the_image_as_it_is_changed(cm3, tiny: CM3, image: str):
    args = ["make it blue", "--seed", "5", "--image-guidance", "2", "--text-guidance", "4", "--top-p", "0.5"]
    args += ["--keep", "0.5"]
    assert cm3("edit", image, *args, "-o", "a.png") == (0, "a.png\n", "")
    expected = tiny.edit(image, "make it blue", seed=5, image_guidance=2, text_guidance=4, top_p=0.5, keep=0.5)
    assert Image.open("a.png").tobytes() == expected.tobytes()
    assert Image.open("a.png").size == Image.open(image).size
    assert cm3("edit", image, *args, "--scale", "3")[0] == 0
    assert Image.open("out.png").tobytes() == grid([expected], 3).tobytes()
    assert cm3("edit", image, *args, "--scale", "0", "--overwrite")[0] == 0
    assert Image.open("out.png").tobytes() == grid([expected], 0).tobytes()


@pytest.mark.parametrize(("name", "mode"), [("a.png", "RGBA"), ("a.webp", "RGBA"), ("a.jpg", "RGB")])
def test_infill_and_edit_keep_transparency_where_the_format_can(cm3, mask: str, name: str, mode: str):
    Image.new("RGBA", (60, 20), (200, 30, 30, 99)).save("clear.png")
    dot = Image.new("L", (60, 20))
    dot.putpixel((30, 10), 255)
    dot.save("dot.png")
    for command in (["infill", "clear.png", "dot.png"], ["edit", "clear.png", "make it blue"]):
        assert cm3(*command, "-o", name, "--overwrite")[0] == 0
        saved = Image.open(name)
        assert (saved.mode, saved.size) == (mode, (60, 20))
        if mode == "RGBA":
            assert saved.getchannel("A").getextrema() == (99, 255)


def test_ask_prints_the_answer(cm3, image: str):
    code, out, err = cm3("ask", image, "What is this?")
    assert (code, err) == (0, "")
    assert out.endswith("\n")


def test_info_reckons_the_memory_of_a_batch(cm3, tiny_folder: Path):
    def megabytes(batch: int) -> float:
        code, out, err = cm3("info", str(tiny_folder), "--batch", str(batch), model=False)
        assert (code, err) == (0, "")
        said = re.search(rf"draw {batch},\s.*?([\d,]+) MB at", out.replace("\n", " "))
        assert said
        return float(said[1].replace(",", ""))

    assert megabytes(10000) > 50 * megabytes(100) > 0


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_info_says_of_the_files_what_the_loaded_model_is(cm3, tiny: CM3, tmp_path: Path, tied: bool, dtype: str):
    model = build(tie_word_embeddings=tied, image_grid=tiny.grid).to(getattr(torch, dtype))
    CM3(model, tiny.text_tokenizer, tiny.image_tokenizer).save_pretrained(tmp_path / "model")
    loaded = CM3.from_pretrained(tmp_path / "model", device="cpu")
    out = cm3("info", str(tmp_path / "model"), model=False)[1]
    assert re.search(rf"parameters\W+{loaded.model.num_parameters():,}\s", out)
    assert re.search(rf"precision, device\W+{loaded.model.dtype}".replace("torch.", ""), out)
    assert re.search(rf"context\W+{loaded.context:,} tokens", out)


def test_info_names_the_parts_of_the_vocabulary(cm3, tiny_folder: Path):
    code, out, err = cm3("info", str(tiny_folder), model=False)
    assert (code, err) == (0, "")
    assert "416 = 64 special + 320 text + 32 image codes" in out
    assert "16 tokens, 4 x 4" in out
    assert re.search(r"scorer, for --best-of\W+none", out)


def test_tour_draws_captions_asks_and_prints_where_the_images_are(cm3):
    code, out, err = cm3("tour", "a \udc80 <break> تفاحة")
    assert (code, err) == (0, "")
    assert [line.split(":")[0] for line in out.splitlines()][0] == "prompt"
    assert out.endswith("images:   out.png\n")
    assert Image.open("out.png").size == (512, 512)


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
    from cm3.tokens.templates import LANGUAGES, STRUCTURES
    from tokenizer_image.pixels import MAX_PIXELS

    assert cli.MAX_PIXELS == MAX_PIXELS
    assert get_args(Language) == tuple(AND) and {*LANGUAGES} <= {*AND} and {*get_args(Structure)} == {*STRUCTURES}
