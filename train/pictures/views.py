"""Views: a drawing on a transparent ground -> a training picture, shifted, scaled, mirrored, on a coloured ground.

The same few drawings give other codes each time, which keeps a model from learning them by heart.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

# Name -> (English, Arabic after the feminine noun for "ground", sRGB).
GROUNDS: dict[str, tuple[str, str, tuple[int, int, int]]] = {
    "white": ("white", "بيضاء", (255, 255, 255)),
    "yellow": ("yellow", "صفراء", (255, 240, 170)),
    "green": ("green", "خضراء", (205, 240, 195)),
    "blue": ("blue", "زرقاء", (190, 222, 250)),
    "pink": ("pink", "وردية", (252, 208, 224)),
    "purple": ("purple", "بنفسجية", (222, 205, 245)),
    "grey": ("grey", "رمادية", (215, 217, 222)),
    "black": ("black", "سوداء", (30, 30, 34)),
}


@dataclass(frozen=True)
class View:
    """How a drawing is placed.

    Attributes:
        ground: key of GROUNDS.
        scale: of the drawing's side to the picture's.
        shift: right and down, in pixels.
        mirror: left to right.
    """

    ground: str = "white"
    scale: float = 1.0
    shift: tuple[int, int] = (0, 0)
    mirror: bool = False


PLAIN = View()


@dataclass(frozen=True)
class Augmentation:
    """What views are drawn from.

    Attributes:
        white: share of white grounds; the other colours share the rest.
        scale: smallest scale; the largest is 1.
        shift: largest shift beyond the free border, in pixels of a 64-pixel picture.
        mirror: share of mirrored pictures (0 where pictures hold text).
    """

    white: float = 0.6
    scale: float = 0.85
    shift: int = 2
    mirror: float = 0.5

    def sample(self, rng: np.random.Generator, size: int) -> View:
        white = rng.random() < self.white
        ground = "white" if white else list(GROUNDS)[1:][rng.integers(len(GROUNDS) - 1)]
        scale = rng.uniform(self.scale, 1.0)
        reach = int(size * (1 - scale) / 2 + self.shift * size / 64)
        shift = (int(rng.integers(-reach, reach + 1)), int(rng.integers(-reach, reach + 1)))
        return View(ground, scale, shift, bool(rng.random() < self.mirror))


def place(drawing: Image.Image, view: View, size: int) -> np.ndarray:
    """The drawing as `view` has it, [size, size, 3] uint8.

    Args:
        drawing: square, mode RGBa (premultiplied alpha, so that scaling does not bleed).
        view: where and on what.
        size: side of the picture, in pixels.
    """
    side = max(1, round(size * view.scale))
    scaled = drawing.resize((side, side), Image.Resampling.LANCZOS)
    if view.mirror:
        scaled = scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    canvas = Image.new("RGBa", (size, size))
    canvas.paste(scaled, ((size - side) // 2 + view.shift[0], (size - side) // 2 + view.shift[1]))
    rgba = np.asarray(canvas).astype(np.float32)
    colour = np.array(GROUNDS[view.ground][2], np.float32)
    blend = rgba[..., :3] + colour * (1 - rgba[..., 3:] / 255)
    return blend.clip(0, 255).round().astype(np.uint8)
