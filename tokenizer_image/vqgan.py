"""VQModel: the convolutional image autoencoder of VQGAN (Esser et al. 2021, "Taming Transformers", section 3.1).

Parameter names are taming's, so its checkpoints load directly. There are these additions, all off by default:
`patch_size` folds pixels into channels before the first and after the last convolution, `normalize` compares codes by
angle, and `cell_width` and `decoder_cell_blocks` replace encoder and decoder by local ones (cells.py).

Shapes: B images, H x W pixels, C channels, Z latent channels, h x w = H/f x W/f codes.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tokenizer_image.cells import CellDecoder, CellEncoder
from tokenizer_image.config import VQConfig
from tokenizer_image.quantizer import VectorQuantizer


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


def _activate(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Apply the norm, then SiLU.

    SiLU works in place unless gradients are needed: at 256 pixels a new tensor takes the CPU longer than SiLU itself.
    """
    normed = norm(x)
    return F.silu(normed, inplace=not normed.requires_grad)


class ResnetBlock(nn.Module):
    """A residual block: norm, SiLU and a 3 x 3 convolution, twice."""

    def __init__(self, in_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.norm1 = _norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(_activate(self.norm1, x))
        h = self.conv2(_activate(self.norm2, h))
        h += self.nin_shortcut(x)
        return h  # [B, C', H, W]


class AttnBlock(nn.Module):
    """A residual block with one attention head over all positions."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (proj(normed).flatten(2).mT for proj in (self.q, self.k, self.v))  # [B, HW, C]
        h = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        out = self.proj_out(h.mT.reshape(x.shape))
        out += x
        return out  # [B, C, H, W]


class Downsample(nn.Module):
    """A 3 x 3 convolution of stride 2."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and below only, as taming pads


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2, then a 3 x 3 convolution.

    On a CPU both are computed as one transposed convolution: three taps on doubled pixels a a b b are two taps on a b,
    which leaves 4 of 9 products. The kernels are summed in each call, which takes little time.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return F.conv_transpose2d(x, doubled(self.conv.weight), self.conv.bias, stride=2, padding=1)


def doubled(weight: Tensor) -> Tensor:
    """Convert the kernels of a 3 x 3 convolution on doubled pixels to those of a transposed convolution of stride 2.

    Args:
        weight: [out, in, 3, 3].

    Returns:
        [in, out, 4, 4]: along each axis the taps a, b, c become c, b + c, a + b, a.
    """
    for axis in (2, 3):
        a, b, c = weight.chunk(3, axis)
        weight = torch.cat((c, b + c, a + b, a), axis)
    return weight.transpose(0, 1)


class Level(nn.Module):
    """The blocks of one resolution: residual blocks, each with attention after it where that is configured."""

    def __init__(self, widths: list[int], attention: bool, groups: int):
        super().__init__()
        pairs = zip(widths, widths[1:], strict=False)
        self.block = nn.ModuleList(ResnetBlock(a, b, groups) for a, b in pairs)
        self.attn = nn.ModuleList(AttnBlock(b, groups) for b in widths[1:] if attention)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return x


class Middle(nn.Module):
    """The blocks at the lowest resolution."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Taming's encoder, [B, 3, H, W] to [B, z_channels, h, w]."""

    def __init__(self, config: VQConfig):
        super().__init__()
        self.patch_size = config.patch_size
        groups, side = config.norm_groups, config.resolution // config.patch_size
        widths = [config.ch * mult for mult in config.ch_mult]
        self.conv_in = nn.Conv2d(3 * config.patch_size**2, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            before = config.ch if i == 0 else widths[i - 1]
            level = Level([before] + [width] * config.num_res_blocks, side in config.attn_resolutions, groups)
            if i < len(widths) - 1:
                level.downsample = Downsample(width)
                side //= 2
            self.down.append(level)
        self.mid = Middle(widths[-1], groups)
        self.norm_out = _norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(pixels, self.patch_size))
        for level in self.down:
            x = level(x)
            if isinstance(change := getattr(level, "downsample", None), Downsample):
                x = change(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Taming's decoder, [B, z_channels, h, w] to [B, 3, H, W]."""

    def __init__(self, config: VQConfig):
        super().__init__()
        self.patch_size = config.patch_size
        groups, (side, _) = config.norm_groups, config.grid
        ch = config.decoder_ch or config.ch
        widths = [ch * mult for mult in config.ch_mult]
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], groups)
        levels: list[Level] = []
        for i in reversed(range(len(widths))):
            before = widths[min(i + 1, len(widths) - 1)]
            blocks = [before] + [widths[i]] * (config.num_res_blocks + 1)
            level = Level(blocks, side in config.attn_resolutions, groups)
            if i > 0:
                level.upsample = Upsample(widths[i])
                side *= 2
            levels.append(level)
        self.up = nn.ModuleList(reversed(levels))  # stored finest first, as taming does; run from the end
        self.norm_out = _norm(widths[0], groups)
        self.conv_out = nn.Conv2d(widths[0], 3 * config.patch_size**2, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
            if isinstance(change := getattr(level, "upsample", None), Upsample):
                x = change(x)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), self.patch_size)


class Reconstruction(NamedTuple):
    """The result of a forward pass in training.

    Attributes:
        pixels: [B, 3, H, W].
        latents: [B, Z, h, w], before quantisation.
        quantized: [B, Z, h, w].
        codes: [B, h, w].
        loss: scalar, of the quantiser.
    """

    pixels: Tensor
    latents: Tensor
    quantized: Tensor
    codes: Tensor
    loss: Tensor


class VQModel(nn.Module):
    """Encoder, quantiser and decoder; pixels in [-1, 1]."""

    def __init__(self, config: VQConfig):
        super().__init__()
        self.config = config
        self.encoder = CellEncoder(config) if config.cell_width else Encoder(config)
        self.decoder = CellDecoder(config) if config.decoder_cell_blocks else Decoder(config)
        self.quantize = VectorQuantizer(config.n_embed, config.embed_dim, config.normalize)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    def latents(self, pixels: Tensor) -> Tensor:
        """Compute the latents [B, Z, h, w] of pixels [B, 3, H, W], before quantisation.

        Raises:
            ValueError: pixels of another shape.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels of shape {tuple(pixels.shape)}: want [B, 3, H, W]")
        self.check_size(pixels.shape[2], pixels.shape[3])
        pixels = pixels.to(self.quant_conv.weight.dtype)
        return self.quant_conv(self.encoder(pixels))

    def check_size(self, height: int, width: int) -> None:
        """Check the size of an image in pixels.

        Raises:
            ValueError: a side is no multiple of f.
        """
        f = self.config.downsampling
        if height < f or width < f or height % f or width % f:
            raise ValueError(
                f"an image of {height} x {width} pixels (height x width): both must be multiples of {f}; scale or "
                f"crop it, for example to {max(1, height // f) * f} x {max(1, width // f) * f}"
            )

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pixels [B, 3, H, W] to codes [B, h, w], long."""
        return torch.cat([self.quantize(self.latents(part)).codes for part in self._parts(pixels, pixels.shape[2:])])

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes [B, h, w] to pixels [B, 3, H, W], clamped to [-1, 1].

        Raises:
            ValueError: a code is outside the codebook, or the shape is wrong.
        """
        if codes.ndim != 3 or not codes.numel():
            raise ValueError(f"codes of shape {tuple(codes.shape)}: want [B, h, w], none of them 0")
        if int(codes.min()) < 0 or int(codes.max()) >= self.config.n_embed:
            raise ValueError(
                f"codes {int(codes.min())} to {int(codes.max())}: the codebook has 0 to {self.config.n_embed - 1}"
            )
        sides = [side * self.config.downsampling for side in codes.shape[1:]]
        latents = (self.post_quant_conv(self.quantize.look_up(part)) for part in self._parts(codes, sides))
        return torch.cat([self.decoder(part).clamp(-1, 1) for part in latents])

    def _parts(self, batch: Tensor, sides: Sequence[int]) -> Sequence[Tensor]:
        """Split a batch on a CPU into parts of 256 x 256 positions at the first level, as larger ones are slower."""
        if batch.device.type != "cpu":
            return [batch]
        positions = math.prod(sides) // self.config.patch_size**2
        return torch.split(batch, max(1, 2**16 // max(1, positions)))

    def forward(self, pixels: Tensor) -> Reconstruction:
        latents = self.latents(pixels)
        quantized, codes, loss = self.quantize(latents)
        return Reconstruction(self.decoder(self.post_quant_conv(quantized)), latents, quantized, codes, loss)


class Parameters(NamedTuple):
    """Numbers of parameters.

    Attributes:
        encoder: with its 1 x 1 convolution.
        decoder: with its 1 x 1 convolution.
        total: of the model, with the codebook.
    """

    encoder: int
    decoder: int
    total: int


class Unfilled(TorchFunctionMode):
    """Skips the initialisation of new weights.

    On the meta device, initialisation imports torch._dynamo, which takes longer than everything else there.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def outline(config: VQConfig) -> VQModel:
    """Return a VQModel on the meta device: names and shapes of its weights, without memory for them."""
    with torch.device("meta"), Unfilled():
        return VQModel(config)


def count_parameters(config: VQConfig) -> Parameters:
    """Count the parameters of a VQModel, without memory for them."""
    model = outline(config)

    def count(*modules: nn.Module) -> int:
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    return Parameters(count(model.encoder, model.quant_conv), count(model.decoder, model.post_quant_conv), count(model))
