"""Quantiser variants: gradients, baking, and what keeps codes in use."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizer_image import PRESETS, VQModel
from tokenizer_image.quantizer import VectorQuantizer, rotation_trick, straight_through
from train.vq.codebook import baked, entropy_loss, use_simvq


def test_both_estimators_return_the_codes():
    z, e = torch.randn(20, 4), torch.randn(20, 4)
    torch.testing.assert_close(straight_through(z, e), e)
    torch.testing.assert_close(rotation_trick(z, e), e, rtol=1e-4, atol=1e-5)


def test_the_rotation_trick_turns_the_gradient_as_it_turns_the_latent():
    """The Jacobian is a rotation times |e| / |z|: it keeps angles and takes z's direction to e's."""
    torch.manual_seed(0)
    z, e = torch.randn(1, 4), torch.randn(1, 4)
    jacobian = torch.autograd.functional.jacobian(lambda x: rotation_trick(x, e)[0], z)
    assert isinstance(jacobian, Tensor)
    scale = (e.norm() / z.norm()).item()
    turn = jacobian[:, 0] / scale
    torch.testing.assert_close(turn @ turn.T, torch.eye(4), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(turn @ F.normalize(z[0], dim=0), F.normalize(e[0], dim=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
def test_simvq_trains_one_matrix_and_bakes_into_the_same_codes(normalize: bool):
    torch.manual_seed(0)
    model = VQModel(replace(PRESETS["tiny"], n_embed=16, normalize=normalize))
    quantizer = model.quantize
    use_simvq(quantizer)
    trained = [name for name, p in quantizer.named_parameters() if p.requires_grad]
    assert len(trained) == 1 and "map" in trained[0]
    latents = torch.randn(2, 4, 3, 3)
    quantizer(latents).loss.backward()
    with torch.no_grad():
        for p in quantizer.parameters():
            if p.requires_grad:
                assert p.grad is not None and p.grad.abs().sum() > 0
                p -= 0.1 * p.grad
    before, copy = quantizer(latents), baked(model).quantize
    after = copy(latents)
    assert list(copy.state_dict()) == ["embedding.weight"]
    assert torch.equal(before.codes, after.codes)
    torch.testing.assert_close(before.quantized, after.quantized)
    assert torch.equal(quantizer(latents).codes, before.codes)  # the model goes on as it was


def test_baking_an_ordinary_codebook_changes_nothing():
    model = VQModel(PRESETS["tiny"])
    assert all(torch.equal(value, baked(model).state_dict()[key]) for key, value in model.state_dict().items())


def test_entropy_is_lowest_where_choices_are_sure_and_even():
    quantizer = VectorQuantizer(4, 2)
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    with torch.no_grad():
        quantizer.embedding.weight.copy_(corners)
    even = corners.T.view(1, 2, 2, 2)
    one = corners[:1].expand(4, 2).T.reshape(1, 2, 2, 2)
    unsure = torch.zeros(1, 2, 2, 2)
    assert entropy_loss(quantizer, even, 0.01).item() == pytest.approx(-math.log(4), abs=1e-4)
    assert entropy_loss(quantizer, one, 0.01).item() == pytest.approx(0, abs=1e-4)
    assert entropy_loss(quantizer, unsure, 0.01).item() == pytest.approx(0, abs=1e-4)
