"""Captions and answers for many picture files: where they are found, what is written, what is already there.

    sources -> pictures (several are decoded at once) -> batches through the engine -> texts, in the order of the files

A text stands in a file beside its picture, as kohya's scripts and TagGUI have it, or all in one table: JSON lines as
datasets' ImageFolder reads them (metadata.jsonl: file_name, text), CSV, or Parquet.
"""

import csv
import glob
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO, cast

from PIL import Image as PIL_Image

from cm3.cli_files import whole

if TYPE_CHECKING:
    from cm3.pipeline import CM3

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif")
Existing = Literal["skip", "overwrite", "append", "prepend"]
TABLES = (".jsonl", ".csv", ".parquet")
SEPARATOR = ", "  # between a text that was there and one that joins it, as tags are


# which pictures


def is_many(source: str) -> bool:
    """Whether a source of the command line may stand for more than one picture."""
    if Path(source).exists():
        return Path(source).is_dir()
    return source == "-" or source.startswith("@") or glob.has_magic(source)


def find(sources: Sequence[str], recursive: bool, lines: TextIO) -> Iterator[Path]:
    """The pictures of files, folders, patterns ("in/*.png"), lists ("@list.txt") and lines ("-"), in the order of their
    names, each once. Errors: ValueError for a source that names nothing."""
    seen: set[Path] = set()
    for source in sources:
        found = False
        for path in _found(source, recursive, lines):
            found = True
            if path not in seen:
                seen.add(path)
                yield path
        if not found:
            raise ValueError(f"{source}: there are no pictures")


def _found(source: str, recursive: bool, lines: TextIO) -> Iterable[Path]:
    if source == "-":
        return (Path(line) for line in _lines(lines))
    if source.startswith("@") and not Path(source).exists():
        try:
            return [Path(line) for line in _lines(Path(source[1:]).read_text(encoding="utf-8").splitlines())]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{source[1:]}: no list of pictures can be read ({error})") from error
    path = Path(source)
    if path.is_dir():
        inside = path.rglob("*") if recursive else path.iterdir()
        return sorted(one for one in inside if one.suffix.lower() in PICTURES and not one.is_dir())
    if path.exists() or not glob.has_magic(source):
        return [path]
    return [Path(one) for one in sorted(glob.glob(source, recursive=True)) if not Path(one).is_dir()]


def _lines(lines: Iterable[str]) -> Iterator[str]:
    return (line.strip() for line in lines if line.strip())


# what is written


@dataclass(frozen=True)
class Told:
    """texts: by column, in order; none where error says why not."""

    path: Path
    texts: dict[str, str]
    error: str = ""


class Sink(Protocol):
    """Where texts go. Nothing that was added is lost if the run is cut off afterwards."""

    def has(self, path: Path) -> bool: ...
    def add(self, told: Told) -> None: ...
    def close(self) -> None: ...


class Nowhere:
    """For texts that are only shown."""

    def has(self, path: Path) -> bool:
        return False

    def add(self, told: Told) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class Beside:
    """A text file beside each picture, of its name with another ending; several texts are lines."""

    extension: str
    existing: Existing

    def place(self, path: Path) -> Path:
        return path.with_suffix(self.extension)

    def has(self, path: Path) -> bool:
        return self.existing == "skip" and self.place(path).exists()

    def add(self, told: Told) -> None:
        place, text = self.place(told.path), "\n".join(told.texts.values())
        if self.existing in ("append", "prepend") and place.exists():
            before = place.read_text(encoding="utf-8").strip()
            parts = (before, text) if self.existing == "append" else (text, before)
            text = SEPARATOR.join(part for part in parts if part)
        write_whole(place, text + "\n")

    def close(self) -> None:
        pass


def write_whole(path: Path, text: str) -> None:
    """The whole file or nothing."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


@dataclass
class Table:
    """One file for all. JSON lines and CSV grow by a line at a time; Parquet is written at the end, whatever ends it.

    Errors: ValueError for an ending that is none of TABLES, a file that is no such table or has other columns, and
    what is to be joined with texts that are there."""

    path: Path
    columns: list[str]
    existing: Existing
    rows: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])  # by file_name

    def __post_init__(self) -> None:
        self.kind = self.path.suffix.lower()
        if self.kind not in TABLES:
            raise ValueError(f"{self.path}: the name of a table must end with one of {', '.join(TABLES)}")
        if self.existing in ("append", "prepend"):
            raise ValueError(f"--existing {self.existing} joins texts in files beside the pictures, not in a table")
        self.names = ["file_name", *self.columns]
        if self.existing == "skip" and self.path.exists():
            self.rows = {row["file_name"]: row for row in self._read()}
        self.file: TextIO | None = None
        if self.kind == ".parquet":
            parquet()
        else:
            self._start()

    def _read(self) -> list[dict[str, str]]:
        try:
            if self.kind == ".jsonl":
                whole = self.path.read_text(encoding="utf-8")
                lines = whole.split("\n")[:-1]  # what stands behind the last end of a line was cut off
                rows: list[Any] = [json.loads(line) for line in lines]
            elif self.kind == ".csv":
                with self.path.open(encoding="utf-8", newline="") as file:
                    rows = [dict(row) for row in csv.DictReader(file)]
            else:
                rows = parquet().read_table(self.path).to_pylist()
        except (ValueError, OSError, csv.Error) as error:
            raise ValueError(f"{self.path}: no such table can be read ({error})") from error
        for row in rows:
            has = list(cast(dict[str, str], row)) if isinstance(row, dict) else [repr(row)]
            if set(has) != set(self.names):
                wants = ", ".join(self.names)
                raise ValueError(f"{self.path} has the columns {', '.join(has):.80}, not {wants}: name another")
        return rows

    def _start(self) -> None:
        """Write anew what is kept, then stay open for more."""
        text = "".join(map(self._line, self.rows.values()))
        header = self._line({name: name for name in self.names}) if self.kind == ".csv" else ""
        write_whole(self.path, header + text)
        self.file = self.path.open("a", encoding="utf-8", newline="")

    def _line(self, row: dict[str, str]) -> str:
        if self.kind == ".jsonl":
            return json.dumps(row, ensure_ascii=False) + "\n"
        line = StringIO()
        csv.writer(line, lineterminator="\n").writerow([row[name] for name in self.names])
        return line.getvalue()

    def name(self, path: Path) -> str:
        """As ImageFolder wants it: from the folder of the table."""
        return Path(os.path.relpath(path, self.path.parent)).as_posix()

    def has(self, path: Path) -> bool:
        return self.existing == "skip" and self.name(path) in self.rows

    def add(self, told: Told) -> None:
        row = {"file_name": self.name(told.path), **told.texts}
        self.rows[row["file_name"]] = row
        if self.file is not None:
            self.file.write(self._line(row))
            self.file.flush()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            return
        with whole(self.path) as part:
            parquet().write_table(import_module("pyarrow").Table.from_pylist(list(self.rows.values())), part)


def parquet() -> Any:
    """pyarrow's; an extra of its own, which few need."""
    try:
        return import_module("pyarrow.parquet")
    except ImportError as error:
        raise ValueError("a Parquet table needs pyarrow: pip install pyarrow, or name a .jsonl or .csv file") from error


# the work


@dataclass(frozen=True)
class Asks:
    """What each picture is asked: captions in these languages, and these questions; prefix and suffix go around a
    caption, as trigger words do."""

    languages: tuple[str, ...] = ("en",)
    questions: tuple[str, ...] = ()
    long: bool = False
    prefix: str = ""
    suffix: str = ""

    def __post_init__(self) -> None:
        for name in ("languages", "questions"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        if not self.languages and not self.questions:
            raise ValueError("nothing is asked: give a language or a question")
        if not all(question.strip() for question in self.questions):
            raise ValueError("the question is empty: say something")

    @property
    def columns(self) -> list[str]:
        """The first caption is "text", others "text_ar"; an answer stands under its question."""
        captions = [f"text_{language}" if i else "text" for i, language in enumerate(self.languages)]
        return [*captions, *self.questions]

    def tell(self, model: "CM3", pictures: Sequence[PIL_Image.Image]) -> list[dict[str, str]]:
        """The texts of each picture, by column."""
        words = [model.jobs.caption_words(language, self.long) for language in self.languages]
        words += [model.jobs.answer_words(question) for question in self.questions]
        job = model.jobs.tell([(picture, one) for picture in pictures for one in words])
        said = (" ".join(text.split()) for text in model.texts(job.requests))  # each is a line
        told: list[dict[str, str]] = []
        for _ in pictures:
            texts = [f"{self.prefix}{next(said)}{self.suffix}" for _ in self.languages]
            told.append(dict(zip(self.columns, [*texts, *(next(said) for _ in self.questions)], strict=True)))
        return told


def caption_files(
    model: "CM3",
    paths: Iterable[Path],
    sink: Sink,
    asks: Asks,
    batch: int = 32,
    workers: int = 2,
    skipped: Callable[[Path], None] = lambda _: None,
) -> Generator[Told]:
    """Each picture's texts as soon as they are written. workers: threads that open pictures, a batch ahead. A file that
    is no picture is told with its error, and the others go on."""
    from tokenizer_image.pixels import open_image

    def opened(path: Path) -> PIL_Image.Image | str:
        try:
            return open_image(str(path), model.processor.max_pixels, least=model.processor.least)
        except (ValueError, OSError) as error:
            return str(error)

    def wanted() -> Iterator[Path]:
        for path in paths:
            if sink.has(path):
                skipped(path)
            else:
                yield path

    with ThreadPoolExecutor(workers) as pool:
        source = wanted()
        ahead: list[tuple[Path, Future[PIL_Image.Image | str]]] = []
        try:
            while True:
                ahead += [(path, pool.submit(opened, path)) for path in islice(source, 2 * batch - len(ahead))]
                now, ahead = ahead[:batch], ahead[batch:]
                if not now:
                    return
                results = [(path, future.result()) for path, future in now]
                texts = iter(asks.tell(model, [one for _, one in results if not isinstance(one, str)]))
                for path, one in results:
                    told = Told(path, {}, one) if isinstance(one, str) else Told(path, next(texts))
                    if not told.error:
                        try:
                            sink.add(told)
                        except OSError as error:
                            told = Told(path, {}, f"its text cannot be written ({error.strerror})")
                    yield told
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
