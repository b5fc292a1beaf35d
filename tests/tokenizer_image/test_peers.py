"""The networks of transformers and diffusers themselves, with random weights, against what we make of their files."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer_image import ImageTokenizer, VQConfig, VQModel
from tokenizer_image.convert import convert, export_diffusers

pytestmark = pytest.mark.slow


def shake(model: Any) -> Any:
    """Every parameter random, at a size that keeps the signal's: fresh norms and codebooks would hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "embedding" in name:
            nn.init.normal_(parameter, generator=generator)
        elif parameter.ndim > 1:
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter[0].numel()), generator=generator)
        elif name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1, generator=generator)
        else:
            nn.init.uniform_(parameter, 0.5, 1.5, generator=generator)
    return model.eval().requires_grad_(False)


@pytest.fixture
def pixels() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def agrees(tokenizer: ImageTokenizer, pixels: Tensor, codes: Tensor, drawn: Tensor) -> None:
    ours = tokenizer.model.encode(pixels)
    assert torch.equal(ours.flatten(), codes.flatten())
    assert len(codes.unique()) > 20
    torch.testing.assert_close(tokenizer.model.decode(ours), drawn.clamp(-1, 1), rtol=0, atol=1e-5)


SHAPE: dict[str, Any] = dict(
    base_channels=32,
    channel_multiplier=[1, 2, 2],
    num_res_blocks=1,
    latent_channels=16,
    embed_dim=8,
    num_embeddings=256,
)
CHAMELEON = VQConfig(resolution=32, ch=32, ch_mult=(1, 2, 2), num_res_blocks=1, z_channels=16, embed_dim=8, n_embed=256)


@pytest.mark.parametrize("attention", [None, [16]])
def test_transformers_chameleon_encodes_as_the_import_with_the_original_decoder(
    pixels: Tensor, tmp_path: Path, attention: list[int] | None
):
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

    peer = shake(ChameleonVQVAE(ChameleonVQVAEConfig(**SHAPE, resolution=32, attn_resolutions=attention)))
    peer.save_pretrained(tmp_path / "peer")
    with pytest.raises(ValueError, match="no decoder"):
        convert(tmp_path / "peer", tmp_path / "out")

    original = shake(VQModel(replace(CHAMELEON, attn_resolutions=tuple(attention or ()))))
    original.quantize.load_state_dict(peer.quantize.state_dict())
    torch.save({"state_dict": original.state_dict()}, tmp_path / "vqgan.ckpt")
    tokenizer = convert(tmp_path / "peer", tmp_path / "out", "chameleon", decoder_from=tmp_path / "vqgan.ckpt")
    assert tokenizer.model.config == original.config
    codes = peer.encode(pixels).image_tokens
    agrees(tokenizer, pixels, codes, original.decode(codes.view(2, 8, 8)))


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a larger model"])
def test_transformers_janus_encodes_and_draws_as_the_import(pixels: Tensor, tmp_path: Path, inside: bool):
    from transformers import JanusVQVAE, JanusVQVAEConfig

    peer = shake(JanusVQVAE(JanusVQVAEConfig(**SHAPE, num_patches=8)))
    book = peer.quantize.embedding.weight
    book.copy_(F.normalize(book, dim=-1))  # transformers compares by angle only if the codes have length 1
    if inside:
        outer = nn.ModuleDict({"model": nn.ModuleDict({"vqmodel": peer})})
        torch.save(outer.state_dict(), tmp_path / "pytorch_model.bin")
        peer.config.save_pretrained(tmp_path)
        source = tmp_path / "pytorch_model.bin"
    else:
        peer.save_pretrained(tmp_path / "peer")
        source = tmp_path / "peer"
    tokenizer = convert(source, tmp_path / "out", "janus")
    assert tokenizer.model.config.resolution == 32 and tokenizer.model.config.normalize
    codes = peer.encode(pixels).image_tokens
    agrees(tokenizer, pixels, codes, peer.decode(codes.view(2, -1)))


def diffusers_model(**changes: Any) -> Any:
    from diffusers.models.autoencoders.vq_model import VQModel as Peer

    settings: dict[str, Any] = dict(
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(32, 64, 64),
        layers_per_block=2,
        latent_channels=16,
        sample_size=32,
        num_vq_embeddings=256,
        norm_num_groups=16,
        vq_embed_dim=8,
    )
    return shake(Peer(**(settings | changes)))


def run_diffusers(peer: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    latents = peer.encode(pixels).latents
    return peer.quantize(latents)[2][2], peer.decode(latents).sample


@pytest.mark.parametrize("changes", [{}, {"vq_embed_dim": None}, {"layers_per_block": 1, "norm_num_groups": 32}])
def test_diffusers_encodes_and_draws_as_the_import(pixels: Tensor, tmp_path: Path, changes: dict[str, Any]):
    peer = diffusers_model(**changes)
    peer.save_pretrained(tmp_path / "peer")
    agrees(convert(tmp_path / "peer", tmp_path / "out"), pixels, *run_diffusers(peer, pixels))


def test_the_export_is_what_diffusers_itself_would_have_saved(pixels: Tensor, tmp_path: Path):
    from diffusers.models.autoencoders.vq_model import VQModel as Peer

    peer = diffusers_model()
    peer.save_pretrained(tmp_path / "peer")
    ours = convert(tmp_path / "peer", tmp_path / "ours")
    export_diffusers(ours, tmp_path / "back")
    load: Any = Peer.from_pretrained
    back, report = load(tmp_path / "back", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert all(torch.equal(value, back.state_dict()[key]) for key, value in peer.state_dict().items())
    configs = [json.loads(model.to_json_string()) for model in (peer, back)]
    stated = [{key: value for key, value in config.items() if not key.startswith("_")} for config in configs]
    assert stated[0] == stated[1]
    agrees(ours, pixels, *run_diffusers(back.eval(), pixels))
