"""Checkpoints that are not what the user took them for: one clear ValueError each, and none of their code runs."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tokenizer_image import ImageTokenizer, VQConfig, VQModel
from tokenizer_image.checkpoint import open_checkpoint
from tokenizer_image.convert import convert, export_diffusers

SMALL = VQConfig(
    resolution=8, ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), z_channels=8, embed_dim=4, n_embed=16
)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return dict(VQModel(SMALL).state_dict())


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_calls_code_is_refused_and_the_code_named(
    weights: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": weights, "extra": Evil()}, "vq.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"(posix|nt)\.system"):
        convert("vq.ckpt", "out")
    assert [path.name for path in tmp_path.iterdir()] == ["vq.ckpt"]


def test_a_pickle_of_before_torch_1_6_is_read(weights: dict[str, torch.Tensor], tmp_path: Path):
    torch.save({"state_dict": weights}, tmp_path / "vq.ckpt", _use_new_zipfile_serialization=False)
    assert convert(tmp_path / "vq.ckpt", tmp_path / "out", resolution=8).model.config == SMALL


def test_a_pickle_over_the_limit_is_not_opened(tmp_path: Path):
    with (tmp_path / "vq.ckpt").open("wb") as file:
        file.truncate(9_000_000_000)  # takes no room on the disk
    with pytest.raises(ValueError, match=r"9\.0 GB, the limit is 8 GB; raise it with --max-gb"):
        convert(tmp_path / "vq.ckpt", tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\3\4" + bytes(100), b"\x80\x02cos\nsystem\n."])
@pytest.mark.parametrize("name", ["vq.ckpt", "model.safetensors"])
def test_damaged_files_are_named(tmp_path: Path, content: bytes, name: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: (damaged|missing, cut off)"):
        convert(tmp_path / name, tmp_path / "out")


def test_a_file_cut_in_the_middle_is_named(weights: dict[str, torch.Tensor], tmp_path: Path):
    torch.save(weights, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="half.pt: damaged or cut off"):
        convert(tmp_path / "half.pt", tmp_path / "out")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.zeros(3), {"state_dict": {}}])
def test_a_pickle_without_weights_says_where_they_are_looked_for(tmp_path: Path, content: Any):
    torch.save(content, tmp_path / "vq.pt")
    with pytest.raises(ValueError, match="no weights in it; .* under ema, model, state_dict"):
        convert(tmp_path / "vq.pt", tmp_path / "out")


def test_a_pickle_in_a_folder_must_be_named(weights: dict[str, torch.Tensor], tmp_path: Path):
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"name the file itself: pytorch_model\.bin"):
        convert(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("name", ["nothing.ckpt", "notes.txt"])
def test_what_is_missing_or_no_checkpoint_is_said_so(tmp_path: Path, name: str):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match="no such file|not a checkpoint; give a folder"):
        convert(tmp_path / name, tmp_path / "out")


def test_an_index_names_files_of_its_own_folder_only(tmp_path: Path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(ValueError, match=r"outside its folder: \.\./other\.safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match="not an index"):
        open_checkpoint(tmp_path)


def test_the_error_says_which_family_a_checkpoint_looks_like(weights: dict[str, torch.Tensor], tmp_path: Path):
    torch.save(weights, tmp_path / "a.ckpt")
    for family in ("llamagen", "janus", "diffusers"):
        with pytest.raises(ValueError, match=f"no {family} checkpoint: it looks like taming"):
            convert(tmp_path / "a.ckpt", tmp_path / "out", family=family)
    export_diffusers(ImageTokenizer(VQModel(SMALL)), tmp_path / "diffusers")
    with pytest.raises(ValueError, match="no taming checkpoint: it looks like diffusers"):
        convert(tmp_path / "diffusers", tmp_path / "out", family="taming")
    with pytest.raises(ValueError, match="family is 'vqvae', but must be one of auto, taming"):
        convert(tmp_path / "a.ckpt", tmp_path / "out", family="vqvae")
    torch.save({f"layer{i}.weight": torch.zeros(1) for i in range(12)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"no image tokenizer of .* its keys: layer0.weight, .* and 2 more"):
        convert(tmp_path / "other.pt", tmp_path / "out")


def test_missing_unknown_and_misshapen_weights_are_named(weights: dict[str, torch.Tensor], tmp_path: Path):
    del weights["decoder.mid.attn_1.k.bias"]
    weights["decoder.conv_in.bias"] = torch.zeros(5)
    weights["quantize.proj.weight"] = torch.zeros(2)
    torch.save(weights, tmp_path / "a.ckpt")
    message = (
        "missing: decoder.mid.attn_1.k.bias; unknown: quantize.proj.weight; "
        "of a shape that does not fit the others: decoder.conv_in.bias"
    )
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "a.ckpt", tmp_path / "out")
    del weights["quantize.embedding.weight"]
    torch.save(weights, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="a.ckpt, read as taming: missing weights: quantize.embedding.weight"):
        convert(tmp_path / "a.ckpt", tmp_path / "out")


def test_images_of_one_channel_are_refused(weights: dict[str, torch.Tensor], tmp_path: Path):
    weights["encoder.conv_in.weight"] = torch.zeros(32, 1, 3, 3)
    torch.save(weights, tmp_path / "depth.ckpt")
    with pytest.raises(ValueError, match="1 input channels"):
        convert(tmp_path / "depth.ckpt", tmp_path / "out")


def test_a_resolution_that_does_not_fit_is_refused(weights: dict[str, torch.Tensor], tmp_path: Path):
    torch.save(weights, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="resolution 9 is not a multiple of the downsampling 2"):
        convert(tmp_path / "a.ckpt", tmp_path / "out", resolution=9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_type": "spatial"}, "norm_type = spatial"),
        ({"mid_block_add_attention": False}, "mid_block_add_attention = False"),
        ({"up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]}, "up_block_types"),
        ({"block_out_channels": [32, 48]}, "block_out_channels"),
        ({"_class_name": "AutoencoderKL"}, "_class_name = AutoencoderKL"),
        ({"block_out_channels": 3}, "missing or damaged"),
        ({"num_vq_embeddings": 17}, "a shape that does not fit the others: quantize.embedding.weight"),
    ],
)
def test_a_diffusers_model_of_another_make_is_refused(tmp_path: Path, change: dict[str, Any], message: str):
    export_diffusers(ImageTokenizer(VQModel(SMALL)), tmp_path / "in")
    config = json.loads((tmp_path / "in/config.json").read_text())
    (tmp_path / "in/config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in/config.json").unlink()
    with pytest.raises(ValueError, match="config.json beside the weights is missing or damaged"):
        convert(tmp_path / "in", tmp_path / "out")


def test_a_tokenizer_of_ours_is_not_taken_for_anothers_nor_written_over(tmp_path: Path):
    tokenizer = ImageTokenizer(VQModel(SMALL))
    tokenizer.save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="ours is a tokenizer of ours already"):
        convert(tmp_path / "ours", tmp_path / "out")
    with pytest.raises(ValueError, match="holds a config.json already"):
        export_diffusers(tokenizer, tmp_path / "ours")
    for source in (tmp_path / "ours", tmp_path / "ours/model.safetensors"):
        with pytest.raises(ValueError, match="the source's own folder"):
            convert(source, tmp_path / "ours")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="a file, or"):
        convert(tmp_path / "ours", tmp_path / "file")


def test_half_precision_becomes_full(weights: dict[str, torch.Tensor], tmp_path: Path):
    save_file({f"module.{key}": value.half() for key, value in weights.items()}, tmp_path / "half.safetensors")
    loaded = convert(tmp_path / "half.safetensors", tmp_path / "out").model.state_dict()
    assert all(value.dtype == torch.float32 for value in loaded.values())
    assert torch.equal(loaded["quant_conv.weight"], weights["quant_conv.weight"].half().float())
