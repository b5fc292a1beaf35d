"""`cm3 caption`: texts for one image or for a folder of them."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from cm3.captioning.run import Tasks, caption_files, find, input_files, may_be_several
from cm3.captioning.sinks import Existing, NoSink, Sink, TextFiles
from cm3.captioning.tables import open_table
from cm3.checks import check_choice
from cm3.cli.common import MAX_PIXELS, Device, MaxPixels, Model, Quiet, in_options, load, option_of
from cm3.cli.files import check_images, plain
from cm3.engine.options import CaptionOptions, Language
from cm3.tasks.rated_text import RatedText

if TYPE_CHECKING:
    from cm3.pipeline import CM3

FAILED = 1  # exit code where some files gave no text

Sources = Annotated[
    list[str],
    typer.Argument(
        help='Image files, folders, patterns ("in/*.png"), @a_list.txt, or - for names on stdin.', metavar="SOURCE"
    ),
]
Languages = Annotated[list[str] | None, typer.Option("--language", "--lang", help="en, ar; repeatable.")]


def caption(
    sources: Sources,
    language: Languages = None,
    long: Annotated[bool, option_of(CaptionOptions, "long", "--long")] = CaptionOptions.long,
    question: Annotated[
        list[str] | None, typer.Option(help="Answer this about each image; repeatable. Captions then only with --lang.")
    ] = None,
    extension: Annotated[
        str | None,
        typer.Option(help="Write a file beside each image, with this ending. The default for several: .txt."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write one table, metadata.jsonl, a .csv or a .parquet; what it has stays."),
    ] = None,
    existing: Annotated[Existing, typer.Option(help="What to do with images that have a text.")] = "skip",
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Folders with their subfolders.")] = False,
    batch: Annotated[int, typer.Option(help="Images at once.", min=1)] = CaptionOptions.batch,
    workers: Annotated[int, typer.Option(help="Threads that open images.", min=1)] = 2,
    prefix: Annotated[str, typer.Option(help="Before each caption, such as a trigger word.")] = "",
    suffix: Annotated[str, typer.Option(help="Behind each caption.")] = "",
    threshold: Annotated[
        float | None, option_of(CaptionOptions, "threshold", note="Texts in files are not marked, unless you give it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each image.")] = False,
    quiet: Quiet = False,
    max_pixels: MaxPixels = MAX_PIXELS,
    device: Device = "auto",
    model: Model = "emoji",
) -> None:
    """Describe images, a line each. A folder, a pattern or a list is captioned like a data set: into a .txt file beside
    each image (--extension), or into one table (--out). Images that have a text are skipped, so that the same command
    continues after a stop. A file that is no image is named and counted, and the exit code is 1."""
    for one in language or ():
        check_choice("--lang", one, get_args(Language))
    many = any(map(may_be_several, sources))
    ending = extension or (".txt" if many and out is None else None)
    if threshold is None and (ending or out):
        threshold = 0.0
    languages = tuple(language or (() if question else ("en",)))
    asks = Tasks(languages, tuple(question or ()), long, prefix, suffix, threshold)
    if not many:
        check_images(*sources)
    sink = sink_of(asks, out, ending, existing, input_files(sources, model))
    paths = find(sources, recursive, sys.stdin)
    total = None
    if "-" not in sources:
        listed = list(paths)
        paths, total = iter(listed), len(listed)
    cm3 = load(model, max_pixels, device)
    counts = run(cm3, paths, sink, asks, (batch, workers), total, show_of(as_json, quiet, many or len(sources) > 1))
    if many and not quiet:
        written, failed, skipped = counts
        print(f"{written} captioned, {skipped} skipped, {failed} failed", file=sys.stderr)
    if counts[1]:
        raise typer.Exit(FAILED)


def sink_of(
    asks: Tasks, out: Path | None, extension: str | None, existing: Existing, reads: frozenset[Path] = frozenset()
) -> Sink:
    if out is not None and extension is not None:
        raise ValueError("--out writes one table, --extension a file beside each image: give one of them")
    if out is not None:
        return open_table(out, asks.columns, existing, reads)
    if extension is None:
        return NoSink()
    ending = extension if extension.startswith(".") else f".{extension}"
    if "/" in ending or ending == ".":
        raise ValueError(f"--extension is {extension!r}, but must be the ending of a name, such as .txt")
    return TextFiles(ending, existing, reads)


def show_of(as_json: bool, quiet: bool, with_name: bool) -> Any:
    def show(path: Path, texts: dict[str, str]) -> None:
        if quiet:
            return
        if as_json:
            rated = {column: round(t.probability, 4) for column, t in texts.items() if isinstance(t, RatedText)}
            line = {"file": str(path), **texts, **({"probability": rated} if rated else {})}
            print(json.dumps(line, ensure_ascii=False), flush=True)
            return
        line = " | ".join(texts.values())
        print(f"{plain(str(path))}: {line}" if with_name else line, flush=True)

    return show


def run(
    cm3: "CM3", paths: Any, sink: Sink, asks: Tasks, sizes: tuple[int, int], total: int | None, show: Any
) -> tuple[int, int, int]:
    """Caption, and return how many images were written, failed and skipped. Written texts stay, whatever ends the
    run."""
    written = failed = skipped = 0
    bar = progress(shown=sys.stderr.isatty() and (total is None or total > 1))
    task = bar.add_task("captioning", total=total)

    def skip(_: Path) -> None:
        nonlocal skipped
        skipped += 1
        bar.advance(task)

    with bar:
        try:
            for result in caption_files(cm3, paths, sink, asks, *sizes, skipped=skip):
                if result.error:
                    failed += 1
                    reason = in_options(result.error.removeprefix(f"{result.path}: "))
                    print(plain(f"cm3: {result.path}: {reason}"), file=sys.stderr)
                else:
                    written += 1
                    show(result.path, result.texts)
                bar.advance(task)
        finally:
            sink.close()
    return written, failed, skipped


def progress(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(show_speed=True),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not shown,
    )
