"""Where an image is redrawn: masks of any kind, the square that the model sees, the cells, and the way back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cm3.tasks.inpainting import Square, paste_back, read_mask, square_around, touched_positions
from tokenizer_image.pixels import open_image

GRID = (4, 4)


def mask_of(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (16, 16)) -> Image.Image:
    """Black, white in the boxes (left, top, right, bottom)."""
    mask = Image.new("L", size)
    for box in boxes:
        mask.paste(255, box)
    return mask


def painted(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (16, 16)) -> np.ndarray:
    return np.asarray(mask_of(*boxes, size=size)) > 0


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def transparent(mask: Image.Image) -> Image.Image:
    """White paint on nothing, as an editor's layer is."""
    layer = Image.new("RGBA", mask.size, (255, 255, 255, 0))
    layer.putalpha(mask)
    return layer


KINDS = {
    **{mode: (lambda mask, mode=mode: mask.convert(mode)) for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK")},
    "I;16": lambda mask: Image.fromarray(np.asarray(mask).astype(np.uint16) * 257),
    "F": lambda mask: Image.fromarray(np.asarray(mask).astype(np.float32) / 255),
    "transparent": transparent,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_may_have_any_mode(kind: str):
    mask = KINDS[kind](mask_of((4, 0, 8, 4)))
    assert np.array_equal(read_mask(open_image(mask, ground="black"), (16, 16)), painted((4, 0, 8, 4)))


def test_a_mask_lies_as_its_file_says(tmp_path: Path):
    exif = Image.Exif()
    exif[274] = 6  # to be turned right by a quarter
    mask_of((0, 0, 4, 2), size=(16, 8)).save(tmp_path / "mask.png", exif=exif)
    mask = read_mask(open_image(tmp_path / "mask.png", ground="black"), (8, 16))
    assert np.array_equal(mask, painted((6, 0, 8, 4), size=(8, 16)))


def test_grey_counts_from_the_middle_on():
    mask = Image.fromarray(np.array([[0, 127], [128, 255]], dtype=np.uint8))
    assert read_mask(mask, (2, 2)).tolist() == [[False, False], [True, True]]


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="mask has 16 x 8 pixels, but the image 16 x 16: give one of the same size"):
        read_mask(mask_of((0, 0, 4, 4), size=(16, 8)), (16, 16))
    with pytest.raises(ValueError, match="black everywhere: paint white what is to be redrawn"):
        read_mask(mask_of(), (16, 16))


@pytest.mark.parametrize(
    ("size", "box", "square"),
    [
        ((16, 16), (3, 3, 4, 4), Square(0, 0, 16)),
        ((40, 16), (20, 0, 21, 16), Square(12, 0, 16)),  # in the middle
        ((40, 16), (2, 0, 5, 3), Square(2, 0, 16)),  # as near to the middle as it can
        ((40, 16), (33, 0, 36, 3), Square(20, 0, 16)),
        ((40, 16), (39, 5, 40, 6), Square(24, 0, 16)),
        ((40, 16), (0, 0, 16, 16), Square(0, 0, 16)),  # just fits
        ((16, 40), (0, 30, 1, 40), Square(0, 24, 16)),
    ],
)
def test_the_square_holds_the_mask(size: tuple[int, int], box: tuple[int, int, int, int], square: Square):
    mask = painted(box, size=size)
    assert square_around(mask) == square
    left, top, right, bottom = square.box
    assert mask[top:bottom, left:right].sum() == mask.sum()


@pytest.mark.parametrize("size", [(40, 16), (16, 40)])
@pytest.mark.parametrize("last", [17, 40])
def test_a_mask_longer_than_the_square_is_refused(size: tuple[int, int], last: int):
    mask = painted((0, 0, min(last, size[0]), min(last, size[1])), size=size)
    with pytest.raises(ValueError, match=rf"mask reaches over {last} pixels, but the model sees a square of 16 .*crop"):
        square_around(mask)


def test_one_pixel_touches_one_cell():
    for x, y in ((0, 0), (5, 11), (15, 15)):
        cells = touched_positions(painted((x, y, x + 1, y + 1)), Square(0, 0, 16), GRID)
        assert cells.nonzero().tolist() == [[y // 4, x // 4]]


def test_cells_are_counted_from_the_square():
    mask = painted((12, 0, 13, 16), size=(40, 16))
    assert touched_positions(mask, Square(12, 0, 16), GRID).nonzero().tolist() == [[0, 0], [1, 0], [2, 0], [3, 0]]


@pytest.mark.parametrize("side", [1, 3, 16, 17])
def test_all_white_touches_every_cell_of_any_image(side: int):
    assert touched_positions(np.ones((side, side), bool), Square(0, 0, side), GRID).all()


def test_a_pixel_on_a_line_between_cells_touches_both():
    assert touched_positions(painted((4, 0, 5, 1), size=(18, 18)), Square(0, 0, 18), GRID)[0].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(("size", "drawn_size"), [((64, 64), 16), ((16, 16), 16), ((90, 64), 16), ((50, 50), 16)])
def test_what_the_mask_does_not_touch_keeps_its_pixels(size: tuple[int, int], drawn_size: int):
    image, drawn = noise(size), noise((drawn_size, drawn_size), seed=1)
    mask = painted((size[0] // 2, 5, size[0] // 2 + 9, 13), size=size)
    square = square_around(mask)
    cells = touched_positions(mask, square, GRID)
    out = np.asarray(paste_back(image, drawn, mask, cells, square))
    own = np.asarray(image)
    left, top, right, bottom = square.box
    scaled = own.copy()
    scaled[top:bottom, left:right] = drawn.resize((square.side, square.side), Image.Resampling.BICUBIC)
    inside = np.zeros(mask.shape, bool)
    at = np.arange(square.side) * 4 // square.side
    inside[top:bottom, left:right] = cells.numpy()[at[:, None], at]
    assert out.shape == own.shape
    assert np.array_equal(out[~inside], own[~inside])
    assert np.array_equal(out[mask], scaled[mask])


def test_the_border_of_a_hole_is_soft():
    mask = painted((0, 0, 20, 64), size=(64, 64))
    cells = touched_positions(mask, Square(0, 0, 64), GRID)
    black, white = (Image.new("RGB", (64, 64), colour) for colour in ("black", "white"))
    row = np.asarray(paste_back(black, white, mask, cells, Square(0, 0, 64)))[30, :, 0].astype(int)
    assert (row[:20] == 255).all() and (row[32:] == 0).all()
    border = row[20:32]
    assert (np.diff(border) <= 0).all() and ((border > 0) & (border < 255)).sum() >= 4


def test_a_whole_mask_gives_what_was_drawn():
    mask, square = np.ones((16, 16), bool), Square(0, 0, 16)
    out = paste_back(noise((16, 16)), noise((16, 16), 1), mask, torch.ones(GRID, dtype=torch.bool), square)
    assert out.tobytes() == noise((16, 16), 1).tobytes()
