"""Drawings on the shelf, and their image codes: what documents are made of."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image as PIL_Image

from tokenizer_image import ImageTokenizer
from train.images.loader import to_pixels
from train.images.samples import read_samples
from train.recipes.emoji.art import CANVAS, TILE, Drawing, ground, sign, single
from train.recipes.emoji.dataset import EXTRA, is_drawn
from train.recipes.emoji.packages import STYLES

SIDES = (TILE, CANVAS)  # in pixels
DRAWN_STYLES = {style.word for style in STYLES if style.drawn}


def read_drawings(data: Path, split: str) -> list[tuple[Drawing, bool]]:
    """The drawings of a split, and whether the model will draw their concept."""
    out = []
    for key, png, facts in read_samples(data / split):
        image = PIL_Image.open(io.BytesIO(png)).convert("RGBA").convert("RGBa").convert("RGBA")
        drawing = Drawing(key, facts["code"], facts["name"]["en"], facts["style"], facts["colour"], image)
        out.append((drawing, is_drawn(facts)))
    return out


class Codes:
    """Image codes of drawings, encoded once: [8, 8] of a tile, [16, 16] of a canvas as it is laid."""

    def __init__(self, tokenizer: ImageTokenizer):
        self.tokenizer, self._known = tokenizer, dict[tuple[str, int, str, str], np.ndarray]()

    def encode(self, images: list[PIL_Image.Image]) -> np.ndarray:
        """Images of one size, RGB -> [N, h, w]."""
        return self.tokenizer.encode_pixels(to_pixels([np.asarray(image) for image in images])).numpy()

    def single(self, drawing: Drawing | None, side: int, paint: str = "", on: str = "white") -> np.ndarray:
        """A drawing alone; None = an empty ground."""
        key = (drawing.key if drawing else "", side, paint, on)
        if (codes := self._known.get(key)) is None:
            image = single(drawing, side, paint, on) if drawing else ground(on, side)
            codes = self._known[key] = self.encode([image])[0].astype(np.uint16)
        return codes.astype(np.int64)

    def learn(self, drawings: Sequence[Drawing], codes: Sequence[np.ndarray]) -> None:
        """Take the codes of drawings alone on white, [N, h, w] of each size in SIDES, as `encode_all` gives them."""
        for side, of_side in zip(SIDES, codes, strict=True):
            self._known.update(((one.key, side, "", "white"), own) for one, own in zip(drawings, of_side, strict=True))

    def encode_all(self, drawings: Sequence[Drawing], batch: int = 16) -> list[np.ndarray]:
        """Codes of drawings alone on white, for each size in SIDES: [N, h, w]."""
        return [
            np.concatenate(
                [
                    self.encode([single(one, side) for one in drawings[i : i + batch]]).astype(np.uint16)
                    for i in range(0, len(drawings), batch)
                ]
            )
            for side in SIDES
        ]

    def sign(self, word: str, board: int) -> np.ndarray:
        return self.encode([sign(word, board)])[0]


def laid(tiles: list[np.ndarray]) -> np.ndarray:
    """Four tiles [8, 8] as one canvas [16, 16], tile by tile."""
    return np.concatenate([tile.reshape(-1) for tile in tiles]).reshape(16, 16)


class Shelf(NamedTuple):
    """The drawings of a split whose concepts the model draws.

    Attributes:
        drawings: in the styles that the model draws, by (code, style).
        others: in the styles that it only reads.
        extra: of the extra styles, to be read.
    """

    drawings: dict[tuple[str, str], Drawing]
    others: dict[tuple[str, str], Drawing]
    extra: list[Drawing]

    @classmethod
    def read(cls, data: Path, split: str) -> "Shelf":
        known = {(one.code, one.style): one for one, is_drawn in read_drawings(data, split) if is_drawn}
        drawings = {key: one for key, one in known.items() if key[1] in DRAWN_STYLES}
        others = {key: one for key, one in known.items() if key[1] not in DRAWN_STYLES}
        extra = [one for one, is_drawn in read_drawings(data, EXTRA) if is_drawn] if split == "train" else []
        return cls(drawings, others, extra)

    @property
    def styles(self) -> dict[str, list[str]]:
        """Code -> styles that the model draws it in."""
        out: dict[str, list[str]] = {}
        for code, style in self.drawings:
            out.setdefault(code, []).append(style)
        return out
