"""The `cm3` command: generate, infill, edit, caption, ask. A user's mistake is one line and exit code 2.

Help and most mistakes are answered at once: only load() imports torch and transformers, which takes seconds.
"""

import io
import json
import math
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from cm3 import __version__
from cm3.checks import check_choice
from cm3.cli.caption import caption
from cm3.cli.common import MAX_PIXELS, Device, ImageFile, MaxPixels, Model, check_words, in_options, load, with_options
from cm3.cli.draw import edit, generate, infill, tour
from cm3.cli.files import check_images
from cm3.cli.serve import serve
from cm3.engine.options import AnswerOptions

if TYPE_CHECKING:
    import torch

app = typer.Typer(
    help="Generate images, change them, caption them, and ask about them.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED = 130  # by Ctrl-C, as shells count it


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"cm3 {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=show_version)
    ] = False,
) -> None:
    """Options before the commands."""


for command in (generate, infill, edit, tour, caption, serve):
    app.command()(command)


@app.command()
@with_options(AnswerOptions)
def ask(
    image: ImageFile,
    questions: Annotated[list[str], typer.Argument(help="What to answer.", metavar="QUESTION")],
    max_pixels: MaxPixels = MAX_PIXELS,
    device: Device = "auto",
    model: Model = "emoji",
    **options: Any,
) -> None:
    """Answer each QUESTION about IMAGE, a line each."""
    check_images(image)
    for question in questions:
        check_words("question", question)
    wanted = AnswerOptions(**options)
    cm3 = load(model, max_pixels, device)
    print(*cm3.run(cm3.jobs.answer([image] * len(questions), questions, wanted)), sep="\n")


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="As for --model.")] = "emoji",
    batch: Annotated[int, typer.Option(help="Show the memory that so many guided images at once take.", min=1)] = 1,
) -> None:
    """Show what a model is: sizes, vocabulary, images; and the image tokenizers that can be trained or imported."""
    from cm3.hf.model_folder import check_files, device_of, find_model, read_config, weight_shapes
    from cm3.model.memory import free_bytes, memory, padded_length
    from cm3.tasks.prompts import MAX_TEXT
    from cm3.tokens.vocab import Vocab

    folder, device = find_model(model), device_of("auto")
    check_files(folder)
    config = read_config(folder)
    vocab, dtype = Vocab.from_config(config), cast("torch.dtype", config.dtype)  # transformers reads its name as one
    parameters = sum(math.prod(shape) for shape in weight_shapes(folder).values())
    rows, columns = config.grid
    table = Table(show_header=False, title=f"cm3 {model}")
    table.add_row("parameters", f"{parameters:,}")
    table.add_row(
        "layers, width, heads", f"{config.num_hidden_layers}, {config.hidden_size}, {config.num_attention_heads}"
    )
    table.add_row(
        "vocabulary",
        f"{len(vocab):,} = {vocab.num_special} special + {vocab.num_text:,} text + {vocab.num_codes:,} image codes",
    )
    table.add_row("context", f"{config.max_position_embeddings:,} tokens")
    others = "".join(f"; {grid[0]} x {grid[1]}" for grid in vocab.grids)
    table.add_row("an image", f"{rows * columns} tokens, {rows} x {columns}{others}")
    table.add_row("documents", vocab.form)
    table.add_row("scorer, for --best-of", scorer_of(folder / "scorer"))
    table.add_row("precision, device", f"{dtype}, {device}".replace("torch.", ""))
    sequences, prompt = 2 * batch, MAX_TEXT + 3
    length = padded_length(prompt + rows * columns + 2)
    sizes = memory(config, parameters, sequences, length, sequences * prompt, dtype)
    free = free_bytes(device)
    table.add_row(
        f"memory to draw {batch}, guided",
        f"{sum(sizes) / 1e6:,.0f} MB at most = weights {sizes.weights / 1e6:,.0f} + keys and values "
        f"{sizes.cache / 1e6:,.0f} + activations {sizes.activations / 1e6:,.0f}",
    )
    if free is not None:
        table.add_row("memory free", f"{free / 1e6:,.0f} MB")
    Console().print(table)
    Console().print(preset_table())


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Folder of Chameleon or Anole; with --to, of ours.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    image_tokenizer: Annotated[
        str | None, typer.Option(help="One of ours by name or folder, or a checkpoint, such as Meta's vqgan.ckpt.")
    ] = None,
    to: Annotated[str, typer.Option(help='"cm3", or "chameleon" for transformers\' layout.')] = "cm3",
    like: Annotated[Path | None, typer.Option(help="With --to: the converted folder it was trained from.")] = None,
) -> None:
    """Convert Chameleon's and Anole's weights, of transformers' layout or Meta's own, and back."""
    check_choice("--to", to, ("cm3", "chameleon"))
    from cm3.hf import convert as conversion

    if to == "cm3":
        conversion.convert(source, out, image_tokenizer)
    else:
        conversion.convert_back(source, out, like)
    print(f"{out} is written")


def scorer_of(folder: Path) -> str:
    """Whether the folder holds a scorer, and for which model it was trained."""
    if not folder.is_dir():
        return "none"
    start: str = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("trained_for", "")
    return f"that of {start}, which this model was trained on from" if start else "yes"


def preset_table() -> Table:
    """The shapes of image tokenizers, a row each; parameters in millions."""
    from tokenizer_image import PRESETS, count_parameters

    table = Table(title="image tokenizer presets", box=None, pad_edge=False, collapse_padding=True)
    table.add_column("name")
    for column in ("pixels", "f", "tokens", "codes x dim", "bits/px", "encoder", "decoder", "all (M)"):
        table.add_column(column, justify="right")
    for name, config in PRESETS.items():
        table.add_row(
            name,
            f"{config.resolution}",
            f"{config.downsampling}",
            f"{config.tokens}",
            f"{config.n_embed} x {config.embed_dim}",
            f"{config.bits_per_pixel:.3f}",
            *(f"{number / 1e6:.2f}" for number in count_parameters(config)),
        )
    return table


def prepare_streams() -> None:
    """Print in UTF-8, whatever the locale says: ASCII has no Arabic, and terminals can show it. Bytes of file names
    that are no text are escaped where they are printed, and kept where they are read. Print nowhere if stdout is
    closed."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")
    for stream, encoding, errors in (
        (sys.stdin, None, "surrogateescape"),
        (sys.stdout, "utf-8", "backslashreplace"),
        (sys.stderr, "utf-8", "backslashreplace"),
    ):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=encoding, errors=errors)


def run() -> int:
    """The exit code of the command."""
    try:
        code = app(standalone_mode=False) or 0
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        code = INTERRUPTED
    except (ValueError, OSError, MemoryError, FloatingPointError, typer.TyperException) as error:
        message = getattr(error, "format_message", error.__str__)()
        print("cm3:", in_options(" ".join(message.split())), file=sys.stderr)
        return 2
    if code == INTERRUPTED:  # typer's too
        print("cm3: stopped", file=sys.stderr)
    return code


def main() -> None:
    """Run the command."""
    if not sys.warnoptions:  # warnings of libraries are for programmers
        warnings.simplefilter("ignore")
    prepare_streams()
    sys.exit(run())
