"""Alignment and the JEPA objective."""

import pytest
import torch

from train.vq.auxiliary_losses import Alignment, Predictor, mask_blocks, positions, standardise


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_standardised_maps_have_mean_0_and_deviation_1():
    maps = standardise(torch.randn(8, 3, 4, 4) * torch.tensor([1.0, 10, 0.1]).view(3, 1, 1) + 5)
    torch.testing.assert_close(maps.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(maps.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


def fit(loss, parameters, steps: int = 60) -> tuple[float, float]:
    optimizer = torch.optim.AdamW(list(parameters), 3e-3)
    first = last = 0.0
    for _ in range(steps):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        first, last = first or value.item(), value.item()
    return first, last


def test_the_alignment_head_learns_features_that_the_codes_hold_and_not_others():
    torch.manual_seed(0)
    quantized = torch.randn(8, 4, 4, 4)
    held = [torch.einsum("bzhw,fz->bfhw", quantized, torch.randn(6, 4)).repeat_interleave(2, 2).repeat_interleave(2, 3)]
    strange = [torch.randn(8, 6, 8, 8)]
    known, other = Alignment(4, (6,), 32), Alignment(4, (6,), 32)
    first, last = fit(lambda: known(quantized, held), known.parameters())
    _, noise = fit(lambda: other(quantized, strange), other.parameters())
    assert last < 0.5 * first and last < 0.5 * noise


def test_the_alignment_pulls_at_the_codes():
    quantized = torch.randn(2, 4, 4, 4, requires_grad=True)
    Alignment(4, (6, 2))(quantized, [torch.randn(2, 6, 8, 8), torch.randn(2, 2, 2, 2)]).backward()
    assert quantized.grad is not None and quantized.grad.abs().sum() > 0


@pytest.mark.parametrize("grid", [(8, 8), (4, 6), (1, 1)])
@pytest.mark.parametrize("share", [0.3, 0.5])
def test_hidden_blocks_are_grey_and_enough(grid: tuple[int, int], share: float):
    pixels = torch.ones(5, 3, grid[0] * 4, grid[1] * 4)
    masked = mask_blocks(pixels, grid, seeded(), share)
    assert masked.mask.shape == (5, *grid)
    assert (masked.mask.float().mean((1, 2)) >= share).all()
    shown = masked.pixels[:, 0].unfold(1, 4, 4).unfold(2, 4, 4)  # [B, h, w, 4, 4]
    assert ((shown == 0).all(-1).all(-1) == masked.mask).all()
    assert ((shown == 1).all(-1).all(-1) == ~masked.mask).all()


def test_hiding_is_the_generators_choice():
    pixels = torch.ones(5, 3, 32, 32)
    first, again, other = (mask_blocks(pixels, (8, 8), seeded(seed)).mask for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_every_place_has_a_position_of_its_own():
    places = positions((5, 7), 32)
    assert places.shape == (35, 32)
    distances = torch.cdist(places, places) + 9 * torch.eye(35)
    assert distances.min() > 0.05


def test_the_predictor_does_not_see_hidden_latents():
    torch.manual_seed(0)
    predictor = Predictor(4, 6, width=32, layers=1).eval()
    quantized, teacher = torch.randn(2, 4, 4, 4), torch.randn(2, 6, 4, 4)
    hidden = torch.zeros(2, 4, 4, dtype=torch.bool)
    hidden[:, :2] = True
    changed = torch.where(hidden[:, None], torch.randn(2, 4, 4, 4), quantized)
    assert torch.equal(predictor(quantized, hidden, teacher), predictor(changed, hidden, teacher))
    visible = torch.where(hidden[:, None], quantized, torch.randn(2, 4, 4, 4))
    assert not torch.equal(predictor(quantized, hidden, teacher), predictor(visible, hidden, teacher))


def test_the_predictor_learns_what_the_visible_part_tells():
    torch.manual_seed(0)
    kinds = torch.randn(4, 6)  # the whole image is one of four kinds
    which = torch.arange(16) % 4
    teacher = kinds[which][:, :, None, None].expand(16, 6, 4, 4)
    quantized = teacher[:, :4]
    hidden = torch.zeros(16, 4, 4, dtype=torch.bool)
    hidden[:, 1:3] = True
    predictor = Predictor(4, 6, width=32, layers=1)
    first, last = fit(lambda: predictor(quantized, hidden, teacher), predictor.parameters())
    assert last < 0.2 * first
