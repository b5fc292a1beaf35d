"""Captions for folders: what is found, written, skipped, and what a bad file or a stop leaves."""

import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
import pytest
from PIL import Image

from cm3 import CM3
from cm3.captioning import sinks as caption_sinks
from cm3.captioning.run import Tasks, caption_files, find
from cm3.captioning.sinks import NoSink, Result, TextFiles
from cm3.captioning.tables import ParquetTable, Table, open_table
from cm3.cli import main as cli

COLOURS = ("red", "green", "blue", "yellow", "black")


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


def said(tiny: CM3, *names: str, **options: Any) -> list[str]:
    return [line(text) for text in tiny.caption([f"in/{name}.png" for name in names], **options)]


def line(text: str) -> str:
    return " ".join(text.split())


def texts(folder: str = "in") -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in Path(folder).rglob("*.txt")}


def test_a_folder_gets_a_text_beside_each_image_and_the_next_run_has_nothing_to_do(cm3, tiny: CM3):
    code, out, err = cm3("in", "--batch", "3")
    names = ("blue", "green", "red", "yellow")
    captions = said(tiny, *names)
    assert code == 0 and err == "4 captioned, 0 skipped, 0 failed\n"
    assert out.splitlines() == [f"in/{name}.png: {text}" for name, text in zip(names, captions, strict=True)]
    assert texts() == {name: f"{text}\n" for name, text in zip(names, captions, strict=True)}
    Path("in/red.txt").write_text("mine\n")
    assert cm3("in", "-r") == (
        0,
        f"in/deep/black.png: {said(tiny, 'deep/black')[0]}\n",
        "1 captioned, 4 skipped, 0 failed\n",
    )
    assert texts()["red"] == "mine\n"


@pytest.mark.parametrize(
    ("existing", "wanted"),
    [("skip", "mine"), ("overwrite", "{}"), ("append", "mine, {}"), ("prepend", "{}, mine")],
)
def test_a_text_that_is_there_stays_is_replaced_or_joined(cm3, tiny: CM3, existing: str, wanted: str):
    Path("in/red.txt").write_text("mine\n")
    assert cm3("in/*.png", "--existing", existing)[0] == 0
    assert texts()["red"] == wanted.format(said(tiny, "red")[0]) + "\n"


def test_triggers_languages_and_questions(cm3, tiny: CM3):
    code, _, _ = cm3(
        "in", "--lang", "en", "--lang", "ar", "--question", "What is it?", "--prefix", "sks, ", "--suffix", ".", "-q"
    )
    english, arabic = said(tiny, "red")[0], said(tiny, "red", language="ar")[0]
    answer = line(tiny.answer("in/red.png", "What is it?"))
    assert code == 0
    assert texts()["red"] == f"sks, {english}.\nsks, {arabic}.\n{answer}\n"
    code, out, _ = cm3("in/red.png", "--question", "What is it?", "--question", "Where?", "--json")
    assert code == 0
    assert json.loads(out) == {
        "file": "in/red.png",
        "What is it?": answer,
        "Where?": line(tiny.answer("in/red.png", "Where?")),
    }
    assert cm3("in/red.png", "--long")[1] == said(tiny, "red", long=True)[0] + "\n"


def test_single_images_are_told_and_nothing_is_written(cm3, tiny: CM3):
    assert cm3("in/red.png") == (0, said(tiny, "red")[0] + "\n", "")
    assert texts() == {}
    assert cm3("in/red.png", "--extension", "caption")[0] == 0
    assert Path("in/red.caption").read_text() == said(tiny, "red")[0] + "\n"


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_table_grows_and_keeps_what_it_has(cm3, tiny: CM3, ending: str):
    out = f"in/metadata.{ending}"
    assert cm3("in/red.png", "in/blue.png", "--out", out)[0] == 0
    code, _, err = cm3("in", "-r", "--out", out)
    assert (code, err) == (0, "3 captioned, 2 skipped, 0 failed\n")
    rows = read(Path(out))
    order = ("red", "blue", "green", "yellow", "deep/black")
    if ending != "parquet":
        order = ("red", "blue", "deep/black", "green", "yellow")
    assert sorted(row["file_name"] for row in rows) == sorted(f"{name}.png" for name in order)
    for row in rows:
        assert row["text"] == said(tiny, row["file_name"].removesuffix(".png"))[0]


def read(path: Path) -> list[dict[str, str]]:
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_image_folder_reads_what_was_written(cm3, tiny: CM3, tmp_path: Path):
    assert cm3("in", "-r", "--out", "in/metadata.jsonl", "-q")[:2] == (0, "")
    rows: Any = datasets.load_dataset("imagefolder", data_dir="in", cache_dir=str(tmp_path / "cache"), split="train")
    assert sorted(row["text"] for row in rows) == sorted(said(tiny, *COLOURS[:4], "deep/black"))


def test_datasets_map_captions_a_column_of_images(tiny: CM3):
    images = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "green")]
    column = datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())
    told = column.map(lambda batch: {"text": tiny.caption(batch["image"])}, batched=True, batch_size=2)
    assert told["text"][:] == tiny.caption(images)


def test_a_table_cut_off_in_a_line_goes_on(cm3):
    assert cm3("in", "--out", "a.jsonl")[0] == 0
    whole = Path("a.jsonl").read_text()
    Path("a.jsonl").write_text(whole[: len(whole) - 9])
    code, _, err = cm3("in", "--out", "a.jsonl")
    assert (code, err) == (0, "1 captioned, 3 skipped, 0 failed\n")
    assert sorted(Path("a.jsonl").read_text().splitlines()) == sorted(whole.splitlines())


def test_names_come_from_lists_lines_and_patterns(cm3, tmp_path: Path):
    Path("list.txt").write_text("in/red.png\n\n in/blue.png \n")
    names = [line.partition(":")[0] for line in cm3("@list.txt", "in/*n.png", "in/red.png")[1].splitlines()]
    assert names == ["in/red.png", "in/blue.png", "in/green.png"]
    assert cm3("-", "--existing", "overwrite", stdin="in/green.png\nin/red.png\n")[1].count("\n") == 2
    deep = [path.name for path in find(["in/**/*.png"], False, io.StringIO())]
    assert sorted(deep) == sorted(f"{colour}.png" for colour in COLOURS)


def test_a_bad_file_is_named_and_counted_and_the_others_go_on(cm3, tiny: CM3):
    Path("in/bad.png").write_bytes(b"no image")
    Path("list.txt").write_text("in/red.png\nin/none.png\nin/bad.png\nin/blue.png")
    code, out, err = cm3("@list.txt")
    assert code == 1
    assert out.count("\n") == 2
    assert "cm3: in/none.png: " in err and "cm3: in/bad.png: " in err
    assert err.endswith("2 captioned, 0 skipped, 2 failed\n")
    assert set(texts()) == {"red", "blue"}
    code, out, err = cm3("in/bad.png")
    assert (code, out) == (1, "") and err.startswith("cm3: in/bad.png: not an image; give one of")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["none"], "none"),
        (["in", "--lang", "fr"], "language is 'fr', but must be one of en, ar"),
        (["in/*.gif"], "in/*.gif: there are no images"),
        (["@none.txt"], "none.txt: no list of images can be read"),
        (["in", "--out", "a.xlsx"], "a.xlsx: the name of a table must end with one of .jsonl, .csv, .parquet"),
        (["in", "--out", "a.csv", "--extension", ".txt"], "give one of them"),
        (["in", "--out", "none/a.csv"], "there is no folder none"),
        (["in", "--out", "a.csv", "--existing", "append"], "--existing append joins texts in files"),
        (["in", "--extension", "a/b"], "must be the ending of a name"),
        (["in", "--question", " "], "the question is empty"),
        (["in", "--out", "in/notes.jsonl"], "no such table can be read"),
        (["in", "--out", "in/others.csv"], "has the columns a, b, not file_name, text"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_and_nothing_is_touched(cm3, args: list[str], message: str):
    Path("in/notes.jsonl").write_text("{no json}\n")
    Path("in/others.csv").write_text("a,b\n1,2\n")
    before = sorted(Path().rglob("*"))
    code, out, err = cm3(*args)
    assert (code, out) == (2, "")
    assert err.startswith("cm3: ") and err.count("\n") == 1 and message in err
    assert sorted(Path().rglob("*")) == before
    assert Path("in/others.csv").read_text() == "a,b\n1,2\n"


class Stopped(NoSink):
    def __init__(self, inner: TextFiles | Table | ParquetTable, after: int) -> None:
        self.inner, self.left = inner, after

    def has(self, path: Path) -> bool:
        return self.inner.has(path)

    def add(self, told: Result) -> None:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.inner.add(told)

    def close(self) -> None:
        self.inner.close()


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".csv", ".parquet"])
def test_ctrl_c_loses_nothing(cm3, tiny: CM3, kind: str, monkeypatch: pytest.MonkeyPatch):
    made: list[Stopped] = []

    def sink_of(asks: Tasks, *_: Any) -> Stopped:
        inner = TextFiles(".txt", "skip") if kind == ".txt" else open_table(Path(f"a{kind}"), asks.columns, "skip")
        made.append(Stopped(inner, 3))
        return made[-1]

    monkeypatch.setattr("cm3.cli.caption.sink_of", sink_of)
    code, _, err = cm3("in", "--batch", "2")
    assert code == 130 and err == "cm3: stopped\n"
    written = texts().values() if kind == ".txt" else read(Path(f"a{kind}"))
    assert len(written) == 3
    code, out, _ = cm3("in", "--batch", "2")
    assert code == 0 and out.count("\n") == 1  # the fourth


def test_images_are_opened_a_batch_ahead_and_no_more(tiny: CM3, cm3, monkeypatch: pytest.MonkeyPatch):
    taken: list[Path] = []

    def endless() -> Iterator[Path]:
        while True:
            taken.append(Path("in/red.png"))
            yield taken[-1]

    run = caption_files(tiny, endless(), NoSink(), Tasks(), batch=4)
    first = [next(run) for _ in range(4)]
    assert len({told.texts["text"] for told in first}) == 1 and len(taken) == 8
    next(run)
    assert len(taken) == 12
    run.close()


def test_a_text_that_cannot_be_written_is_told(tiny: CM3, cm3, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caption_sinks, "write_whole", full)
    code, out, err = cm3("in/red.png", "in/blue.png", "--extension", "txt")
    assert (code, out) == (1, "")
    assert err == "".join(
        f"cm3: in/{name}.png: its text cannot be written (No space left on device)\n" for name in ("red", "blue")
    )


@pytest.mark.parametrize("existing", ["skip", "overwrite", "append"])
@pytest.mark.parametrize("ending", [".png", "JPG", ".webp"])
def test_an_ending_of_images_is_refused_and_the_images_stay(cm3, ending: str, existing: str):
    Path("in/red.jpg").write_bytes(Path("in/red.png").read_bytes())
    before = {path: path.read_bytes() for path in Path("in").rglob("*.*")}
    code, out, err = cm3("in", "--extension", ending, "--existing", existing)
    assert (code, out) == (2, "") and err.count("\n") == 1 and "images are never written over" in err
    assert {path: path.read_bytes() for path in Path("in").rglob("*.*")} == before


@pytest.mark.parametrize("existing", ["overwrite", "append", "prepend"])
def test_a_list_and_an_image_under_the_name_of_a_text_are_not_written_over(cm3, existing: str):
    Path("in/red.txt").write_text("in/red.png\nin/blue.png\nin/green.png\n")
    Path("in/blue.txt").write_bytes(Path("in/blue.png").read_bytes())
    code, out, err = cm3("@in/red.txt", "--existing", existing)
    assert code == 1 and out.startswith("in/green.png: ") and out.count("\n") == 1
    assert "cm3: in/red.png: its text cannot be written (in/red.txt is a file that this run reads" in err
    assert "cm3: in/blue.png: its text cannot be written (in/blue.txt is an image" in err
    assert err.endswith("1 captioned, 0 skipped, 2 failed\n")
    assert Path("in/red.txt").read_text() == "in/red.png\nin/blue.png\nin/green.png\n"
    assert Path("in/blue.txt").read_bytes() == Path("in/blue.png").read_bytes()
    Path("list.csv").write_text("in/red.png\n")
    code, _, err = cm3("@list.csv", "--out", "list.csv", "--existing", "overwrite")
    assert code == 2 and "list.csv is a file that this run reads" in err
    assert Path("list.csv").read_text() == "in/red.png\n"


def test_the_files_of_the_model_are_not_written_over(cm3, tiny_folder: Path, tmp_path: Path):
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    for name in ("config", "image_tokenizer/config"):
        shutil.copy("in/red.png", model / f"{name}.png")
    before = {path: path.read_bytes() for path in model.rglob("*.json")}
    code, _, err = cm3("model", "-r", "--extension", ".json", "--existing", "overwrite", "--model", "model")
    assert code == 1 and err.endswith("0 captioned, 0 skipped, 2 failed\n")
    assert {path: path.read_bytes() for path in model.rglob("*.json")} == before


def unnamed(folder: str = "in") -> Path:
    """An image whose name is in Latin-1."""
    path = Path(folder, os.fsdecode("café.png".encode("latin-1")))
    shutil.copy("in/red.png", path)
    return path


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_name_that_is_not_utf_8_is_counted_and_the_others_are_written(cm3, ending: str):
    unnamed()
    code, out, err = cm3("in", "-r", "--out", f"in/metadata.{ending}")
    assert code == 1 and out.count("\n") == 5
    assert "caf\\udce9.png: its text cannot be written (its name is not in UTF-8" in escaped(err)
    assert err.endswith("5 captioned, 0 skipped, 1 failed\n")
    assert len(read(Path(f"in/metadata.{ending}"))) == 5


def escaped(words: str) -> str:
    """As the command's streams write it."""
    return words.encode(errors="backslashreplace").decode()


def test_names_that_are_not_utf_8_come_from_lists_and_stdin(cm3):
    path = unnamed()
    Path("list.txt").write_bytes(os.fsencode(path) + b"\nin/blue.png\n")
    assert cm3("@list.txt")[0] == 0
    assert path.with_suffix(".txt").exists() and "blue" in texts()
    code, _, err = cm3("-", "--existing", "overwrite", stdin=f"{path}\nin/blue.png\n")
    assert (code, err) == (0, "2 captioned, 0 skipped, 0 failed\n")


@pytest.mark.parametrize("existing", ["append", "prepend"])
def test_a_text_in_another_encoding_is_counted_and_the_others_go_on(cm3, existing: str):
    Path("in/green.txt").write_bytes("café".encode("latin-1"))
    code, out, err = cm3("in", "--existing", existing)
    assert code == 1 and out.count("\n") == 3
    assert "cm3: in/green.png: its text cannot be written (green.txt is not in UTF-8" in err
    assert err.endswith("3 captioned, 0 skipped, 1 failed\n")
    assert Path("in/green.txt").read_bytes() == "café".encode("latin-1")


def test_two_images_that_would_share_a_text_are_told_and_a_table_has_both(cm3, tiny: CM3):
    Path("in/red.jpg").write_bytes(Path("in/blue.png").read_bytes())
    for skipped in (0, 4):
        code, _, err = cm3("in")
        assert code == 1 and err.endswith(f"{4 - skipped} captioned, {skipped} skipped, 1 failed\n")
        assert "in/red.png: its text cannot be written (red.txt is the text of red.jpg already: rename one" in err
        assert "or write a table with --out" in err
    assert texts()["red"] == said(tiny, "blue")[0] + "\n"
    assert cm3("in", "--out", "a.jsonl")[0] == 0
    assert {"in/red.jpg", "in/red.png"} <= {row["file_name"] for row in read(Path("a.jsonl"))}


def test_a_full_disk_ends_the_run_in_one_line(cm3, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path, _: str) -> None:
        tried.append(path.name)
        raise OSError(28, "No space left on device")

    tried: list[str] = []
    for i in range(20):
        shutil.copy("in/red.png", f"in/{i:02}.png")
    monkeypatch.setattr(caption_sinks, "write_whole", full)
    code, out, err = cm3("in", "--batch", "2")
    assert (code, out, tried) == (2, "", ["00.txt", "01.txt", "02.txt"])
    assert err.splitlines()[-1] == (
        "cm3: in/02.png: its text cannot be written (No space left on device), nor could the 2 before it: the run "
        "stops; make room, and run the same command again"
    )


def test_failures_to_write_that_are_not_in_a_row_end_nothing(cm3, monkeypatch: pytest.MonkeyPatch):
    def now_and_then(path: Path, text: str) -> None:
        if path.stem != "03":
            raise OSError(28, "No space left on device")

    for i in range(6):
        shutil.copy("in/red.png", f"{i:02}.png")
    monkeypatch.setattr(caption_sinks, "write_whole", now_and_then)
    code, _, err = cm3("01.png", "02.png", "03.png", "04.png", "05.png", "--extension", "txt")
    assert code == 1 and err.count("cannot be written") == 4


def test_a_name_of_several_lines_is_printed_in_one(cm3):
    shutil.copy("in/red.png", "in/a\nb\x1b[2Jc.png")
    Path("in/d\ne.png").write_bytes(b"no image")
    code, out, err = cm3("in")
    assert code == 1 and out.count("\n") == 5 and err.count("\n") == 2
    assert "in/a\\nb\\x1b[2Jc.png: " in out and "cm3: in/d\\ne.png: not an image" in err


def test_a_model_that_is_not_there_costs_no_table(cm3):
    assert cm3("in", "--out", "a.jsonl")[0] == 0
    before = Path("a.jsonl").read_text()
    assert cm3("in", "--out", "a.jsonl", "--existing", "overwrite", "--model", "none")[0] == 2
    assert Path("a.jsonl").read_text() == before


def test_a_prefix_that_is_no_text_is_refused(cm3):
    code, out, err = cm3("in", "--prefix", "\udcff")
    assert (code, out) == (2, "") and "is not in UTF-8, as texts must be" in err
