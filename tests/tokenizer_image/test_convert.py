"""Checkpoints of other families, written here in their own layout, become tokenizers of ours."""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokenizer_image import PRESETS, ImageTokenizer, VQConfig, VQModel
from tokenizer_image.convert import convert, export_diffusers, main, not_in_diffusers
from tokenizer_image.families import FAMILIES, from_diffusers, rename, to_diffusers, to_ours

Weights = dict[str, Tensor]
SMALL = VQConfig(
    resolution=16,
    ch=32,
    ch_mult=(1, 1, 2),
    num_res_blocks=1,
    attn_resolutions=(4,),
    z_channels=8,
    embed_dim=4,
    n_embed=64,
)
WIDTHS = (32, 32, 64)


def conv(name: str, out: int, inside: int, side: int = 1) -> Iterator[tuple[str, Tensor]]:
    yield f"{name}.weight", torch.randn(out, inside, side, side) / math.sqrt(inside * side**2)
    yield f"{name}.bias", torch.randn(out) * 0.1


def norm(name: str, width: int) -> Iterator[tuple[str, Tensor]]:
    yield f"{name}.weight", torch.rand(width) + 0.5
    yield f"{name}.bias", torch.randn(width) * 0.1


def residual(name: str, inside: int, out: int) -> Iterator[tuple[str, Tensor]]:
    yield from norm(f"{name}.norm1", inside)
    yield from conv(f"{name}.conv1", out, inside, 3)
    yield from norm(f"{name}.norm2", out)
    yield from conv(f"{name}.conv2", out, out, 3)
    if inside != out:
        yield from conv(f"{name}.nin_shortcut", out, inside)


def attention(name: str, width: int) -> Iterator[tuple[str, Tensor]]:
    yield from norm(f"{name}.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        yield from conv(f"{name}.{part}", width, width)


def llamagen_side(side: str, widths: tuple[int, ...], blocks: int, change: str) -> Iterator[tuple[str, Tensor]]:
    """conv_blocks in the order in which they run; attention at the narrow end, which is last or first."""
    before = widths[0]
    for i, width in enumerate(widths):
        for j in range(blocks):
            yield from residual(f"{side}.conv_blocks.{i}.res.{j}", before, width)
            if i == (len(widths) - 1 if side == "encoder" else 0):
                yield from attention(f"{side}.conv_blocks.{i}.attn.{j}", width)
            before = width
        if i < len(widths) - 1:
            yield from conv(f"{side}.conv_blocks.{i}.{change}.conv", width, width, 3)
    narrow = max(widths)
    yield from residual(f"{side}.mid.0", narrow, narrow)
    yield from attention(f"{side}.mid.1", narrow)
    yield from residual(f"{side}.mid.2", narrow, narrow)
    yield from norm(f"{side}.norm_out", widths[-1])


def llamagen_weights() -> Weights:
    """LlamaGen's layout (tokenizer/tokenizer_image/vq_model.py), small."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return dict(
            [
                *conv("encoder.conv_in", 32, 3, 3),
                *llamagen_side("encoder", WIDTHS, 1, "downsample"),
                *conv("encoder.conv_out", 8, 64, 3),
                *conv("quant_conv", 4, 8),
                *conv("post_quant_conv", 8, 4),
                *conv("decoder.conv_in", 64, 8, 3),
                *llamagen_side("decoder", WIDTHS[::-1], 2, "upsample"),
                *conv("decoder.conv_out", 3, 32, 3),
                ("quantize.embedding.weight", torch.randn(64, 4)),
                ("quantize.codebook_used", torch.zeros(65536)),
            ]
        )


def run_llamagen(weights: Weights, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [B, h, w] and pixels, in their own names and order."""

    def c(name: str, x: Tensor, **options: Any) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    def n(name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, 32, weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    def res(name: str, x: Tensor) -> Tensor:
        h = c(f"{name}.conv1", F.silu(n(f"{name}.norm1", x)), padding=1)
        h = c(f"{name}.conv2", F.silu(n(f"{name}.norm2", h)), padding=1)
        return h + (c(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in weights else x)

    def attn(name: str, x: Tensor) -> Tensor:
        h = n(f"{name}.norm", x)
        q, k, v = (c(f"{name}.{part}", h).flatten(2) for part in "qkv")  # [B, C, HW]
        share = (torch.einsum("bci,bcj->bij", q, k) / math.sqrt(x.shape[1])).softmax(-1)
        return x + c(f"{name}.proj_out", torch.einsum("bij,bcj->bci", share, v).view_as(x))

    def blocks(side: str, x: Tensor, number: int) -> Tensor:
        for i in range(3):
            for j in range(number):
                x = res(f"{side}.conv_blocks.{i}.res.{j}", x)
                if f"{side}.conv_blocks.{i}.attn.{j}.q.weight" in weights:
                    x = attn(f"{side}.conv_blocks.{i}.attn.{j}", x)
            if i < 2 and side == "encoder":
                x = c(f"encoder.conv_blocks.{i}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
            elif i < 2:
                x = c(f"decoder.conv_blocks.{i}.upsample.conv", F.interpolate(x, scale_factor=2.0), padding=1)
        return x

    def mid(side: str, x: Tensor) -> Tensor:
        return res(f"{side}.mid.2", attn(f"{side}.mid.1", res(f"{side}.mid.0", x)))

    x = mid("encoder", blocks("encoder", c("encoder.conv_in", pixels, padding=1), 1))
    z = c("quant_conv", c("encoder.conv_out", F.silu(n("encoder.norm_out", x)), padding=1))
    book = F.normalize(weights["quantize.embedding.weight"], dim=-1)
    codes = torch.cdist(F.normalize(z.movedim(1, -1), dim=-1), book).argmin(-1)
    x = c("decoder.conv_in", c("post_quant_conv", book[codes].movedim(-1, 1)), padding=1)
    x = F.silu(n("decoder.norm_out", blocks("decoder", mid("decoder", x), 2)))
    return codes, c("decoder.conv_out", x, padding=1)


@pytest.fixture(scope="module")
def model() -> VQModel:
    """A small VQGAN in taming's names, which are ours."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VQModel(SMALL)


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("preset", ["taming-f16-1024", "llamagen-vq8", "tiny"])
def test_a_table_read_forth_and_back_gives_every_key_again(name: str, preset: str):
    names, levels = FAMILIES[name].names, len(PRESETS[preset].ch_mult)
    with torch.device("meta"):
        keys = list(VQModel(PRESETS[preset]).state_dict())
    theirs = [rename(key, names, levels) for key in keys]
    assert len(set(theirs)) == len(keys)
    assert [to_ours(key, names, levels) for key in theirs] == keys


def test_llamagen_gives_the_codes_and_pixels_of_its_own_network(tmp_path: Path):
    weights = llamagen_weights()
    torch.save({"model": weights, "optimizer": {"lr": 1.0}, "args": argparse.Namespace(lr=1)}, tmp_path / "vq.pt")
    tokenizer = convert(tmp_path / "vq.pt", tmp_path / "out", resolution=16)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    codes, drawn = run_llamagen(weights, pixels)
    assert len(codes.unique()) > 8
    assert torch.equal(tokenizer.model.encode(pixels), codes)
    torch.testing.assert_close(tokenizer.model.decode(codes), drawn.clamp(-1, 1), rtol=0, atol=1e-5)
    loaded = ImageTokenizer.from_pretrained(tmp_path / "out")
    assert loaded.model.config.normalize and loaded.fingerprint() == tokenizer.fingerprint()


def test_llamagens_averaged_weights_come_before_the_last_ones(tmp_path: Path):
    weights = llamagen_weights()
    torch.save({"model": {key: 0 * value for key, value in weights.items()}, "ema": weights}, tmp_path / "vq.pt")
    book = convert(tmp_path / "vq.pt", tmp_path / "out").model.quantize.embedding.weight
    assert torch.equal(book, weights["quantize.embedding.weight"])


def test_janus_is_found_in_the_shards_of_a_larger_model(tmp_path: Path):
    weights = {f"gen_vision_model.{key}": value for key, value in llamagen_weights().items()}
    half = len(weights) // 2
    shards = {
        "a.safetensors": dict(list(weights.items())[:half]),
        "b.safetensors": dict(list(weights.items())[half:]),
        "c.safetensors": {"language_model.lm_head.weight": torch.zeros(3, 3)},
    }
    (tmp_path / "janus").mkdir()
    for file, part in shards.items():
        save_file(part, tmp_path / "janus" / file)
    index = {"weight_map": {key: file for file, part in shards.items() for key in part}}
    (tmp_path / "janus/model.safetensors.index.json").write_text(json.dumps(index))
    janus = convert(tmp_path / "janus", tmp_path / "out", family="janus")
    assert janus.model.config.resolution == 384 and janus.grid == (96, 96)  # two halvings here, four in the original
    torch.save(llamagen_weights(), tmp_path / "vq.pt")
    llamagen = convert(tmp_path / "vq.pt", tmp_path / "other")
    assert same(janus.model.state_dict(), llamagen.model.state_dict())


def test_taming_loads_beside_a_discriminator_and_the_callbacks_of_lightning(
    model: VQModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    name = "pytorch_lightning.callbacks.model_checkpoint"
    callback = type("ModelCheckpoint", (), {"__module__": name})
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
        monkeypatch.setitem(sys.modules, part, ModuleType(part))
    monkeypatch.setattr(sys.modules[name], "ModelCheckpoint", callback, raising=False)
    weights = model.state_dict() | {"loss.discriminator.main.0.weight": torch.zeros(3)}
    callbacks = {callback: {"best": callback()}}
    torch.save({"state_dict": weights, "epoch": 3, "callbacks": callbacks}, tmp_path / "last.ckpt")
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
        monkeypatch.delitem(sys.modules, part)  # as for a user without lightning
    tokenizer = convert(tmp_path / "last.ckpt", tmp_path / "out", resolution=16)
    assert tokenizer.model.config == SMALL
    assert same(tokenizer.model.state_dict(), dict(model.state_dict()))
    assert convert(tmp_path / "last.ckpt", tmp_path / "out").model.config.resolution == 256


def test_the_encoder_of_transformers_chameleon_needs_a_decoder_of_its_codebook(model: VQModel, tmp_path: Path):
    torch.save({"state_dict": model.state_dict()}, tmp_path / "vqgan.ckpt")
    encoder = {
        f"model.vqmodel.{key}": value.bfloat16()
        for key, value in model.state_dict().items()
        if not key.startswith("decoder.")
    }
    (tmp_path / "chameleon").mkdir()
    save_file(encoder | {"lm_head.weight": torch.zeros(2)}, tmp_path / "chameleon/model.safetensors")
    (tmp_path / "chameleon/config.json").write_text(json.dumps({"vq_config": {"resolution": 64}}))
    source, out = tmp_path / "chameleon", tmp_path / "out"
    with pytest.raises(ValueError, match="no decoder .*--decoder-from vqgan.ckpt"):
        convert(source, out)
    tokenizer = convert(source, out, decoder_from=tmp_path / "vqgan.ckpt")
    assert tokenizer.model.config.resolution == 64
    assert torch.equal(tokenizer.model.decoder.conv_out.weight, model.decoder.conv_out.weight)
    torch.save(VQModel(SMALL).state_dict(), tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="other.ckpt: its codebook is another one"):
        convert(source, out, decoder_from=tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="holds no decoder either"):
        convert(source, out, decoder_from=source)


def test_what_is_exported_to_diffusers_and_imported_again_is_the_same_to_the_bit(model: VQModel, tmp_path: Path):
    export_diffusers(ImageTokenizer(model), tmp_path / "diffusers")
    assert len({path.stat().st_mode for path in (tmp_path / "diffusers").iterdir()}) == 1  # others can read the weights
    stored = load_file(tmp_path / "diffusers/diffusion_pytorch_model.safetensors")
    assert stored["decoder.up_blocks.0.attentions.1.to_out.0.weight"].shape == (64, 64)
    assert stored["encoder.down_blocks.2.resnets.0.conv_shortcut.weight"].shape == (64, 32, 1, 1)
    back = convert(tmp_path / "diffusers", tmp_path / "out", family="diffusers")
    assert back.model.config == SMALL
    assert same(back.model.state_dict(), dict(model.state_dict()))
    assert convert(tmp_path / "diffusers", tmp_path / "more", resolution=64).model.config.attn_resolutions == (16,)


def test_diffusers_attention_in_its_names_of_before_2023_is_read(model: VQModel, tmp_path: Path):
    export_diffusers(ImageTokenizer(model), tmp_path / "new")
    old = {}
    for key, value in load_file(tmp_path / "new/diffusion_pytorch_model.safetensors").items():
        for new, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            key = key.replace(f".{new}.", f".{before}.")
        old[key] = value
    torch.save(old, tmp_path / "new/diffusion_pytorch_model.bin")
    back = convert(tmp_path / "new/diffusion_pytorch_model.bin", tmp_path / "out")
    assert same(back.model.state_dict(), dict(model.state_dict()))


@pytest.mark.parametrize("preset", ["tiny", "llamagen-vq16"])
def test_what_diffusers_cannot_express_is_refused_by_name(preset: str, tmp_path: Path):
    with torch.device("meta"):
        tokenizer = ImageTokenizer(VQModel(PRESETS[preset]))
    with pytest.raises(ValueError, match="cannot have .*normalize = True"):
        export_diffusers(tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_cannot_be_exported_gets_the_presets_that_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["convert", "emoji", str(tmp_path / "out"), "--to", "diffusers"])
    with pytest.raises(SystemExit, match="convert: .*cell_width = 384.* those of the presets (.*)$") as error:
        main()
    named = str(error.value).rpartition("presets ")[2].split(", ")
    assert {"taming-f16-1024", "chameleon-512"} <= set(named) <= PRESETS.keys()
    for name in named:
        assert not not_in_diffusers(PRESETS[name])
        back = from_diffusers(to_diffusers(PRESETS[name]))
        assert (back.ch_mult, back.n_embed) == (PRESETS[name].ch_mult, PRESETS[name].n_embed)


def test_the_command_imports_exports_and_ends_with_one_line_on_a_mistake(
    model: VQModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    torch.save({"state_dict": model.state_dict()}, tmp_path / "a.ckpt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["convert", "a.ckpt", "ours", "--resolution", "16"])
    main()
    assert capsys.readouterr().out == "ours: 16 px, 16 tokens of 64 x 4\n"
    monkeypatch.setattr(sys, "argv", ["convert", "ours", "theirs", "--to", "diffusers"])
    main()
    assert json.loads(Path("theirs/config.json").read_text())["block_out_channels"] == [32, 32, 64]
    monkeypatch.setattr(sys, "argv", ["convert", "a.ckpt", "more", "--family", "llamagen"])
    with pytest.raises(SystemExit, match="^convert: .*it looks like taming"):
        main()
