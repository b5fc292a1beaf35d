"""What stands between people and ids: pictures to codes, codes and ids to pictures and texts."""

# torch and PIL are typed in part only.
# pyright: reportUnknownMemberType=false

import math
from collections.abc import Sequence
from typing import cast

import torch
from PIL import Image as PIL_Image
from torch import Tensor

from cm3.tokens.document import Image
from cm3.tokens.text_tokenizer import TextTokenizer
from cm3.tokens.vocab import Grid, Vocab
from tokenizer_image import ImageTokenizer
from tokenizer_image.pixels import MAX_PIXELS, Picture, open_image


class Processor:
    """Both tokenizers over one vocabulary. grid: rows and columns of a picture, h x w codes. max_pixels: the most that
    a picture may have."""

    def __init__(
        self,
        vocab: Vocab,
        text_tokenizer: TextTokenizer,
        image_tokenizer: ImageTokenizer,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.vocab = vocab
        self.text_tokenizer = text_tokenizer
        self.image_tokenizer = image_tokenizer
        self.max_pixels = max_pixels

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_tokenizer.grid

    @property
    def least(self) -> int:
        """Pixels that a picture's shorter side has to have, and more do not help: twice the model's longest side."""
        return 2 * max(side for grid in (self.grid, *self.vocab.grids) for side in self.image_tokenizer.size_of(grid))

    def image(self, picture: Picture, usual: bool = False) -> Image:
        """The middle of it that has the shape of one of the model's grids, the nearest to its own, or of the usual one.
        One by one: the same alone as in a list. Errors: as tokenizer_image.pixels.open_image."""
        if usual or not self.vocab.grids:
            return Image(self.image_tokenizer.encode(picture, max_pixels=self.max_pixels))
        opened = open_image(picture, self.max_pixels, least=self.least)
        grid = nearest_grid(opened.width / opened.height, (self.grid, *self.vocab.grids))
        size = self.image_tokenizer.size_of(grid)
        return Image(self.image_tokenizer.encode(opened, size, max_pixels=self.max_pixels))

    def picture(self, codes: Tensor) -> PIL_Image.Image:
        """[h, w] -> the picture."""
        return cast(PIL_Image.Image, self.image_tokenizer.decode(codes))

    def codes(self, ids: list[int], grid: Grid | None = None) -> Tensor:  # -> [h, w]
        """The codes among the ids of one picture. grid: None = the usual one."""
        codes = [self.vocab.id_to_code(id) for id in ids if self.vocab.is_code(id)]
        return torch.tensor(codes).view(grid or self.grid)

    def text(self, ids: list[int]) -> str:
        return self.text_tokenizer.decode(self.vocab.ids_to_text(ids))

    def blank(self, grid: Grid | None = None) -> list[int]:
        """The h*w ids of a white picture."""
        white = self.image_tokenizer.encode(PIL_Image.new("RGB", (1, 1), "white"))  # [h, w]
        if grid is not None:
            white = white[white.shape[0] // 2, white.shape[1] // 2].expand(grid)
        return self.vocab.code_to_id(cast(list[int], white.flatten().tolist()))


def nearest_grid(aspect: float, grids: Sequence[Grid]) -> Grid:
    """The grid whose shape is nearest to a picture's. aspect: its width by its height."""
    return min(grids, key=lambda grid: abs(math.log(grid[1] / grid[0] / aspect)))
