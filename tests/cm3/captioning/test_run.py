"""Captions of folders and tables, by the command."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from captions import COLOURS, line, read, said, texts
from cm3 import CM3
from cm3.captioning.run import Tasks, caption_files, find
from cm3.captioning.sinks import NoSink, Result, TextFiles
from cm3.captioning.tables import ParquetTable, Table, open_table


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
