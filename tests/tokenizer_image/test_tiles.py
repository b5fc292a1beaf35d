"""Tiles: weights, memory, seams, and images that are no larger than a tile."""

import pytest
import torch

from largest import Largest
from tokenizer_image import PRESETS, ImageTokenizer, VQConfig, VQModel
from tokenizer_image.tiles import tiled_decode, tiled_encode, windows

EVEN = VQConfig(
    resolution=16,
    ch=8,
    ch_mult=(1, 1),
    num_res_blocks=1,
    attn_resolutions=(),
    norm_groups=4,
    z_channels=8,
    embed_dim=4,
    n_embed=32,
    normalize=True,
)


@pytest.fixture(scope="module")
def model() -> VQModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VQModel(EVEN).eval().requires_grad_(False)


@pytest.mark.parametrize("axis", [(10, 4, 1), (10, 4, 0), (9, 4, 3), (3, 8, 2), (8, 8, 2), (1, 1, 0), (97, 16, 5)])
@pytest.mark.parametrize("scale", [1, 3])
def test_weights_sum_to_one_everywhere_and_neighbours_share_the_overlap(axis: tuple[int, int, int], scale: int):
    length, tile, overlap = axis
    total = torch.zeros(length * scale)
    parts = windows(length, tile, overlap, scale)
    for part in parts:
        assert len(part.weights) == (part.stop - part.start) * scale <= tile * scale
        total[part.start * scale : part.stop * scale] += part.weights
    torch.testing.assert_close(total, torch.ones_like(total))
    assert len({part.stop - part.start for part in parts}) == 1
    assert all(before.stop - after.start >= overlap for before, after in zip(parts, parts[1:], strict=False))


@pytest.mark.parametrize("overlap", [4, 9, -1])
def test_an_overlap_that_leaves_no_room_is_refused(model: VQModel, overlap: int):
    with pytest.raises(ValueError, match="overlap must be 0 to 3"):
        tiled_decode(model, torch.zeros(1, 8, 8).long(), 4, overlap)


def test_an_image_no_larger_than_a_tile_is_worked_whole(model: VQModel):
    pixels = torch.rand(2, 3, 8, 12) * 2 - 1
    codes = model.encode(pixels)
    assert torch.equal(tiled_encode(model, pixels, 6, 2), codes)
    assert torch.equal(tiled_decode(model, codes, 6, 2), model.decode(codes))


def test_memory_follows_the_tile_and_not_the_image(model: VQModel):
    codes = torch.randint(32, (1, 48, 40))
    with Largest() as whole:
        pixels = model.decode(codes)
    with Largest() as tiled:
        tiled_decode(model, codes, 8, 2)
    assert whole.elements == 8 * 96 * 80  # ch channels at full size
    assert tiled.elements == pixels.numel() == 3 * 96 * 80  # the result; a tile's activations have 8 * 16 * 16
    with Largest() as whole:
        model.encode(pixels)
    with Largest() as tiled:
        tiled_encode(model, pixels, 8, 2)
    assert whole.elements == 8 * 97 * 81 and tiled.elements == max(3 * 96 * 80 // 3, 48 * 40 * 32)


def test_the_embedded_model_in_tiles_is_near_to_the_whole():
    model = ImageTokenizer.from_pretrained("emoji").model
    side = model.config.resolution
    drawing = torch.linspace(-1, 1, 2 * side).expand(1, 3, 2 * side, 2 * side).clone()  # a ramp of grey, 16 x 16 codes
    square = slice(side // 2, 2 * side - side // 2)
    drawing[:, :, square, square] = torch.tensor([0.9, -0.8, -0.7])[:, None, None]
    codes = model.encode(drawing)
    whole = model.decode(codes)
    tiled = tiled_decode(model, codes, 8, 2)
    alone = torch.cat([model.decode(part) for row in codes.split(8, 1) for part in row.split(8, 2)])
    corners = torch.cat([part for row in whole.split(side, 2) for part in row.split(side, 3)])  # [4, 3, side, side]
    error, error_alone = (tiled - whole).square().mean(), (alone - corners).square().mean()
    assert error < 0.5 * error_alone
    assert torch.equal(model.decode(codes), whole)  # the model's own norms are as they were
    assert torch.equal(tiled_encode(model, drawing, 8, 2), codes)  # each code sees its own cell alone


def test_any_preset_goes_in_tiles_with_attention_within_each():
    model = VQModel(PRESETS["tiny"]).eval()
    pixels = torch.rand(1, 3, 24, 40) * 2 - 1
    codes = tiled_encode(model, pixels, 4, 1)
    assert codes.shape == (1, 6, 10) and tiled_decode(model, codes, 4, 1).shape == pixels.shape
    with pytest.raises(ValueError, match="multiples of 4"):
        tiled_encode(model, pixels[..., :-1], 4, 1)
    with pytest.raises(ValueError, match="0 to 31"):
        tiled_decode(model, codes + 32, 4, 1)
