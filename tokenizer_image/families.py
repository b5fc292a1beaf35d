"""Families of image tokenizers: their names for the weights of a VQGAN, and their configurations.

Each family has a table of names, which is used in both directions. All families have taming's network (Esser et al.
2021) under other names. LlamaGen (Sun et al. 2024, section 2.1) and Janus compare codes by angle. (transformers' Janus
does so only when it generates. Its encoder finds other codes than Janus if the stored codebook is not of unit length.)
"""

import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor

from tokenizer_image.config import VQConfig

# (ours, theirs). {i} is a level, {r} a level counted from the other end, {j} a block, {s} encoder or decoder, {t} the
# rest of the key. The first row that matches is used; a key that matches none is the same in both.
Names = tuple[tuple[str, str], ...]

_LETTERS = {"i": r"\d+", "r": r"\d+", "j": r"\d+", "s": "encoder|decoder", "t": ".+"}
_ATTENTION = (("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"))
_LLAMAGEN: Names = (
    ("encoder.down.{i}.block.{t}", "encoder.conv_blocks.{i}.res.{t}"),
    ("encoder.down.{i}.{t}", "encoder.conv_blocks.{i}.{t}"),
    ("decoder.up.{r}.block.{t}", "decoder.conv_blocks.{i}.res.{t}"),
    ("decoder.up.{r}.{t}", "decoder.conv_blocks.{i}.{t}"),
    ("{s}.mid.block_1.{t}", "{s}.mid.0.{t}"),
    ("{s}.mid.attn_1.{t}", "{s}.mid.1.{t}"),
    ("{s}.mid.block_2.{t}", "{s}.mid.2.{t}"),
)
_DIFFUSERS: Names = (
    *(
        (f"{ours}.{a}.{{t}}", f"{theirs}.{b}.{{t}}")
        for ours, theirs in (
            ("encoder.down.{i}.attn.{j}", "encoder.down_blocks.{i}.attentions.{j}"),
            ("decoder.up.{r}.attn.{j}", "decoder.up_blocks.{i}.attentions.{j}"),
            ("{s}.mid.attn_1", "{s}.mid_block.attentions.0"),
        )
        for a, b in _ATTENTION
    ),
    ("encoder.down.{i}.block.{j}.nin_shortcut.{t}", "encoder.down_blocks.{i}.resnets.{j}.conv_shortcut.{t}"),
    ("encoder.down.{i}.block.{t}", "encoder.down_blocks.{i}.resnets.{t}"),
    ("encoder.down.{i}.downsample.{t}", "encoder.down_blocks.{i}.downsamplers.0.{t}"),
    ("decoder.up.{r}.block.{j}.nin_shortcut.{t}", "decoder.up_blocks.{i}.resnets.{j}.conv_shortcut.{t}"),
    ("decoder.up.{r}.block.{t}", "decoder.up_blocks.{i}.resnets.{t}"),
    ("decoder.up.{r}.upsample.{t}", "decoder.up_blocks.{i}.upsamplers.0.{t}"),
    ("{s}.mid.block_1.{t}", "{s}.mid_block.resnets.0.{t}"),
    ("{s}.mid.block_2.{t}", "{s}.mid_block.resnets.1.{t}"),
    ("{s}.norm_out.{t}", "{s}.conv_norm_out.{t}"),
)


class Family(NamedTuple):
    """A family of image tokenizers.

    Attributes:
        names: table of keys; empty = ours.
        resolution: of its published models, in pixels.
        normalize: whether codes are compared by angle.
    """

    names: Names
    resolution: int
    normalize: bool = False


FAMILIES = {
    "taming": Family((), 256),
    "chameleon": Family((), 512),
    "llamagen": Family(_LLAMAGEN, 256, normalize=True),
    "janus": Family(_LLAMAGEN, 384, normalize=True),
    "janus-transformers": Family((("decoder.up.{r}.{t}", "decoder.up.{i}.{t}"),), 384, normalize=True),
    "diffusers": Family(_DIFFUSERS, 256),
}


def rename(key: str, rows: Iterable[tuple[str, str]], levels: int) -> str:
    """Rename a key.

    Args:
        key: of a weight.
        rows: pairs of templates, from and to.
        levels: of the model, to convert {i} to {r} and back.
    """
    for left, right in rows:
        if match := _pattern(left).fullmatch(key):
            found = match.groupdict()
            turned = {b: levels - 1 - int(found[a]) for a, b in ("ir", "ri") if a in found}
            return right.format(**{**turned, **found})
    return key


@cache
def _pattern(template: str) -> re.Pattern[str]:
    letter = r"\\\{(\w)\\\}"  # as re.escape writes it
    return re.compile(re.sub(letter, lambda found: f"(?P<{found[1]}>{_LETTERS[found[1]]})", re.escape(template)))


def to_ours(key: str, names: Names, levels: int) -> str:
    """Return our name of a key of a family."""
    return rename(key, ((theirs, ours) for ours, theirs in names), levels)


def modern(key: str) -> str:
    """Return a key of diffusers as it has been since 2023 (version 0.14)."""
    old = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return re.sub(r"(attentions\.\d+)\.(query|key|value|proj_attn)\.", lambda m: f"{m[1]}.{old[m[2]]}.", key)


def count_levels(keys: Iterable[str]) -> int:
    """Count the levels of the encoder, in any family."""
    found = (re.match(r"encoder\.(?:down|conv_blocks|down_blocks)\.(\d+)\.", key) for key in keys)
    return len({match[1] for match in found if match})


def guess(keys: Collection[str], prefix: str) -> str:
    """Return the family that has these keys; "" if none has.

    Args:
        keys: without the prefix.
        prefix: that was before them.
    """
    if any(key.startswith("encoder.down_blocks.") for key in keys):
        return "diffusers"
    if any(key.startswith("encoder.conv_blocks.") for key in keys):
        return "janus" if prefix == "gen_vision_model." else "llamagen"
    if not any(key.startswith("encoder.down.") for key in keys):
        return ""
    if "decoder.up.0.upsample.conv.weight" in keys:  # run from 0; taming runs its levels from the end
        return "janus-transformers"
    has_decoder = any(key.startswith("decoder.") for key in keys)
    return "taming" if has_decoder else "chameleon"


def infer(weights: Mapping[str, Tensor], levels: int, resolution: int, normalize: bool) -> VQConfig:
    """Infer the configuration from the shapes of weights with our names.

    Args:
        weights: of the model.
        levels: of the model.
        resolution: which cannot be inferred.
        normalize: which cannot be inferred.

    Raises:
        ValueError: weights are missing, or no VQModel has these shapes.
    """
    of_levels = [f"encoder.down.{level}.block.0.conv1.weight" for level in range(levels)]
    read_from = [
        "encoder.conv_in.weight",
        *of_levels,
        "encoder.conv_out.weight",
        "quant_conv.weight",
        "quantize.embedding.weight",
    ]
    if missing := [key for key in read_from if key not in weights or weights[key].ndim < 2]:
        raise ValueError(f"missing weights: {', '.join(missing)}")
    ch, channels = weights["encoder.conv_in.weight"].shape[:2]
    widths = [len(weights[key]) for key in of_levels]
    ends = len(weights.get("decoder.norm_out.weight", weights["encoder.conv_in.weight"]))
    if channels != 3 or any(width % ch for width in widths) or ends % (widths[0] // ch):
        raise ValueError(
            f"{channels} input channels, levels of {widths} and a last one of {ends}: want 3 (RGB), and "
            f"multiples of the first convolution's {ch}"
        )
    decoder_ch = ends // (widths[0] // ch)
    attention = [level for level in range(levels) if f"encoder.down.{level}.attn.0.q.weight" in weights]
    return VQConfig(
        resolution=resolution,
        ch=ch,
        ch_mult=tuple(width // ch for width in widths),
        num_res_blocks=len({key.split(".")[4] for key in weights if key.startswith("encoder.down.0.block.")}),
        attn_resolutions=tuple(resolution // 2**level for level in attention),
        z_channels=len(weights["encoder.conv_out.weight"]),
        embed_dim=len(weights["quant_conv.weight"]),
        n_embed=len(weights["quantize.embedding.weight"]),
        normalize=normalize,
        decoder_ch=None if decoder_ch == ch else decoder_ch,
    )


def to_diffusers(config: VQConfig) -> dict[str, Any]:
    """Return config.json of diffusers' VQModel, without the settings that it lacks."""
    attention = [level in config.attn_levels for level in range(len(config.ch_mult))]
    return {
        "_class_name": "VQModel",
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attention],
        "up_block_types": ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attention)],
        "block_out_channels": [config.ch * mult for mult in config.ch_mult],
        "layers_per_block": config.num_res_blocks,
        "act_fn": "silu",
        "latent_channels": config.z_channels,
        "sample_size": config.resolution,
        "num_vq_embeddings": config.n_embed,
        "norm_num_groups": config.norm_groups,
        "vq_embed_dim": config.embed_dim,
        "norm_type": "group",
        "mid_block_add_attention": True,
    }


def from_diffusers(values: Mapping[str, Any]) -> VQConfig:
    """Return the VQConfig of a config.json of diffusers' VQModel.

    Raises:
        ValueError: it is of another class, or has settings that our VQModel lacks.
    """
    widths, side = values["block_out_channels"], values["sample_size"]
    attention = [level for level, kind in enumerate(values["down_block_types"]) if kind.startswith("Attn")]
    config = VQConfig(
        resolution=side,
        ch=widths[0],
        ch_mult=tuple(width // widths[0] for width in widths),
        num_res_blocks=values["layers_per_block"],
        attn_resolutions=tuple(side // 2**level for level in attention),
        norm_groups=values["norm_num_groups"],
        z_channels=values["latent_channels"],
        embed_dim=values.get("vq_embed_dim") or values["latent_channels"],
        n_embed=values["num_vq_embeddings"],
    )
    ours = to_diffusers(config)
    if other := [f"{key} = {values[key]}" for key in ours if key in values and values[key] not in (ours[key], None)]:
        raise ValueError(f"no VQModel of ours has {', '.join(other)}")
    return config
