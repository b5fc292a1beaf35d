"""Captions and answers for many image files: where they are found, and what is asked of each.

    sources -> images (several are decoded at once) -> batches through the engine -> texts, in the order of the files

A text stands in a file beside its image, as kohya's scripts and TagGUI have it, or all in one table: JSON lines as
datasets' ImageFolder reads them (metadata.jsonl: file_name, text), CSV, or Parquet: sinks.py and tables.py.
"""

import glob
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from PIL import Image as PIL_Image

from cm3.captioning.sinks import Sink, Told, is_text
from cm3.engine.options import Query

if TYPE_CHECKING:
    from cm3.pipeline import CM3

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif")
WRITE_FAILURES = 3  # in a row end the run: a full disk would have everything captioned in vain


# which images


def is_many(source: str) -> bool:
    """Whether a source of the command line may stand for more than one image."""
    if Path(source).exists():
        return Path(source).is_dir()
    return source == "-" or source.startswith("@") or glob.has_magic(source)


def find(sources: Sequence[str], recursive: bool, lines: TextIO) -> Iterator[Path]:
    """The images of files, folders, patterns ("in/*.png"), lists ("@list.txt") and lines ("-"), in the order of their
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
            raise ValueError(f"{source}: there are no images")


def _found(source: str, recursive: bool, lines: TextIO) -> Iterable[Path]:
    if source == "-":
        return (Path(line) for line in _lines(lines))
    if listed := list_of(source):
        try:
            with listed.open(encoding="utf-8", errors="surrogateescape") as file:  # names need not be in UTF-8
                return [Path(line) for line in _lines(file)]
        except OSError as error:
            raise ValueError(f"{listed}: no list of images can be read ({error})") from error
    path = Path(source)
    if path.is_dir():
        inside = path.rglob("*") if recursive else path.iterdir()
        return sorted(one for one in inside if one.suffix.lower() in IMAGE_SUFFIXES and not one.is_dir())
    if path.exists() or not glob.has_magic(source):
        return [path]
    return [Path(one) for one in sorted(glob.glob(source, recursive=True)) if not Path(one).is_dir()]


def list_of(source: str) -> Path | None:
    """The file that "@list.txt" stands for; None for other sources."""
    return Path(source[1:]) if source.startswith("@") and not Path(source).exists() else None


def read_by(sources: Iterable[str], model: str) -> frozenset[Path]:
    """The real paths of files that a run reads, and of folders with nothing else in them: named images, lists, and a
    model folder's files. Images in folders are known by what they hold."""
    files = [path for path in (list_of(source) or Path(source) for source in sources) if path.is_file()]
    if (folder := Path(model)).is_dir():
        files += (path for path in folder.iterdir() if path.is_file() or (path / "config.json").is_file())
    return frozenset(Path(os.path.realpath(path)) for path in files)


def _lines(lines: Iterable[str]) -> Iterator[str]:
    return (line.strip() for line in lines if line.strip())


# the work


@dataclass(frozen=True)
class Asks:
    """What each image is asked: captions in these languages, and these questions; prefix and suffix go around a
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
        for words in (self.prefix, self.suffix, *self.questions):
            if not is_text(words):
                raise ValueError(f"{words!r} is not in UTF-8, as texts must be")

    @property
    def columns(self) -> list[str]:
        """The first caption is "text", others "text_ar"; an answer stands under its question."""
        captions = [f"text_{language}" if i else "text" for i, language in enumerate(self.languages)]
        return [*captions, *self.questions]

    def tell(self, model: "CM3", images: Sequence[PIL_Image.Image]) -> list[dict[str, str]]:
        """The texts of each image, by column."""
        queries = [Query(language=language, long=self.long) for language in self.languages]
        queries += [Query(question) for question in self.questions]
        job = model.jobs.tell([(image, one) for image in images for one in queries])
        said = (" ".join(text.split()) for text in model.run(job))  # each is a line
        told: list[dict[str, str]] = []
        for _ in images:
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
    """Each image's texts as soon as they are written.

    Args:
        model: what writes them.
        paths: image files; taken two batches ahead.
        sink: where the texts go.
        asks: what each image is asked.
        batch: images at once.
        workers: threads that open images, a batch ahead.
        skipped: called with each file that has its text.

    A file that is no image, or whose text cannot be written, is told with its error, and the others go on.

    Raises:
        OSError: the texts of WRITE_FAILURES files in a row could not be written.
    """
    from tokenizer_image.pixels import open_image

    def opened(path: Path) -> PIL_Image.Image | str:
        try:
            return open_image(str(path), model.processor.max_pixels, least=model.processor.least)
        except (ValueError, OSError) as error:
            return str(error)

    def wanted() -> Iterator[tuple[Path, str]]:
        """Files without a text, with why none can be written, where that is known before it is made."""
        for path in paths:
            try:
                has, error = sink.has(path), ""
            except (ValueError, OSError) as problem:
                has, error = False, unwritten(problem)
            if has:
                skipped(path)
            else:
                yield path, error

    failures = 0  # in a row

    def written(told: Told) -> Told:
        nonlocal failures
        try:
            sink.add(told)
        except ValueError as error:
            return Told(told.path, {}, unwritten(error))
        except OSError as error:
            failures += 1
            if failures == WRITE_FAILURES:
                raise OSError(
                    f"{told.path}: {unwritten(error)}, nor could the {failures - 1} before it: the run stops; make "
                    "room, and the same command goes on"
                ) from error
            return Told(told.path, {}, unwritten(error))
        failures = 0
        return told

    with ThreadPoolExecutor(workers) as pool:
        source = wanted()
        ahead: list[tuple[Path, Future[PIL_Image.Image | str] | str]] = []
        try:
            while True:
                for path, error in islice(source, 2 * batch - len(ahead)):
                    ahead.append((path, error or pool.submit(opened, path)))
                now, ahead = ahead[:batch], ahead[batch:]
                if not now:
                    return
                results = [(path, one if isinstance(one, str) else one.result()) for path, one in now]
                texts = iter(asks.tell(model, [one for _, one in results if not isinstance(one, str)]))
                for path, one in results:
                    yield Told(path, {}, one) if isinstance(one, str) else written(Told(path, next(texts)))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def unwritten(error: ValueError | OSError) -> str:
    return f"its text cannot be written ({getattr(error, 'strerror', None) or error})"
