"""Encoding and decoding of large images in overlapping tiles: memory depends on the tile, not on the image.

    |--- tile 0 ----|              weights along an axis: they decrease over the overlap, and sum to 1 everywhere
              |--- tile 1 ----|
                       |--- tile 2 ----|

Every tile is computed twice. In the first pass each group norm collects the mean and variance of its input, with the
same weights. In the second pass it uses those of all tiles together; otherwise a dark tile would become as bright as a
bright one. The result still differs a little from that of the whole image: attention sees one tile only, and the
second pass changes the inputs of later norms. An image that is not larger than a tile is computed as a whole.

Shapes: B images, H x W pixels, h x w = H/f x W/f codes, C channels, G groups of them.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer_image.vqgan import VQModel


class Window(NamedTuple):
    """A tile along one axis.

    Attributes:
        start: its first code.
        stop: one past its last code.
        weights: of the tile's result, [(stop - start) * scale].
    """

    start: int
    stop: int
    weights: Tensor


def windows(length: int, tile: int, overlap: int, scale: int = 1) -> list[Window]:
    """Cover an axis with as few tiles of equal size as possible. Their weights sum to 1 everywhere.

    Args:
        length: codes along the axis.
        tile: largest number of codes in a tile.
        overlap: smallest number of codes shared with the next tile.
        scale: results for each code: 1 for codes, f for pixels.

    Raises:
        ValueError: the overlap is not smaller than the tile.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"tiles of {tile} codes that overlap by {overlap}: the overlap must be 0 to {tile - 1}")
    count = 1 if length <= tile else math.ceil((length - overlap) / (tile - overlap))
    size = math.ceil((length + (count - 1) * overlap) / count)
    starts = [i * (length - size) // max(1, count - 1) for i in range(count)]
    places = torch.arange(size * scale) + 0.5
    ramp = torch.minimum(places, places.flip(0)).clamp(max=max(0.5, overlap * scale))
    total = torch.zeros(length * scale)
    for start in starts:
        total[start * scale : (start + size) * scale] += ramp
    return [Window(start, start + size, ramp / total[start * scale :][: size * scale]) for start in starts]


@torch.inference_mode()
def tiled_decode(model: VQModel, codes: Tensor, tile: int, overlap: int) -> Tensor:
    """Decode codes [B, h, w] to pixels [B, 3, H, W] in [-1, 1], in tiles of at most tile x tile codes.

    Raises:
        ValueError: a code is outside the codebook, or the overlap is not smaller than the tile.
    """

    def work(model: VQModel, rows: Window, columns: Window) -> Tensor:
        return model.decode(codes[:, rows.start : rows.stop, columns.start : columns.stop])

    if codes.ndim != 3 or max(codes.shape[1:]) <= tile:
        return model.decode(codes)
    return _blend(model, work, (codes.shape[1], codes.shape[2]), model.config.downsampling, tile, overlap)


@torch.inference_mode()
def tiled_encode(model: VQModel, pixels: Tensor, tile: int, overlap: int) -> Tensor:
    """Encode pixels [B, 3, H, W] to codes [B, h, w], in tiles of at most tile x tile codes.

    The latents of the tiles are blended, then quantised.

    Raises:
        ValueError: a side is no multiple of f, or the overlap is not smaller than the tile.
    """

    def work(model: VQModel, rows: Window, columns: Window) -> Tensor:
        return model.latents(pixels[:, :, rows.start * f : rows.stop * f, columns.start * f : columns.stop * f])

    f = model.config.downsampling
    if pixels.ndim != 4 or max(pixels.shape[2:]) <= tile * f:
        return model.encode(pixels)
    model.check_size(pixels.shape[2], pixels.shape[3])
    return model.quantize(_blend(model, work, (pixels.shape[2] // f, pixels.shape[3] // f), 1, tile, overlap)).codes


class Norms:
    """Group norms that use the statistics of several inputs together.

    Attributes:
        model: a copy of the model that shares its weights. The norms of the model itself do not change.
        sums: for each norm the weighted sums of its inputs, of their squares, and of the weights, [3, B, G].
        weights: of the current tile, along both axes; they are resampled to the size of each input.
    """

    def __init__(self, model: VQModel):
        weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self.model = deepcopy(model, weights)
        self.sums: dict[nn.GroupNorm, Tensor] = {}
        self.weights = (torch.ones(1), torch.ones(1))
        self.norms = [module for module in self.model.modules() if isinstance(module, nn.GroupNorm)]
        self.hooks = [norm.register_forward_hook(self._measure) for norm in self.norms]

    def settle(self) -> None:
        """Use the statistics of all inputs so far from now on."""
        for hook in self.hooks:
            hook.remove()
        for norm in self.norms:
            norm.register_forward_hook(self._apply)

    def _measure(self, norm: nn.GroupNorm, inputs: tuple[Tensor], out: Tensor) -> None:
        x = inputs[0].float()  # [B, C, H, W]
        axes = zip(self.weights, x.shape[2:], strict=True)
        down, right = (F.adaptive_avg_pool1d(weights[None].to(x), size)[0] for weights, size in axes)
        sums = [(part @ right) @ down for part in (x, x.square(), torch.ones_like(x[:, :, :1, :1]).expand_as(x))]
        groups = torch.stack(sums).view(3, len(x), norm.num_groups, -1).sum(3)  # [3, B, G]
        self.sums[norm] = self.sums.get(norm, 0) + groups

    def _apply(self, norm: nn.GroupNorm, inputs: tuple[Tensor], out: Tensor) -> Tensor:
        mean, square, count = self.sums[norm]
        mean, square = mean / count, square / count  # [B, G]
        factor = (square - mean.square()).clamp_min(0).add(norm.eps).rsqrt()
        per_group = norm.num_channels // norm.num_groups
        scale = factor.repeat_interleave(per_group, 1) * norm.weight  # [B, C]
        shift = norm.bias - mean.repeat_interleave(per_group, 1) * scale
        return out.copy_(inputs[0]).mul_(scale[..., None, None]).add_(shift[..., None, None])


def _blend(
    model: VQModel,
    work: Callable[[VQModel, Window, Window], Tensor],
    grid: tuple[int, int],
    scale: int,
    tile: int,
    overlap: int,
) -> Tensor:
    """Compute the weighted sum of the results of all tiles, [B, C, grid * scale], in fp32.

    Args:
        model: to compute with.
        work: computes a tile, given by its rows and columns.
        grid: rows and columns of codes.
        scale: as for `windows`.
        tile: as for `windows`.
        overlap: as for `windows`.
    """
    down, right = (windows(length, tile, overlap, scale) for length in grid)
    norms = Norms(model)
    for rows in down:
        for columns in right:
            norms.weights = (rows.weights, columns.weights)
            work(norms.model, rows, columns)
    norms.settle()
    out = torch.empty(0)
    for rows in down:
        for columns in right:
            part = work(norms.model, rows, columns)
            if not out.numel():
                out = part.new_zeros(*part.shape[:2], grid[0] * scale, grid[1] * scale, dtype=torch.float32)
            weights = (rows.weights[:, None] * columns.weights).to(part.device)  # [tile, tile] * scale
            place = out[:, :, rows.start * scale : rows.stop * scale, columns.start * scale : columns.stop * scale]
            place += part * weights
    return out
