"""Inpainting: from a mask of pixels to the codes that are drawn anew, and back into the image.

Images are RGB or RGBA. New pixels are blended over the image's own, and are opaque where they cover them.

    mask of pixels     grid positions it touches (f = 8)     back into the image
    . . # # . . . .    |# # # #|. . . .|                     untouched positions: the image's own pixels
    . . # # . . . .    |       |       |                     masked pixels: the new ones
                                                             the rest of a touched position: a soft blend of both
"""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

SOFT = 0.25  # width of the soft border, as a share of a grid position


class Square(NamedTuple):
    """The part of an image that the model sees, in pixels."""

    left: int
    top: int
    side: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        return self.left, self.top, self.left + self.side, self.top + self.side


def read_mask(mask: Image.Image, size: tuple[int, int]) -> np.ndarray:  # -> [H, W] bool
    """Read a mask in grey or colour: True where it is white, or nearer to white than to black.

    Args:
        mask: the mask.
        size: (width, height) of the image.

    Raises:
        ValueError: a mask of another size, or without white.
    """
    if mask.size != size:
        raise ValueError(
            f"the mask has {mask.width} x {mask.height} pixels, but the image {size[0]} x {size[1]}: "
            "give one of the same size"
        )
    painted = np.asarray(mask.convert("L")) > 127
    if not painted.any():
        raise ValueError("the mask is black everywhere: paint white what is to be redrawn")
    return painted


def square_around(painted: np.ndarray) -> Square:
    """The largest square of the image that holds everything masked, as near to the image's middle as possible.

    Args:
        painted: [H, W] bool.

    Raises:
        ValueError: no square holds it.
    """
    height, width = painted.shape
    side = min(height, width)
    rows, columns = np.flatnonzero(painted.any(1)), np.flatnonzero(painted.any(0))

    def begin(length: int, first: int, last: int) -> int:
        if last - first >= side:
            raise ValueError(
                f"the mask reaches over {last - first + 1} pixels, but the model sees a square of {side} "
                f"of this image of {width} x {height}: mask less, or crop the image to a square"
            )
        return min(max((length - side) // 2, last + 1 - side), first)

    return Square(begin(width, int(columns[0]), int(columns[-1])), begin(height, int(rows[0]), int(rows[-1])), side)


def middle_square(size: tuple[int, int]) -> Square:
    """The largest square in the middle of an image of (width, height)."""
    width, height = size
    side = min(size)
    return Square((width - side) // 2, (height - side) // 2, side)


def touched_positions(
    painted: np.ndarray, square: Square, grid: tuple[int, int]
) -> Tensor:  # [H, W] bool -> [h, w] bool
    """The grid positions of the square in which at least a part of a masked pixel lies."""
    left, top, right, bottom = square.box

    def reach(place: int, count: int) -> slice:
        return slice(place * square.side // count, -(-(place + 1) * square.side // count))

    inside = painted[top:bottom, left:right]
    return torch.tensor(
        [[bool(inside[reach(i, grid[0]), reach(j, grid[1])].any()) for j in range(grid[1])] for i in range(grid[0])]
    )


def pixels_of(positions: Tensor, square: Square, size: tuple[int, int]) -> np.ndarray:  # [h, w] bool -> [H, W] bool
    """The pixels of an image of (width, height) that lie in these grid positions of its square."""
    left, top, right, bottom = square.box
    rows, columns = (np.arange(square.side) * count // square.side for count in positions.shape)
    pixels = np.zeros(size[::-1], bool)
    pixels[top:bottom, left:right] = positions.numpy()[rows[:, None], columns]
    return pixels


def grown(positions: Tensor) -> Tensor:  # [h, w] bool -> [h, w] bool
    """The grid positions and their eight neighbours."""
    return torch.nn.functional.max_pool2d(positions[None].float(), 3, 1, 1)[0] > 0


def paste_back(
    image: Image.Image, drawn: Image.Image, painted: np.ndarray, touched: Tensor, square: Square
) -> Image.Image:
    """Paste the new pixels into the touched grid positions; every pixel outside them stays as it is.

    Args:
        image: RGB or RGBA.
        drawn: the whole square as it was drawn, RGB, of any size.
        painted: [H, W] bool, the masked pixels.
        touched: [h, w] bool, the touched positions of the square.
        square: the part of the image that was drawn.
    """
    left, top, right, bottom = square.box
    out = np.array(image)  # [H, W, 3 or 4]
    own = out[top:bottom, left:right]  # [S, S, 3 or 4], a view
    scaled = np.asarray(drawn.resize((square.side, square.side), Image.Resampling.BICUBIC))  # [S, S, 3]
    mask = painted[top:bottom, left:right]
    inside = pixels_of(touched, square, image.size)[top:bottom, left:right]  # [S, S]
    blurred = Image.fromarray(mask.astype(np.uint8) * 255).filter(
        ImageFilter.GaussianBlur(SOFT * square.side / max(touched.shape))
    )
    share = np.where(mask, 255, np.asarray(blurred).astype(np.float32) * 2).clip(0, 255) / 255 * inside  # [S, S]
    for row in np.flatnonzero(share.any(1)):  # one by one: a large image as floats takes ten times its size
        at = np.flatnonzero(share[row])  # [N]
        own[row, at] = blended(own[row, at], scaled[row, at], share[row, at, None])
    return Image.fromarray(out)


def blended(own: np.ndarray, drawn: np.ndarray, share: np.ndarray) -> np.ndarray:  # [N, 3 or 4], [N, 3], [N, 1]
    """Blend the new pixels over the image's own. share: opacity of the new ones, above 0."""
    colour = own[:, :3].astype(np.float32)
    cover = own[:, 3:] / 255 if own.shape[1] == 4 else np.ones_like(share)
    opaque = share + (1 - share) * cover  # [N, 1]
    mixed = colour + share / opaque * (drawn - colour)
    return np.concatenate((mixed, 255 * opaque), 1)[:, : own.shape[1]].round().astype(np.uint8)
