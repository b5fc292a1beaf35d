"""The measured colour of an image."""

import numpy as np
import pytest

from train.recipes.emoji.colours import NAMES, PROTOTYPES, SHARE, lab, main_colour


def image(*colours: tuple[int, ...]) -> np.ndarray:
    """[10 n, 10, 4]: ten rows of each colour."""
    rows = [colour if len(colour) == 4 else (*colour, 255) for colour in colours for _ in range(10)]
    return np.array(rows, np.uint8)[:, None].repeat(10, 1)


RED, GREEN, BLUE, CLEAR = PROTOTYPES["red"][0], PROTOTYPES["green"][0], PROTOTYPES["blue"][0], (0, 0, 0, 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_solid_image_has_its_colour(name: str):
    for colour in PROTOTYPES[name]:
        assert main_colour(image(colour)) == name


def test_shades_of_one_colour_count_together():
    assert main_colour(image(*PROTOTYPES["green"], RED)) == "green"


def test_a_mixed_image_has_no_colour():
    assert main_colour(image(RED, GREEN, BLUE)) is None


def test_the_colour_must_cover_its_share():
    assert 2 / 5 < SHARE <= 1 / 2
    assert main_colour(image(RED, RED, GREEN, BLUE)) == "red"
    assert main_colour(image(RED, RED, GREEN, BLUE, (255, 255, 255))) is None


def test_a_transparent_image_has_no_colour():
    assert main_colour(image(CLEAR)) is None


def test_pixels_that_can_be_seen_through_do_not_count():
    assert main_colour(image(RED, CLEAR, CLEAR, CLEAR, (*BLUE, 100), (*BLUE, 100))) == "red"


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
    ],
)
def test_lab_of_known_colours(rgb: tuple[float, ...], expected: tuple[float, ...]):
    np.testing.assert_allclose(lab(np.array(rgb, float)), expected, atol=0.02)
