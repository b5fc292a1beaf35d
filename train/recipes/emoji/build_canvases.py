"""Images for the image tokenizer of the embedded model: what it will be asked to encode, in the shares that count.

    python -m train.recipes.emoji.build_canvases --data data/emoji --out data/emoji-canvases

OUT is a data set of shards like DATA, of opaque 256-pixel images: single drawings that fill the canvas, canvases of
four tiles, drawings half as large as a tile, drawings anywhere at any size, and signs; on all grounds, painted or not.
An image depends on the seed and its number alone. `held_out_pairs` and `held_out_concepts` have the drawings of DATA's
splits, large and in tiles.
"""

import io
import json
import random
import string
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from rich.progress import track

from train.images.samples import write_shards
from train.images.views import GROUNDS, Augmentation, distort, place
from train.recipes.emoji.art import (
    BOARDS,
    CANVAS,
    PAINTS,
    TILE,
    Drawing,
    ground,
    painted,
    put,
    sign,
    single,
    takes,
    tiles,
)
from train.recipes.emoji.dataset import EXTRA
from train.recipes.emoji.shelf import read_drawings
from train.runtime import config as configs


@dataclass(frozen=True)
class CanvasesConfig:
    """What is drawn.

    Attributes:
        images: to train on.
        held_out: to evaluate on, of each held-out split.
        large: share of single drawings that fill the canvas.
        anywhere: share of single drawings of any size, anywhere, a third of them distorted.
        signs: share of canvases with signs. The rest are four tiles.
        empty: share of empty tiles.
        small: share of tiles with up to four drawings half as large.
        white: share of white grounds.
        paint: share of painted drawings.
        undrawn: weight of concepts that the model will not draw (people, flags, signs) and of further styles.
        seed: of everything random.
    """

    images: int = 30_000
    held_out: int = 300
    large: float = 0.5
    anywhere: float = 0.1
    signs: float = 0.04
    empty: float = 0.15
    small: float = 0.15
    white: float = 0.65
    paint: float = 0.15
    undrawn: float = 0.15
    seed: int = 0


class Painter:
    """Makes canvases of drawings."""

    def __init__(self, drawings: Sequence[tuple[Drawing, bool]], config: CanvasesConfig):
        self.drawings = [drawing for drawing, _ in drawings]
        weights = np.array([1.0 if drawn else config.undrawn for _, drawn in drawings])
        self.bounds = np.cumsum(weights / weights.sum())
        self.config = config

    def pick(self, rng: np.random.Generator) -> tuple[Drawing, str]:
        """A drawing and a paint that shows on it, or ""."""
        drawing = self.drawings[min(int(np.searchsorted(self.bounds, rng.random())), len(self.drawings) - 1)]
        if rng.random() >= self.config.paint:
            return drawing, ""
        fit = [paint for paint in PAINTS if takes(drawing, paint)]
        return drawing, fit[rng.integers(len(fit))] if fit else ""

    def ground(self, rng: np.random.Generator) -> str:
        names = list(GROUNDS)
        return "white" if rng.random() < self.config.white else names[1 + rng.integers(len(names) - 1)]

    def tile(self, on: str, rng: np.random.Generator) -> Image.Image:
        """A quarter of a canvas, RGB."""
        kind = rng.random()
        if kind < self.config.empty:
            return ground(on, TILE)
        if kind < self.config.empty + self.config.small:
            out, half = ground(on, TILE), TILE // 2
            for at in rng.permutation(4)[: rng.integers(1, 5)].tolist():
                put(out, painted(*self.pick(rng)), at % 2 * half, at // 2 * half, half)
            return out
        drawing, paint = self.pick(rng)
        return single(drawing, TILE, paint, on)

    def sign(self, rng: np.random.Generator) -> Image.Image:
        word = "".join(string.ascii_uppercase[i] for i in rng.integers(26, size=rng.integers(3, 7)))
        return sign(word, int(rng.integers(len(BOARDS))))

    def canvas(self, number: int) -> Image.Image:
        """The image of this number, RGB."""
        rng, config = np.random.default_rng((self.config.seed, number)), self.config
        kind, on = rng.random(), self.ground(rng)
        if kind < config.large:
            drawing, paint = self.pick(rng)
            return single(drawing, CANVAS, paint, on)
        if kind < config.large + config.anywhere:
            drawing, paint = self.pick(rng)
            view = Augmentation(1.0, 0.4, 4, 0.5).sample(rng, CANVAS)
            shown = painted(drawing, paint).convert("RGBa")
            shown = distort(shown.convert("RGBa"), rng) if rng.random() < 1 / 3 else shown
            return Image.fromarray(place(shown, view, CANVAS))
        if kind < config.large + config.anywhere + config.signs:
            return tiles([self.sign(rng) if rng.random() < 0.6 else self.tile("white", rng) for _ in range(4)])
        return tiles([self.tile(on, rng) for _ in range(4)])


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=4)
    return out.getvalue()


_PAINTERS: dict[tuple[Path, CanvasesConfig], Painter] = {}  # of this process


def _chunk(numbers: range, data: Path, config: CanvasesConfig) -> list[bytes]:
    if (data, config) not in _PAINTERS:
        drawings = read_drawings(data, "train") + [(d, False) for d, _ in read_drawings(data, EXTRA)]
        _PAINTERS[data, config] = Painter(drawings, config)
    return [png(_PAINTERS[data, config].canvas(number)) for number in numbers]


def training(data: Path, config: CanvasesConfig, processes: int) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """(key, PNG, facts) of every image to train on."""
    chunks = [range(i, min(i + 100, config.images)) for i in range(0, config.images, 100)]
    with ProcessPoolExecutor(processes) as pool:
        made = pool.map(partial(_chunk, data=data, config=config), chunks)
        for numbers, images in track(zip(chunks, made, strict=True), "canvases", len(chunks)):
            yield from ((f"canvas_{number:06d}", image, {}) for number, image in zip(numbers, images, strict=True))


def held_out(data: Path, split: str, config: CanvasesConfig) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Drawings of a held-out split on white: two of three alone, the third with others in tiles."""
    drawings = [drawing for drawing, drawn in read_drawings(data, split) if drawn]
    random.Random(config.seed).shuffle(drawings)
    for i in range(config.held_out):
        first = drawings[i % len(drawings)]
        others = [drawings[(i + 7 * j) % len(drawings)] for j in range(4)]
        image = single(first, CANVAS) if i % 3 else tiles([single(one, TILE) for one in others])
        yield f"{split}_{i:04d}", png(image), {"large": bool(i % 3)}


def build(data: Path, out: Path, config: CanvasesConfig, processes: int) -> dict[str, int]:
    """Writes the data set. Returns the number of images by split."""
    counts = {
        split: write_shards(out / split, held_out(data, split, config))
        for split in ("held_out_pairs", "held_out_concepts")
    }
    counts["train"] = write_shards(out / "train", training(data, config, processes))
    (out / "data.json").write_text(json.dumps({"counts": counts, "config": asdict(config)}, indent=1) + "\n")
    return counts


def main(
    changes: Annotated[list[str] | None, typer.Argument(help="key=value")] = None,
    data: Annotated[Path, typer.Option(help="of train.recipes.emoji.build_dataset")] = Path("data/emoji"),
    out: Annotated[Path, typer.Option(help="folder of the data set")] = Path("data/emoji-canvases"),
    processes: Annotated[int, typer.Option(help="that draw")] = 2,
) -> None:
    try:
        print(json.dumps(build(data, out, configs.load(CanvasesConfig, None, changes or []), processes)))
    except (ValueError, OSError) as error:
        raise SystemExit(f"build_canvases: {error}") from None


if __name__ == "__main__":
    typer.run(main)
