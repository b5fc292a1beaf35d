"""Two auxiliary losses for codes that carry meaning, not only appearance.

Alignment: a linear map of the codes predicts the features of a frozen network (VA-VAE, Yao and Wang 2025, section 3.2;
SEED, Ge et al. 2023). JEPA needs no pretrained network: from the codes of an image with masked blocks, a small
predictor predicts the latents that an averaged copy of the encoder computes for the masked blocks (I-JEPA, Assran et
al. 2023).

Shapes: B images, Z dimensions of a code, h x w grid, N = h * w, F features, D width of the predictor.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def standardise(maps: Tensor) -> Tensor:
    """Scale features [B, F, h, w] to mean 0 and standard deviation 1 over the batch, in fp32."""
    maps = maps.float()
    return (maps - maps.mean((0, 2, 3), keepdim=True)) / (maps.std((0, 2, 3), keepdim=True) + 1e-5)


class Alignment(nn.Module):
    """How badly a small head reads the frozen features off the quantised latents.

    The cosine distance at each grid position, plus the mean difference of the similarities of all pairs of positions.

    Args:
        dim: Z.
        channels: of each map of the frozen network.
        width: of the head.
    """

    def __init__(self, dim: int, channels: tuple[int, ...], width: int = 256):
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(dim, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, sum(channels), 1))

    def forward(self, quantized: Tensor, maps: list[Tensor]) -> Tensor:
        """Compute the loss, a scalar.

        Args:
            quantized: [B, Z, h, w].
            maps: features of the images, [B, F_i, H_i, W_i] each; they are scaled to h x w.
        """
        size = quantized.shape[-2:]
        target = torch.cat([standardise(F.interpolate(m.float(), size, mode="area")) for m in maps], 1)  # [B, F, h, w]
        a = F.normalize(self.head(quantized).float().flatten(2), dim=1)  # [B, F, N]
        b = F.normalize(target.flatten(2), dim=1)
        cosine = 1 - (a * b).sum(1).mean()
        return cosine + (a.mT @ a - b.mT @ b).abs().mean()


class Masked(NamedTuple):
    """Images with masked blocks.

    Attributes:
        pixels: [B, 3, H, W], 0 (grey) where masked.
        mask: [B, h, w], True where masked.
    """

    pixels: Tensor
    mask: Tensor


def mask_blocks(pixels: Tensor, grid: tuple[int, int], generator: torch.Generator, share: float = 0.5) -> Masked:
    """Mask random rectangles of the grid (I-JEPA, section 3: several blocks).

    Args:
        pixels: [B, 3, H, W].
        grid: rows and columns of codes.
        generator: of the random numbers, on the CPU.
        share: of each grid that is masked, at least.
    """
    h, w = grid
    masks = torch.zeros(len(pixels), h, w, dtype=torch.bool)
    for mask in masks:
        while mask.float().mean() < share:
            area = torch.empty(2).uniform_(0.0, 1.0, generator=generator)
            size = (0.15 + 0.1 * area[0].item()) * h * w
            ratio = 0.75 * 2 ** area[1].item()
            rows = min(h, max(1, round(math.sqrt(size * ratio))))
            columns = min(w, max(1, round(math.sqrt(size / ratio))))
            top = int(torch.randint(h - rows + 1, (), generator=generator))
            left = int(torch.randint(w - columns + 1, (), generator=generator))
            mask[top : top + rows, left : left + columns] = True
    masks = masks.to(pixels.device)
    scaled = F.interpolate(masks[:, None].float(), pixels.shape[-2:], mode="nearest")
    return Masked(pixels * (1 - scaled), masks)


def positions(grid: tuple[int, int], width: int) -> Tensor:
    """Return sinusoidal position embeddings of the rows and columns of any grid, [N, D]."""
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    rates = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.cat([rows.reshape(-1, 1) * rates, columns.reshape(-1, 1) * rates], 1)  # [N, D / 2]
    return torch.cat([angles.sin(), angles.cos()], 1)


class Predictor(nn.Module):
    """Predicts the teacher's latents at masked grid positions from the quantised latents at the others.

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

    def forward(self, quantized: Tensor, mask: Tensor, teacher: Tensor) -> Tensor:
        """Compute the smooth L1 distance to the teacher's standardised latents at masked positions, a scalar.

        Args:
            quantized: of the masked images, [B, Z, h, w].
            mask: [B, h, w], True where masked.
            teacher: its latents of the whole images, [B, C, h, w].
        """
        embeddings = positions((quantized.shape[2], quantized.shape[3]), self.width).to(quantized.device)
        x = self.enter(quantized.flatten(2).mT)  # [B, N, D]
        masked = mask.flatten(1)  # [B, N]
        x = torch.where(masked[..., None], self.mask.to(x.dtype), x) + embeddings
        predicted = self.leave(self.layers(x))  # [B, N, C]
        target = standardise(teacher).flatten(2).mT
        return F.smooth_l1_loss(predicted.float()[masked], target[masked])
