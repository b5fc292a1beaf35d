"""A few drawn things to make scenes of: flat shapes with a dark rim in two styles, in memory."""

import math

import numpy as np
from PIL import Image, ImageDraw

from train.emoji.colours import main_colour
from train.scenes.scene import Thing

SIDE = 48
# English name -> (Arabic name, corners or 0 for a disc, colour).
SHAPES = {
    "cat": ("قطة", 0, (220, 40, 45)),
    "dog": ("كلب", 4, (50, 115, 220)),
    "fish": ("سمكة", 3, (250, 205, 50)),
    "fox": ("ثعلب", 5, (65, 165, 65)),
    "bus": ("حافلة", 6, (130, 65, 170)),
    "rose": ("وردة", 8, (248, 140, 185)),
    "drum": ("طبل", 7, (250, 130, 25)),
    "red apple": ("تفاحة حمراء", 9, (200, 35, 45)),
}


def drawn(corners: int, colour: tuple[int, int, int], wide: float) -> Image.Image:
    """[SIDE, SIDE] RGBA: a polygon with a darker rim and a light spot, wider than high for a `wide` above 1."""
    image = Image.new("RGBA", (SIDE, SIDE))
    pen = ImageDraw.Draw(image)
    for shrink, shade in ((1.0, 0.55), (0.85, 1.0)):
        turns = [2 * math.pi * i / (corners or 36) for i in range(corners or 36)]
        reach = (SIDE / 2 - 2) * shrink
        points = [
            (SIDE / 2 + reach * min(wide, 1) * math.sin(t), SIDE / 2 - reach / max(wide, 1) * math.cos(t))
            for t in turns
        ]
        pen.polygon(points, (*(int(c * shade) for c in colour), 255))
    pen.ellipse((SIDE * 3 // 8, SIDE * 3 // 8, SIDE * 4 // 8, SIDE * 4 // 8), (250, 250, 250, 255))
    return image


def drawn_things() -> list[Thing]:
    """Every shape in two styles."""
    out = []
    for style, wide in (("plain", 1.0), ("flat", 1.3)):
        for code, (english, (arabic, corners, colour)) in enumerate(SHAPES.items()):
            drawing = drawn(corners, colour, wide)
            colour_name = main_colour(np.asarray(drawing))
            out.append(Thing(f"{style}_{code}", {"en": english, "ar": arabic}, str(code), style, colour_name, drawing))
    return out
