"""Where a picture is redrawn: from a mask of pixels to the codes that are drawn anew, and back into the picture.

A picture here is RGB, or RGBA: what is drawn lies on it as paint does, opaque where it covers all.

mask of pixels     cells it touches (f = 8)       back into the picture
. . # # . . . .    |# # # #|. . . .|              untouched cells: the picture's own pixels
. . # # . . . .    |       |       |              masked pixels: the drawn ones
                                                  the rest of a touched cell: from one to the other, softly
"""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

SOFT = 0.25  # width of the soft border, as a share of a cell


class Square(NamedTuple):
    """The part of a picture that the model sees, in pixels."""

    left: int
    top: int
    side: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        return self.left, self.top, self.left + self.side, self.top + self.side


def read_mask(mask: Image.Image, size: tuple[int, int]) -> np.ndarray:  # -> [H, W] bool
    """True where a mask in grey or colour is white, or nearer to white than to black.

    size: (width, height) of the picture. Errors: ValueError for another size, or a mask without white."""
    if mask.size != size:
        raise ValueError(
            f"the mask has {mask.width} x {mask.height} pixels, but the picture {size[0]} x {size[1]}: "
            "give one of the same size"
        )
    painted = np.asarray(mask.convert("L")) > 127
    if not painted.any():
        raise ValueError("the mask is black everywhere: paint white what is to be redrawn")
    return painted


def square_around(painted: np.ndarray) -> Square:
    """The largest square of the picture that holds everything masked, as near to the picture's middle as it can.

    painted: [H, W] bool. Errors: ValueError where no square holds it."""
    height, width = painted.shape
    side = min(height, width)
    rows, columns = np.flatnonzero(painted.any(1)), np.flatnonzero(painted.any(0))

    def begin(length: int, first: int, last: int) -> int:
        if last - first >= side:
            raise ValueError(
                f"the mask reaches over {last - first + 1} pixels, but the model sees a square of {side} "
                f"of this picture of {width} x {height}: mask less, or crop the picture to a square"
            )
        return min(max((length - side) // 2, last + 1 - side), first)

    return Square(begin(width, int(columns[0]), int(columns[-1])), begin(height, int(rows[0]), int(rows[-1])), side)


def middle_square(size: tuple[int, int]) -> Square:
    """The largest square in the middle of a picture of (width, height)."""
    width, height = size
    side = min(size)
    return Square((width - side) // 2, (height - side) // 2, side)


def touched_cells(painted: np.ndarray, square: Square, grid: tuple[int, int]) -> Tensor:  # [H, W] bool -> [h, w] bool
    """The cells of the square in which at least a part of a masked pixel lies."""
    left, top, right, bottom = square.box

    def reach(cell: int, cells: int) -> slice:
        return slice(cell * square.side // cells, -(-(cell + 1) * square.side // cells))

    inside = painted[top:bottom, left:right]
    return torch.tensor(
        [[bool(inside[reach(i, grid[0]), reach(j, grid[1])].any()) for j in range(grid[1])] for i in range(grid[0])]
    )


def pixels_of(cells: Tensor, square: Square, size: tuple[int, int]) -> np.ndarray:  # [h, w] bool -> [H, W] bool
    """The pixels of a picture of (width, height) that lie in the cells of its square."""
    left, top, right, bottom = square.box
    rows, columns = (np.arange(square.side) * count // square.side for count in cells.shape)
    pixels = np.zeros(size[::-1], bool)
    pixels[top:bottom, left:right] = cells.numpy()[rows[:, None], columns]
    return pixels


def grown(cells: Tensor) -> Tensor:  # [h, w] bool -> [h, w] bool
    """The cells and all that touch them, at their corners too."""
    return torch.nn.functional.max_pool2d(cells[None].float(), 3, 1, 1)[0] > 0


def paste_back(
    picture: Image.Image, drawn: Image.Image, painted: np.ndarray, cells: Tensor, square: Square
) -> Image.Image:
    """The picture with what was drawn in the touched cells; every pixel outside them stays as it is.

    picture: RGB or RGBA. drawn: RGB, of the whole square, at any size. painted: [H, W] bool. cells: [h, w] bool."""
    left, top, right, bottom = square.box
    out = np.array(picture)  # [H, W, 3 or 4]
    own = out[top:bottom, left:right]  # [S, S, 3 or 4], a view
    scaled = np.asarray(drawn.resize((square.side, square.side), Image.Resampling.BICUBIC))  # [S, S, 3]
    mask = painted[top:bottom, left:right]
    inside = pixels_of(cells, square, picture.size)[top:bottom, left:right]  # [S, S]
    blurred = Image.fromarray(mask.astype(np.uint8) * 255).filter(
        ImageFilter.GaussianBlur(SOFT * square.side / max(cells.shape))
    )
    share = np.where(mask, 255, np.asarray(blurred).astype(np.float32) * 2).clip(0, 255) / 255 * inside  # [S, S]
    for row in np.flatnonzero(share.any(1)):  # one by one: a large picture as floats takes ten times its size
        at = np.flatnonzero(share[row])  # [N]
        own[row, at] = laid_over(own[row, at], scaled[row, at], share[row, at, None])
    return Image.fromarray(out)


def laid_over(own: np.ndarray, drawn: np.ndarray, share: np.ndarray) -> np.ndarray:  # [N, 3 or 4], [N, 3], [N, 1]
    """Pixels with what was drawn laid over them, opaque to this share, above 0."""
    colour = own[:, :3].astype(np.float32)
    cover = own[:, 3:] / 255 if own.shape[1] == 4 else np.ones_like(share)
    opaque = share + (1 - share) * cover  # [N, 1]
    mixed = colour + share / opaque * (drawn - colour)
    return np.concatenate((mixed, 255 * opaque), 1)[:, : own.shape[1]].round().astype(np.uint8)
