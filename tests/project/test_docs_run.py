"""What the documentation shows runs: every page from top to bottom, in a folder as its reader may have it.

"emoji" is a tiny model of random weights here, whose every task runs at once; `make test-slow` takes the embedded one.
"""

import importlib.util
import io
import re
import shlex
import socket
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
import uvicorn
from PIL import Image

from checkout import ROOT
from cm3 import CM3
from cm3.cli import main as cli
from cm3.hf import model_folder as model_files
from cm3.model.scorer import Scorer, ScorerConfig
from cm3.serving.app import make_app
from cm3.tasks.known_words import KnownWords
from demo.app import serve
from demo.page import build
from pages import PAGES, Block, blocks

# Not on this machine: engines of others, weights that are fetched or trained first, and what serves or installs.
PACKAGES = ("vllm", "ray")
ELSEWHERE = re.compile(r"Anole|chameleon|--model anole|--install-completion|^cm3 serve|^make |^pip ")
PYTHON = {page.relative_to(ROOT).as_posix(): page for page in PAGES if any(b.kind == "python" for b in blocks(page))}


def embedded_like(tiny_folder: Path, tokenizer: str, place: Path) -> Path:
    """The tiny model with a scorer and words, where the embedded models lie."""
    bare = CM3.from_pretrained(tiny_folder, device="cpu")
    words = KnownWords(["a cat"])
    model = CM3(bare.model, bare.text_tokenizer, bare.image_tokenizer, known_words=words)
    marks = model.text_tokenizer.fingerprint(), model.image_tokenizer.fingerprint()
    config = ScorerConfig(len(model.text_tokenizer), 32, model.grid, 8, 16, 1, 1, 2, 32, 12, 1, 8, *marks)
    model.scorer = Scorer(config).eval()
    model.save_pretrained(place / tokenizer)
    return place


@pytest.fixture(scope="module")
def models(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedded_like(tiny_folder, "emoji", tmp_path_factory.mktemp("embedded"))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: images by the names that the pages give them, and the data sample."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sample").symlink_to(ROOT / "data" / "sample")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    lay_images(16)
    Path("list.txt").write_text("in/0.png\nin/1.png\n")
    return tmp_path


def lay_images(side: int) -> None:
    """As large as the model's own, and a wide one."""
    half = Image.new("L", (side, side))
    half.paste(255, (0, 0, side // 2, side))
    half.save("mask.png")
    Image.new("RGB", (3 * side, side), "red").save("wide.jpg")
    for name in ("image.png", "other.png", "mine.png", "apple.png"):
        Image.new("RGB", (side, side), "red").save(name)
    for folder in ("in", "images"):
        Path(folder).mkdir(exist_ok=True)
        for i, colour in enumerate(("red", "green", "blue")):
            Image.new("RGB", (side, side), colour).save(Path(folder) / f"{i}.png")


@pytest.fixture
def tiny_emoji(models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(model_files, "EMBEDDED", models)
    return models / "emoji"


def test_pages_are_taken_apart_as_they_are_read(tmp_path: Path):
    assert {"README.md", "docs/quickstart.md", "docs/training.md", "docs/server.md", "docs/page.md"} <= PYTHON.keys()
    training = blocks(ROOT / "docs" / "training.md")
    assert [block.kind for block in training[:5]] == ["shell", "shell", "shell", "python", "shell"]
    assert training[2].code == 'cm3 generate "a cat" --model runs/mine/model'
    readme = [block.code for block in blocks(ROOT / "README.md")]
    assert "cm3 serve" in readme and "make test" in readme
    assert 'cm3 tour "a yellow taxi"' in [block.code for block in blocks(ROOT / "docs" / "cli.md")]


@contextmanager
def serving(model: CM3) -> Iterator[int]:
    """`cm3 serve` on a port of its own."""
    server = uvicorn.Server(uvicorn.Config(make_app(model, "emoji"), log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as one:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [one]}, daemon=True)
        thread.start()
        try:
            yield one.getsockname()[1]  # connections wait in its queue until it has started
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def page_of(model: CM3) -> Iterator[int]:
    """The page on a port of its own."""
    page = build(model)
    try:
        yield int(serve(page, prevent_thread_lock=True, quiet=True)[1].rstrip("/").rpartition(":")[2])
    finally:
        page.close()


def run_python(page: str, folder: Path) -> int:
    """Run the Python blocks of a page in one namespace. Returns how many need PACKAGES and were compiled only."""
    names: dict[str, Any] = {"folder": folder, "__name__": page}
    left_out = 0
    with ExitStack() as stack:
        for block in blocks(PYTHON[page]):
            if block.kind != "python":
                continue
            code = block.code
            for port, service in ((":8000/", serving), (":7860", page_of)):
                if port in code:
                    here = stack.enter_context(service(CM3.from_pretrained("emoji", device="cpu")))
                    code = code.replace(port, port.replace(port.strip(":/"), str(here)))
            compiled = compile(code, block.place, "exec")
            imported = re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)
            if any(name in PACKAGES and importlib.util.find_spec(name) is None for name in imported):
                left_out += 1
                continue
            exec(compiled, names)
    return left_out


@pytest.mark.parametrize("page", PYTHON)
def test_the_python_of_a_page_runs(page: str, desk: Path, tiny_emoji: Path):
    left_out = run_python(page, tiny_emoji)
    assert not left_out or page == "docs/transformers.md"


@pytest.mark.slow
@pytest.mark.parametrize("page", PYTHON)
def test_the_python_of_a_page_runs_with_the_embedded_model(page: str, desk: Path):
    model = CM3.from_pretrained("emoji", device="cpu")
    model.save_pretrained(desk / "saved")
    lay_images(model.image_tokenizer.size[0])
    run_python(page, desk / "saved")


def run_cm3(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


COMMANDS = [
    block
    for page in PAGES
    for block in blocks(page)
    if re.search(r"(^|\| )cm3 ", block.code) and not ELSEWHERE.search(block.code) and "runs/" not in block.code
]


@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: block.code)
def test_a_command_of_a_page_runs(
    block: Block, desk: Path, tiny_emoji: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    before, _, command = block.code.rpartition("| ")
    if before:
        lines = "".join(f"{path}\n" for path in sorted(Path().glob("in/*.png")))  # what `find` prints
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    code = run_cm3(shlex.split(command), monkeypatch)
    assert code == 0, capsys.readouterr().err


def call(line: str, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    """A command of train/ in this process."""
    words = shlex.split(line)
    if words[0] == "cm3":
        assert run_cm3(words, monkeypatch) == 0
        return
    assert words[:2] == ["python", "-m"]
    app = typer.Typer(add_completion=False)
    app.command()(importlib.import_module(words[2]).main)
    app([*words[3:], *more], standalone_mode=False)


def section(title: str) -> list[Block]:
    page = ROOT / "docs" / "training.md"
    text = page.read_text(encoding="utf-8")
    start = text[: text.index(f"## {title}")].count("\n") + 1
    end = start + text[text.index(f"## {title}") :].split("\n## ")[0].count("\n")
    return [block for block in blocks(page) if start < int(block.place.rpartition(":")[2]) <= end]


def run_section(title: str, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...] = ()) -> None:
    for block in section(title):
        if block.kind == "python":
            exec(compile(block.code, block.place, "exec"), {})
        else:
            call(block.code, monkeypatch, *(settings if "train.lm" in block.code else ()))


def test_a_real_folder_is_prepared_learnt_and_captioned_as_the_page_says(
    desk: Path, tiny_emoji: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """With the tiny model, a few of the drawings, and two steps in place of 150."""
    (desk / "data" / "sample").unlink()
    keep_few(ROOT / "data" / "sample" / "train", desk / "data" / "sample" / "train", "noto_1f422")
    run_section("On a real folder", monkeypatch, ("steps=2", "optim.warmup_steps=1", "data.seq_len=128"))
    assert (desk / "page.png").is_file() and (desk / "runs" / "mine" / "adapter").is_dir()
    assert len(list((desk / "my_images").glob("*.png"))) == 12
    assert capsys.readouterr().out.strip()


def keep_few(split: Path, out: Path, wanted: str, count: int = 12) -> None:
    """Some of the samples of a split, the wanted one among them."""
    out.mkdir(parents=True)
    with tarfile.open(split / "shard-00000.tar") as tar, tarfile.open(out / "shard-00000.tar", "w") as few:
        keys = list(dict.fromkeys(member.name.partition(".")[0] for member in tar))
        kept = {wanted, *[key for key in keys if key != wanted][: count - 1]}
        for member in tar:
            if member.name.partition(".")[0] in kept:
                few.addfile(member, tar.extractfile(member))


@pytest.mark.slow
def test_a_real_folder_is_learnt_with_the_embedded_model_as_the_page_says(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run_section("On a real folder", monkeypatch)
    assert capsys.readouterr().out.splitlines()[-1] == "turtle in the noto style"
