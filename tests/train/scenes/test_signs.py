"""Signs: the word stands on the board, whole, in joined letters."""

import numpy as np
import pytest

from drawings import drawn_things
from train.scenes.scene import Thing, held_out
from train.scenes.signs import BOARDS, sign, sign_words

WORDS = ("FOX", "BANANA", "قطة", "ثعلب", "تفاح")


def ink(word: str, board: tuple[int, int, int], size: int) -> np.ndarray:
    """[S, S] bool: where the word changes the empty sign."""
    return (sign(word, board, size) != sign("", board, size)).any(-1)


@pytest.mark.parametrize("word", ["قطة", "ثعلب", "تفاح"])
def test_arabic_letters_are_joined(word: str):
    apart = "\u200c".join(word)  # zero-width non-joiners
    assert (ink(word, BOARDS[0], 128) != ink(apart, BOARDS[0], 128)).mean() > 0.01


def test_arabic_runs_from_right_to_left():
    """The dot of ج in تاج lies low and left."""
    rows, columns = np.nonzero(ink("تاج", BOARDS[0], 128))
    left = columns < columns.mean()
    assert rows[left].mean() > rows[~left].mean()


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("word", WORDS)
def test_a_word_fits_its_board_and_stands_in_its_middle(word: str, board: tuple[int, int, int], size: int):
    rows, columns = np.nonzero(ink(word, board, size))
    assert size // 6 < rows.min() and rows.max() < size * 4 // 6
    assert 1 < columns.min() and columns.max() < size - 2
    assert columns.min() + columns.max() + 1 == pytest.approx(size, abs=4)
    assert rows.min() + rows.max() + 1 == pytest.approx(size * 5 / 6, abs=4)
    assert columns.max() - columns.min() > size // 2 or rows.max() - rows.min() > size // 4  # as large as fits


@pytest.mark.parametrize("step", [8, 16])
def test_aligned_letters_have_a_column_of_cells_each(step: int):
    """The same letter is the same pixels wherever it stands, and joined letters end where their cell ends."""
    size = 8 * step
    cells = [
        sign(word, BOARDS[0], size, step)[2 * step : 4 * step, column * step : (column + 1) * step]
        for word, column in (("FOX", 3), ("OX", 3), ("OOOOOO", 1), ("OOOOOO", 6))
    ]
    assert all(np.array_equal(cells[0], cell) for cell in cells[1:]) and cells[0].min() < 100
    for word, columns in (("BANANA", (1, 7)), ("FOX", (2, 5)), ("قطة", (2, 5)), ("ثعلب", (2, 6))):
        rows, at = np.nonzero((sign(word, BOARDS[0], size, step) != sign("", BOARDS[0], size, step)).any(-1))
        assert columns[0] * step <= at.min() and at.max() < columns[1] * step
        assert 2 * step <= rows.min() and rows.max() < 4 * step + step // 4  # tails of Arabic letters


def test_letters_stand_out_from_every_board():
    for board in BOARDS:
        image = sign("FOX", board, 64).astype(int)
        found = image[ink("FOX", board, 64)]
        assert np.abs(found.sum(-1) - sum(board)).max() > 250


def test_every_word_and_every_board_makes_another_image():
    images = [sign(word, board, 64).tobytes() for word in WORDS for board in BOARDS]
    assert len(set(images)) == len(images)
    assert sign("FOX", BOARDS[0], 64).shape == (64, 64, 3)


@pytest.fixture(scope="module")
def named() -> list[Thing]:
    """Things by many names."""
    things = drawn_things()
    names = [
        (f"{a}{b}o", f"{x}{y}ن")
        for a, x in zip("bcdfg", "بتثجح", strict=True)
        for b, y in zip("aeiou", "اويكم", strict=True)
    ]
    names += [("red apple", "تفاحة حمراء"), ("elephants", "فيلة كبيرة"), ("seven77", "سبعةةة")]
    return [
        Thing(str(i), {"en": en, "ar": ar}, str(i), "plain", None, things[0].drawing)
        for i, (en, ar) in enumerate(names)
    ]


@pytest.mark.parametrize("language", ["en", "ar"])
def test_signs_hold_short_single_words_and_some_are_kept_out_of_training(named: list[Thing], language: str):
    seen, novel = (sign_words(named, language, flag) for flag in (False, True))
    assert seen and not set(seen) & set(novel) and seen == sorted(seen)
    short = {thing.name[language].upper() for thing in named[:25]}
    assert set(seen) | set(novel) == short
    assert all(held_out(("sign", word.lower())) for word in novel)
