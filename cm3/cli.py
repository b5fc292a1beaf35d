"""The `cm3` command: draw, caption, ask. It holds no model logic; a user's mistake is one line and exit code 2."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from cm3.pipeline import CM3, tokenizer_presets

app = typer.Typer(add_completion=False, help="Draw pictures, caption them, and ask about them.")

Prompt = Annotated[str, typer.Argument(help="What to draw, in English or Arabic.")]
Model = Annotated[str, typer.Option(help="An embedded model, a model folder, or a hub id.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same result.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="The picture file to write.")]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest, higher is more varied.")]
FORMATS = (".png", ".jpg", ".jpeg", ".webp")
MAX_SCALE = 16


@app.command()
def generate(
    prompt: Prompt,
    n: Annotated[int, typer.Option("-n", help="How many pictures, 1 to 64.")] = 4,
    output: Output = Path("out.png"),
    seed: Seed = 0,
    guidance: Annotated[float, typer.Option(help="How much the text counts; 1 = no guidance.")] = 6.0,
    temperature: Temperature = 0.8,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest that make up this share.")] = 0.9,
    top_k: Annotated[int, typer.Option(help="Draw from this many of the likeliest; 0 = all.")] = 0,
    scale: Annotated[int, typer.Option(help="Enlarge the pictures so many times.")] = 4,
    model: Model = "emoji",
) -> None:
    """Draw pictures of PROMPT and save them as one file, side by side."""
    check_output(output)
    pictures = CM3.from_pretrained(model).generate(prompt, n, guidance, temperature, top_p, top_k, seed)
    save(grid(pictures, scale), output)
    print(output)


@app.command()
def caption(
    images: Annotated[list[str], typer.Argument(help="Picture files.", metavar="IMAGE...")],
    language: Annotated[str, typer.Option(help="en or ar.")] = "en",
    model: Model = "emoji",
) -> None:
    """Say what each IMAGE shows, a line each."""
    captions = CM3.from_pretrained(model).caption(images, language)
    for image, text in zip(images, captions, strict=True):
        print(f"{image}: {text}" if len(images) > 1 else text)


@app.command()
def ask(image: str, question: str, model: Model = "emoji") -> None:
    """Answer QUESTION about IMAGE."""
    print(CM3.from_pretrained(model).answer(image, question))


@app.command()
def info(model: Annotated[str, typer.Argument(help="As for --model.")] = "emoji") -> None:
    """Show what a model is: sizes, vocabulary, pictures; and the image tokenizers that can be trained or imported."""
    cm3 = CM3.from_pretrained(model)
    config = cm3.model.config
    rows, columns = cm3.grid
    table = Table(show_header=False, title=f"cm3 {model}")
    table.add_row("parameters", f"{cm3.model.num_parameters():,}")
    table.add_row("layers, width, heads", f"{config.num_hidden_layers}, {config.hidden_size}, "
                  f"{config.num_attention_heads}")  # fmt: skip
    table.add_row("vocabulary", f"{len(cm3.vocab):,} = {cm3.vocab.num_special} special + {cm3.vocab.num_text:,} text + "
                  f"{cm3.vocab.num_codes:,} image codes")  # fmt: skip
    table.add_row("context", f"{cm3.context:,} tokens")
    table.add_row("a picture", f"{rows * columns} tokens, {rows} x {columns}")
    table.add_row("precision, device", f"{cm3.model.dtype}, {cm3.model.device}".replace("torch.", ""))
    Console().print(table)
    Console().print(preset_table())


@app.command()
def tour(
    prompt: Prompt = "a red apple",
    output: Output = Path("out.png"),
    seed: Seed = 0,
    model: Model = "emoji",
) -> None:
    """Draw four pictures, caption the first in two languages, and ask about it."""
    check_output(output)
    cm3 = CM3.from_pretrained(model)
    pictures = cm3.generate(prompt, n=4, seed=seed)
    question = "What is this?"
    print(f"prompt:   {prompt}")
    print(f"caption:  {cm3.caption(pictures[0])}")
    print(f"الوصف:    {cm3.caption(pictures[0], language='ar')}")
    print(f"question: {question}")
    print(f"answer:   {cm3.answer(pictures[0], question)}")
    save(grid(pictures, 4), output)
    print(f"pictures: {output}")


def preset_table() -> Table:
    """The shapes of image tokenizers, a row each; parameters in millions."""
    table = Table(title="image tokenizer presets", box=None, pad_edge=False, collapse_padding=True)
    table.add_column("name")
    for column in ("pixels", "f", "tokens", "codes x dim", "bits/px", "encoder", "decoder", "all (M)"):
        table.add_column(column, justify="right")
    for name, config, parameters in tokenizer_presets():
        table.add_row(name, f"{config.resolution}", f"{config.downsampling}", f"{config.tokens}",
                      f"{config.n_embed} x {config.embed_dim}", f"{config.bits_per_pixel:.3f}",
                      *(f"{number / 1e6:.2f}" for number in parameters))  # fmt: skip
    return table


def grid(pictures: list[Image.Image], scale: int) -> Image.Image:
    """Pictures of one size side by side, in about as many rows as columns, each enlarged."""
    if not 1 <= scale <= MAX_SCALE:
        raise ValueError(f"scale is {scale}, but must be 1 to {MAX_SCALE}")
    rows = round(len(pictures) ** 0.5)
    columns = -(-len(pictures) // rows)
    width, height = (side * scale for side in pictures[0].size)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        sheet.paste(picture.resize((width, height), Image.Resampling.BICUBIC), (column * width, row * height))
    return sheet


def check_output(path: Path) -> None:
    """Find out before the work that the result cannot be saved. Errors: ValueError."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: the name of a picture must end with one of {', '.join(FORMATS)}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}; make it first")


def save(image: Image.Image, path: Path) -> None:
    """Write the whole file or nothing: first beside it, then renamed."""
    part = path.with_name(f".{path.name}.part")
    try:
        image.save(part, Image.registered_extensions()[path.suffix.lower()])
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def main() -> None:
    """Run the command. A mistake of the user's: one line on stderr, exit code 2."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    sys.stdout.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        sys.exit(app(standalone_mode=False))
    except (ValueError, OSError, typer.TyperException) as error:
        message = getattr(error, "format_message", error.__str__)()
        print("cm3:", " ".join(message.split()), file=sys.stderr)
        sys.exit(2)
