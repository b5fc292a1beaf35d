"""Augmentation of drawings with transparency: shift, scale, mirroring, a background, and distortion.

Each view of a drawing has other codes, which reduces memorisation. Distortion also changes shape and colours, so that
the answers to questions about an image do not depend on one drawing of the object.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from cm3.tasks.plan_words import GROUNDS_AR

# Name -> (English, Arabic after the feminine noun for "ground", sRGB).
GROUNDS: dict[str, tuple[str, str, tuple[int, int, int]]] = {
    "white": ("white", GROUNDS_AR["white"], (255, 255, 255)),
    "yellow": ("yellow", GROUNDS_AR["yellow"], (255, 240, 170)),
    "green": ("green", GROUNDS_AR["green"], (205, 240, 195)),
    "blue": ("blue", GROUNDS_AR["blue"], (190, 222, 250)),
    "pink": ("pink", GROUNDS_AR["pink"], (252, 208, 224)),
    "purple": ("purple", GROUNDS_AR["purple"], (222, 205, 245)),
    "grey": ("grey", GROUNDS_AR["grey"], (215, 217, 222)),
    "black": ("black", GROUNDS_AR["black"], (30, 30, 34)),
}


@dataclass(frozen=True)
class View:
    """How a drawing is placed on an image.

    Attributes:
        ground: background, a key of GROUNDS.
        scale: side of the drawing, relative to that of the image.
        shift: right and down, in pixels.
        mirror: whether left and right are exchanged.
        distortion: seed of the distortion; None = none.
    """

    ground: str = "white"
    scale: float = 1.0
    shift: tuple[int, int] = (0, 0)
    mirror: bool = False
    distortion: int | None = None


PLAIN = View()


@dataclass(frozen=True)
class Augmentation:
    """The distribution of views.

    Attributes:
        white: share of white backgrounds. The other colours are equally frequent.
        scale: smallest scale; the largest is 1.
        shift: largest shift beyond the free border, in pixels of a 64-pixel image.
        mirror: share of mirrored images; 0 where images contain text.
    """

    white: float = 0.6
    scale: float = 0.85
    shift: int = 2
    mirror: float = 0.5

    def sample(self, rng: np.random.Generator, size: int) -> View:
        """Draw a random view for images of size x size pixels."""
        white = rng.random() < self.white
        ground = "white" if white else list(GROUNDS)[1:][rng.integers(len(GROUNDS) - 1)]
        scale = rng.uniform(self.scale, 1.0)
        reach = int(size * (1 - scale) / 2 + self.shift * size / 64)
        shift = (int(rng.integers(-reach, reach + 1)), int(rng.integers(-reach, reach + 1)))
        return View(ground, scale, shift, bool(rng.random() < self.mirror))


def place(drawing: Image.Image, view: View, size: int) -> np.ndarray:
    """Draw a view, [size, size, 3] uint8.

    Args:
        drawing: square, of mode RGBa (premultiplied alpha, so that scaling leaves no fringes).
        view: of the drawing.
        size: side of the image, in pixels.
    """
    if view.distortion is not None:
        drawing = distort(drawing, np.random.default_rng(view.distortion))
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


def distort(drawing: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Rotate, stretch and bend a drawing, and sometimes blur, outline or recolour it.

    Args:
        drawing: square, of mode RGBa; the result has the same size.
        rng: of the random choices.
    """
    bent = bend(drawing.convert("RGBA"), rng)
    alpha, colours = bent.getchannel("A"), recolour(bent.convert("RGB"), rng)
    if rng.random() < 0.25:
        inside = alpha.filter(ImageFilter.MinFilter(int(rng.choice([3, 5]))))
        dark = Image.new("RGB", colours.size, tuple(rng.integers(0, 70, 3).tolist()))
        colours = Image.composite(colours, dark, inside)
    colours.putalpha(alpha)
    out = colours.convert("RGBa")
    return out.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2))) if rng.random() < 0.15 else out


def bend(image: Image.Image, rng: np.random.Generator, cells: int = 4) -> Image.Image:
    """Apply an affine map about the centre, and move each corner of a cells x cells mesh at random."""
    size = image.width
    turn = np.deg2rad(rng.normal(0, 8))
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    stretch = np.array([[np.exp(rng.normal(0, 0.08)), rng.normal(0, 0.06)], [0, np.exp(rng.normal(0, 0.08))]])
    edges = np.linspace(0, size, cells + 1).round()
    corners = np.stack(np.meshgrid(edges, edges, indexing="ij")[::-1], -1) - size / 2  # [cells + 1, cells + 1, (x, y)]
    moved = abs(rng.normal(0, 0.025)) * size * rng.normal(size=corners.shape)
    source = corners @ (rotation @ stretch).T + moved + size / 2
    mesh = []
    for i, j in np.ndindex(cells, cells):
        box = tuple(edges[[j, i, j + 1, i + 1]].astype(int).tolist())
        quad = [source[i, j], source[i + 1, j], source[i + 1, j + 1], source[i, j + 1]]
        mesh.append((box, tuple(np.concatenate(quad).tolist())))
    return image.transform(image.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def recolour(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Change the colours of an RGB image: half of the images a little, the others in hue, to grey or to few colours."""
    kind = rng.random()
    if kind < 0.65:
        hue = rng.normal(0, 0.05) if kind < 0.5 else rng.random()
        bands = [np.asarray(band, np.float32) for band in image.convert("HSV").split()]
        bands[0] = (bands[0] + hue * 255) % 255
        bands[1] = bands[1] * np.exp(rng.normal(0, 0.3))
        bands[2] = bands[2] * np.exp(rng.normal(0, 0.15))
        parts = [Image.fromarray(band.clip(0, 255).astype(np.uint8)) for band in bands]
        image = Image.merge("HSV", parts).convert("RGB")
    elif kind < 0.8:
        image = ImageOps.grayscale(image).convert("RGB")
    if rng.random() < 0.15:
        image = ImageOps.posterize(image, int(rng.integers(1, 4)))
    if rng.random() < 0.3:
        image = ImageEnhance.Contrast(image).enhance(float(np.exp(rng.normal(0, 0.3))))
    return image
