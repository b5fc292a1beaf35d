"""Convert image tokenizers of other projects to ours, and ours to diffusers.

    python -m tokenizer_image.convert SOURCE OUT [--family auto] [--resolution N] [--decoder-from FILE] [--max-gb 8]
    python -m tokenizer_image.convert NAME OUT --to diffusers

SOURCE is a checkpoint of taming-transformers (.ckpt), Meta's Chameleon (vqgan.ckpt), transformers' ChameleonVQVAE,
LlamaGen (.pt), Janus (its own or transformers' names) or diffusers' VQModel (folder), or a larger model that contains
one of them. `ImageTokenizer.from_pretrained(OUT)` loads the result. NAME is a tokenizer of ours with an architecture
that diffusers' VQModel has: taming's, Chameleon's or diffusers' own, but not that of the embedded "emoji".
"""

import argparse
import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from tokenizer_image.checkpoint import MAX_GIGABYTES, make_readable, open_checkpoint
from tokenizer_image.config import PRESETS, VQConfig
from tokenizer_image.families import (
    FAMILIES,
    Names,
    count_levels,
    from_diffusers,
    guess,
    infer,
    modern,
    rename,
    to_diffusers,
    to_ours,
)
from tokenizer_image.tokenizer import ImageTokenizer
from tokenizer_image.vqgan import VQModel, outline

CHOICES = ("auto", "taming", "chameleon", "llamagen", "janus", "diffusers")
CHAMELEON = PRESETS["chameleon-512"]
EXPORTED = "diffusion_pytorch_model.safetensors"
SHOWN = 10  # largest number of keys in a message

# Prefixes of the keys of a tokenizer in a larger model or a wrapper.
PREFIXES = ("", "gen_vision_model.", "model.vqmodel.", "vqmodel.", "first_stage_model.", "module.", "_orig_mod.")
NOT_NEEDED = ("loss.", "quantize.codebook_used")  # discriminator and perceptual network; statistics of training


def convert(
    source: str | Path,
    out: str | Path,
    family: str = "auto",
    resolution: int | None = None,
    decoder_from: str | Path | None = None,
    max_gigabytes: float = MAX_GIGABYTES,
) -> ImageTokenizer:
    """Convert a checkpoint to a folder for ImageTokenizer.from_pretrained.

    Args:
        source: a checkpoint, as for tokenizer_image.checkpoint.open_checkpoint.
        out: the folder.
        family: one of CHOICES; "auto" = by the keys.
        resolution: side of the images in pixels; None = from config.json beside the weights, or else that of the
            family.
        decoder_from: another checkpoint with the decoder. transformers' Chameleon has none.
        max_gigabytes: larger pickles are rejected.

    Raises:
        ValueError: as open_checkpoint; or the checkpoint is of another family, or lacks weights or the decoder, or has
            unknown weights or other shapes.
    """
    if Path(out).is_file() or Path(out).resolve() in (Path(source).resolve(), Path(source).resolve().parent):
        raise ValueError(f"{out}: a file, or the source's own folder; name a new folder to write to")
    config, weights = read(Path(source), family, resolution, max_gigabytes)
    if decoder_from is not None:
        other, others = read(Path(decoder_from), "auto", config.resolution, max_gigabytes)
        config, weights = replace(config, decoder_ch=other.decoder_ch), with_decoder(weights, others, decoder_from)
        check(weights, config, f"{source} with the decoder of {decoder_from}", (), 0)
    if not _has_decoder(weights):
        raise ValueError(
            f"{source} holds no decoder (transformers keeps Chameleon's encoder only): give the original "
            "file too, --decoder-from vqgan.ckpt"
        )
    model = VQModel(config)
    model.load_state_dict(weights)
    tokenizer = ImageTokenizer(model)
    tokenizer.save_pretrained(out)
    return tokenizer


def export_diffusers(tokenizer: ImageTokenizer, folder: str | Path) -> None:
    """Write a folder that diffusers' VQModel.from_pretrained loads.

    Raises:
        ValueError: diffusers' VQModel does not have the architecture: patch_size, normalize, decoder_ch, or a first
            level wider than ch.
    """
    config, folder = tokenizer.model.config, Path(folder)
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} holds a config.json already; name a new folder to write to")
    if lost := not_in_diffusers(config):
        can = [name for name, preset in PRESETS.items() if not not_in_diffusers(preset)]
        raise ValueError(
            f"diffusers' VQModel cannot have {', '.join(lost)}: only tokenizers that were converted from taming, "
            f"Chameleon or diffusers can be exported, and those of the presets {', '.join(can)}"
        )
    values = to_diffusers(config)
    weights: dict[str, Tensor] = {}
    for key, value in tokenizer.model.state_dict().items():
        name = rename(key, FAMILIES["diffusers"].names, len(config.ch_mult))
        linear = ".attentions." in name and value.ndim == 4  # a 1 x 1 convolution of ours
        weights[name] = (value[:, :, 0, 0] if linear else value).cpu().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
    save_file(weights, folder / EXPORTED, metadata={"format": "pt"})
    make_readable(folder / EXPORTED)


def not_in_diffusers(config: VQConfig) -> list[str]:
    """Return the settings that diffusers' VQModel cannot have, as "name = value"."""
    back = from_diffusers(to_diffusers(config))
    same = replace(
        config,
        attn_resolutions=back.attn_resolutions,
        decoder_ch=None if config.decoder_ch == config.ch else config.decoder_ch,
    )
    return [f"{name} = {value}" for name, value in vars(same).items() if value != getattr(back, name)]


def read(source: Path, family: str, resolution: int | None, max_gigabytes: float) -> tuple[VQConfig, dict[str, Tensor]]:
    """Read a checkpoint. Arguments and errors are those of `convert`.

    Returns:
        The configuration, and the weights with our names; without a decoder if there is none.
    """
    if family not in CHOICES:
        raise ValueError(f"family is {family!r}, but must be one of {', '.join(CHOICES)}")
    weights = open_checkpoint(source, max_gigabytes)
    prefix = next((prefix for prefix in PREFIXES if f"{prefix}encoder.conv_in.weight" in weights), "")
    theirs = {modern(key.removeprefix(prefix)): key for key in weights if key.startswith(prefix)}
    theirs = {name: key for name, key in theirs.items() if not name.startswith(NOT_NEEDED)}
    looks = guess(theirs, prefix)
    if not looks:
        raise ValueError(f"{source}: no image tokenizer of {', '.join(CHOICES[1:])}; its keys: {_some(weights)}")
    names, usual, normalize = FAMILIES[looks]
    if family != "auto" and family != looks.removesuffix("-transformers"):
        if FAMILIES[family].names != names:
            raise ValueError(
                f"{source}: no {family} checkpoint: it looks like {looks.removesuffix('-transformers')}; "
                "give that --family, or auto"
            )
        _, usual, normalize = FAMILIES[family]  # another family with the same keys

    levels = count_levels(theirs)
    ours = {name: to_ours(name, names, levels) for name in theirs}
    if stray := [name for name, key in ours.items() if rename(key, names, levels) != name]:
        raise ValueError(f"{source}: unknown weights for {looks}: {_some(stray)}")
    found = {ours[name]: weights[key] for name, key in theirs.items()}
    described = description(source)
    try:
        if looks == "diffusers":
            config = from_diffusers(described if resolution is None else described | {"sample_size": resolution})
        else:
            config = infer(found, levels, resolution or _side(described, levels) or usual, normalize)
    except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(f"{source}: config.json beside the weights is missing or damaged ({error!r})") from error
    except ValueError as error:
        raise ValueError(f"{source}, read as {looks}: {error}") from error
    if resolution is None and replace(config, resolution=CHAMELEON.resolution) == CHAMELEON:
        config = CHAMELEON  # it has taming's keys, but this architecture
    return config, check(found, config, str(source), names, levels)


def check(found: Mapping[str, Tensor], config: VQConfig, source: str, names: Names, levels: int) -> dict[str, Tensor]:
    """Check that weights fit a configuration, and convert linear layers to 1 x 1 convolutions.

    Args:
        found: weights with our names.
        config: of the model.
        source: for messages.
        names: of the family, for messages.
        levels: of the model.

    Raises:
        ValueError: weights are missing, unknown, or of another shape.
    """
    shapes = {key: value.shape for key, value in outline(config).state_dict().items()}
    if not _has_decoder(found):
        shapes = {key: shape for key, shape in shapes.items() if not key.startswith("decoder.")}
    fitted = {
        key: value[:, :, None, None] if value.ndim == 2 and len(shapes.get(key, ())) == 4 else value
        for key, value in found.items()
    }
    wrong = {
        "missing": shapes.keys() - fitted.keys(),
        "unknown": fitted.keys() - shapes.keys(),
        "of a shape that does not fit the others": {
            key for key, value in fitted.items() if key in shapes and value.shape != shapes[key]
        },
    }
    if problems := [
        f"{what}: {_some([rename(key, names, levels) for key in keys])}" for what, keys in wrong.items() if keys
    ]:
        raise ValueError(f"{source}: weights {'; '.join(problems)}")
    return fitted


def with_decoder(weights: dict[str, Tensor], others: dict[str, Tensor], name: str | Path) -> dict[str, Tensor]:
    """Replace the decoder by that of another checkpoint.

    Args:
        weights: of the tokenizer.
        others: of the checkpoint with the decoder.
        name: of that checkpoint, for messages.

    Raises:
        ValueError: it has no decoder, or another codebook.
    """
    book, other = weights["quantize.embedding.weight"].float(), others["quantize.embedding.weight"].float()
    if book.shape != other.shape or not torch.allclose(book, other, rtol=0.01, atol=1e-6):  # one may be rounded to bf16
        raise ValueError(f"{name}: its codebook is another one, so its decoder does not fit")
    if not _has_decoder(others):
        raise ValueError(f"{name} holds no decoder either")
    return weights | {key: value for key, value in others.items() if key.startswith(("decoder.", "post_quant_conv."))}


def _has_decoder(weights: Collection[str]) -> bool:
    return any(key.startswith("decoder.") for key in weights)


def description(source: Path) -> dict[str, Any]:
    """Read config.json beside the weights, of the tokenizer or of a larger model; {} if there is none.

    Raises:
        ValueError: the folder is a tokenizer of ours.
    """
    file = (source if source.is_dir() else source.parent) / "config.json"
    try:
        values = json.loads(file.read_text())
        values = values.get("vq_config", values)
    except (OSError, ValueError, AttributeError):
        return {}
    if values.keys() >= {"ch_mult", "n_embed"}:
        raise ValueError(f"{file.parent} is a tokenizer of ours already: ImageTokenizer.from_pretrained loads it")
    return values


def _side(described: dict[str, Any], levels: int) -> int | None:
    """Return the side in pixels from a configuration of transformers' Janus or Chameleon."""
    if "num_patches" in described:
        return described["num_patches"] * 2 ** (levels - 1)
    return described.get("resolution")


def _some(keys: Collection[str]) -> str:
    more = len(keys) - SHOWN
    return ", ".join(sorted(keys)[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tokenizer_image.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="a checkpoint; with --to, a tokenizer of ours")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--family", choices=CHOICES, default="auto")
    parser.add_argument("--resolution", type=int, help="side of its images in pixels")
    parser.add_argument("--decoder-from", type=Path, metavar="FILE", help="a checkpoint to take the decoder from")
    parser.add_argument("--max-gb", type=float, default=MAX_GIGABYTES, help="larger pickles are refused")
    parser.add_argument("--to", choices=["diffusers"], help="export SOURCE instead")
    args = parser.parse_args()
    try:
        if args.to:
            export_diffusers(ImageTokenizer.from_pretrained(args.source), args.out)
            print(f"{args.out}: diffusers' VQModel.from_pretrained loads it")
            return
        tokenizer = convert(args.source, args.out, args.family, args.resolution, args.decoder_from, args.max_gb)
    except (ValueError, OSError) as error:
        raise SystemExit(f"convert: {error}") from error
    config = tokenizer.model.config
    print(f"{args.out}: {config.resolution} px, {config.tokens} tokens of {config.n_embed} x {config.embed_dim}")


if __name__ == "__main__":
    main()
