"""Classifier-free guidance."""

import torch

from cm3.guidance import classifier_free

COND, UNCOND = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[1.0, 0.0, 1.0]])


def test_one_is_the_conditional_and_zero_the_unconditional():
    assert torch.equal(classifier_free(COND, UNCOND, 1.0), COND)
    assert torch.equal(classifier_free(COND, UNCOND, 0.0), UNCOND)


def test_more_than_one_goes_on_in_the_same_direction():
    assert torch.equal(classifier_free(COND, UNCOND, 3.0), torch.tensor([[1.0, 6.0, -2.0]]))


def test_each_row_may_have_its_own_scale():
    scales = torch.tensor([[1.0], [0.0]])
    out = classifier_free(COND.expand(2, -1), UNCOND.expand(2, -1), scales)
    assert torch.equal(out, torch.cat((COND, UNCOND)))
