"""Scenes: a few drawings side by side on a plain ground, with the exact truth of what stands where.

Scenes are drawn from a seed; some combinations are kept out of the training scenes, and the compositional test scenes
have one of them each: a thing and its count, a thing and its colour, two things and how they lie to each other.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from train.emoji.colours import main_colour
from train.images.views import GROUNDS

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, right and bottom excluded

# Concrete things with short names that every style has drawn, told apart by their outlines.
THINGS = (
    "ant",
    "automobile",
    "anchor",
    "backpack",
    "banana",
    "basketball",
    "bear",
    "bed",
    "bus",
    "butterfly",
    "cactus",
    "camel",
    "carrot",
    "cat",
    "chicken",
    "cookie",
    "cow",
    "crown",
    "doughnut",
    "dog",
    "drum",
    "duck",
    "elephant",
    "fish",
    "fox",
    "frog",
    "guitar",
    "hamburger",
    "hammer",
    "helicopter",
    "honeybee",
    "horse",
    "koala",
    "lemon",
    "lion",
    "lollipop",
    "monkey",
    "mushroom",
    "panda",
    "penguin",
    "pineapple",
    "pizza",
    "rabbit",
    "red apple",
    "ring",
    "rocket",
    "rose",
    "sailboat",
    "shark",
    "snake",
    "spider",
    "strawberry",
    "sunflower",
    "taxi",
    "tiger",
    "tomato",
    "tractor",
    "trumpet",
    "tulip",
    "turtle",
    "violin",
    "whale",
)

# Name -> (Arabic noun, sRGB) of the colours that things are painted in.
PAINTS: dict[str, tuple[str, tuple[int, int, int]]] = {
    "red": ("الأحمر", (215, 35, 45)),
    "orange": ("البرتقالي", (248, 130, 25)),
    "yellow": ("الأصفر", (252, 210, 50)),
    "green": ("الأخضر", (65, 165, 65)),
    "blue": ("الأزرق", (50, 115, 220)),
    "purple": ("البنفسجي", (135, 65, 175)),
    "pink": ("الوردي", (248, 140, 185)),
}
HELD_OUT = 10  # one combination in so many
SEEN = 8  # a smaller difference of one channel does not show
STEP = 64  # positions lie on a raster of so many steps a side


@dataclass(frozen=True, eq=False)
class Thing:
    """A drawing that may stand in a scene.

    Attributes:
        key: of the image in the data set.
        name: language -> name.
        code: of its concept.
        style: of the drawing.
        colour: its measured colour, or None.
        drawing: square RGBA.
    """

    key: str
    name: dict[str, str]
    code: str
    style: str
    colour: str | None
    drawing: Image.Image


@dataclass(frozen=True, eq=False)
class Placed:
    """A thing in a scene: the side of its drawing and its top left corner in pixels; `paint` of PAINTS, or ""."""

    thing: Thing
    side: int
    left: int
    top: int
    mirror: bool = False
    paint: str = ""

    @property
    def centre(self) -> tuple[float, float]:
        return self.left + self.side / 2, self.top + self.side / 2

    @property
    def colour(self) -> str | None:
        return self.paint or self.thing.colour


@dataclass(frozen=True)
class Scene:
    """What stands where, on a ground of train.images.views.GROUNDS; later things lie above earlier ones.

    step: of an aligned scene, the side of a cell of codes in pixels: its things stand at multiples of it and have one
    such side, not mirrored, so that a thing is spelled with the same codes wherever it stands. 0 = anywhere.
    lattice: of an aligned scene, at whose multiples in pixels its things stand, where that is not the step.
    """

    placed: tuple[Placed, ...]
    ground: str = "white"
    step: int = 0
    lattice: int = 0

    @property
    def raster(self) -> int:
        """At whose multiples in pixels its things stand; 0 = anywhere."""
        return self.lattice or self.step


@dataclass(frozen=True)
class Rendered:
    """image: [S, S, 3] uint8. outlines: [N, S, S] bool, where each thing is opaque."""

    image: np.ndarray
    outlines: np.ndarray

    def box(self, i: int) -> Box:
        """Of the i-th thing's opaque pixels."""
        rows, columns = np.flatnonzero(self.outlines[i].any(1)), np.flatnonzero(self.outlines[i].any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@lru_cache(maxsize=4096)
def painted(thing: Thing, paint: str) -> Image.Image:
    """Its drawing in shades of one colour: its dark parts darker, its light parts lighter."""
    red, green, blue = PAINTS[paint][1]
    grey = ImageOps.autocontrast(thing.drawing.convert("RGB").convert("L"), cutoff=2)
    dark = (red * 2 // 5, green * 2 // 5, blue * 2 // 5)
    light = ((red + 255) // 2, (green + 255) // 2, (blue + 255) // 2)
    out = ImageOps.colorize(grey, dark, light, (red, green, blue)).convert("RGBA")
    out.putalpha(thing.drawing.getchannel("A"))
    return out


@lru_cache(maxsize=4096)
def takes(thing: Thing, paint: str) -> bool:
    """Whether the painted drawing measures as that colour."""
    return main_colour(np.asarray(painted(thing, paint))) == paint


def render(scene: Scene, size: int) -> Rendered:
    """The scene's image of `size` pixels a side, and the outline of each thing."""
    canvas = Image.new("RGBA", (size, size), (*GROUNDS[scene.ground][2], 255))
    outlines = np.zeros((len(scene.placed), size, size), bool)
    for i, one in enumerate(scene.placed):
        drawing = painted(one.thing, one.paint) if one.paint else one.thing.drawing
        scaled = drawing.convert("RGBa").resize((one.side, one.side), Image.Resampling.LANCZOS).convert("RGBA")
        if one.mirror:
            scaled = scaled.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        layer = Image.new("RGBA", (size, size))
        layer.paste(scaled, (one.left, one.top))
        canvas = Image.alpha_composite(canvas, layer)
        opaque = np.asarray(layer)[..., 3] > 127
        outlines[:i] &= ~opaque
        outlines[i] = opaque
    return Rendered(np.asarray(canvas.convert("RGB")), outlines)


def relation(a: Placed, b: Placed) -> str:
    """Where `a` lies, seen from `b`: along the axis on which they are further apart."""
    dx, dy = a.centre[0] - b.centre[0], a.centre[1] - b.centre[1]
    if abs(dx) >= abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def combinations(scene: Scene) -> Iterator[tuple[str, ...]]:
    """All that may be held out of the training scenes: (name, count), (name, paint), (name, relation, name)."""
    names = [one.thing.name["en"] for one in scene.placed]
    yield from ((name, str(names.count(name))) for name in sorted(set(names)) if names.count(name) > 1)
    yield from ((one.thing.name["en"], one.paint) for one in scene.placed if one.paint)
    for i, a in enumerate(scene.placed):
        for b in scene.placed[i + 1 :]:
            if a.thing.name != b.thing.name:
                first, second = sorted((a, b), key=lambda one: one.thing.name["en"])
                yield first.thing.name["en"], relation(first, second), second.thing.name["en"]


def held_out(combination: tuple[str, ...]) -> bool:
    return zlib.crc32("|".join(combination).encode()) % HELD_OUT == 0


def compositional(scene: Scene) -> bool:
    """Whether the scene has a combination that no training scene has."""
    return any(map(held_out, combinations(scene)))


def overlap(a: Placed, b: Placed) -> bool:
    return a.left < b.left + b.side and b.left < a.left + a.side and a.top < b.top + b.side and b.top < a.top + a.side


def settle(
    thing: Thing,
    others: Sequence[Placed],
    size: int,
    sides: tuple[int, int],
    rng: np.random.Generator,
    paint: str = "",
    aligned: int = 0,
) -> Placed | None:
    """The thing at a free place, or None where none is found soon; `aligned` as a scene's raster."""
    step = aligned or max(1, size // STEP * 2)
    for _ in range(30):
        side = int(rng.integers(sides[0], sides[1] + 1))
        left, top = (int(rng.integers(0, (size - side) // step + 1)) * step for _ in "xy")
        placed = Placed(thing, side, left, top, bool(rng.random() < 0.5) and not aligned, paint)
        if not any(overlap(placed, other) for other in others):
            return placed
    return None


class Stage:
    """Draws scenes from things.

    Args:
        things: all that may stand in them.
        size: side of an image, in pixels.
        white: share of white grounds.
        paints: share of painted things.
        doubles: share of scenes of several things in which two or more are of one kind.
        novel: scenes with a held-out combination, in place of scenes without.
        alone: smallest and largest share of the image's side for a thing that stands alone.
        most: things in a scene, at most three.
        aligned: share of scenes whose things are aligned with the cells of codes.
        cells: a side of the image has.
        quarters: share of the aligned scenes whose things stand in the corners of the image's quarters: so few places
            that a place's name says where a thing begins.
    """

    def __init__(
        self,
        things: Sequence[Thing],
        size: int,
        white: float = 0.6,
        paints: float = 0.15,
        doubles: float = 0.3,
        novel: bool = False,
        alone: tuple[float, float] = (0.5, 0.8),
        most: int = 3,
        aligned: float = 0.0,
        cells: int = 8,
        quarters: float = 0.0,
    ):
        self.aligned, self.step, self.quarters = aligned, size // cells, quarters
        self.size, self.white, self.paints, self.doubles, self.novel = size, white, paints, doubles, novel
        self.shares, self.most = {1: alone, 2: (0.38, 0.5), 3: (0.34, 0.46)}, most
        self.by_style: dict[str, list[Thing]] = {}
        for thing in things:
            self.by_style.setdefault(thing.style, []).append(thing)
        self.styles = sorted(style for style, members in self.by_style.items() if len(members) > 3)
        self.share = np.array([len(self.by_style[style]) for style in self.styles], float)
        if not self.styles:
            raise ValueError("no style has drawn more than 3 of the things that scenes are made of")

    def sides(self, count: int, aligned: int = 0) -> tuple[int, int]:
        """Smallest and largest side of `count` things that share an image, in pixels; `aligned` as a scene's step:
        one side, so that a thing has one spelling."""
        low, high = self.shares[count]
        if aligned:
            return (side := aligned * max(1, round(low * self.size / aligned)), side)
        return round(low * self.size), round(high * self.size)

    def pick(self, style: str, rng: np.random.Generator, without: Sequence[str] = ()) -> Thing:
        """A thing of the style whose English name is not among `without`."""
        rest = [thing for thing in self.by_style[style] if thing.name["en"] not in without]
        return rest[rng.integers(len(rest))]

    def paint(self, thing: Thing, rng: np.random.Generator) -> str:
        """A colour that shows on the thing and is not its own; "" where none does."""
        fit = [paint for paint in PAINTS if paint != thing.colour and takes(thing, paint)]
        return fit[rng.integers(len(fit))] if fit else ""

    def allowed(self, scene: Scene) -> bool:
        return compositional(scene) == self.novel

    def scene(self, rng: np.random.Generator, count: int = 0) -> Scene:
        """A scene of `count` things, 0 = one to three."""
        while True:
            wanted = count or min(self.most, int(rng.choice(3, p=(0.15, 0.45, 0.4))) + 1)
            style = self.styles[rng.choice(len(self.styles), p=self.share / self.share.sum())]
            ground = "white" if rng.random() < self.white else list(GROUNDS)[1 + rng.integers(len(GROUNDS) - 1)]
            step = self.step if self.aligned and rng.random() < self.aligned else 0
            lattice = self.size // 2 if step and self.quarters and rng.random() < self.quarters else 0
            alike = 1 if wanted == 1 or rng.random() >= self.doubles else int(rng.integers(2, wanted + 1))
            first = self.pick(style, rng)
            things = [first] * alike
            while len(things) < wanted:
                things.append(self.pick(style, rng, [thing.name["en"] for thing in things]))
            placed: list[Placed] = []
            for thing in things:
                paint = self.paint(thing, rng) if rng.random() < self.paints else ""
                if one := settle(thing, placed, self.size, self.sides(wanted, step), rng, paint, lattice or step):
                    placed.append(one)
            scene = Scene(tuple(placed), ground, step, lattice)
            if len(placed) == wanted and self.allowed(scene):
                return scene


def with_placed(scene: Scene, i: int, **changes: Any) -> Scene:
    """The scene with other values for its i-th thing."""
    placed = [replace(one, **changes) if j == i else one for j, one in enumerate(scene.placed)]
    return replace(scene, placed=tuple(placed))


def differs(one: np.ndarray, other: np.ndarray) -> np.ndarray:  # -> [S, S] bool
    """Where the eye sees a difference."""
    return np.asarray(np.abs(one.astype(int) - other).max(-1) > SEEN)


def touched_cells(before: np.ndarray, after: np.ndarray, grid: tuple[int, int]) -> np.ndarray:  # -> [h, w] bool
    """The cells with a difference."""
    (h, w), size = grid, len(before)
    return np.asarray(differs(before, after).reshape(h, size // h, w, size // w).any((1, 3)))
