"""The sheet of plain prompts that opens the README: one image each, nothing chosen.

    python -m train.recipes.emoji.sheet --model emoji --out docs/contact_sheet.png

The prompts were fixed before the model was trained. All options have their defaults, and the seed is 0.
"""

from pathlib import Path
from typing import Annotated

import matplotlib
import typer
from PIL import Image, ImageDraw, ImageFont

from cm3.pipeline import CM3

PROMPTS = (
    "A CAT",
    "a red apple",
    "apples",
    "a house",
    "the sun",
    "a heart",
    "a bicycle",
    "a cup of coffee",
    "a purple elephant",
    "a cat on a blue background",
    "a cat and a dog",
    "two cats and a dog",
    "please draw me a rocket",
    "pizza",
    "a snowman",
    "three stars",
    "a green car",
    "a tree to the left of a house",
    "happy face",
    "a guitar in the noto style",
    "ein Hund",
    "قطة",
    "the moon",
    "birthday cake",
    "a blue bird on a yellow background",
)
COLUMNS = 5
SIDE = 200  # pixels of an image on the sheet
LINE = 24  # pixels of the prompt under it


def sheet(model: CM3, prompts: tuple[str, ...] = PROMPTS) -> Image.Image:
    """Draw the prompts, and put each under its image."""
    rows = -(-len(prompts) // COLUMNS)
    out = Image.new("RGB", (COLUMNS * (SIDE + 8), rows * (SIDE + LINE + 8)), "white")
    pen, font = ImageDraw.Draw(out), ImageFont.truetype(_font(), 13)
    for i, prompt in enumerate(prompts):
        left, top = i % COLUMNS * (SIDE + 8) + 4, i // COLUMNS * (SIDE + LINE + 8) + 4
        image = model.generate(prompt, seed=0)[0].convert("RGB")
        out.paste(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, top))
        pen.rectangle((left - 1, top - 1, left + SIDE, top + SIDE), outline=(225, 225, 225))
        pen.text((left + SIDE // 2, top + SIDE + LINE // 2), prompt, "black", font, anchor="mm")
    return out


def _font() -> Path:
    """DejaVu Sans, which matplotlib brings; it has Arabic letters."""
    return Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"


def main(
    model: Annotated[str, typer.Option(help="folder or name")] = "emoji",
    out: Annotated[Path, typer.Option(help="the image that is written")] = Path("docs/contact_sheet.png"),
) -> None:
    try:
        sheet(CM3.from_pretrained(model)).save(out)
    except (OSError, ValueError) as error:
        raise SystemExit(f"sheet: {error}") from None


if __name__ == "__main__":
    typer.run(main)
