"""The `cm3` command: draw, fill in, edit, caption, ask. It holds no model logic; a user's mistake is one line and exit
code 2.

Help and most mistakes are answered at once: torch and transformers, which take seconds, are imported by load().
"""

import io
import os
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from cm3 import __version__
from cm3.checks import check_choice
from cm3.cli_caption import caption
from cm3.cli_files import MAX_ENLARGEMENT, check_output, check_pictures, fit_for, grid, save
from cm3.cli_model import MAX_PIXELS, load
from cm3.cli_serve import serve
from cm3.options import EDIT, GENERATE, INFILL, MAX_PICTURES, Decoding, Schedule, Structure
from cm3.templates import Box, boxed

if TYPE_CHECKING:
    pass

app = typer.Typer(add_completion=False, help="Draw pictures, change them, caption them, and ask about them.")

Prompt = Annotated[str, typer.Argument(help="What to draw, in English or Arabic.")]
Picture = Annotated[str, typer.Argument(help="A picture file.", metavar="IMAGE")]
Model = Annotated[str, typer.Option(help="An embedded model, a model folder, or a hub id.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same result.", min=0)]
Output = Annotated[Path, typer.Option("-o", "--output", help="The picture file to write.")]
Number = Annotated[int, typer.Option("-n", help="How many pictures.", min=1, max=MAX_PICTURES)]
Guidance = Annotated[float, typer.Option(help="How much the text counts; 1 = no guidance.", min=0)]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest, higher is more varied.", min=0)]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest that make up this share.", min=0, max=1)]
TopK = Annotated[int, typer.Option(help="Draw from this many of the likeliest; 0 = all.", min=0)]
INTERRUPTED = 130  # by Ctrl-C, as shells count it
Scale = Annotated[
    int,
    typer.Option(help="Enlarge the pictures so many times; 0 = small ones, to 256 pixels.", min=0, max=MAX_ENLARGEMENT),
]
Enlarged = Annotated[
    int, typer.Option(help="Enlarge the result so many times; 1 = IMAGE's own size.", min=0, max=MAX_ENLARGEMENT)
]
MaxPixels = Annotated[int, typer.Option(help="Refuse pictures with more pixels than these.", min=1)]


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
    """What stands before the commands."""


@app.command()
def generate(
    prompt: Prompt = "",
    n: Number = 4,
    output: Output = Path("out.png"),
    seed: Seed = GENERATE.seed,
    guidance: Guidance = GENERATE.guidance,
    temperature: Temperature = GENERATE.temperature,
    top_p: TopP = GENERATE.top_p,
    top_k: TopK = GENERATE.top_k,
    best_of: Annotated[
        int,
        typer.Option(help="Draw so many for each picture, keep what fits the prompt best.", min=1, max=MAX_PICTURES),
    ] = GENERATE.best_of,
    decoding: Annotated[Decoding, typer.Option(help="both = one half each.")] = GENERATE.decoding,
    guidance_schedule: Annotated[
        Schedule, typer.Option(help="falling = evenly down to 1 at a drawing's end.")
    ] = GENERATE.guidance_schedule,
    box: Annotated[
        list[str] | None,
        typer.Option(
            help='A thing and its box, left top right bottom from 0 to 1: "a cat 0.1 0.2 0.5 0.9"; repeatable.'
        ),
    ] = None,
    structure: Annotated[str | None, typer.Option(help="A picture file whose edges or segments to follow.")] = None,
    kind: Annotated[Structure | None, typer.Option(help="What the structure shows; edges if not said.")] = None,
    negative: Annotated[str | None, typer.Option(help="What guidance leads away from.")] = None,
    reference: Annotated[list[str] | None, typer.Option(help="A picture file to draw after; repeatable.")] = None,
    shape: Annotated[
        str | None, typer.Option("--grid", help="Rows and columns of codes, one of the model's: 6x10.")
    ] = None,
    scale: Scale = 0,
    max_pixels: MaxPixels = MAX_PIXELS,
    model: Model = "emoji",
) -> None:
    """Draw pictures of PROMPT and save them as one file, side by side."""
    check_output(output)
    check_pictures(*(reference or ()))
    rows_and_columns = None if shape is None else read_grid(shape)
    boxes = [read_box(words) for words in box] if box else None
    if boxes:
        boxed(boxes)  # says now what is wrong with them
    if structure is not None:
        check_pictures(structure)
    elif kind:
        raise ValueError(f"--kind {kind} says what a structure shows: name its picture with --structure")
    if not boxes and structure is None:
        check_words("prompt", prompt)
    pictures = load(model, max_pixels).generate(
        prompt,
        n,
        guidance,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        best_of=best_of,
        decoding=decoding,
        guidance_schedule=guidance_schedule,
        boxes=boxes,
        structure=structure,
        kind=kind or "edges",
        negative_prompt=negative,
        references=reference or (),
        grid=rows_and_columns,
    )
    save(grid(pictures, scale), output)
    print(output)


@app.command()
def infill(
    image: Picture,
    mask: Annotated[
        str, typer.Argument(help="A picture of the same size, white where IMAGE is to be redrawn.", metavar="MASK")
    ],
    prompt: Annotated[str | None, typer.Argument(help="What the whole picture shows.")] = None,
    n: Number = INFILL.n,
    output: Output = Path("out.png"),
    seed: Seed = INFILL.seed,
    guidance: Guidance = INFILL.guidance,
    temperature: Temperature = INFILL.temperature,
    top_p: TopP = INFILL.top_p,
    top_k: TopK = INFILL.top_k,
    scale: Enlarged = 1,
    max_pixels: MaxPixels = MAX_PIXELS,
    model: Model = "emoji",
) -> None:
    """Redraw IMAGE where MASK is white, and save it."""
    check_output(output)
    check_pictures(image, mask)
    cm3 = load(model, max_pixels)
    pictures = cm3.infill(image, mask, prompt, n, guidance, temperature, top_p, top_k, seed)
    save(fit_for(output, grid(pictures, scale)), output)
    print(output)


@app.command()
def edit(
    image: Picture,
    instruction: Annotated[str, typer.Argument(help="How to change it, in English or Arabic.")],
    output: Output = Path("out.png"),
    seed: Seed = EDIT.seed,
    image_guidance: Annotated[float, typer.Option(help="How much IMAGE counts.")] = EDIT.image_guidance,
    text_guidance: Annotated[float, typer.Option(help="How much INSTRUCTION counts.")] = EDIT.text_guidance,
    temperature: Temperature = EDIT.temperature,
    top_p: TopP = EDIT.top_p,
    top_k: TopK = EDIT.top_k,
    scale: Enlarged = 1,
    max_pixels: MaxPixels = MAX_PIXELS,
    model: Model = "emoji",
) -> None:
    """Change IMAGE as INSTRUCTION says, and save it. The model sees the square in its middle."""
    check_output(output)
    check_pictures(image)
    check_words("instruction", instruction)
    cm3 = load(model, max_pixels)
    picture = cm3.edit(
        image,
        instruction,
        image_guidance=image_guidance,
        text_guidance=text_guidance,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
    )
    save(fit_for(output, grid([picture], scale)), output)
    print(output)


app.command()(caption)
app.command()(serve)


@app.command()
def ask(image: Picture, question: str, max_pixels: MaxPixels = MAX_PIXELS, model: Model = "emoji") -> None:
    """Answer QUESTION about IMAGE."""
    check_pictures(image)
    check_words("question", question)
    print(load(model, max_pixels).answer(image, question))


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="As for --model.")] = "emoji",
    batch: Annotated[int, typer.Option(help="Show the memory that so many guided drawings at once take.", min=1)] = 1,
) -> None:
    """Show what a model is: sizes, vocabulary, pictures; and the image tokenizers that can be trained or imported."""
    cm3 = load(model)
    from cm3.engine import room
    from cm3.memory import free_bytes, memory
    from cm3.prompts import MAX_TEXT

    config = cm3.model.config
    rows, columns = cm3.grid
    table = Table(show_header=False, title=f"cm3 {model}")
    table.add_row("parameters", f"{cm3.model.num_parameters():,}")
    table.add_row(
        "layers, width, heads", f"{config.num_hidden_layers}, {config.hidden_size}, {config.num_attention_heads}"
    )
    table.add_row(
        "vocabulary",
        f"{len(cm3.vocab):,} = {cm3.vocab.num_special} special + {cm3.vocab.num_text:,} text + "
        f"{cm3.vocab.num_codes:,} image codes",
    )
    table.add_row("context", f"{cm3.context:,} tokens")
    others = "".join(f"; {grid[0]} x {grid[1]}" for grid in cm3.vocab.grids)
    table.add_row("a picture", f"{rows * columns} tokens, {rows} x {columns}{others}")
    table.add_row("documents", cm3.vocab.form)
    table.add_row("scorer, for --best-of", "yes" if cm3.scorer else "none")
    table.add_row("precision, device", f"{cm3.model.dtype}, {cm3.model.device}".replace("torch.", ""))
    lanes, prompt = 2 * batch, MAX_TEXT + 3
    slots = room(prompt + rows * columns + 2)
    sizes = memory(config, cm3.model.num_parameters(), lanes, slots, lanes * prompt, cm3.model.dtype)
    free = free_bytes(cm3.model.device)
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
    from cm3 import convert as conversion

    if to == "cm3":
        conversion.convert(source, out, image_tokenizer)
    else:
        conversion.convert_back(source, out, like)
    print(f"{out} is written")


@app.command()
def tour(
    prompt: Prompt = "a red apple",
    output: Output = Path("out.png"),
    seed: Seed = 0,
    model: Model = "emoji",
) -> None:
    """Draw four pictures, caption the first in two languages, and ask about it."""
    check_output(output)
    check_words("prompt", prompt)
    cm3 = load(model)
    pictures = cm3.generate(prompt, n=4, seed=seed)
    question = "What is this?"
    print(f"prompt:   {prompt}")
    print(f"caption:  {cm3.caption(pictures[0])}")
    print(f"الوصف:    {cm3.caption(pictures[0], language='ar')}")
    print(f"question: {question}")
    print(f"answer:   {cm3.answer(pictures[0], question)}")
    save(grid(pictures, 0), output)
    print(f"pictures: {output}")


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


def read_box(words: str) -> tuple[str, Box]:
    """ "a cat 0.1 0.2 0.5 0.9" """
    try:
        name, *sides = words.rsplit(maxsplit=4)
        left, top, right, bottom = map(float, sides)
    except ValueError as error:
        raise ValueError(f'the box {words!r} must be a name and four numbers: "a cat 0.1 0.2 0.5 0.9"') from error
    return name, (left, top, right, bottom)


def read_grid(words: str) -> tuple[int, int]:
    """ "6x10" """
    found = re.fullmatch(r"(\d{1,4})x(\d{1,4})", words)
    if not found:
        raise ValueError(f"--grid is {words!r}, but must be rows and columns: 6x10")
    return int(found[1]), int(found[2])


def check_words(what: str, words: str) -> None:
    if not words.strip():
        raise ValueError(f"the {what} is empty: say something")


def prepare_streams() -> None:
    """What is printed can be: in UTF-8 whatever the locale says, for there is no Arabic in ASCII and terminals show it;
    a name's bytes that are no text are escaped. It goes nowhere where stdout is closed."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


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
        print("cm3:", " ".join(message.split()), file=sys.stderr)
        return 2
    if code == INTERRUPTED:  # typer's too
        print("cm3: stopped", file=sys.stderr)
    return code


def main() -> None:
    """Run the command. A mistake of the user's: one line on stderr, exit code 2."""
    if not sys.warnoptions:  # what libraries warn of is for programmers
        warnings.simplefilter("ignore")
    prepare_streams()
    sys.exit(run())
