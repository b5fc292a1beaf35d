"""Guidance: each function against its formula in NumPy, in float64; guides leave nothing illegal."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cm3.engine.guidance import (
    ClassifierFree,
    ContrastiveTopK,
    Guide,
    ThreeWay,
    classifier_free,
    contrastive_top_k,
    three_way,
)

COND, UNCOND = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[1.0, 0.0, 1.0]])
NEVER = -math.inf
GUIDES = [ClassifierFree(3.0, 0.5), ContrastiveTopK(2, 0.37), ThreeWay(1.5, 7.5)]

seeds, sizes, scales = st.integers(0, 10_000), st.integers(1, 40), st.floats(0, 20)


def some(seed: int, sequences: int, size: int) -> tuple[Tensor, Tensor]:  # -> [sequences, V], bool [V]
    """Logits in steps of 1/8, so that equal ones occur; ids, at least one, that are legal."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-80, 80, (sequences, size), generator=generator) / 8
    legal = torch.rand(size, generator=generator) < 0.6
    legal[seed % size] = True
    return logits, legal


def by_formula(logits: np.ndarray, legal: np.ndarray, k: int, alpha: float) -> np.ndarray:
    """CD-K among the legal ids."""
    p, q = (np.where(legal, np.exp(x), 0.0) / np.exp(x[legal]).sum() for x in logits)
    kth = np.sort(p[legal])[::-1][:k][-1]
    plausible = legal & (p >= alpha * kth)
    out = np.full(len(p), NEVER)
    out[plausible] = np.log(p[plausible] / q[plausible])
    return out


def test_one_is_the_conditional_and_zero_the_unconditional():
    cond, uncond = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(classifier_free(cond, uncond, 1.0), cond)
    assert torch.equal(classifier_free(cond, uncond, 0.0), uncond)


def test_more_than_one_goes_on_in_the_same_direction():
    assert torch.equal(classifier_free(COND, UNCOND, 3.0), torch.tensor([[1.0, 6.0, -2.0]]))


def test_each_row_may_have_its_own_scale():
    scales = torch.tensor([[1.0], [0.0]])
    out = classifier_free(COND.expand(2, -1), UNCOND.expand(2, -1), scales)
    assert torch.equal(out, torch.cat((COND, UNCOND)))


@settings(max_examples=50)
@given(seeds, sizes, scales, scales, st.booleans())
def test_linear_guides_are_their_formulas_and_forbid_what_is_not_legal(
    seed: int, size: int, image: float, text: float, codes: bool
):
    logits, legal = some(seed, 3, size)
    full, middle, none = logits.double().numpy()
    classic = middle + (image if codes else text) * (full - middle)
    both = none + image * (middle - none) + text * (full - middle)
    for guide, formula in ((ClassifierFree(image, text), classic), (ThreeWay(image, text), both)):
        out = guide(logits[: 1 + guide.num_extra], legal, codes)
        np.testing.assert_allclose(out, np.where(legal, formula, NEVER), rtol=1e-5, atol=1e-4)


def test_three_way_has_its_corners():
    none, image, full = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    for image_scale, text_scale, corner in ((0, 0, none), (1, 0, image), (1, 1, full)):
        torch.testing.assert_close(three_way(none, image, full, image_scale, text_scale), corner)
    torch.testing.assert_close(three_way(none, image, full, 4, 4), classifier_free(full, none, 4))


# Alphas whose logarithm is no step of 1/8: nothing lies on the edge, where rounding would decide.
@given(seeds, sizes, st.integers(1, 40), st.sampled_from([1e-3, 0.1, 0.37, 0.9, 1.0]), st.booleans())
@example(0, 1, 1, 1.0, True)
@example(3, 40, 40, 1.0, True)
def test_contrastive_is_its_formula_among_the_legal_ids(seed: int, size: int, k: int, alpha: float, codes: bool):
    k = min(k, size)
    logits, legal = some(seed, 2, size)
    out = ContrastiveTopK(k, alpha)(logits, legal, codes)
    formula = by_formula(logits.double().numpy(), legal.numpy(), k, alpha)
    np.testing.assert_allclose(out, formula, rtol=1e-4, atol=1e-4)


def test_contrastive_of_a_batch_is_that_of_its_rows():
    cond, uncond = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0))
    rows = [contrastive_top_k(a, b, 3, 0.5) for a, b in zip(cond, uncond, strict=True)]
    torch.testing.assert_close(contrastive_top_k(cond, uncond, 3, 0.5), torch.stack(rows))


def test_a_larger_k_makes_more_ids_plausible():
    cond, uncond = torch.tensor([0.7, 0.2, 0.06, 0.04]).log(), torch.zeros(4)
    kept = [(contrastive_top_k(cond, uncond, k, 0.5) > NEVER).tolist() for k in (1, 2, 3, 4)]
    assert kept == [[True, False, False, False], [True, True, False, False], [True] * 4, [True] * 4]


def test_among_the_plausible_ids_the_contrast_decides():
    cond, uncond = torch.tensor([0.5, 0.4, 0.1]).log(), torch.tensor([0.8, 0.1, 0.1]).log()
    assert contrastive_top_k(cond, uncond, 1, 0.5).argmax() == 1
    assert contrastive_top_k(cond, uncond, 1, 1.0).argmax() == 0  # k = 1 and alpha = 1: greedy


def test_probabilities_that_underflow_keep_their_order():
    cond, uncond = torch.tensor([0.0, -300.0, -400.0, -9e4]), torch.tensor([0.0, -9e4, -500.0, -1.0])
    out = contrastive_top_k(cond, uncond, 3, 0.5)
    torch.testing.assert_close(out, torch.tensor([0.0, 9e4 - 300, 100.0, NEVER]) + math.log1p(math.exp(-1)))
    illegal = torch.tensor([False, True, True, False])
    assert not ContrastiveTopK(4, 1e-30)(torch.stack((cond, uncond)), illegal, True).isnan().any()


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: type(guide).__name__)
@settings(max_examples=30)
@given(seeds, sizes, st.booleans())
def test_what_a_guide_gives_can_be_drawn_from(guide: Guide, seed: int, size: int, codes: bool):
    logits, legal = some(seed, 1 + guide.num_extra, max(size, 2))
    for scaled in (logits, logits * 1000):
        out = guide(scaled, legal, codes)
        assert not out.isnan().any() and (out < math.inf).all()
        assert (out[~legal] == NEVER).all() and (out > NEVER).any()


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: type(guide).__name__)
def test_illegal_ids_change_nothing_of_the_legal_ones(guide: Guide):
    logits, legal = some(1, 1 + guide.num_extra, 20)
    assert torch.equal(guide(logits, legal, True), guide(logits + 99 * ~legal, legal, True))


def test_a_guide_knows_its_lanes_and_whether_it_is_off():
    assert [guide.num_extra for guide in GUIDES] == [1, 1, 2]
    assert not any(guide.off for guide in (*GUIDES, ClassifierFree(image=3.0), ClassifierFree(text=3.0)))
    assert ClassifierFree().off and ThreeWay(1.0, 1.0).off
    assert GUIDES[0] == ClassifierFree(3.0, 0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassifierFree(image=-1.0), "image scale .* -1.0, but must be 0 to"),
        (lambda: ClassifierFree(text=math.nan), "text scale .* nan, but must be 0 to"),
        (lambda: ThreeWay(math.inf, 1.0), "image scale .* inf, but must be 0 to"),
        (lambda: ThreeWay(1.0, -0.1), "text scale .* -0.1, but must be 0 to"),
        (lambda: ContrastiveTopK(0, 0.5), "k .* at least 1, but is 0"),
        (lambda: ContrastiveTopK(1, 0.0), "alpha .* at most 1, but is 0.0"),
        (lambda: ContrastiveTopK(1, 1.1), "alpha .* at most 1, but is 1.1"),
        (lambda: ContrastiveTopK(1, math.nan), "alpha .* at most 1, but is nan"),
    ],
)
def test_a_mistake_names_the_value_and_the_limit(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
