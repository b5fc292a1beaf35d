"""Local encoders and decoders: a tile is encoded and decoded alike, alone and among others."""

from dataclasses import replace

import pytest
import torch

from tokenizer_image import PRESETS, VQModel
from tokenizer_image.cells import join_tiles, split_tiles


@pytest.fixture
@torch.no_grad()
def model() -> VQModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = replace(PRESETS["emoji-256-cells"], cell_width=32, ch=16, n_embed=64, cell_blocks=1)
        model = VQModel(config).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():  # blocks begin as zeros and would pass nothing on
                torch.nn.init.normal_(parameter, std=0.1)
        latents = model.quant_conv(model.encoder(torch.rand(4, 3, 64, 64) * 2 - 1)).movedim(1, -1).flatten(0, 2)
        model.quantize.embedding.weight.copy_(latents[:64])
        return model


def test_tiles_are_joined_as_they_were_split():
    x = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    tiles = split_tiles(x, 2)
    assert tiles.shape == (12, 3, 2, 2) and torch.equal(tiles[1], x[0, :, :2, 2:4])
    assert torch.equal(join_tiles(tiles, 4, 6), x)
    for side in (0, 3, 5):
        assert torch.equal(split_tiles(x, side), x)  # no tiles of this side
        assert torch.equal(join_tiles(x, 4, 6), x)


@torch.inference_mode()
def test_a_tile_has_the_codes_and_pixels_that_it_has_alone(model: VQModel):
    pixels = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(1)) * 2 - 1
    codes = model.encode(pixels)
    scene = model.decode(codes)
    assert codes.shape == (1, 16, 16) and len(codes.unique()) > 8
    for y in (0, 8):
        for x in (0, 8):
            part = (slice(None), slice(None), slice(16 * y, 16 * y + 128), slice(16 * x, 16 * x + 128))
            alone = model.encode(pixels[part])
            assert torch.equal(alone, codes[:, y : y + 8, x : x + 8])
            assert (model.decode(alone) - scene[part]).abs().max() < 2 * 2 / 255  # pixels are -1 to 1
