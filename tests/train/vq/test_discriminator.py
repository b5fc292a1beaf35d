"""The patch discriminator and its losses, against their formulas."""

import numpy as np
import pytest
import torch

from train.vq.discriminator import LeCam, PatchDiscriminator, balance, gradient_penalty, hinge


def pixels(seed: int = 0) -> torch.Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def judge() -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(ch=8, layers=2).eval()


def test_each_patch_has_a_logit(judge: PatchDiscriminator):
    assert judge(pixels()).shape == (4, 1, 6, 6)


def test_a_logit_sees_its_patch_alone(judge: PatchDiscriminator):
    changed = pixels()
    changed[:, :, -4:, -4:] = 1
    same = (judge(changed) == judge(pixels())).all(0)[0]
    assert same[0, 0] and not same[-1, -1]


def test_an_images_logits_do_not_depend_on_its_batch(judge: PatchDiscriminator):
    torch.testing.assert_close(judge(pixels())[1:2], judge(pixels()[1:2]))


def test_hinge_against_numpy():
    real, fake = torch.randn(2, 1, 3, 3), torch.randn(2, 1, 3, 3)
    expected = 0.5 * (np.maximum(0, 1 - real.numpy()).mean() + np.maximum(0, 1 + fake.numpy()).mean())
    assert hinge(real, fake).item() == pytest.approx(expected, rel=1e-6)


def test_a_discriminator_learns_to_tell_noise_from_grey():
    torch.manual_seed(0)
    judge = PatchDiscriminator(ch=8, layers=2)
    optimizer = torch.optim.Adam(judge.parameters(), 1e-3, (0.5, 0.9))
    first = last = 0.0
    for step in range(30):
        loss = hinge(judge(pixels(step)), judge(0.1 * pixels(step + 100)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = first or loss.item(), loss.item()
    assert last < 0.6 * first


def test_the_penalty_of_a_linear_judge_is_its_slope_squared():
    x = pixels().requires_grad_()
    slope = torch.randn(3, 32, 32)
    logits = (x * slope).sum((1, 2, 3)).view(4, 1, 1, 1)
    assert gradient_penalty(logits, x).item() == pytest.approx(slope.square().sum().item(), rel=1e-4)


def test_lecam_ties_each_side_to_the_others_mean():
    lecam = LeCam(decay=0.5)
    lecam(torch.tensor([2.0]), torch.tensor([-2.0]))
    value = lecam(torch.tensor([1.0]), torch.tensor([-1.0]))
    real, fake = 0.5 * 1.0 + 0.5 * 1.0, 0.5 * -1.0 + 0.5 * -1.0  # the means began at 0: 0 -> +-1 -> +-1
    assert (lecam.real.item(), lecam.fake.item()) == (real, fake)
    assert value.item() == pytest.approx((1 - fake) ** 2 + (-1 - real) ** 2)


def test_balanced_losses_pull_alike():
    weight = torch.randn(5, requires_grad=True)
    main, other = (3 * weight).square().sum(), 0.01 * weight.sum()
    scaled = balance(main, other, weight) * other
    (a,) = torch.autograd.grad(main, weight, retain_graph=True)
    (b,) = torch.autograd.grad(scaled, weight)
    assert a.norm().item() == pytest.approx(b.norm().item(), rel=1e-3)


def test_the_balance_has_a_limit():
    weight = torch.ones(2, requires_grad=True)
    assert balance(1e9 * weight.sum(), 1e-9 * weight.sum(), weight).item() == 1e4
