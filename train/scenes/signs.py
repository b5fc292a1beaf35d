"""Signs: images of a word in Latin or Arabic letters, for text rendering and reading."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from train.scenes.scene import Thing, held_out

BOARDS = ((255, 255, 255), (255, 235, 150), (205, 235, 255), (30, 90, 180), (190, 30, 40), (30, 120, 60))


@lru_cache
def font(size: float, kind: str = "Sans") -> ImageFont.FreeTypeFont:
    """DejaVu Sans or Sans Mono, bold, which have Latin and Arabic letters; matplotlib brings them."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / f"fonts/ttf/DejaVu{kind}-Bold.ttf", size)


@lru_cache
def monospaced(advance: int) -> ImageFont.FreeTypeFont:
    """Whose letters are so many pixels wide."""
    return font(1000 * advance / font(1000, "SansMono").getlength("M"), "SansMono")


def board_rows(size: int, step: int = 0) -> tuple[int, int]:
    """Top and bottom of the board in pixels."""
    return (step, 5 * step - 1) if step else (size // 6, size * 4 // 6)


def sign(word: str, board: tuple[int, int, int], size: int, step: int = 0) -> np.ndarray:
    """[S, S, 3]: a board on a post with a word as large as fits, its Arabic letters joined. With a step, the side of a
    cell in pixels, each letter is one cell wide and two high."""
    image = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(image)
    pen.rectangle((size * 15 // 32, size // 2, size * 17 // 32, size), (120, 90, 60))
    edge = size // 16
    top, bottom = board_rows(size, step)
    pen.rounded_rectangle((1, top, size - 2, bottom), edge, board, (90, 90, 90), max(1, size // 64))
    ink = (255, 255, 255) if sum(board) < 400 else (20, 20, 20)
    if step:
        letters = monospaced(step)
        free = size // step - round(letters.getlength(word) / step)
        pen.text((free // 2 * step, 3.6 * step), word, ink, letters, anchor="ls")  # capitals in the middle of two rows
        return np.asarray(image)
    for points in range(size // 2, 5, -1):
        left, top, right, bottom = pen.textbbox((0, 0), word, font(points))
        if right - left <= size - 10 * size // 64 and bottom - top <= size * 26 // 64:
            break
    at = ((size - left - right) / 2, (size * 5 / 6 - top - bottom) / 2)
    pen.text(at, word, ink, font(points))
    return np.asarray(image)


def pick(words: Sequence[str], rng: np.random.Generator) -> tuple[str, tuple[int, int, int]]:
    """A word and a board for a sign."""
    return words[int(rng.integers(len(words)))], BOARDS[int(rng.integers(len(BOARDS)))]


def sign_words(things: Sequence[Thing], language: str, novel: bool) -> list[str]:
    """Short names of things, to stand on signs; `novel` are those that stand on no sign in training."""
    longest = 6 if language == "en" else 5
    words = {word for thing in things for word in [thing.name[language]] if len(word) <= longest and " " not in word}
    return sorted(word.upper() for word in words if held_out(("sign", word)) == novel)
