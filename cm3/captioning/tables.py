"""Sinks that write captions into one table: JSON lines, CSV or Parquet.

Rows are on disk as soon as they are added, and a later run continues after them. Memory holds the names of the images,
not their texts.
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

from cm3.captioning.sinks import Existing, Result, check_replaceable, is_text
from cm3.files import check_writable, followed, whole

TABLES = (".jsonl", ".csv", ".parquet")
ROW_GROUP = 1000  # rows


class WholeLines:
    """An iterator of a file's lines as text. It stops at a line that was cut off.

    Attributes:
        position: bytes of the lines so far.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.position = file, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.file.readline()
        if not line.endswith(b"\n"):
            raise StopIteration
        text = line.decode("utf-8-sig" if self.position == 0 else "utf-8")
        self.position += len(line)
        return text


class Table:
    """JSON lines or CSV, one line for each image, appended as it is ready. A last line that was cut off is dropped.

    Args:
        path: the file.
        columns: names of the texts.
        existing: "skip" keeps the rows of the file, "overwrite" replaces it.
        reads: as for TextFiles.

    Raises:
        ValueError: the file is no such table, has other columns, is read by the run or cannot be written; or texts
            shall be appended or prepended to others.
    """

    def __init__(
        self, path: Path, columns: Sequence[str], existing: Existing, reads: frozenset[Path] = frozenset()
    ) -> None:
        if existing in ("append", "prepend"):
            raise ValueError(f"--existing {existing} joins texts in files beside the images, not in a table")
        self.path, self.existing = path, existing
        self.names = ["file_name", *columns]  # columns, in the order of the file
        self.done: set[str] = set()  # file_name of the rows in the file
        self.end = 0  # bytes of the whole lines in the file
        self.cut = False  # whether more bytes follow
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
        """Read which rows the file has."""
        try:
            with self.path.open("rb") as file:
                lines = WholeLines(file)
                for row in self._csv_rows(lines) if self.is_csv else json_rows(lines):
                    check_columns(self.path, row, self.names)
                    self.done.add(row["file_name"])
                    self.end = lines.position
                self.cut = self.end < file.seek(0, os.SEEK_END)
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError, csv.Error) as error:
            raise unreadable(self.path, error) from error
        if self.cut and not self.end:  # the first line is always written whole
            raise unreadable(self.path, "no line of it is whole")

    def _csv_rows(self, lines: WholeLines) -> Iterator[dict[str, str]]:
        reader = csv.reader(lines, strict=True)
        header = next(reader, self.names)
        check_columns(self.path, dict.fromkeys(header, ""), self.names)
        self.names, self.end = header, lines.position
        for cells in filter(None, reader):
            if len(cells) != len(header):
                raise csv.Error(f"line {reader.line_num} has {len(cells)} cells, the first {len(header)}")
            yield dict(zip(header, cells, strict=True))

    def name(self, path: Path) -> str:
        """The path of an image from the table's folder, as ImageFolder expects it.

        Raises:
            ValueError: it is not UTF-8.
        """
        name = Path(os.path.relpath(path, self.path.parent)).as_posix()
        if not is_text(name):
            raise ValueError(
                "its name is not in UTF-8, as a table must be: rename it, or write texts beside the images"
            )
        return name

    def has(self, path: Path) -> bool:
        name = self.name(path)
        return self.existing == "skip" and name in self.done

    def add(self, result: Result) -> None:
        row = {"file_name": self.name(result.path), **result.texts}
        if self.file is None:
            self._start(self._line(row))
        else:
            append(self.file, self._line(row))
        self.done.add(row["file_name"])

    def _start(self, line: bytes) -> None:
        """Write the first line, after the whole lines of the file or to a new file, and keep the file open."""
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
    """A Parquet file, written at the end of the run.

    Until then the rows are in a hidden file of JSON lines beside it. If the run is killed, the next run finds them.

    Args:
        path, columns, existing, reads: as for Table.

    Raises:
        ValueError: as Table; or pyarrow is missing.
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

    def add(self, result: Result) -> None:
        self.journal.add(result)

    def close(self) -> None:
        self.journal.close()
        if not self.journal.done:
            return
        try:
            self._write()
        except (OSError, import_module("pyarrow").ArrowException) as error:
            raise OSError(
                f"{self.path}: cannot be written ({error}); its rows are in {self.journal.path}, and the same "
                "command continues from there"
            ) from error
        self.journal.path.unlink()

    def _write(self) -> None:
        """Write the rows of the old file, then those of the journal, in row groups."""
        arrow: Any = import_module("pyarrow")
        schema = arrow.schema([(name, arrow.string()) for name in self.names])
        with whole(followed(self.path)) as part, parquet().ParquetWriter(part, schema) as writer:
            if self.kept:
                with parquet().ParquetFile(self.path) as file:
                    for batch in file.iter_batches(ROW_GROUP):
                        writer.write_table(arrow.Table.from_batches([batch]).select(self.names).cast(schema))
            with self.journal.path.open("rb") as file:
                rows = (row for row in json_rows(WholeLines(file)) if row["file_name"] not in self.done)
                while some := list(islice(rows, ROW_GROUP)):
                    writer.write_table(arrow.Table.from_pylist(some, schema))


def open_table(
    path: Path, columns: Sequence[str], existing: Existing, reads: frozenset[Path] = frozenset()
) -> Table | ParquetTable:
    """Open a table of the kind that the file's ending names.

    Raises:
        ValueError: the ending is another one.
    """
    kind = path.suffix.lower()
    if kind not in TABLES:
        raise ValueError(f"{path}: the name of a table must end with one of {', '.join(TABLES)}")
    return (ParquetTable if kind == ".parquet" else Table)(path, columns, existing, reads)


def json_rows(lines: WholeLines) -> Iterator[dict[str, str]]:
    return (json.loads(line) for line in lines if line.strip())


def check_columns(path: Path, row: object, names: Sequence[str]) -> None:
    """Raise a ValueError for a row with other columns than these, or with a file_name that is no text."""
    has = list(cast(dict[str, str], row)) if isinstance(row, dict) else [repr(row)]
    if set(has) != set(names):
        raise ValueError(f"{path} has the columns {', '.join(has):.80}, not {', '.join(names)}: name another")
    name = cast(dict[str, object], row)["file_name"]
    if not isinstance(name, str):
        raise ValueError(f"{path} has the file_name {name!r:.80}, which is no text: name another")


def unreadable(path: Path, why: object) -> ValueError:
    """The error for a file that is no such table."""
    return ValueError(f"{path}: no such table can be read ({why}): repair it, or name another")


def append(file: FileIO, data: bytes) -> None:
    """Append data completely or not at all: if the disk is full, the file is cut back."""
    start = file.seek(0, os.SEEK_END)
    try:
        left = memoryview(data)
        while left:
            left = left[file.write(left) :]
    except BaseException:
        file.truncate(start)
        raise


def parquet() -> Any:
    """The module pyarrow.parquet.

    Raises:
        ValueError: pyarrow, an optional dependency, is missing.
    """
    try:
        return import_module("pyarrow.parquet")
    except ImportError as error:
        raise ValueError("a Parquet table needs pyarrow: pip install pyarrow, or name a .jsonl or .csv file") from error
