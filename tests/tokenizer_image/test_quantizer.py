import pytest
import torch
import torch.nn.functional as F

from largest import Largest
from tokenizer_image.quantizer import VectorQuantizer


def latents(seed: int = 0) -> torch.Tensor:  # [B, Z, h, w]
    return torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(seed))


def test_nearest_is_the_argmin_of_the_distances_in_any_chunk() -> None:
    quantizer = VectorQuantizer(16, 4)
    torch.nn.init.normal_(quantizer.embedding.weight)
    flat = latents().movedim(1, -1).reshape(-1, 4)
    expected = torch.cdist(flat, quantizer.embedding.weight).argmin(1)
    assert torch.equal(quantizer.nearest(flat, distances=7 * 16), expected)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_search_never_holds_all_distances_at_once(normalize: bool) -> None:
    quantizer = VectorQuantizer(16384, 8, normalize).requires_grad_(False)
    flat = torch.randn(1024, 8)
    with Largest() as largest:
        codes = quantizer.nearest(flat, distances=2**18)
    assert largest.elements == 2**18  # 1024 x 16384 distances are 2**24
    with Largest() as largest:
        quantizer.nearest(flat)
    assert largest.elements == 2**22
    assert torch.equal(codes[:100], quantizer.nearest(flat[:100]))


def test_a_codebook_in_16_bits_is_searched_in_32() -> None:
    quantizer = VectorQuantizer(16, 4).requires_grad_(False).to(torch.bfloat16)
    exact = VectorQuantizer(16, 4).requires_grad_(False)
    exact.load_state_dict(quantizer.state_dict())
    assert torch.equal(quantizer(latents().bfloat16()).codes, exact(latents().bfloat16().float()).codes)


def test_normalised_codes_are_compared_by_angle() -> None:
    quantizer = VectorQuantizer(16, 4, normalize=True)
    small, large = quantizer(latents()), quantizer(latents() * 50)
    assert torch.equal(small.codes, large.codes)
    assert torch.allclose(small.quantized.norm(dim=1), torch.ones(2, 3, 5), atol=1e-5)


def test_look_up_gives_what_forward_chose() -> None:
    quantizer = VectorQuantizer(16, 4, normalize=True)
    out = quantizer(latents())
    assert torch.allclose(quantizer.look_up(out.codes), out.quantized, atol=1e-6)


def test_gradients_pass_straight_through() -> None:
    z = latents().requires_grad_()
    out = VectorQuantizer(16, 4)(z)
    out.quantized.sum().backward()
    assert torch.allclose(z.grad, torch.ones_like(z))  # pyright: ignore[reportArgumentType]


def test_the_loss_pulls_codes_to_latents_and_latents_to_codes() -> None:
    quantizer = VectorQuantizer(16, 4, commitment=0.5)
    z = latents().requires_grad_()
    quantizer(z).loss.backward()
    chosen = quantizer.look_up(quantizer(z).codes).detach()
    assert quantizer.embedding.weight.grad is not None and quantizer.embedding.weight.grad.abs().sum() > 0
    assert torch.allclose(z.grad, 0.5 * 2 * (z - chosen).detach() / z.numel(), atol=1e-6)  # pyright: ignore


def test_dead_codes_are_restarted_at_latents_and_live_ones_stay() -> None:
    quantizer = VectorQuantizer(8, 4, normalize=True)
    z = latents()
    before = quantizer.embedding.weight.clone()
    for _ in range(400):
        quantizer.count(torch.zeros(2, 3, 5, dtype=torch.long))  # only code 0 is ever chosen
    assert quantizer.restart_dead(z, torch.Generator().manual_seed(0)) == 7
    after = quantizer.embedding.weight
    assert torch.equal(after[0], before[0])
    flat = F.normalize(z.movedim(1, -1).reshape(-1, 4), dim=-1)
    assert torch.cdist(after[1:].detach(), flat).min(1).values.max() < 1e-3
    assert quantizer.restart_dead(z, torch.Generator().manual_seed(0)) == 0  # they get time to prove themselves
