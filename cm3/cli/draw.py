"""`cm3 generate`, `infill` and `edit`: pictures into files."""

import json
import re
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from PIL import Image

from cm3 import __version__
from cm3.cli.common import MAX_PIXELS, Device, MaxPixels, Model, Picture, Quiet, check_words, load
from cm3.cli.files import MAX_ENLARGEMENT, check_output, check_pictures, fit_for, grid, places_for, plain, save
from cm3.engine.options import EDIT, GENERATE, INFILL, MAX_PICTURES, Decoding, Schedule, Structure
from cm3.tokens.templates import Box, boxed

if TYPE_CHECKING:
    from cm3.pipeline import CM3

Prompt = Annotated[str, typer.Argument(help="What to draw, in English or Arabic.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same result. None = any; it is told.", min=0)]
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
Number = Annotated[int, typer.Option("-n", help="How many pictures.", min=1, max=MAX_PICTURES)]
Guidance = Annotated[float, typer.Option(help="How much the text counts; 1 = no guidance.", min=0)]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest, higher is more varied.", min=0)]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest that make up this share.", min=0, max=1)]
TopK = Annotated[int, typer.Option(help="Draw from this many of the likeliest; 0 = all.", min=0)]
Scale = Annotated[
    int,
    typer.Option(help="Enlarge the pictures so many times; 0 = small ones, to 256 pixels.", min=0, max=MAX_ENLARGEMENT),
]
Enlarged = Annotated[
    int, typer.Option(help="Enlarge the result so many times; 1 = IMAGE's own size.", min=0, max=MAX_ENLARGEMENT)
]


BestOf = Annotated[
    int, typer.Option(help="Draw so many for each picture, keep what fits the prompt best.", min=1, max=MAX_PICTURES)
]
Normalise = Annotated[
    bool,
    typer.Option(
        help="Put the words as the model reads them best: A CAT! is drawn as a cat, where its folder has a list."
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Print on stderr the words as the model reads them.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object: files, seed, and what was asked.")]

EACH = "{i}"  # in the name of a file: the number of the picture


class Delivery:
    """Where pictures go and what is said of them. A PNG holds how it was made: prompt, seed, model, version.

    Errors: ValueError for a place that cannot be written."""

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

    def give(self, pictures: list[Image.Image], scale: int) -> None:
        """Save each, or all side by side."""
        sheets = [grid([picture], scale) for picture in pictures] if self.separate else [grid(pictures, scale)]
        names = [self.place(i) for i in range(len(sheets))]
        for name in names:
            check_output(name, self.overwrite)
        facts = {**self.facts, "seed": str(self.seed), "software": f"cm3 {__version__}"}
        with places_for(names, self.overwrite) as places:
            for place, sheet in zip(places, sheets, strict=True):
                save(fit_for(place, sheet), place, facts)
        if self.as_json:
            print(json.dumps({"files": list(map(str, places)), "seed": self.seed, **self.facts}, ensure_ascii=False))
        elif not self.quiet:
            print(*(plain(str(place)) for place in places), sep="\n")


def generate(
    prompt: Prompt = "",
    n: Number = 4,
    output: Output = Path("out.png"),
    overwrite: Overwrite = False,
    seed: Seed = None,
    guidance: Guidance = GENERATE.guidance,
    temperature: Temperature = GENERATE.temperature,
    top_p: TopP = GENERATE.top_p,
    top_k: TopK = GENERATE.top_k,
    best_of: BestOf = GENERATE.best_of,
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
    normalise: Normalise = GENERATE.normalise,
    verbose: Verbose = False,
    max_pixels: MaxPixels = MAX_PIXELS,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
    model: Model = "emoji",
) -> None:
    """Draw pictures of PROMPT and save them as one file, side by side."""
    delivery = Delivery(output, overwrite, seed, as_json, quiet, {"prompt": prompt, "model": model})
    check_pictures(*(reference or ()))
    rows_and_columns = None if shape is None else read_grid(shape)
    boxes = [read_box(words) for words in box] if box else None
    if boxes:
        boxed(boxes)  # says now what is wrong with them
    if structure is not None:
        check_pictures(structure)
    elif kind:
        raise ValueError(f"--kind {kind} says what a structure shows: name its picture with --structure")
    if prompt == "-":
        prompt = delivery.facts["prompt"] = sys.stdin.read().strip()
    if not boxes and structure is None:
        check_words("prompt", prompt)
    loaded = load(model, max_pixels, device)
    if verbose:
        say_read(loaded, normalise, prompt, *(name for name, _ in boxes or ()), negative or "")
    if (unknown := loaded.unknown_words(prompt, normalise)) and not (quiet or as_json):
        print(f"the model has never read {', '.join(unknown)}: its drawing will be of something else", file=sys.stderr)
    pictures = loaded.generate(
        prompt,
        n,
        guidance,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=delivery.seed,
        best_of=best_of,
        decoding=decoding,
        guidance_schedule=guidance_schedule,
        normalise=normalise,
        boxes=boxes,
        structure=structure,
        kind=kind or "edges",
        negative_prompt=negative,
        references=reference or (),
        grid=rows_and_columns,
    )
    delivery.give(pictures, scale)


def infill(
    image: Picture,
    mask: Annotated[
        str, typer.Argument(help="A picture of the same size, white where IMAGE is to be redrawn.", metavar="MASK")
    ],
    prompt: Annotated[str | None, typer.Argument(help="What the whole picture shows.")] = None,
    n: Number = INFILL.n,
    output: Output = Path("out.png"),
    overwrite: Overwrite = False,
    seed: Seed = None,
    guidance: Guidance = INFILL.guidance,
    temperature: Temperature = INFILL.temperature,
    top_p: TopP = INFILL.top_p,
    top_k: TopK = INFILL.top_k,
    scale: Enlarged = 1,
    normalise: Normalise = INFILL.normalise,
    verbose: Verbose = False,
    max_pixels: MaxPixels = MAX_PIXELS,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
    model: Model = "emoji",
) -> None:
    """Redraw IMAGE where MASK is white, and save it."""
    delivery = Delivery(output, overwrite, seed, as_json, quiet, {"prompt": prompt or "", "model": model})
    check_pictures(image, mask)
    cm3 = load(model, max_pixels, device)
    if verbose:
        say_read(cm3, normalise, prompt or "")
    pictures = cm3.infill(image, mask, prompt, n, guidance, temperature, top_p, top_k, delivery.seed, normalise)
    delivery.give(pictures, scale)


def edit(
    images: Annotated[list[str], typer.Argument(help="Picture files.", metavar="IMAGE")],
    instruction: Annotated[str, typer.Argument(help="How to change it, in English or Arabic.")],
    output: Output = Path("out.png"),
    overwrite: Overwrite = False,
    seed: Seed = None,
    image_guidance: Annotated[float, typer.Option(help="How much IMAGE counts.")] = EDIT.image_guidance,
    text_guidance: Annotated[float, typer.Option(help="How much INSTRUCTION counts.")] = EDIT.text_guidance,
    temperature: Temperature = EDIT.temperature,
    top_p: TopP = EDIT.top_p,
    top_k: TopK = EDIT.top_k,
    keep: Annotated[float, typer.Option(help="How many nats likelier each part is to stay.")] = EDIT.keep,
    scale: Enlarged = 1,
    normalise: Normalise = EDIT.normalise,
    verbose: Verbose = False,
    max_pixels: MaxPixels = MAX_PIXELS,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
    model: Model = "emoji",
) -> None:
    """Change each IMAGE as INSTRUCTION says, and save it. The model sees the square in its middle."""
    delivery = Delivery(output, overwrite, seed, as_json, quiet, {"prompt": instruction, "model": model})
    check_pictures(*images)
    if len(images) > 1 and not delivery.separate:
        raise ValueError(f"{len(images)} pictures need as many names: put {{i}} into that of -o, such as out_{{i}}.png")
    check_words("instruction", instruction)
    cm3 = load(model, max_pixels, device)
    if verbose:
        say_read(cm3, normalise, instruction)
    pictures = cm3.edit(
        images,
        instruction,
        image_guidance=image_guidance,
        text_guidance=text_guidance,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=delivery.seed,
        keep=keep,
        normalise=normalise,
    )
    delivery.give(pictures, scale)


def tour(
    prompt: Prompt = "a red apple",
    output: Output = Path("out.png"),
    overwrite: Overwrite = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "auto",
    best_of: BestOf = GENERATE.best_of,
    model: Model = "emoji",
) -> None:
    """Draw four pictures, caption the first in two languages, and ask about it."""
    check_output(output, overwrite)
    check_words("prompt", prompt)
    cm3 = load(model, device=device)
    pictures = cm3.generate(prompt, n=4, best_of=best_of, seed=seed)
    question = "What is this?"
    print(f"prompt:   {prompt}")
    print(f"caption:  {cm3.caption(pictures[0])}")
    print(f"الوصف:    {cm3.caption(pictures[0], language='ar')}")
    print(f"question: {question}")
    print(f"answer:   {cm3.answer(pictures[0], question)}")
    with places_for([output], overwrite) as [place]:
        save(grid(pictures, 0), place)
    print(plain(f"pictures: {place}"))


def say_read(model: "CM3", normalise: bool, *texts: str) -> None:
    """What the model reads in place of each text that is not empty."""
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
