"""Readers of tables: JSONL, CSV and TSV, parquet, and folders of datasets.save_to_disk. sources.py opens them.

A reader first finds where its chunks begin, so that each can be read without those before it.
"""

import csv
import hashlib
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from train.documents.sample import Columns, Sample, Skip, Unusable, from_row, json_object

MAX_LINE = 64_000_000  # bytes of a line of JSONL
FACTS = ("source", "url", "licence", "license", "owner", "author", "creator", "language", "lang", "general_metadata")


class Chunk(NamedTuple):
    """Rows of a file.

    Attributes:
        path: of the file.
        start: byte or row group where the first row is.
        row: number of the first row in the file (CSV, JSONL) or the row group (parquet), from 0.
        count: number of rows.
    """

    path: Path
    start: int
    row: int
    count: int


class Table:
    """Files of rows, in chunks.

    Args:
        root: folder to which the names of the samples are relative.
        files: the tables.
        columns: with the image and the caption.
        samples: largest number of rows in a chunk.

    Raises:
        ValueError: the files have no rows, or lack a column.
    """

    kind = ""

    def __init__(self, root: Path, files: Sequence[Path], columns: Columns, samples: int):
        self.root, self.samples, self.columns = root, samples, columns
        self.skipped: list[Skip] = []
        self.chunks: list[Chunk] = []
        digest = hashlib.sha256(repr(columns).encode())
        for path in files:
            self.chunks += self.cut(path, digest)
        self.listing = digest.hexdigest()[:12]
        if not self.chunks:
            why = "".join(f"; {skip.name}: {skip.reason}" for skip in self.skipped[:3])
            raise ValueError(f"{files[0]} has no rows{why}")

    def __len__(self) -> int:
        return len(self.chunks)

    def cut(self, path: Path, digest: Any) -> list[Chunk]:
        """Find the chunks of a file, and update the digest with its content."""
        raise NotImplementedError

    def read(self, number: int) -> Iterator[Sample | Skip]:
        raise NotImplementedError

    def name(self, path: Path, row: int) -> str:
        """Return the name of a sample, in which rows count from 1; `row` counts from 0."""
        return f"{path.relative_to(self.root) if path != self.root else path.name}:{row + 1}"


class Jsonl(Table):
    """JSONL: a JSON object in each line. Blank lines are left out."""

    kind = "jsonl"

    def cut(self, path: Path, digest: Any) -> list[Chunk]:
        chunks: list[Chunk] = []
        start = 0
        with path.open("rb") as file:
            for number, line in enumerate(_lines(file)):
                digest.update(line)
                if number % self.samples == 0:
                    chunks.append(Chunk(path, start, number, self.samples))
                start = file.tell()
        return chunks

    def read(self, number: int) -> Iterator[Sample | Skip]:
        path, start, first, count = self.chunks[number]
        with path.open("rb") as file:
            file.seek(start)
            for row, line in zip(range(first, first + count), _lines(file), strict=False):
                name = self.name(path, row)
                if len(line) >= MAX_LINE:
                    yield Skip(name, f"text too long: a line of over {MAX_LINE:,} bytes")
                elif line.strip():
                    try:
                        content = json_object(line.removeprefix(b"\xef\xbb\xbf"), "line")
                        yield from_row(name, content, path.parent, self.columns)
                    except Unusable as error:
                        yield Skip(name, str(error))


def _lines(file: Any) -> Iterator[bytes]:
    """Yield the lines of a file. Only the beginning of an overlong line is returned."""
    while line := file.readline(MAX_LINE):
        rest = line
        while len(rest) == MAX_LINE and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE)
        yield line


class Spreadsheet(Table):
    """CSV, or TSV according to the suffix. The first line names the columns."""

    kind = "csv"

    def cut(self, path: Path, digest: Any) -> list[Chunk]:
        chunks: list[Chunk] = []
        with path.open("rb") as file:
            lines = Lines(file, digest)
            header = next(_rows(path, lines), [])
            if isinstance(header, str) or not header:
                raise ValueError(f"{path} has no line that names the columns")
            self.columns.among(header, path)
            start = lines.offset
            for number, _ in enumerate(_rows(path, lines)):
                if number % self.samples == 0:
                    chunks.append(Chunk(path, start, number, self.samples))
                start = lines.offset
        return chunks

    def read(self, number: int) -> Iterator[Sample | Skip]:
        path, start, first, count = self.chunks[number]
        with path.open("rb") as file:
            header = next(_rows(path, Lines(file)))
            columns = self.columns.among(header, path)
            file.seek(start)
            for row, cells in zip(range(first, first + count), _rows(path, Lines(file)), strict=False):
                name = self.name(path, row)
                if isinstance(cells, str):
                    yield Skip(name, f"broken row: {cells}")
                elif len(cells) != len(header):
                    yield Skip(name, f"broken row: {len(cells)} cells, the header has {len(header)}")
                else:
                    values = dict(zip(header, cells, strict=True))
                    kept = {key: value for key, value in values.items() if key in (*columns, *FACTS)}
                    yield from_row(name, kept, path.parent, columns)


class Lines:
    """The lines of a file as text. Bytes that are not UTF-8 become surrogates.

    Attributes:
        offset: number of bytes that have been read.
    """

    def __init__(self, file: Any, digest: Any = None):
        self.file, self.digest, self.offset = file, digest, file.tell()

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> str:
        line = self.file.readline(MAX_LINE)
        if not line:
            raise StopIteration
        if self.digest is not None:
            self.digest.update(line)
        text = (line.removeprefix(b"\xef\xbb\xbf") if self.offset == 0 else line).decode("utf-8", "surrogateescape")
        self.offset += len(line)
        return text


def _rows(path: Path, lines: Lines) -> Iterator[list[str] | str]:
    """Yield the cells of each row, or the error in it. Empty rows are left out."""
    reader = csv.reader(lines, "excel-tab" if path.suffix.lower() == ".tsv" else "excel")
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield str(error)
        else:
            if cells:
                yield cells


class Parquet(Table):
    """Parquet: large row groups are split into chunks, small ones are joined."""

    kind = "parquet"

    def __init__(self, root: Path, files: Sequence[Path], columns: Columns, samples: int):
        _library("pyarrow.parquet")
        super().__init__(root, files, columns, samples)

    def cut(self, path: Path, digest: Any) -> list[Chunk]:
        try:
            file = _parquet(path)
        except (OSError, ValueError) as error:  # pyarrow's errors are both
            reason = f"not a whole parquet file: {str(error).splitlines()[0]:.200}"
            self.skipped.append(Skip(str(path.relative_to(self.root)), reason))
            return []
        digest.update(f"{path.relative_to(self.root)} {path.stat().st_size} {file.metadata.num_rows}".encode())
        _needed(file.schema_arrow.names, path, self.columns)
        chunks: list[Chunk] = []
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            last = chunks[-1] if chunks else None
            if last and last.row == 0 and last.count + rows <= self.samples:
                chunks[-1] = last._replace(count=last.count + rows)
            else:
                chunks += [
                    Chunk(path, group, start, min(self.samples, rows - start)) for start in range(0, rows, self.samples)
                ]
        return chunks

    def read(self, number: int) -> Iterator[Sample | Skip]:
        path, group, start, count = self.chunks[number]
        file = _parquet(path)
        before = sum(file.metadata.row_group(i).num_rows for i in range(group))
        groups, rows = [], 0
        while rows < start + count:
            groups.append(group + len(groups))
            rows += file.metadata.row_group(groups[-1]).num_rows
        needed = _needed(file.schema_arrow.names, path, self.columns)
        row = 0
        try:
            for batch in file.iter_batches(64, groups, columns=needed):
                for i in range(max(0, start - row), min(len(batch), start + count - row)):
                    yield self.row(path, before + row + i, batch.slice(i, 1))
                row += len(batch)
                if row >= start + count:
                    return
        except (OSError, ValueError) as error:
            last, why = before + start + count, str(error).splitlines()[0]
            yield Skip(self.name(path, before + max(row, start)), f"damaged parquet: rows up to {last} ({why})")

    def row(self, path: Path, row: int, batch: Any) -> Sample | Skip:
        """Read a sample from a batch with a single row."""
        try:
            values = batch.to_pylist()[0]
        except UnicodeDecodeError as error:
            return Skip(self.name(path, row), f"not UTF-8: {error.reason}")
        folder = path if path.is_dir() else path.parent
        return from_row(self.name(path, row), values, folder, self.columns)


class SavedDataset(Parquet):
    """A folder of datasets.save_to_disk."""

    kind = "datasets"

    def cut(self, path: Path, digest: Any) -> list[Chunk]:
        rows = _saved(path, self.columns)
        digest.update((path / "state.json").read_bytes())  # with the fingerprint that `datasets` gives it
        return [
            Chunk(path, 0, start, min(self.samples, len(rows) - start)) for start in range(0, len(rows), self.samples)
        ]

    def read(self, number: int) -> Iterator[Sample | Skip]:
        path, _, first, count = self.chunks[number]
        rows = _saved(path, self.columns)
        for start in range(first, first + count, 64):
            table = rows[start : min(start + 64, first + count)]
            for i in range(len(table)):
                yield self.row(path, start + i, table.slice(i, 1))


def _needed(names: Sequence[str], path: Path, columns: Columns) -> list[str]:
    """Return the columns from which samples are read.

    Raises:
        ValueError: the table lacks them.
    """
    if "items" in names:
        used = ["items"]
    elif {"images", "texts"} <= set(names) and not any(columns):
        used = ["images", "texts"]
    else:
        used = list(columns.among(names, path))
    return [name for name in names if name in used or name in FACTS]


def _library(name: str) -> Any:
    """Import an optional library.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"{name.split('.')[0]} is missing: pip install pyarrow") from error


def _parquet(path: Path) -> Any:
    return _library("pyarrow.parquet").ParquetFile(path, page_checksum_verification=True)


def _saved(path: Path, columns: Columns) -> Any:
    """Open a saved data set, as arrow tables with the bytes of the images."""
    try:
        rows = _library("datasets").load_from_disk(str(path))
    except (OSError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a whole data set ({error}): save it anew with save_to_disk") from error
    return rows.select_columns(_needed(rows.column_names, path, columns)).with_format("arrow")
