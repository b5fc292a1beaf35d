"""`cm3 generate`, `infill` and `edit`: images into files."""

import json
import re
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from PIL import Image

from cm3 import __version__
from cm3.cli.common import (
    MAX_PIXELS,
    Device,
    ImageFile,
    MaxPixels,
    Model,
    Quiet,
    check_words,
    load,
    option_of,
    with_options,
)
from cm3.cli.files import MAX_ENLARGEMENT, check_images, check_output, fit_for, grid, places_for, plain, save
from cm3.engine.options import EditOptions, GenerateOptions, InfillOptions, Structure
from cm3.tokens.templates import Box

if TYPE_CHECKING:
    from cm3.pipeline import CM3

Prompt = Annotated[str, typer.Argument(help="What to draw, in English or Arabic.")]
Seed = Annotated[
    int | None, option_of(GenerateOptions, "seed", note="Without one, a random seed is taken and printed.")
]
Output = Annotated[
    Path,
    typer.Option(
        "-o",
        "--output",
        help="The image file to write; with {i} in its name a file for each image. Where there is one, a number is "
        "added: out-1.png.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Write over a file that is there.")]
Scale = Annotated[
    int,
    typer.Option(help="Enlarge the images so many times; 0 = small ones, to 256 pixels.", min=0, max=MAX_ENLARGEMENT),
]
Enlarged = Annotated[
    int, typer.Option(help="Enlarge the result so many times; 1 = IMAGE's own size.", min=0, max=MAX_ENLARGEMENT)
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Print on stderr the prompt as the model reads it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object: files, seed, prompt and model.")]

Planned = Annotated[
    str | None,
    typer.Option(help='Models that plan: draw this plan: "a cat at the top left, in the noto style".'),
]

EACH = "{i}"  # in the name of a file: the number of the image


class Delivery:
    """Where images go, and what is printed about them. A PNG file says how it was made: prompt, seed, model, version.

    Raises:
        ValueError: a place that cannot be written.
    """

    def __init__(
        self, output: Path, overwrite: bool, seed: int | None, as_json: bool, quiet: bool, facts: dict[str, str]
    ) -> None:
        self.output, self.overwrite = output, overwrite
        self.as_json, self.quiet, self.facts = as_json, quiet, facts
        self.separate = EACH in output.name
        check_output(self.place(0), overwrite)
        self.seed = secrets.randbits(32) if seed is None else seed
        if seed is None and not (quiet or as_json):
            print(f"seed {self.seed}", file=sys.stderr)

    def place(self, i: int) -> Path:
        return self.output.with_name(self.output.name.replace(EACH, str(i)))

    def give(self, images: list[Image.Image], scale: int) -> None:
        """Save each image, or all side by side."""
        shown = [[image] for image in images] if self.separate else [images]
        plans = [[plan for image in some if (plan := image.info.get("plan"))] for some in shown]
        sheets = [grid(some, scale) for some in shown]
        names = [self.place(i) for i in range(len(sheets))]
        for name in names:
            check_output(name, self.overwrite)
        facts = {**self.facts, "seed": str(self.seed), "software": f"cm3 {__version__}"}
        with places_for(names, self.overwrite) as places:
            for place, sheet, some in zip(places, sheets, plans, strict=True):
                save(fit_for(place, sheet), place, {**facts, "plan": "\n".join(some)} if some else facts)
        written = [plan for some in plans for plan in some]
        if self.as_json:
            report = {"files": list(map(str, places)), "seed": self.seed, **self.facts}
            print(json.dumps({**report, "plans": written} if written else report, ensure_ascii=False))
        elif not self.quiet:
            for plan in dict.fromkeys(written):
                print(f"plan: {plan}", file=sys.stderr)
            print(*(plain(str(place)) for place in places), sep="\n")


@with_options(GenerateOptions)
def generate(
    prompt: Prompt = "",
    n: Annotated[int, option_of(GenerateOptions, "n", "-n")] = 4,
    output: Output = Path("out.png"),
    overwrite: Overwrite = False,
    seed: Seed = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            help='An object and its box, left top right bottom from 0 to 1: "a cat 0.1 0.2 0.5 0.9"; repeatable.'
        ),
    ] = None,
    structure: Annotated[str | None, option_of(GenerateOptions, "structure")] = None,
    kind: Annotated[Structure | None, option_of(GenerateOptions, "kind", note="The default is edges.")] = None,
    negative: Annotated[str | None, option_of(GenerateOptions, "negative_prompt")] = None,
    reference: Annotated[list[str] | None, typer.Option(help="An image file to draw after; repeatable.")] = None,
    shape: Annotated[
        str | None, typer.Option("--grid", help="Rows and columns of codes, one of the model's grids: 6x10.")
    ] = None,
    plan: Planned = None,
    planning: Annotated[bool, typer.Option("--planning/--no-planning", help="Write a plan before drawing.")] = True,
    scale: Scale = 0,
    verbose: Verbose = False,
    max_pixels: MaxPixels = MAX_PIXELS,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
    model: Model = "emoji",
    **options: Any,
) -> None:
    """Draw images of PROMPT and save them as one file, side by side."""
    delivery = Delivery(output, overwrite, seed, as_json, quiet, {"prompt": prompt, "model": model})
    check_images(*(reference or ()))
    rows_and_columns = None if shape is None else read_grid(shape)
    boxes = [read_box(words) for words in box] if box else None
    if structure is not None:
        check_images(structure)
    elif kind:
        raise ValueError(f"--kind {kind} says what a structure shows: name its image with --structure")
    if prompt == "-":
        prompt = delivery.facts["prompt"] = sys.stdin.read().strip()
    if not planning and plan is not None:
        raise ValueError("--plan and --no-planning contradict each other: leave one out")
    if not boxes and structure is None and plan is None:
        check_words("prompt", prompt)
    wanted = GenerateOptions(
        n=n,
        seed=delivery.seed,
        boxes=boxes,
        structure=structure,
        kind=kind or GenerateOptions.kind,
        negative_prompt=negative,
        references=reference or (),
        grid=rows_and_columns,
        plan=planning if plan is None else plan,
        **options,
    )
    cm3 = load(model, max_pixels, device)
    if verbose:
        print_normalised(cm3, wanted.normalise, prompt, *(name for name, _ in boxes or ()), negative or "")
    if (unknown := cm3.unknown_words(prompt, wanted.normalise)) and not (quiet or as_json):
        print(f"the model has never read {', '.join(unknown)}: its drawing will be of something else", file=sys.stderr)
    delivery.give(cm3.run(cm3.jobs.generate(prompt, wanted)), scale)


@with_options(InfillOptions)
def infill(
    image: ImageFile,
    mask: Annotated[
        str, typer.Argument(help="An image of the same size, white where IMAGE is to be redrawn.", metavar="MASK")
    ],
    prompt: Annotated[str | None, typer.Argument(help="What the whole image shows.")] = None,
    n: Annotated[int, option_of(InfillOptions, "n", "-n")] = InfillOptions.n,
    output: Output = Path("out.png"),
    overwrite: Overwrite = False,
    seed: Seed = None,
    scale: Enlarged = 1,
    verbose: Verbose = False,
    max_pixels: MaxPixels = MAX_PIXELS,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
    model: Model = "emoji",
    **options: Any,
) -> None:
    """Redraw IMAGE where MASK is white, and save it."""
    delivery = Delivery(output, overwrite, seed, as_json, quiet, {"prompt": prompt or "", "model": model})
    check_images(image, mask)
    wanted = InfillOptions(n=n, seed=delivery.seed, **options)
    cm3 = load(model, max_pixels, device)
    if verbose:
        print_normalised(cm3, wanted.normalise, prompt or "")
    delivery.give(cm3.run(cm3.jobs.infill(image, mask, prompt, wanted)), scale)


@with_options(EditOptions)
def edit(
    images: Annotated[list[str], typer.Argument(help="Image files.", metavar="IMAGE")],
    instruction: Annotated[str, typer.Argument(help="How to change it, in English or Arabic.")],
    output: Output = Path("out.png"),
    overwrite: Overwrite = False,
    seed: Seed = None,
    plan: Planned = None,
    scale: Enlarged = 1,
    verbose: Verbose = False,
    max_pixels: MaxPixels = MAX_PIXELS,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
    model: Model = "emoji",
    **options: Any,
) -> None:
    """Change each IMAGE as INSTRUCTION says, and save it. The model sees the square in its middle."""
    delivery = Delivery(output, overwrite, seed, as_json, quiet, {"prompt": instruction, "model": model})
    check_images(*images)
    if len(images) > 1 and not delivery.separate:
        raise ValueError(f"{len(images)} images need as many names: put {{i}} into that of -o, such as out_{{i}}.png")
    check_words("instruction", instruction)
    wanted = EditOptions(seed=delivery.seed, plan=plan, **options)
    cm3 = load(model, max_pixels, device)
    if verbose:
        print_normalised(cm3, wanted.normalise, instruction)
    delivery.give(cm3.run(cm3.jobs.edit(images, instruction, wanted)), scale)


def tour(
    prompt: Prompt = "a red apple",
    output: Output = Path("out.png"),
    overwrite: Overwrite = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "auto",
    best_of: Annotated[int, option_of(GenerateOptions, "best_of")] = GenerateOptions.best_of,
    model: Model = "emoji",
) -> None:
    """Draw four images, caption the first in two languages, and ask about it."""
    check_output(output, overwrite)
    check_words("prompt", prompt)
    cm3 = load(model, device=device)
    images = cm3.generate(prompt, n=4, best_of=best_of, seed=seed)
    question = "What is this?"
    print(f"prompt:   {prompt}")
    print(f"caption:  {cm3.caption(images[0])}")
    print(f"الوصف:    {cm3.caption(images[0], language='ar')}")
    print(f"question: {question}")
    print(f"answer:   {cm3.answer(images[0], question)}")
    with places_for([output], overwrite) as [place]:
        save(grid(images, 0), place)
    print(plain(f"images:   {place}"))


def print_normalised(model: "CM3", normalise: bool, *texts: str) -> None:
    """Print what the model reads in place of each text that is not empty."""
    for text in filter(str.strip, texts):
        print(f"the model reads: {model.normal_prompt(text) if normalise else text}", file=sys.stderr)


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
