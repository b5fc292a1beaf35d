"""Local encoder and decoder: a code depends on the pixels of its grid position, and a pixel on codes nearby.

With VQConfig.tile each tile is encoded and decoded separately. So an image can be composed of tiles: the codes and
pixels of a tile do not depend on the other tiles.

Shapes: B images, H x W pixels, C channels, h x w = H/f x W/f codes.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer_image.config import VQConfig


def split_tiles(x: Tensor, side: int) -> Tensor:
    """Split [B, C, H, W] into tiles, [B * tiles, C, side, side]. Without effect if `side` is 0 or is no divisor."""
    height, width = x.shape[-2:]
    if not side or height % side or width % side:
        return x
    grid = x.reshape(*x.shape[:2], height // side, side, width // side, side)  # [B, C, rows, side, columns, side]
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(-1, x.shape[1], side, side)


def join_tiles(tiles: Tensor, height: int, width: int) -> Tensor:
    """Undo split_tiles: [B * tiles, C, side, side] to [B, C, height, width]."""
    side = tiles.shape[-1]
    if tiles.shape[-2:] == (height, width):
        return tiles
    channels = tiles.shape[1]
    grid = tiles.reshape(-1, height // side, width // side, channels, side, side)  # [B, rows, columns, C, side, side]
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, height, width)


class CellBlock(nn.Module):
    """A residual block: LayerNorm and a two-layer perceptron at each position."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))  # [B, h, w, C]


class CellEncoder(nn.Module):
    """Local encoder, [B, 3, H, W] to [B, z_channels, h, w].

    A code depends only on the pixels of its grid position and a ring around them. So an object that moves by whole grid
    positions keeps its codes, and another background changes no codes inside the object.
    """

    def __init__(self, config: VQConfig):
        super().__init__()
        self.f, self.ring, self.tile = config.downsampling, config.cell_ring, config.tile
        self.conv_in = nn.Conv2d(3, config.cell_width, self.f + 2 * self.ring, stride=self.f)
        self.blocks = nn.ModuleList(CellBlock(config.cell_width) for _ in range(config.cell_blocks))
        self.norm_out = nn.LayerNorm(config.cell_width)
        self.conv_out = nn.Conv2d(config.cell_width, config.z_channels, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        ring, (height, width) = self.ring, pixels.shape[-2:]
        tiles = split_tiles(pixels, self.tile * self.f)
        x = self.conv_in(F.pad(tiles, (ring, ring, ring, ring), mode="replicate")).movedim(1, -1)
        for block in self.blocks:
            x = block(x)
        return join_tiles(self.conv_out(self.norm_out(x).movedim(-1, 1)), height // self.f, width // self.f)


class PositionNorm(nn.LayerNorm):
    """LayerNorm over the channels at each position of [B, C, H, W].

    GroupNorm takes its mean over the whole image, so each position depends on all others. This one keeps a decoder
    local.
    """

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class LocalBlock(nn.Module):
    """A residual block: PositionNorm, then two 3 x 3 convolutions with SiLU between them."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = PositionNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(self.norm(x))))  # [B, C, H, W]


class CellDecoder(nn.Module):
    """Local decoder, [B, z_channels, h, w] to [B, 3, H, W].

    A pixel depends only on the codes of grid positions nearby, in its tile. Perceptrons at each grid position do most
    of the computation; convolutions at finer levels connect neighbours.
    """

    def __init__(self, config: VQConfig):
        super().__init__()
        self.patch_size, self.tile, self.f = config.patch_size, config.tile, config.downsampling
        width = config.cell_width
        ch = config.decoder_ch or config.ch
        self.conv_in = nn.Conv2d(config.z_channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(CellBlock(width) for _ in range(config.decoder_cell_blocks))
        self.up = nn.ModuleList()
        for mult in reversed(config.ch_mult[:-1]):
            spread = nn.Conv2d(width, 4 * ch * mult, 1)
            blocks = [LocalBlock(ch * mult) for _ in range(config.num_res_blocks)]
            self.up.append(nn.Sequential(spread, nn.PixelShuffle(2), *blocks))
            width = ch * mult
        self.norm_out = PositionNorm(width)
        self.conv_out = nn.Conv2d(width, 3 * config.patch_size**2, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        height, width = (side * self.f for side in latents.shape[-2:])
        x = self.conv_in(split_tiles(latents, self.tile)).movedim(1, -1)
        for block in self.blocks:
            x = block(x)
        x = x.movedim(-1, 1)
        for level in self.up:
            x = level(x)
        pixels = F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), self.patch_size)
        return join_tiles(pixels, height, width)
