from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tokenizer_image.vqgan import PRESETS, VQConfig, VQModel

SMALL_TAMING = VQConfig(resolution=16, ch=8, ch_mult=(1, 1, 2), num_res_blocks=2, attn_resolutions=(4,), norm_groups=4,
                        z_channels=8, embed_dim=8, n_embed=16)  # fmt: skip


@pytest.mark.parametrize("config", [PRESETS["tiny"], SMALL_TAMING, replace(PRESETS["tiny"], decoder_ch=12)])
def test_codes_and_pixels_have_the_shapes_of_the_config(config: VQConfig) -> None:
    model = VQModel(config).eval()
    pixels = torch.rand(2, 3, config.resolution, config.resolution) * 2 - 1
    codes = model.encode(pixels)
    assert codes.shape == (2, *config.grid) and codes.dtype == torch.long
    assert model.decode(codes).shape == pixels.shape
    assert model.decode(codes).abs().max() <= 1


def test_any_multiple_of_f_is_encoded() -> None:
    model = VQModel(PRESETS["tiny"]).eval()
    assert model.encode(torch.zeros(1, 3, 8, 24)).shape == (1, 2, 6)


def test_other_sizes_are_refused_with_the_multiple() -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        VQModel(PRESETS["tiny"]).encode(torch.zeros(1, 3, 10, 16))


def test_codes_outside_the_codebook_are_refused() -> None:
    with pytest.raises(ValueError, match="0 to 31"):
        VQModel(PRESETS["tiny"]).decode(torch.full((1, 4, 4), 32))


def test_parameter_names_are_tamings() -> None:
    keys = set(VQModel(SMALL_TAMING).state_dict())
    assert {
        "encoder.conv_in.weight", "encoder.down.0.block.1.norm1.weight", "encoder.down.2.block.0.nin_shortcut.weight",
        "encoder.down.0.downsample.conv.weight", "encoder.down.2.attn.1.proj_out.bias", "encoder.mid.attn_1.q.weight",
        "encoder.norm_out.weight", "decoder.up.0.block.2.conv2.weight", "decoder.up.2.attn.2.k.weight",
        "decoder.up.1.upsample.conv.weight", "decoder.conv_out.bias", "quantize.embedding.weight", "quant_conv.weight",
        "post_quant_conv.bias",
    } <= keys  # fmt: skip
    assert "encoder.down.2.downsample.conv.weight" not in keys and "decoder.up.0.upsample.conv.weight" not in keys


def test_taming_f16_has_the_size_of_the_original() -> None:
    with torch.device("meta"):
        model = VQModel(PRESETS["taming-f16-1024"])
    encoder_and_decoder = sum(p.numel() for m in (model.encoder, model.decoder) for p in m.parameters())
    assert model.config.downsampling == 16 and model.config.grid == (16, 16)
    assert 71e6 < encoder_and_decoder < 73e6  # the original: 29.3M + 42.4M


def test_configs_survive_a_file_and_refuse_unknown_keys(tmp_path: Path) -> None:
    PRESETS["emoji-64"].save(tmp_path / "config.json")
    assert VQConfig.load(tmp_path / "config.json") == PRESETS["emoji-64"]
    with pytest.raises(ValueError, match="chanels"):
        VQConfig.from_dict({"chanels": 3})


def test_channels_that_do_not_divide_into_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="norm_groups"):
        VQConfig(ch=100)
