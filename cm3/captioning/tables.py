"""Captions in one table: JSON lines, CSV or Parquet. Rows are on disk as soon as they are added, and a later run goes
on after them. Memory holds the names of the images, never their texts.
"""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from io import FileIO, StringIO
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from cm3.captioning.sinks import Existing, Told, check_replaceable, is_text
from cm3.files import check_writable, followed, whole

TABLES = (".jsonl", ".csv", ".parquet")
ROWS = 1000  # of a Parquet row group


class WholeLines:
    """A file's lines as text, up to one that was cut off; place: how many bytes of the file they are."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.place = file, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.file.readline()
        if not line.endswith(b"\n"):
            raise StopIteration
        text = line.decode("utf-8-sig" if self.place == 0 else "utf-8")
        self.place += len(line)
        return text


class Table:
    """JSON lines or CSV: a line for each image, appended as it comes. A last line that was cut off is dropped.

    Raises:
        ValueError: a file that is no such table or has other columns, or is read by the run; a place that cannot be
            written; texts to be joined with others.
    """

    def __init__(
        self, path: Path, columns: Sequence[str], existing: Existing, reads: frozenset[Path] = frozenset()
    ) -> None:
        if existing in ("append", "prepend"):
            raise ValueError(f"--existing {existing} joins texts in files beside the images, not in a table")
        self.path, self.existing = path, existing
        self.names = ["file_name", *columns]  # in the file's own order
        self.done: set[str] = set()  # file_name of the rows
        self.end = 0  # bytes of the file that stay
        self.cut = False  # whether there are more
        self.file: FileIO | None = None
        check_writable(path)
        if path.exists():
            if existing == "skip":
                self._read()
            else:
                check_replaceable(path, reads)

    @property
    def is_csv(self) -> bool:
        return self.path.suffix.lower() == ".csv"

    def _read(self) -> None:
        """Note which rows there are."""
        try:
            with self.path.open("rb") as file:
                lines = WholeLines(file)
                for row in self._csv_rows(lines) if self.is_csv else json_rows(lines):
                    check_columns(self.path, row, self.names)
                    self.done.add(row["file_name"])
                    self.end = lines.place
                self.cut = self.end < file.seek(0, os.SEEK_END)
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError, csv.Error) as error:
            raise unreadable(self.path, error) from error
        if self.cut and not self.end:  # our own first line is never cut off: it is written whole
            raise unreadable(self.path, "no line of it is whole")

    def _csv_rows(self, lines: WholeLines) -> Iterator[dict[str, str]]:
        reader = csv.reader(lines, strict=True)
        header = next(reader, self.names)
        check_columns(self.path, dict.fromkeys(header, ""), self.names)
        self.names, self.end = header, lines.place
        for cells in filter(None, reader):
            if len(cells) != len(header):
                raise csv.Error(f"line {reader.line_num} has {len(cells)} cells, the first {len(header)}")
            yield dict(zip(header, cells, strict=True))

    def name(self, path: Path) -> str:
        """As ImageFolder wants it: from the folder of the table. Raises ValueError for a name that is no text."""
        name = Path(os.path.relpath(path, self.path.parent)).as_posix()
        if not is_text(name):
            raise ValueError(
                "its name is not in UTF-8, as a table must be: rename it, or write texts beside the images"
            )
        return name

    def has(self, path: Path) -> bool:
        name = self.name(path)
        return self.existing == "skip" and name in self.done

    def add(self, told: Told) -> None:
        row = {"file_name": self.name(told.path), **told.texts}
        if self.file is None:
            self._start(self._line(row))
        else:
            append(self.file, self._line(row))
        self.done.add(row["file_name"])

    def _start(self, line: bytes) -> None:
        """The first line, behind what stays of the file, or in a new one; then the file is open for more."""
        path = followed(self.path)
        if self.end:
            with FileIO(path, "ab") as file:
                if self.cut:
                    file.truncate(self.end)
                append(file, line)
        else:
            header = self._line({name: name for name in self.names}) if self.is_csv else b""
            with whole(path) as part:
                part.write_bytes(header + line)
        self.file = FileIO(path, "ab")

    def _line(self, row: dict[str, str]) -> bytes:
        if not self.is_csv:
            return (json.dumps(row, ensure_ascii=False) + "\n").encode()
        line = StringIO()
        csv.writer(line, lineterminator="\n").writerow([row[name] for name in self.names])
        return line.getvalue().encode()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


class ParquetTable:
    """One Parquet file, written when the run ends. Until then rows stand in JSON lines beside it, in a hidden file:
    where the run is killed, the next one finds them there.

    Raises:
        ValueError: as a Table does; pyarrow is missing.
    """

    def __init__(
        self, path: Path, columns: Sequence[str], existing: Existing, reads: frozenset[Path] = frozenset()
    ) -> None:
        parquet()
        check_writable(path)
        self.path, self.names = path, ["file_name", *columns]
        self.done: set[str] = set()  # file_name of the rows in the Parquet file
        self.kept = existing == "skip" and path.exists()
        if self.kept:
            self._read()
        elif path.exists():
            check_replaceable(path, reads)
        self.journal = Table(path.with_name(f".{path.name}.unfinished.jsonl"), columns, existing, reads)

    def _read(self) -> None:
        try:
            with parquet().ParquetFile(self.path) as file:
                check_columns(self.path, dict.fromkeys(file.schema_arrow.names, ""), self.names)
                for batch in file.iter_batches(columns=["file_name"]):
                    self.done.update(batch.column(0).to_pylist())
        except (OSError, import_module("pyarrow").ArrowException) as error:
            raise unreadable(self.path, error) from error

    def has(self, path: Path) -> bool:
        return self.journal.has(path) or self.journal.name(path) in self.done

    def add(self, told: Told) -> None:
        self.journal.add(told)

    def close(self) -> None:
        self.journal.close()
        if not self.journal.done:
            return
        try:
            self._write()
        except (OSError, import_module("pyarrow").ArrowException) as error:
            raise OSError(
                f"{self.path}: cannot be written ({error}); its rows stand in {self.journal.path}, and the same "
                "command goes on from there"
            ) from error
        self.journal.path.unlink()

    def _write(self) -> None:
        """What the file has, then the rows of the journal, group by group."""
        arrow: Any = import_module("pyarrow")
        schema = arrow.schema([(name, arrow.string()) for name in self.names])
        with whole(followed(self.path)) as part, parquet().ParquetWriter(part, schema) as writer:
            if self.kept:
                with parquet().ParquetFile(self.path) as file:
                    for batch in file.iter_batches(ROWS):
                        writer.write_table(arrow.Table.from_batches([batch]).select(self.names).cast(schema))
            with self.journal.path.open("rb") as file:
                rows = (row for row in json_rows(WholeLines(file)) if row["file_name"] not in self.done)
                while some := list(islice(rows, ROWS)):
                    writer.write_table(arrow.Table.from_pylist(some, schema))


def open_table(
    path: Path, columns: Sequence[str], existing: Existing, reads: frozenset[Path] = frozenset()
) -> Table | ParquetTable:
    """The table of a file's ending. Raises ValueError for an ending that is none of TABLES, and as the tables do."""
    kind = path.suffix.lower()
    if kind not in TABLES:
        raise ValueError(f"{path}: the name of a table must end with one of {', '.join(TABLES)}")
    return (ParquetTable if kind == ".parquet" else Table)(path, columns, existing, reads)


def json_rows(lines: WholeLines) -> Iterator[dict[str, str]]:
    return (json.loads(line) for line in lines if line.strip())


def check_columns(path: Path, row: object, names: Sequence[str]) -> None:
    """Raises ValueError for a row of other columns than these, or of a file_name that is no text."""
    has = list(cast(dict[str, str], row)) if isinstance(row, dict) else [repr(row)]
    if set(has) != set(names):
        raise ValueError(f"{path} has the columns {', '.join(has):.80}, not {', '.join(names)}: name another")
    name = cast(dict[str, object], row)["file_name"]
    if not isinstance(name, str):
        raise ValueError(f"{path} has the file_name {name!r:.80}, which is no text: name another")


def unreadable(path: Path, why: object) -> ValueError:
    return ValueError(f"{path}: no such table can be read ({why}): mend it, or name another")


def append(file: FileIO, data: bytes) -> None:
    """All of it or nothing: what was written of it when the disk is full is taken back."""
    start = file.seek(0, os.SEEK_END)
    try:
        left = memoryview(data)
        while left:
            left = left[file.write(left) :]
    except BaseException:
        file.truncate(start)
        raise


def parquet() -> Any:
    """pyarrow's; an extra of its own, which few need."""
    try:
        return import_module("pyarrow.parquet")
    except ImportError as error:
        raise ValueError("a Parquet table needs pyarrow: pip install pyarrow, or name a .jsonl or .csv file") from error
