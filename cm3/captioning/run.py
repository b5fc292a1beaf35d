"""Captions and answers for many image files.

    sources -> images, decoded in parallel -> batches through the engine -> texts, in the order of the files

The texts go into a file beside each image, as kohya's scripts and TagGUI expect (sinks.py), or into one table: JSON
lines as datasets' ImageFolder reads them (metadata.jsonl: file_name, text), CSV, or Parquet (tables.py).
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

from cm3.captioning.sinks import Result, Sink, is_text
from cm3.engine.options import AnswerOptions, Query
from cm3.tasks.rated_text import with_words

if TYPE_CHECKING:
    from cm3.pipeline import CM3

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif")
MAX_WRITE_FAILURES = 3  # consecutive; the run stops then, because on a full disk all captions would be lost


def may_be_several(source: str) -> bool:
    """Whether a source of the command line can stand for more than one image."""
    if Path(source).exists():
        return Path(source).is_dir()
    return source == "-" or source.startswith("@") or glob.has_magic(source)


def find(sources: Sequence[str], recursive: bool, lines: TextIO) -> Iterator[Path]:
    """Find the image files of sources.

    Args:
        sources: files, folders, patterns ("in/*.png"), lists ("@list.txt"), or "-" for `lines`.
        recursive: whether to search the folders inside folders.
        lines: names of files, one a line.

    Yields:
        Each file once, in the order of the sources, and of the names within each.

    Raises:
        ValueError: a source has no images.
    """
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
            with listed.open(
                encoding="utf-8", errors="surrogateescape"
            ) as file:  # names may be in another encoding than UTF-8
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
    """The file of a source "@list.txt"; None for other sources."""
    return Path(source[1:]) if source.startswith("@") and not Path(source).exists() else None


def input_files(sources: Iterable[str], model: str) -> frozenset[Path]:
    """Real paths of the files that a run reads, so that it does not overwrite them: images named one by one, lists, and
    the files and folders of the model. Images in folders are left out; `check_replaceable` recognises images by their
    content."""
    files = [path for path in (list_of(source) or Path(source) for source in sources) if path.is_file()]
    if (folder := Path(model)).is_dir():
        files += (path for path in folder.iterdir() if path.is_file() or (path / "config.json").is_file())
    return frozenset(Path(os.path.realpath(path)) for path in files)


def _lines(lines: Iterable[str]) -> Iterator[str]:
    return (line.strip() for line in lines if line.strip())


@dataclass(frozen=True)
class Tasks:
    """What is generated for each image.

    Attributes:
        languages: of the captions.
        questions: to answer.
        long: whether captions are long.
        prefix: text before each caption, such as a trigger word.
        suffix: text after each caption.
        threshold: of the probability below which a text is marked as not sure; None = the model's own. By default no
            text is marked, because captions are training data.

    Raises:
        ValueError: there is neither language nor question, a question is empty, or a text is not UTF-8.
    """

    languages: tuple[str, ...] = ("en",)
    questions: tuple[str, ...] = ()
    long: bool = False
    prefix: str = ""
    suffix: str = ""
    threshold: float | None = 0.0

    def __post_init__(self) -> None:
        for name in ("languages", "questions"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        if not self.languages and not self.questions:
            raise ValueError("there is nothing to generate: give a language or a question")
        if not all(question.strip() for question in self.questions):
            raise ValueError("the question is empty: say something")
        for words in (self.prefix, self.suffix, *self.questions):
            if not is_text(words):
                raise ValueError(f"{words!r} is not in UTF-8, as texts must be")

    @property
    def columns(self) -> list[str]:
        """The columns: "text" for the first caption, "text_ar" and so on for others, the question for an answer."""
        captions = [f"text_{language}" if i else "text" for i, language in enumerate(self.languages)]
        return [*captions, *self.questions]

    def run(self, model: "CM3", images: Sequence[PIL_Image.Image]) -> list[dict[str, str]]:
        """Generate the texts of each image, by column."""
        queries = [Query(language=language, long=self.long) for language in self.languages]
        queries += [Query(question) for question in self.questions]
        options = AnswerOptions(threshold=self.threshold)
        job = model.jobs.tell([(image, query) for image in images for query in queries], options)
        texts = (with_words(text, " ".join(text.split())) for text in model.run(job))  # one line each
        results: list[dict[str, str]] = []
        for _ in images:
            captions = [
                with_words(text, f"{self.prefix}{text}{self.suffix}") for text in islice(texts, len(self.languages))
            ]
            answers = [next(texts) for _ in self.questions]
            results.append(dict(zip(self.columns, [*captions, *answers], strict=True)))
        return results


def caption_files(
    model: "CM3",
    paths: Iterable[Path],
    sink: Sink,
    tasks: Tasks,
    batch: int = 32,
    workers: int = 2,
    skipped: Callable[[Path], None] = lambda _: None,
) -> Generator[Result]:
    """Generate the texts of image files and write them.

    Args:
        model: generates the texts.
        paths: image files; read two batches ahead.
        sink: writes the texts.
        tasks: what is generated for each image.
        batch: images of one batch.
        workers: threads that decode images, a batch ahead.
        skipped: called with each file that already has its text.

    Yields:
        The result of each file, as soon as it is written. For a file that is no image, or whose text cannot be written,
        the result has the error, and the run continues.

    Raises:
        OSError: the texts of MAX_WRITE_FAILURES consecutive files could not be written.
    """
    from tokenizer_image.pixels import open_image

    def decode(path: Path) -> PIL_Image.Image | str:
        try:
            return open_image(str(path), model.processor.max_pixels, least=model.processor.least)
        except (ValueError, OSError) as error:
            return str(error)

    def pending() -> Iterator[tuple[Path, str]]:
        """Files without a text, each with the error if it is already known that none can be written."""
        for path in paths:
            try:
                has, error = sink.has(path), ""
            except (ValueError, OSError) as problem:
                has, error = False, write_error(problem)
            if has:
                skipped(path)
            else:
                yield path, error

    failures = 0  # consecutive

    def write(result: Result) -> Result:
        nonlocal failures
        try:
            sink.add(result)
        except ValueError as error:
            return Result(result.path, {}, write_error(error))
        except OSError as error:
            failures += 1
            if failures == MAX_WRITE_FAILURES:
                raise OSError(
                    f"{result.path}: {write_error(error)}, nor could the {failures - 1} before it: the run stops; make "
                    "room, and run the same command again"
                ) from error
            return Result(result.path, {}, write_error(error))
        failures = 0
        return result

    with ThreadPoolExecutor(workers) as pool:
        source = pending()
        ahead: list[tuple[Path, Future[PIL_Image.Image | str] | str]] = []
        try:
            while True:
                for path, error in islice(source, 2 * batch - len(ahead)):
                    ahead.append((path, error or pool.submit(decode, path)))
                current, ahead = ahead[:batch], ahead[batch:]
                if not current:
                    return
                opened = [(path, one if isinstance(one, str) else one.result()) for path, one in current]
                texts = iter(tasks.run(model, [one for _, one in opened if not isinstance(one, str)]))
                for path, one in opened:
                    yield Result(path, {}, one) if isinstance(one, str) else write(Result(path, next(texts)))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def write_error(error: ValueError | OSError) -> str:
    """The error of a text that could not be written."""
    return f"its text cannot be written ({getattr(error, 'strerror', None) or error})"
