"""Between people and token ids: images to codes, codes to images, ids to texts."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from PIL import Image as PIL_Image
from torch import Tensor

from cm3.engine.request import Request
from cm3.tensors import to_ints
from cm3.tokens.document import Image
from cm3.tokens.encoding import last_grid
from cm3.tokens.text_tokenizer import TextTokenizer
from cm3.tokens.vocab import Grid, Vocab
from tokenizer_image import ImageTokenizer
from tokenizer_image.pixels import MAX_PIXELS, ImageLike, open_image


class Processor:
    """Both tokenizers over one vocabulary.

    Args:
        vocab: the vocabulary.
        text_tokenizer: of the vocabulary's text tokens.
        image_tokenizer: of the vocabulary's image tokens.
        max_pixels: the most pixels that an image may have.
    """

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
        """The usual grid, h x w codes."""
        return self.image_tokenizer.grid

    @property
    def least(self) -> int:
        """Pixels of an image's shorter side beyond which more do not help: twice the model's longest side."""
        return 2 * max(side for grid in (self.grid, *self.vocab.grids) for side in self.image_tokenizer.size_of(grid))

    def encode(self, image: ImageLike, usual: bool = False) -> Image:
        """Encode the middle of an image, cut to the shape of the model's nearest grid.

        Images are encoded one by one, so that an image gets the same codes alone and in a list.

        Args:
            image: as `tokenizer_image.pixels.open_image` takes it, and with its errors.
            usual: take the usual grid, whatever the image's shape.
        """
        if usual or not self.vocab.grids:
            return Image(self.image_tokenizer.encode(image, max_pixels=self.max_pixels))
        opened = open_image(image, self.max_pixels, least=self.least)
        grid = nearest_grid(opened.width / opened.height, (self.grid, *self.vocab.grids))
        size = self.image_tokenizer.size_of(grid)
        return Image(self.image_tokenizer.encode(opened, size, max_pixels=self.max_pixels))

    def decode(self, codes: Tensor) -> PIL_Image.Image:
        """Decode codes [h, w] to an image."""
        return cast(PIL_Image.Image, self.image_tokenizer.decode(codes))

    def codes(self, ids: list[int], grid: Grid | None = None) -> Tensor:  # -> [h, w]
        """The codes among the ids of one image. grid: None for the usual one."""
        codes = [self.vocab.id_to_code(id) for id in ids if self.vocab.is_code(id)]
        return torch.tensor(codes).view(grid or self.grid)

    def drawn(self, requests: Sequence[Request], new: Sequence[list[int]]) -> list[Tensor]:
        """The codes, [h, w], of the image that each request drew, from its new ids."""
        grids = [last_grid(request.prompt, self.vocab) for request in requests]
        return [self.codes(ids, grid) for ids, grid in zip(new, grids, strict=True)]

    def text(self, ids: list[int]) -> str:
        """The text that the text tokens among the ids spell."""
        return self.text_tokenizer.decode(self.vocab.ids_to_text(ids))

    def blank(self, grid: Grid | None = None) -> list[int]:
        """The h*w ids of a white image."""
        white = self.image_tokenizer.encode(PIL_Image.new("RGB", (1, 1), "white"))  # [h, w]
        if grid is not None:
            white = white[white.shape[0] // 2, white.shape[1] // 2].expand(grid)
        return self.vocab.code_to_id(to_ints(white))


def nearest_grid(aspect: float, grids: Sequence[Grid]) -> Grid:
    """The grid whose shape is nearest to an image's. aspect: the image's width divided by its height."""
    return min(grids, key=lambda grid: abs(math.log(grid[1] / grid[0] / aspect)))
