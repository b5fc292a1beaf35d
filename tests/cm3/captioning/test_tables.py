"""Tables of captions: what a kill, a full disk and a damaged last line leave, and what is held in memory."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Generator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from cm3.captioning import tables as caption_tables
from cm3.captioning.sinks import Existing, Result
from cm3.captioning.tables import TABLES, Table, open_table
from cm3.files import whole

ROWS = {"a.png": 'a "red" apple, cut', "b, c.png": "تفاحة", "d\ne.png": "a cat", "f.png": "the last"}


def told(folder: Path, name: str) -> Result:
    return Result(folder / name, {"text": ROWS[name]})


def written(path: Path, names: list[str], existing: Existing = "skip") -> Path:
    sink = open_table(path, ["text"], existing)
    for name in names:
        sink.add(told(path.parent, name))
    sink.close()
    return path


def rows(path: Path) -> dict[str, str]:
    """By file_name, each once; as other programs read them."""
    if path.suffix == ".parquet":
        found = pyarrow.parquet.read_table(path).to_pylist()
    elif path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            found = list(csv.DictReader(file, strict=True))
    else:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({row["file_name"] for row in found}) == len(found)
    return {row["file_name"]: row["text"] for row in found}


@pytest.mark.parametrize("kind", TABLES)
def test_a_second_run_adds_what_is_missing_and_a_third_touches_nothing(tmp_path: Path, kind: str):
    path = written(tmp_path / f"t{kind}", list(ROWS)[:2])
    sink = open_table(path, ["text"], "skip")
    assert [sink.has(tmp_path / name) for name in ROWS] == [True, True, False, False]
    sink.close()
    written(path, list(ROWS)[2:])
    assert rows(path) == ROWS
    before = path.stat()
    written(path, [])
    assert path.stat() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", [".jsonl", ".csv"])
def test_a_last_line_that_was_cut_off_anywhere_is_dropped_and_told_anew(tmp_path: Path, kind: str):
    path = written(tmp_path / f"t{kind}", list(ROWS))
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last, len(whole)):
        path.write_bytes(whole[:cut])
        sink = open_table(path, ["text"], "skip")
        missing = [name for name in ROWS if not sink.has(tmp_path / name)]
        assert missing == ["f.png"], cut
        sink.add(told(tmp_path, "f.png"))
        sink.close()
        assert path.read_bytes() == whole, cut


def test_a_csv_that_is_empty_or_holds_its_first_line_alone_goes_on(tmp_path: Path):
    for text in ("", "file_name,text\n", "\ufefffile_name,text\r\n"):
        (tmp_path / "t.csv").write_text(text, encoding="utf-8", newline="")
        assert list(rows(written(tmp_path / "t.csv", ["a.png"])).values()) == [ROWS["a.png"]]


@pytest.mark.parametrize("kind", [".jsonl", ".csv"])
def test_a_run_does_not_cut_off_what_another_adds_meanwhile(tmp_path: Path, kind: str):
    path = written(tmp_path / f"t{kind}", ["a.png"])
    sink = open_table(path, ["text"], "skip")
    written(path, ["b, c.png"])
    sink.add(told(tmp_path, "f.png"))
    sink.close()
    assert list(rows(path)) == ["a.png", "b, c.png", "f.png"]


def test_a_csv_keeps_its_own_order_of_columns(tmp_path: Path):
    (tmp_path / "t.csv").write_text("text,file_name\nmine,x.png\n")
    assert rows(written(tmp_path / "t.csv", ["a.png"])) == {"x.png": "mine", "a.png": ROWS["a.png"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('file_name,text\na.png,"red\nb.png,blue\nc.png,green\n', "unexpected end of data"),
        ("file_name,text\na.png\nb.png,blue\n", "line 2 has 1 cells, the first 2"),
        ("file_name,text\ra.png,red\r", "no line of it is whole"),
        ("file_name,words\n", "has the columns file_name, words, not file_name, text"),
    ],
)
def test_a_csv_that_is_damaged_elsewhere_is_refused_and_stays(tmp_path: Path, text: str, message: str):
    (tmp_path / "t.csv").write_text(text, newline="")
    with pytest.raises(ValueError, match=message):
        open_table(tmp_path / "t.csv", ["text"], "skip")
    assert (tmp_path / "t.csv").read_bytes() == text.encode()


def test_a_file_name_that_is_no_text_is_refused(tmp_path: Path):
    (tmp_path / "t.jsonl").write_text('{"file_name": ["a.png"], "text": "red"}\n')
    with pytest.raises(ValueError, match="which is no text"):
        open_table(tmp_path / "t.jsonl", ["text"], "skip")


KILLED = """
import os, signal, sys
from pathlib import Path
from cm3.captioning.sinks import Result
from cm3.captioning.tables import open_table
sink = open_table(Path(sys.argv[1]), ["text"], "skip")
sink.add(Result(Path(sys.argv[1]).parent / "b, c.png", {"text": "تفاحة"}))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", TABLES)
def test_a_kill_loses_nothing_that_was_added(tmp_path: Path, kind: str):
    path = written(tmp_path / f"t{kind}", ["a.png"])
    assert subprocess.run([sys.executable, "-c", KILLED, path]).returncode == -signal.SIGKILL
    assert rows(path)["a.png"] == ROWS["a.png"]
    sink = open_table(path, ["text"], "skip")
    assert [sink.has(tmp_path / name) for name in ROWS] == [True, True, False, False]
    sink.close()
    assert rows(path) == {name: ROWS[name] for name in list(ROWS)[:2]}
    assert list(tmp_path.iterdir()) == [path]


@contextmanager
def stopped_behind(path: Path) -> Generator[Path]:
    with whole(path) as part:
        yield part
    raise KeyboardInterrupt


@contextmanager
def full(_: Path) -> Generator[Path]:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    yield


def test_a_stop_between_the_parquet_file_and_the_end_tells_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written(tmp_path / "t.parquet", ["f.png"])
    with monkeypatch.context() as patch:
        patch.setattr(
            caption_tables, "whole", lambda path: (stopped_behind if path.suffix == ".parquet" else whole)(path)
        )
        with pytest.raises(KeyboardInterrupt):
            written(tmp_path / "t.parquet", list(ROWS)[:2])
    assert len(list(tmp_path.iterdir())) == 2
    assert rows(written(tmp_path / "t.parquet", ["d\ne.png"])) == ROWS
    assert len(list(tmp_path.iterdir())) == 1


def test_a_parquet_file_that_cannot_be_written_says_where_its_rows_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(caption_tables, "whole", lambda path: (full if path.suffix == ".parquet" else whole)(path))
        with pytest.raises(OSError, match=r"cannot be written .*its rows are in .*\.t\.parquet\.unfinished\.jsonl"):
            written(tmp_path / "t.parquet", list(ROWS))
    assert rows(written(tmp_path / "t.parquet", [])) == ROWS


class Full(FileIO):
    """A disk with room for eleven bytes more."""

    def write(self, data: Any) -> int:
        if len(data) <= 11:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data[:11])


@pytest.mark.parametrize("kind", [".jsonl", ".csv"])
def test_a_row_that_the_disk_has_no_room_for_is_taken_back_whole(tmp_path: Path, kind: str):
    path = written(tmp_path / f"t{kind}", ["a.png"])
    before = path.read_bytes()
    sink = open_table(path, ["text"], "skip")
    assert isinstance(sink, Table)
    sink.file = Full(path, "ab")
    with pytest.raises(OSError, match="No space left"):
        sink.add(told(tmp_path, "b, c.png"))
    sink.file.close()
    assert path.read_bytes() == before and not sink.has(tmp_path / "b, c.png")


@pytest.mark.parametrize("kind", TABLES)
def test_memory_holds_no_texts(tmp_path: Path, kind: str):
    path, text = tmp_path / f"t{kind}", "a red apple " * 1000
    for number in range(2):  # the second goes on
        sink = open_table(path, ["text"], "skip")
        tracemalloc.start()
        for i in range(500):
            sink.add(Result(tmp_path / f"{number}-{i}.png", {"text": f"{i} {text}"}))
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 500_000  # the texts are 6 MB
        sink.close()
    tracemalloc.start()
    sink = open_table(path, ["text"], "skip")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 500_000 and sink.has(tmp_path / "1-499.png")
    assert len(rows(path)) == 1000


@pytest.mark.parametrize("kind", TABLES)
def test_what_is_written_anew_stays_as_it_was_until_the_first_text(tmp_path: Path, kind: str):
    path = written(tmp_path / f"t{kind}", ["a.png"])
    before = path.read_bytes()
    written(path, [], "overwrite")
    assert path.read_bytes() == before
    assert rows(written(path, ["f.png"], "overwrite")) == {"f.png": ROWS["f.png"]}


@pytest.mark.parametrize("kind", TABLES)
def test_a_first_text_that_cannot_be_written_costs_no_old_table(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    path = written(tmp_path / f"t{kind}", ["a.png"])
    before = path.read_bytes()
    monkeypatch.setattr(caption_tables, "whole", full)
    sink = open_table(path, ["text"], "overwrite")
    with pytest.raises(OSError, match="No space left"):
        sink.add(told(tmp_path, "f.png"))
    sink.close()
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", TABLES)
def test_a_name_that_is_not_utf_8_has_no_row(tmp_path: Path, kind: str):
    sink = open_table(tmp_path / f"t{kind}", ["text"], "skip")
    with pytest.raises(ValueError, match="its name is not in UTF-8"):
        sink.has(tmp_path / os.fsdecode(b"\xff.png"))


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_is_not_written_over_a_file_that_is_read(tmp_path: Path, kind: str):
    path = tmp_path / f"t{kind}"
    path.write_text("a.png\n")
    with pytest.raises(ValueError, match="is a file that this run reads"):
        open_table(path, ["text"], "overwrite", frozenset([path.resolve()]))


@pytest.mark.parametrize("kind", TABLES)
def test_a_linked_table_stays_a_link(tmp_path: Path, kind: str):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"t{kind}").symlink_to(f"elsewhere/t{kind}")
    for names in (list(ROWS)[:2], list(ROWS)[2:]):
        written(tmp_path / f"t{kind}", names)
    assert (tmp_path / f"t{kind}").is_symlink() and rows(tmp_path / "elsewhere" / f"t{kind}") == ROWS


def test_a_parquet_file_of_many_rows_and_other_types_of_text_keeps_them(tmp_path: Path):
    names = [f"{i}.png" for i in range(2500)]
    table = pyarrow.table({"text": names, "file_name": pyarrow.array(names, pyarrow.large_string())})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    assert rows(written(tmp_path / "t.parquet", ["a.png"])) == {name: name for name in names} | {"a.png": ROWS["a.png"]}
