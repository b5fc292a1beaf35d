"""Two auxiliary losses that make codes carry what an image shows, not only how it looks.

Alignment asks that a frozen network's features can be read off the codes (VA-VAE, Yao and Wang 2025, section 3.2;
SEED, Ge et al. 2023). The JEPA objective needs no pretrained network: from the codes of the visible part of an image,
a small predictor guesses what an averaged copy of the encoder makes of the hidden part (I-JEPA, Assran et al. 2023).

Shapes: B images, Z dimensions of a code, h x w grid, N = h * w, F features, D width of the predictor.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def standardise(maps: Tensor) -> Tensor:
    """[B, F, h, w] with mean 0 and deviation 1 of each feature over the batch, in fp32."""
    maps = maps.float()
    return (maps - maps.mean((0, 2, 3), keepdim=True)) / (maps.std((0, 2, 3), keepdim=True) + 1e-5)


class Alignment(nn.Module):
    """How badly a small head reads the frozen features off the quantised latents.

    Cosine distance place by place, plus the mean difference of the similarities between all places of an image.

    Args:
        dim: Z.
        channels: of each map of the frozen network.
        width: of the head.
    """

    def __init__(self, dim: int, channels: tuple[int, ...], width: int = 256):
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(dim, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, sum(channels), 1))

    def forward(self, quantized: Tensor, maps: list[Tensor]) -> Tensor:
        """quantized [B, Z, h, w]; maps [B, F_i, H_i, W_i], each brought to h x w. Returns a scalar."""
        size = quantized.shape[-2:]
        target = torch.cat([standardise(F.interpolate(m.float(), size, mode="area")) for m in maps], 1)  # [B, F, h, w]
        a = F.normalize(self.head(quantized).float().flatten(2), dim=1)  # [B, F, N]
        b = F.normalize(target.flatten(2), dim=1)
        cosine = 1 - (a * b).sum(1).mean()
        return cosine + (a.mT @ a - b.mT @ b).abs().mean()


class Masked(NamedTuple):
    """An image with blocks hidden.

    Attributes:
        pixels: [B, 3, H, W], 0 (grey) where hidden.
        hidden: [B, h, w] bool.
    """

    pixels: Tensor
    hidden: Tensor


def hide_blocks(pixels: Tensor, grid: tuple[int, int], generator: torch.Generator, share: float = 0.5) -> Masked:
    """Hide rectangles of codes until at least `share` of each image is hidden (I-JEPA, section 3: several blocks).

    Args:
        pixels: [B, 3, H, W].
        grid: (h, w) codes.
        generator: on the CPU.
        share: of the codes.
    """
    h, w = grid
    hidden = torch.zeros(len(pixels), h, w, dtype=torch.bool)
    for mask in hidden:
        while mask.float().mean() < share:
            area = torch.empty(2).uniform_(0.0, 1.0, generator=generator)
            size = (0.15 + 0.1 * area[0].item()) * h * w
            ratio = 0.75 * 2 ** area[1].item()
            rows = min(h, max(1, round(math.sqrt(size * ratio))))
            columns = min(w, max(1, round(math.sqrt(size / ratio))))
            top = int(torch.randint(h - rows + 1, (), generator=generator))
            left = int(torch.randint(w - columns + 1, (), generator=generator))
            mask[top : top + rows, left : left + columns] = True
    hidden = hidden.to(pixels.device)
    scaled = F.interpolate(hidden[:, None].float(), pixels.shape[-2:], mode="nearest")
    return Masked(pixels * (1 - scaled), hidden)


def positions(grid: tuple[int, int], width: int) -> Tensor:
    """Sines and cosines of rows and columns, [N, D]; any grid, so that images of any size are predicted."""
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    rates = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.cat([rows.reshape(-1, 1) * rates, columns.reshape(-1, 1) * rates], 1)  # [N, D / 2]
    return torch.cat([angles.sin(), angles.cos()], 1)


class Predictor(nn.Module):
    """Guesses the teacher's latents of hidden places from the quantised latents of the visible ones.

    Args:
        dim: Z.
        target: channels of the teacher's latents.
        width: D.
        layers: transformer layers.
    """

    def __init__(self, dim: int, target: int, width: int = 128, layers: int = 2):
        super().__init__()
        self.enter = nn.Linear(dim, width)
        self.mask = nn.Parameter(torch.randn(width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, width // 32, 4 * width, 0.0, F.gelu, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.leave = nn.Linear(width, target)
        self.width = width

    def forward(self, quantized: Tensor, hidden: Tensor, teacher: Tensor) -> Tensor:
        """quantized [B, Z, h, w]; hidden [B, h, w]; teacher [B, C, h, w]. Returns the smooth L1 distance to the
        teacher's standardised latents at the hidden places, a scalar."""
        places = positions((quantized.shape[2], quantized.shape[3]), self.width).to(quantized.device)
        x = self.enter(quantized.flatten(2).mT)  # [B, N, D]
        covered = hidden.flatten(1)  # [B, N]
        x = torch.where(covered[..., None], self.mask.to(x.dtype), x) + places
        guess = self.leave(self.layers(x))  # [B, N, C]
        target = standardise(teacher).flatten(2).mT
        return F.smooth_l1_loss(guess.float()[covered], target[covered])
