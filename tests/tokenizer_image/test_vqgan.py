from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer_image import PRESETS
from tokenizer_image.vqgan import AttnBlock, ResnetBlock, Upsample, VQConfig, VQModel, count_parameters, outline

SMALL_TAMING = VQConfig(
    resolution=16,
    ch=8,
    ch_mult=(1, 1, 2),
    num_res_blocks=2,
    attn_resolutions=(4,),
    norm_groups=4,
    z_channels=8,
    embed_dim=8,
    n_embed=16,
)


@pytest.mark.parametrize("config", [PRESETS["tiny"], SMALL_TAMING, replace(PRESETS["tiny"], decoder_ch=12)])
def test_codes_and_pixels_have_the_shapes_of_the_config(config: VQConfig) -> None:
    model = VQModel(config).eval()
    pixels = torch.rand(2, 3, config.resolution, config.resolution) * 2 - 1
    codes = model.encode(pixels)
    assert codes.shape == (2, *config.grid) and codes.dtype == torch.long
    assert model.decode(codes).shape == pixels.shape
    assert model.decode(codes).abs().max() <= 1


CELLS = replace(PRESETS["tiny"], resolution=32, cell_width=24, n_embed=4096)


@pytest.mark.parametrize("ring", [0, 2])
def test_a_code_of_the_cell_encoder_sees_its_cell_and_the_ring_alone(ring: int) -> None:
    torch.manual_seed(0)
    model, f = VQModel(replace(CELLS, cell_ring=ring)).eval(), CELLS.downsampling
    for name, weight in model.encoder.named_parameters():
        if name.endswith("down.weight"):
            nn.init.normal_(weight, std=0.1)
    pixels = torch.rand(1, 3, 32, 32, requires_grad=True)
    row, column = 3, 5
    model.latents(pixels)[0, :, row, column].square().sum().backward()
    assert pixels.grad is not None
    seen = pixels.grad[0].abs().sum(0) > 0  # [H, W]
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[row * f - ring : (row + 1) * f + ring, column * f - ring : (column + 1) * f + ring] = True
    assert torch.equal(seen, expected)


def test_a_pixel_of_the_cell_decoder_depends_on_the_codes_near_it_alone() -> None:
    torch.manual_seed(0)
    model = VQModel(replace(CELLS, resolution=64, decoder_cell_blocks=2)).eval()
    for name, weight in model.decoder.named_parameters():
        if name.endswith(("down.weight", "conv2.weight")):
            nn.init.normal_(weight, std=0.1)
    codes = torch.randint(CELLS.n_embed, (1, 16, 16))
    other = codes.clone()
    other[:, 8:, 8:] = torch.randint(CELLS.n_embed, (1, 8, 8))
    same = (model.decode(codes) == model.decode(other)).all(1)[0]  # [H, W]
    f, reach = CELLS.downsampling, 3  # of conv_in 1, of the convolutions at finer levels less than 2
    assert same[: (8 - reach) * f].all() and same[:, : (8 - reach) * f].all()
    assert not same[8 * f :, 8 * f :].any()


def test_codes_of_the_cell_encoder_move_with_the_image_and_ignore_what_they_do_not_see() -> None:
    torch.manual_seed(0)
    model, f = VQModel(CELLS).eval(), CELLS.downsampling
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    codes = model.encode(pixels)
    assert codes.shape == (2, 8, 8)
    assert torch.equal(model.encode(pixels.roll((f, 2 * f), (2, 3))), codes.roll((1, 2), (1, 2)))
    other = torch.ones_like(pixels)
    other[..., f : 2 * f, f : 2 * f] = pixels[..., f : 2 * f, f : 2 * f]
    assert torch.equal(model.encode(other)[:, 1, 1], codes[:, 1, 1])
    assert len(model.encode(torch.ones(1, 3, 32, 32)).unique()) == 1
    assert model.decode(codes).shape == pixels.shape


def test_any_multiple_of_f_is_encoded() -> None:
    model = VQModel(PRESETS["tiny"]).eval()
    assert model.encode(torch.zeros(1, 3, 8, 24)).shape == (1, 2, 6)


@pytest.mark.parametrize(("height", "width"), [(10, 16), (16, 10), (3, 3), (0, 4), (4, 0)])
def test_other_sizes_are_refused_with_the_multiple_and_a_size_that_fits(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=rf"{height} x {width} .* multiples of 4.* to (8|4|16) x (8|4|16)"):
        VQModel(PRESETS["tiny"]).encode(torch.zeros(1, 3, height, width))


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (1, 1, 8, 8)])
def test_pixels_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"want \[B, 3, H, W\]"):
        VQModel(PRESETS["tiny"]).encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 2), (0, 2, 2), (1, 0, 2)])
def test_codes_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"want \[B, h, w\]"):
        VQModel(PRESETS["tiny"]).decode(torch.zeros(shape).long())


def plain(module: nn.Module, x: Tensor) -> Tensor:
    """Blocks and upsampling as the paper's code has them, step by step."""
    if isinstance(module, ResnetBlock):
        h = module.conv1(F.silu(module.norm1(x)))
        return module.nin_shortcut(x) + module.conv2(F.silu(module.norm2(h)))
    if isinstance(module, AttnBlock):
        q, k, v = (part(module.norm(x)).flatten(2) for part in (module.q, module.k, module.v))  # [B, C, HW]
        weights = (q.mT @ k * x.shape[1] ** -0.5).softmax(2)  # [B, HW, HW]
        return x + module.proj_out((v @ weights.mT).view_as(x))
    assert isinstance(module, Upsample)
    return module.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "make",
    [lambda: ResnetBlock(8, 12, 4), lambda: ResnetBlock(8, 8, 4), lambda: AttnBlock(8, 4), lambda: Upsample(8)],
    ids=["widening", "block", "attention", "upsample"],
)
def test_values_and_gradients_are_those_of_the_plain_steps(make: Callable[[], nn.Module], layout: Any) -> None:
    module = make()
    x = torch.randn(2, 8, 6, 10).contiguous(memory_format=layout).requires_grad_()
    fast, slow = module(x), plain(module, x)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-5)
    weight = torch.randn_like(slow)
    wanted = (x, *module.parameters())
    for one, other in zip(
        torch.autograd.grad((fast * weight).sum(), wanted),
        torch.autograd.grad((slow * weight).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    before = x.detach().clone()
    with torch.inference_mode():
        torch.testing.assert_close(module(before), slow.detach(), rtol=0, atol=1e-5)
    assert torch.equal(before, x)  # what works in place leaves its input alone


def test_in_16_bits_codes_and_pixels_are_nearly_the_same() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VQModel(SMALL_TAMING).eval()
        pixels = torch.rand(2, 3, 32, 16) * 2 - 1
    codes = model.encode(pixels)
    drawn = model.decode(codes)
    model.to(torch.bfloat16)
    assert (model.encode(pixels) == codes).float().mean() > 0.8
    off = (model.decode(codes).float() - drawn).abs()
    assert off.max() < 0.15 and off.mean() < 0.01


def test_codes_outside_the_codebook_are_refused() -> None:
    with pytest.raises(ValueError, match="0 to 31"):
        VQModel(PRESETS["tiny"]).decode(torch.full((1, 4, 4), 32))


def test_parameter_names_are_tamings() -> None:
    keys = set(VQModel(SMALL_TAMING).state_dict())
    assert {
        "encoder.conv_in.weight",
        "encoder.down.0.block.1.norm1.weight",
        "encoder.down.2.block.0.nin_shortcut.weight",
        "encoder.down.0.downsample.conv.weight",
        "encoder.down.2.attn.1.proj_out.bias",
        "encoder.mid.attn_1.q.weight",
        "encoder.norm_out.weight",
        "decoder.up.0.block.2.conv2.weight",
        "decoder.up.2.attn.2.k.weight",
        "decoder.up.1.upsample.conv.weight",
        "decoder.conv_out.bias",
        "quantize.embedding.weight",
        "quant_conv.weight",
        "post_quant_conv.bias",
    } <= keys
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


@pytest.mark.parametrize("preset", ["tiny", "emoji-128-cells"])
def test_an_outline_has_the_names_and_shapes_of_the_model(preset: str):
    config = PRESETS[preset]
    shapes = {name: value.shape for name, value in VQModel(config).state_dict().items()}
    drawn = outline(config)
    assert {name: value.shape for name, value in drawn.state_dict().items()} == shapes
    assert all(parameter.is_meta for parameter in drawn.parameters())
    assert count_parameters(config)[2] == sum(value.numel() for value in VQModel(config).parameters())
