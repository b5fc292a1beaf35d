"""Canvases for the image tokenizer."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train.images.loader import ImageLoader
from train.recipes.emoji.art import CANVAS, PAINTS, TILE, ground, painted, put, sign, single, takes, tiles
from train.recipes.emoji.build_canvases import CanvasesConfig, Painter, build
from train.recipes.emoji.colours import main_colour
from train.recipes.emoji.shelf import read_drawings
from worlds import small_world


@pytest.fixture(scope="module")
def data(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_world(sample, tmp_path_factory.mktemp("world"))


def test_the_data_set_can_be_trained_on_and_evaluated(data: Path, tmp_path: Path):
    config = CanvasesConfig(images=12, held_out=3)
    assert build(data, tmp_path, config, 1) == {"held_out_pairs": 3, "held_out_concepts": 3, "train": 12}
    loader = ImageLoader(tmp_path, 256, multiple=16, crop=(1.0, 1.0), evaluate_on="held_out_pairs")
    assert len(loader) == 12 and loader.batch(0, 4).shape == (4, 3, 256, 256)
    assert loader.held_out_images().shape == (3, 3, 256, 256)


def test_an_image_depends_on_the_seed_and_its_number(data: Path):
    drawings = read_drawings(data, "train")
    first, again, other = (Painter(drawings, CanvasesConfig(seed=seed)) for seed in (0, 0, 1))
    images = [np.asarray(painter.canvas(5)) for painter in (first, again, other)]
    assert np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])
    assert images[0].shape == (CANVAS, CANVAS, 3)


def test_a_paint_shows_where_it_is_said_to(data: Path):
    drawings = [drawing for drawing, _ in read_drawings(data, "train")][:6]
    found = [(drawing, paint) for drawing in drawings for paint in PAINTS if takes(drawing, paint)]
    assert len(found) > 20
    for drawing, paint in found:
        assert paint != drawing.colour and main_colour(np.asarray(painted(drawing, paint).resize((64, 64)))) == paint
        assert np.array_equal(np.asarray(painted(drawing, paint))[..., 3], np.asarray(drawing.image)[..., 3])


def test_a_tile_is_the_drawing_alone(data: Path):
    drawing, _ = read_drawings(data, "train")[0]
    parts = [single(drawing, TILE, "", "blue"), ground("blue", TILE), sign("CAT", 0), ground("white", TILE)]
    canvas = tiles(parts)
    assert np.array_equal(np.asarray(canvas.crop((0, 0, TILE, TILE))), np.asarray(parts[0]))
    assert np.array_equal(np.asarray(canvas.crop((0, TILE, TILE, CANVAS))), np.asarray(parts[2]))


def test_letters_of_a_sign_are_one_position_wide_and_two_high():
    one, two = (np.asarray(sign(word, 0)).astype(int) for word in ("CAT", "CAR"))
    changed = np.abs(one - two).max(-1) > 0
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert columns.max() // 16 == columns.min() // 16 and rows.max() // 16 - rows.min() // 16 == 1


def test_what_is_put_keeps_the_rest():
    canvas = Image.new("RGB", (64, 64), "white")
    put(canvas, Image.new("RGBA", (64, 64), (255, 0, 0, 255)), 16, 32, 16)
    red = np.asarray(canvas)[..., 1] == 0
    assert red.sum() == 256 and red[32:48, 16:32].all()
