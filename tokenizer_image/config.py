"""The configuration of an image tokenizer, and presets."""

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

LARGEST = {"num_res_blocks": 100, "resolution": 2**16, "cell_blocks": 100, "decoder_cell_blocks": 100, "tile": 2**10}
MAY_BE_ZERO = (
    "attn_resolutions",
    "num_res_blocks",
    "decoder_ch",
    "cell_width",
    "cell_blocks",
    "cell_ring",
    "decoder_cell_blocks",
    "tile",
)


@dataclass(frozen=True)
class VQConfig:
    """Architecture of a VQModel.

    Attributes:
        resolution: side of the images for which it is made, in pixels.
        patch_size: side of the pixel blocks folded into channels before the first convolution; 1 = none.
        ch: channels at the first level.
        ch_mult: channels of each level, in units of `ch`; between levels the side halves.
        num_res_blocks: residual blocks in each level; the decoder has one more.
        attn_resolutions: sides, in latent pixels, at which a level has attention.
        norm_groups: groups of every GroupNorm.
        z_channels: channels between the encoder or decoder and the 1 x 1 convolutions around the quantiser.
        embed_dim: dimensions of a code, Z.
        n_embed: number of codes, K.
        normalize: compare codes by angle.
        decoder_ch: channels at the decoder's last level; None = `ch`.
        cell_width: channels of a local encoder, whose codes depend on the pixels of their grid position and
            `cell_ring` pixels around it; 0 = taming's encoder, whose codes depend on the whole image.
        cell_blocks: residual blocks of the local encoder.
        cell_ring: pixels around its grid position on which a code depends.
        decoder_cell_blocks: residual blocks of a local decoder, whose pixels depend on codes nearby; 0 = taming's
            decoder, whose norms and attention depend on the whole image.
        tile: side of the tiles, in codes. Codes are ordered tile by tile, row by row in each, which is the order in
            which a language model reads and writes them. Local encoders and decoders treat each tile separately. 0 =
            row by row over the whole image.

    Raises:
        ValueError: a value is outside its limits, or values do not fit together.
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
    cell_width: int = 0
    cell_blocks: int = 3
    cell_ring: int = 0
    decoder_cell_blocks: int = 0
    tile: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            for number in cast(tuple[Any, ...], value) if isinstance(value, tuple) else (value,):
                least = 0 if field.name in MAY_BE_ZERO else 1
                if isinstance(number, bool) or (number is None and field.name == "decoder_ch"):
                    continue
                if not isinstance(number, int) or not least <= number <= LARGEST.get(field.name, 2**24):
                    raise ValueError(f"{field.name} is {number!r:.60}, but must be a whole number from {least} on")
        if not 1 <= len(self.ch_mult) <= 16:
            raise ValueError(f"ch_mult has {len(self.ch_mult)} levels, but 1 to 16")
        if self.resolution % self.downsampling:
            raise ValueError(f"resolution {self.resolution} is not a multiple of the downsampling {self.downsampling}")
        for ch in {self.ch, self.decoder_ch or self.ch}:
            for mult in self.ch_mult:
                if ch * mult % self.norm_groups:
                    raise ValueError(f"{ch * mult} channels do not divide into norm_groups = {self.norm_groups}")

    @property
    def downsampling(self) -> int:
        """f: side in pixels of the area of a code."""
        return self.patch_size * 2 ** (len(self.ch_mult) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes in an image of size `resolution`."""
        side = self.resolution // self.downsampling
        return side, side

    @property
    def tokens(self) -> int:
        """Number of codes in an image of size `resolution`."""
        return math.prod(self.grid)

    @property
    def bits_per_pixel(self) -> float:
        """Size of the codes, with log2(K) bits for each."""
        return math.log2(self.n_embed) / self.downsampling**2

    @property
    def attn_levels(self) -> tuple[int, ...]:
        """Levels with attention; 0 is the finest."""
        sides = [self.resolution // self.patch_size // 2**level for level in range(len(self.ch_mult))]
        return tuple(level for level, side in enumerate(sides) if side in self.attn_resolutions)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "VQConfig":
        """Build a configuration from its fields.

        Raises:
            ValueError: a field does not exist.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"unknown VQConfig keys: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        settings: dict[str, Any] = {
            key: tuple(cast(list[Any], v)) if isinstance(v, list) else v for key, v in values.items()
        }
        return cls(**settings)

    @classmethod
    def load(cls, path: Path) -> "VQConfig":
        """Read a configuration from JSON.

        Raises:
            ValueError: the file holds none.
        """
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds {type(values).__name__}, not the fields of a VQConfig")
        return cls.from_dict(cast(dict[str, Any], values))

    def save(self, path: Path) -> None:
        """Write the configuration as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


# Sources: taming-transformers' imagenet_vqgan.yaml and its 16384-code twin; CM3leon (section 2.1: size, downsampling
# and codes; the rest as taming's f8 of the same shape); transformers' ChameleonVQVAEConfig; LlamaGen's VQ_16 and VQ_8.
_TAMING = VQConfig()
_LLAMAGEN = replace(_TAMING, n_embed=16384, embed_dim=8, normalize=True)
_EMOJI = VQConfig(
    resolution=64,
    patch_size=4,
    ch=128,
    ch_mult=(1, 1),
    num_res_blocks=1,
    attn_resolutions=(),
    norm_groups=16,
    z_channels=128,
    embed_dim=8,
    n_embed=2048,
    normalize=True,
)
PRESETS: dict[str, VQConfig] = {
    "taming-f16-1024": _TAMING,
    "taming-f16-16384": replace(_TAMING, n_embed=16384),
    "cm3leon-f8": replace(_TAMING, ch_mult=(1, 2, 2, 4), attn_resolutions=(32,), n_embed=8192),
    "chameleon-512": replace(_TAMING, resolution=512, attn_resolutions=(), n_embed=8192),
    "llamagen-vq16": _LLAMAGEN,
    "llamagen-vq8": replace(_LLAMAGEN, ch_mult=(1, 2, 2, 4), attn_resolutions=(32,)),
    "emoji-64": _EMOJI,
    "emoji-128-f16": replace(_EMOJI, resolution=128, ch=64, ch_mult=(1, 2, 2), n_embed=4096, decoder_ch=96),
    "emoji-128-f8": replace(_EMOJI, resolution=128, ch=64, ch_mult=(1, 2), n_embed=4096, decoder_ch=96),
    "emoji-128-cells": replace(
        _EMOJI, resolution=128, ch=64, ch_mult=(1, 2, 2), attn_resolutions=(8,), n_embed=16384, cell_width=384
    ),
    "emoji-256-cells": replace(
        _EMOJI,
        resolution=256,
        ch=64,
        ch_mult=(1, 2, 2),
        num_res_blocks=2,
        n_embed=16384,
        cell_width=384,
        decoder_cell_blocks=1,
        tile=8,
    ),
    "tiny": VQConfig(
        resolution=16,
        patch_size=2,
        ch=8,
        ch_mult=(1, 1),
        num_res_blocks=1,
        attn_resolutions=(),
        norm_groups=4,
        z_channels=8,
        embed_dim=4,
        n_embed=32,
        normalize=True,
    ),
}
