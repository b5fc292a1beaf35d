"""Drawings as scenes use them: painted in one colour, at any size, on a plain ground; and signs with a word.

Everything is placed on whole grid positions of the image tokenizer, so that a drawing has the same codes wherever it
stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from train.images.views import GROUNDS
from train.recipes.emoji.colours import main_colour

CANVAS = 256  # pixels of a side
TILE = 128  # pixels of a quarter's side
STEP = 16  # pixels of a grid position's side

# Name -> sRGB of the colours that things are painted in.
PAINTS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 45),
    "orange": (248, 130, 25),
    "yellow": (252, 210, 50),
    "green": (65, 165, 65),
    "blue": (50, 115, 220),
    "purple": (135, 65, 175),
    "pink": (248, 140, 185),
    "brown": (125, 80, 48),
    "grey": (135, 138, 142),
    "black": (42, 42, 46),
    "white": (238, 240, 243),
}
BOARDS = ((255, 255, 255), (255, 235, 150), (205, 235, 255), (30, 90, 180), (190, 30, 40), (30, 120, 60))


@dataclass(frozen=True, eq=False)
class Drawing:
    """One drawing of the data set.

    Attributes:
        key: of the data set.
        code: code points of its concept.
        name: English name.
        style: the style's word.
        colour: measured main colour, or None.
        image: square, RGBA, of CANVAS pixels.
    """

    key: str
    code: str
    name: str
    style: str
    colour: str | None
    image: Image.Image


@lru_cache(maxsize=512)
def painted(drawing: Drawing, paint: str) -> Image.Image:
    """The drawing in shades of one colour: its dark parts darker, its light parts lighter. RGBA.

    A pixel's new colour depends on its lightness alone, so that a model can learn which code becomes which.
    """
    if not paint:
        return drawing.image
    red, green, blue = PAINTS[paint]
    grey = drawing.image.convert("RGB").convert("L")
    dark = (red * 2 // 5, green * 2 // 5, blue * 2 // 5)
    light = ((red + 255) // 2, (green + 255) // 2, (blue + 255) // 2)
    out = ImageOps.colorize(grey, dark, light, (red, green, blue), blackpoint=20, midpoint=180)
    out.putalpha(drawing.image.getchannel("A"))
    return out


@lru_cache(maxsize=1 << 17)
def takes(drawing: Drawing, paint: str) -> bool:
    """Whether the paint shows: the drawing has another colour of its own, and measures as this one once painted."""
    small = painted(drawing, paint).resize((64, 64))
    return paint != drawing.colour and main_colour(np.asarray(small)) == paint


def ground(name: str, size: int) -> Image.Image:
    """A plain square, RGB."""
    return Image.new("RGB", (size, size), GROUNDS[name][2])


def put(canvas: Image.Image, drawing: Image.Image, left: int, top: int, side: int) -> None:
    """Draws a square RGBA image of `side` pixels onto an RGB canvas, in place."""
    scaled = drawing
    if drawing.size != (side, side):
        scaled = drawing.convert("RGBa").resize((side, side), Image.Resampling.LANCZOS).convert("RGBA")
    canvas.paste(scaled, (left, top), scaled)


def single(drawing: Drawing, side: int, paint: str = "", on: str = "white") -> Image.Image:
    """The drawing alone, filling a square of `side` pixels. RGB."""
    canvas = ground(on, side)
    put(canvas, painted(drawing, paint), 0, 0, side)
    return canvas


@lru_cache
def _letters(advance: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans Mono Bold, which matplotlib brings, with letters of so many pixels' width."""
    path = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSansMono-Bold.ttf"
    return ImageFont.truetype(path, 1000 * advance / ImageFont.truetype(path, 1000).getlength("M"))


def sign(word: str, board: int, side: int = TILE) -> Image.Image:
    """A board on a post with a word of up to six letters, each one grid position wide and two high. RGB."""
    image = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(image)
    pen.rectangle((side * 15 // 32, side // 2, side * 17 // 32, side), (120, 90, 60))
    colour = BOARDS[board]
    pen.rounded_rectangle((1, STEP, side - 2, 5 * STEP - 1), side // 16, colour, (90, 90, 90), 2)
    free = side // STEP - len(word)
    ink = (255, 255, 255) if sum(colour) < 400 else (20, 20, 20)
    for i, letter in enumerate(word):  # one by one, none reaches into the next grid position
        pen.text(((free // 2 + i + 0.5) * STEP, 3.6 * STEP), letter, ink, _letters(STEP - 2), anchor="ms")
    return image


def tiles(parts: Sequence[Image.Image]) -> Image.Image:
    """Four images of TILE pixels, in raster order, as one canvas. RGB."""
    canvas = Image.new("RGB", (CANVAS, CANVAS))
    for i, part in enumerate(parts):
        canvas.paste(part, (i % 2 * TILE, i // 2 * TILE))
    return canvas
