"""Signs: pictures of a word in Latin or Arabic letters, for text rendering and reading."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from train.scenes.scene import Thing, held_out

BOARDS = ((255, 255, 255), (255, 235, 150), (205, 235, 255), (30, 90, 180), (190, 30, 40), (30, 120, 60))


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans Bold, which has Latin and Arabic letters; matplotlib brings it."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans-Bold.ttf", size)


def sign(word: str, board: tuple[int, int, int], size: int) -> np.ndarray:
    """[S, S, 3]: a board on a post with a word as large as fits, its Arabic letters joined."""
    picture = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(picture)
    pen.rectangle((size * 15 // 32, size // 2, size * 17 // 32, size), (120, 90, 60))
    edge = size // 16
    pen.rounded_rectangle((1, size // 6, size - 2, size * 4 // 6), edge, board, (90, 90, 90), max(1, size // 64))
    dark = sum(board) < 400
    for points in range(size // 2, 5, -1):
        left, top, right, bottom = pen.textbbox((0, 0), word, font(points))
        if right - left <= size - 10 * size // 64 and bottom - top <= size * 26 // 64:
            break
    at = ((size - left - right) / 2, (size * 5 / 6 - top - bottom) / 2)
    pen.text(at, word, (255, 255, 255) if dark else (20, 20, 20), font(points))
    return np.asarray(picture)


def sign_words(things: Sequence[Thing], language: str, novel: bool) -> list[str]:
    """Short names of things, to stand on signs; `novel` are those that stand on no sign in training."""
    longest = 6 if language == "en" else 5
    words = {word for thing in things for word in [thing.name[language]] if len(word) <= longest and " " not in word}
    return sorted(word.upper() for word in words if held_out(("sign", word)) == novel)
