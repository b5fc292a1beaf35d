"""Large images in overlapping tiles: memory depends on the tile, not on the image.

    |--- tile 0 ----|              weights along an axis: they fall off over the overlap and sum to 1 everywhere
              |--- tile 1 ----|
                       |--- tile 2 ----|

Every tile is worked twice. The first time each group norm notes the mean and variance of its input, by the same
weights; the second time it takes those of all tiles together, or else a tile of sky would come out as bright as a tile
of ground. What is left of the difference to the whole image comes from attention, which sees its tile only, and from
what the second time changes in the inputs of later norms. An image no larger than a tile is worked whole, exactly.

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
        weights: of what the tile gives, [(stop - start) * scale].
    """

    start: int
    stop: int
    weights: Tensor


def windows(length: int, tile: int, overlap: int, scale: int = 1) -> list[Window]:
    """Even tiles that cover an axis, as few as go; their weights sum to 1 at every place.

    Args:
        length: codes along the axis.
        tile: most codes of a tile.
        overlap: fewest codes shared with the next tile.
        scale: results a code (1 for codes, f for pixels).

    Raises:
        ValueError: an overlap that leaves no room to move on.
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
    """codes [B, h, w] -> pixels [B, 3, H, W] in [-1, 1], in tiles of at most tile x tile codes.

    Raises:
        ValueError: codes outside the codebook, an overlap not below the tile.
    """

    def work(model: VQModel, rows: Window, columns: Window) -> Tensor:
        return model.decode(codes[:, rows.start : rows.stop, columns.start : columns.stop])

    if codes.ndim != 3 or max(codes.shape[1:]) <= tile:
        return model.decode(codes)
    return _blend(model, work, (codes.shape[1], codes.shape[2]), model.config.downsampling, tile, overlap)


@torch.inference_mode()
def tiled_encode(model: VQModel, pixels: Tensor, tile: int, overlap: int) -> Tensor:
    """pixels [B, 3, H, W] -> codes [B, h, w], in tiles of at most tile x tile codes: the latents are
    blended, then quantised.

    Raises:
        ValueError: sides that are no multiples of f, an overlap not below the tile.
    """

    def work(model: VQModel, rows: Window, columns: Window) -> Tensor:
        return model.latents(pixels[:, :, rows.start * f : rows.stop * f, columns.start * f : columns.stop * f])

    f = model.config.downsampling
    if pixels.ndim != 4 or max(pixels.shape[2:]) <= tile * f:
        return model.encode(pixels)
    model.check_size(pixels.shape[2], pixels.shape[3])
    return model.quantize(_blend(model, work, (pixels.shape[2] // f, pixels.shape[3] // f), 1, tile, overlap)).codes


class Norms:
    """A model's group norms, whose statistics can be taken from several inputs together.

    Attributes:
        model: shares the weights of the given one, whose own norms stay as they are.
        sums: of each norm, the weighted sums of its inputs, of their squares, and of ones, [3, B, G].
        weights: of the tile at work, along its two axes; an axis has any number of them.
    """

    def __init__(self, model: VQModel):
        weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self.model = deepcopy(model, weights)
        self.sums: dict[nn.GroupNorm, Tensor] = {}
        self.weights = (torch.ones(1), torch.ones(1))
        self.norms = [module for module in self.model.modules() if isinstance(module, nn.GroupNorm)]
        self.hooks = [norm.register_forward_hook(self._measure) for norm in self.norms]

    def settle(self) -> None:
        """From now on every norm uses the mean statistics of its inputs so far."""
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
    """The weighted sum of what `work` gives for each tile, [B, C, grid * scale], in fp32."""
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
