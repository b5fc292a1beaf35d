"""VQModel: the convolutional picture autoencoder of VQGAN (Esser et al. 2021, "Taming Transformers", section 3.1).

Parameter names are taming's, so its checkpoints load as they are. Two additions, both off by default: `patch_size`
folds pixels into channels before the first and after the last convolution, and `normalize` compares codes by angle.

Shapes: B pictures, H x W pixels, C channels, Z latent channels, h x w = H/f x W/f codes.
"""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer_image.quantizer import VectorQuantizer


@dataclass(frozen=True)
class VQConfig:
    """Shape of a VQModel.

    Attributes:
        resolution: side of the pictures it is made for, in pixels.
        patch_size: side of the pixel blocks folded into channels before the first convolution; 1 = none.
        ch: channels at the first level.
        ch_mult: channels of each level, in units of `ch`; between levels the side halves.
        num_res_blocks: residual blocks a level (the decoder has one more).
        attn_resolutions: sides, in latent pixels, at which a level has attention.
        norm_groups: groups of every GroupNorm.
        z_channels: channels between the encoder or decoder and the 1 x 1 convolutions around the quantiser.
        embed_dim: dimensions of a code, Z.
        n_embed: number of codes, K.
        normalize: compare codes by angle.
        decoder_ch: channels at the decoder's last level; None = `ch`.
    """

    resolution: int = 256
    patch_size: int = 1
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)
    norm_groups: int = 32
    z_channels: int = 256
    embed_dim: int = 256
    n_embed: int = 1024
    normalize: bool = False
    decoder_ch: int | None = None

    def __post_init__(self) -> None:
        if self.resolution % self.downsampling:
            raise ValueError(f"resolution {self.resolution} is not a multiple of the downsampling {self.downsampling}")
        for ch in {self.ch, self.decoder_ch or self.ch}:
            for mult in self.ch_mult:
                if ch * mult % self.norm_groups:
                    raise ValueError(f"{ch * mult} channels do not divide into norm_groups = {self.norm_groups}")

    @property
    def downsampling(self) -> int:
        """f: pixels a code, each way."""
        return self.patch_size * 2 ** (len(self.ch_mult) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) at `resolution`."""
        side = self.resolution // self.downsampling
        return side, side

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "VQConfig":
        """Raises ValueError for keys that do not exist."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"unknown VQConfig keys: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        settings: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**settings)

    @classmethod
    def load(cls, path: Path) -> "VQConfig":
        return cls.from_dict(json.loads(path.read_text()))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


_TAMING = VQConfig()
PRESETS: dict[str, VQConfig] = {
    "taming-f16-1024": _TAMING,
    "taming-f16-16384": replace(_TAMING, n_embed=16384),
    "cm3leon-f8": replace(_TAMING, ch_mult=(1, 2, 2, 4), attn_resolutions=(32,), n_embed=8192),
    "chameleon-512": replace(_TAMING, resolution=512, attn_resolutions=(), n_embed=8192),
    "emoji-64": VQConfig(resolution=64, patch_size=4, ch=128, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(),
                         norm_groups=16, z_channels=128, embed_dim=8, n_embed=2048, normalize=True),
    "tiny": VQConfig(resolution=16, patch_size=2, ch=8, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(),
                     norm_groups=4, z_channels=8, embed_dim=4, n_embed=32, normalize=True),
}  # fmt: skip


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """norm, SiLU, 3 x 3 convolution, twice, around a skip."""

    def __init__(self, in_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.norm1 = _norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h  # [B, C', H, W]


class AttnBlock(nn.Module):
    """One head of attention over all positions, with 1 x 1 convolutions."""

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
        return x + self.proj_out(h.mT.reshape(x.shape))


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and below only, as taming pads


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """One resolution: residual blocks, attention after each where configured, and a change of size."""

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
    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """[B, 3, H, W] -> [B, z_channels, h, w]."""

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
    """[B, z_channels, h, w] -> [B, 3, H, W]."""

    def __init__(self, config: VQConfig):
        super().__init__()
        self.patch_size = config.patch_size
        groups, (side, _) = config.norm_groups, config.grid
        ch = config.decoder_ch or config.ch
        widths = [ch * mult for mult in config.ch_mult]
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], groups)
        levels = []
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
    """What a training step needs.

    Attributes:
        pixels: [B, 3, H, W].
        latents: [B, Z, h, w], before quantisation.
        codes: [B, h, w].
        loss: scalar, of the quantiser.
    """

    pixels: Tensor
    latents: Tensor
    codes: Tensor
    loss: Tensor


class VQModel(nn.Module):
    """Encoder, quantiser and decoder; pixels in [-1, 1]."""

    def __init__(self, config: VQConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = VectorQuantizer(config.n_embed, config.embed_dim, config.normalize)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    def latents(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, W] -> latents before quantisation [B, Z, h, w]."""
        f = self.config.downsampling
        if pixels.ndim != 4 or pixels.shape[2] % f or pixels.shape[3] % f:
            raise ValueError(f"pixels {tuple(pixels.shape)}: want [B, 3, H, W] with H and W multiples of {f}")
        return self.quant_conv(self.encoder(pixels))

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, W] -> codes [B, h, w] long."""
        return self.quantize(self.latents(pixels)).codes

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """codes [B, h, w] -> pixels [B, 3, H, W], clamped to [-1, 1].

        Raises:
            ValueError: a code outside the codebook.
        """
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.config.n_embed):
            raise ValueError(
                f"codes {int(codes.min())} to {int(codes.max())}: the codebook has 0 to {self.config.n_embed - 1}"
            )
        latents = self.quantize.look_up(codes)
        return self.decoder(self.post_quant_conv(latents)).clamp(-1, 1)

    def forward(self, pixels: Tensor) -> Reconstruction:
        latents = self.latents(pixels)
        quantized, codes, loss = self.quantize(latents)
        return Reconstruction(self.decoder(self.post_quant_conv(quantized)), latents, codes, loss)
