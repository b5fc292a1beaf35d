"""The CM3 objective: spans, rotation, and the way back."""

import math
from collections import Counter, defaultdict
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cm3.model.config import CM3Config
from cm3.tokens.masking import (
    Span,
    all_segments,
    rotate,
    sample_holes,
    sample_spans,
    segments,
    span_count,
    text_segments,
    unrotate,
)
from cm3.tokens.vocab import MAX_MASKS, Vocab

VOCAB = Vocab.from_config(CM3Config.preset("tiny"))
T, C = VOCAB.first_text, VOCAB.first_code
DOCUMENT = [1, T, T + 1, T + 2, 2, 3, C, C + 1, C + 2, C + 3, 4, 2, T + 3, T + 4, 1]
#           0  1  2      3      4  5  6  7      8      9      10 11 12    13     14
DRAWS = 100_000

texts = st.lists(st.integers(T, C - 1), min_size=1, max_size=8)
images = st.lists(st.integers(C, len(VOCAB) - 1), min_size=4, max_size=4).map(lambda codes: [3, *codes, 4])


def joined(items: list[list[int]]) -> list[int]:
    """A document of texts and images: <break> where they meet, none between neighbours of one kind."""
    ids = [VOCAB.eos]
    for before, item in zip([[], *items], items, strict=False):
        meet = before and (before[0] == VOCAB.image) != (item[0] == VOCAB.image)
        ids += [VOCAB.break_, *item] if meet else item
    return [*ids, VOCAB.eos]


documents = st.lists(texts | images, max_size=6).map(joined)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chi_square(seen: Counter, law: dict) -> float:
    """How far counts are from their law, in standard deviations of chi-square (its mean is its degrees of freedom k,
    its variance 2 k). Only outcomes of the law are seen, and each is expected at least 5 times."""
    total = sum(seen.values())
    assert set(seen) <= set(law) and math.isclose(sum(law.values()), 1) and min(law.values()) * total >= 5
    square = sum((seen[x] - total * p) ** 2 / (total * p) for x, p in law.items())
    return (square - (len(law) - 1)) / math.sqrt(2 * (len(law) - 1))


def test_the_example_of_the_paper():
    ids, loss_mask = rotate(DOCUMENT, [(2, 4)], VOCAB)
    assert ids == [1, T, 5, 2, 3, C, C + 1, C + 2, C + 3, 4, 2, T + 3, T + 4, 21, T + 1, T + 2, 1]
    assert loss_mask == [1, 1, 0] + [1] * 14


@settings(max_examples=300)
@given(documents, st.integers(1, MAX_MASKS), st.integers(0, 2**31), st.booleans())
def test_unrotating_undoes_rotating(ids: list[int], count: int, seed: int, text_only: bool):
    allowed = text_segments(ids, VOCAB) if text_only else all_segments(ids, VOCAB)
    spans = sample_spans(allowed, count, seeded(seed))
    rotated, loss_mask = rotate(ids, spans, VOCAB)
    assert unrotate(rotated, VOCAB) == ids
    assert len(rotated) == len(loss_mask) == len(ids) + 2 * len(spans)
    assert sorted(id for id in rotated if not 5 <= id < 37) == sorted(ids)


@settings(max_examples=300)
@given(documents, st.integers(1, MAX_MASKS), st.integers(0, 2**31))
def test_the_loss_is_masked_at_the_masks_and_nowhere_else(ids: list[int], count: int, seed: int):
    spans = sample_spans(all_segments(ids, VOCAB), count, seeded(seed))
    rotated, loss_mask = rotate(ids, spans, VOCAB)
    assert [id for id, counts in zip(rotated, loss_mask, strict=True) if not counts] == [
        VOCAB.mask(k) for k in range(len(spans))
    ]
    assert [id for id in rotated if VOCAB.is_infill(id)] == [VOCAB.infill(k) for k in range(len(spans))]
    assert {*loss_mask} <= {0, 1}


@settings(max_examples=300)
@given(documents, st.integers(1, MAX_MASKS), st.integers(0, 2**31))
def test_spans_are_ordered_apart_and_cross_no_border(ids: list[int], count: int, seed: int):
    spans = sample_spans(all_segments(ids, VOCAB), count, seeded(seed))
    assert len(spans) <= count
    assert bool(spans) == any(id >= T for id in ids)
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
    for start, end in spans:
        inside = ids[start:end]  # no <eos>, <break>, <image> or </image>
        assert inside
        assert all(map(VOCAB.is_text, inside)) or all(map(VOCAB.is_code, inside))


def test_segments_end_at_special_ids():
    assert all_segments(DOCUMENT, VOCAB) == [(1, 4), (6, 10), (12, 14)]
    assert text_segments(DOCUMENT, VOCAB) == [(1, 4), (12, 14)]
    assert segments(DOCUMENT, VOCAB, VOCAB.is_code) == [(6, 10)]
    assert all_segments([1, 1], VOCAB) == []
    assert all_segments([1, 3, C, C, 4, 3, C, C, 4, 1], VOCAB) == [(2, 4), (6, 8)]  # two images side by side


def test_spans_stay_where_they_are_allowed():
    generator = seeded(0)
    for _ in range(200):
        for start, end in sample_spans([(1, 4)], 3, generator):
            assert 1 <= start < end <= 4


def test_nothing_allowed_gives_no_span_and_leaves_the_ids():
    assert sample_spans([], 1, seeded(0)) == []
    assert rotate([1, 1], [], VOCAB) == ([1, 1], [1, 1])


def test_the_number_of_spans_follows_the_clamped_poisson():
    seen = Counter(map(span_count, torch.rand(DRAWS, generator=seeded(0), dtype=torch.float64).tolist()))
    law = {n: math.exp(-1) / math.factorial(n) for n in range(2, 6)} | {1: 2 / math.e}  # 1 stands for 0 too
    seen[6] = sum(seen.pop(n, 0) for n in range(6, MAX_MASKS + 1))
    assert abs(chi_square(seen, law | {6: 1 - sum(law.values())})) < 4
    assert span_count(0.0) == 1 and span_count(1 - 1e-17) == 16


def test_the_lengths_of_a_single_span_are_those_of_two_uniform_draws():
    size, generator = 64, seeded(0)
    law = {n: 2 * (size - n + 1) / size**2 for n in range(2, size + 1)} | {1: 1 / size}
    seen, starts = Counter(), Counter()
    for _ in range(DRAWS):
        ((start, end),) = sample_spans([(0, size)], 1, generator)
        seen[end - start] += 1
        starts[start] += 1
    assert abs(chi_square(seen, law)) < 4
    assert abs(chi_square(starts, {i: (2 * (size - i) - 1) / size**2 for i in range(size)})) < 4  # the lesser of two


def test_of_several_segments_each_has_its_share_of_spans_cut_to_it():
    allowed: list[Span] = [(1, 5), (7, 23), (25, 28)]  # 4, 16 and 3 positions
    places = [(i, segment) for segment in allowed for i in range(*segment)]
    law: dict[Span, float] = defaultdict(float)
    for (one, (start, end)), (other, _) in product(places, places):
        ends = one, min(max(other, start), end - 1)
        law[min(ends), max(ends) + 1] += 1 / len(places) ** 2
    generator = seeded(0)
    seen = Counter(sample_spans(allowed, 1, generator)[0] for _ in range(DRAWS))
    assert abs(chi_square(seen, law)) < 4
    for start, end in allowed:  # an image is masked as often as its share of the positions
        inside = sum(count for span, count in seen.items() if start <= span[0] < end)
        assert abs(inside / DRAWS - (end - start) / len(places)) < 0.005


def test_as_many_spans_as_asked_for_where_there_is_room():
    counts = [len(sample_spans([(0, 10_000)], 3, seeded(seed))) for seed in range(300)]
    assert counts.count(3) > 100 and max(counts) == 3


def test_the_same_generator_gives_the_same_spans():
    assert sample_spans([(0, 100)], 2, seeded(3)) == sample_spans([(0, 100)], 2, seeded(3))


def test_tensors_come_out_as_tensors():
    ids = torch.tensor(DOCUMENT)
    rotated, loss_mask = rotate(ids, [(1, 3), (6, 8)], VOCAB)
    listed = rotate(DOCUMENT, [(1, 3), (6, 8)], VOCAB)
    assert (rotated.tolist(), loss_mask.tolist()) == tuple(listed)
    assert torch.equal(unrotate(rotated, VOCAB), ids)


def test_a_mask_without_its_span_stays():
    assert unrotate([1, 5, 6, 22, T, 1], VOCAB) == [1, 5, T, 1]


@pytest.mark.parametrize("spans", [[(2, 2)], [(1, 3), (2, 4)], [(13, 15)]])
def test_wrong_spans_are_the_programmers_mistake(spans):
    with pytest.raises(AssertionError):
        rotate(DOCUMENT, spans, VOCAB)


@settings(max_examples=200)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_holes_have_the_grids_shape_and_at_least_one_cell(h: int, w: int, seed: int):
    holes = sample_holes((h, w), seeded(seed))
    assert holes.shape == (h, w) and holes.dtype == torch.bool and holes.any()
    assert torch.equal(holes, sample_holes((h, w), seeded(seed)))


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (7, 1), (2, 2)])
def test_tiny_grids_have_holes_too(grid: tuple[int, int]):
    sizes = Counter(int(sample_holes(grid, seeded(seed)).sum()) for seed in range(300))
    assert set(sizes) == set(range(1, grid[0] * grid[1] + 1))


def is_box(cells: Tensor) -> bool:
    """Whether the cells are a whole rectangle."""
    rows, columns = (np.flatnonzero(cells.any(axis)) for axis in (1, 0))
    return len(rows) > 0 and bool(cells[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all())


def kind_of(holes: Tensor) -> str:
    if is_box(holes):
        return "side" if is_box(~holes) else "rectangle"
    return "around" if is_box(~holes) else "stroke"


def test_every_kind_of_hole_comes_often_and_everywhere():
    drawn = [sample_holes((8, 8), seeded(seed)) for seed in range(2000)]
    kinds = Counter(map(kind_of, drawn))
    assert min(kinds[kind] for kind in ("rectangle", "around", "side", "stroke")) > 0.15 * len(drawn), kinds
    share = torch.stack(drawn).float().mean(0)  # [8, 8] how often each cell is to be redrawn
    assert 0.25 < share.min() and share.max() < 0.6, share
    sides = [
        (holes[0].all(), holes[-1].all(), holes[:, 0].all(), holes[:, -1].all())
        for holes in drawn
        if kind_of(holes) == "side"
    ]
    assert all(sum(bool(side[i]) for side in sides) > 50 and all(sum(side) == 1 for side in sides) for i in range(4))
