"""The CM3 objective: spans, rotation, and the way back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3.config import CM3Config
from cm3.masking import all_segments, rotate, sample_spans, segments, span_count, text_segments, unrotate
from cm3.vocab import Vocab

VOCAB = Vocab.from_config(CM3Config.preset("tiny"))
T, C = VOCAB.first_text, VOCAB.first_code
DOCUMENT = [1, T, T + 1, T + 2, 2, 3, C, C + 1, C + 2, C + 3, 4, 2, T + 3, T + 4, 1]
#           0  1  2      3      4  5  6  7      8      9      10 11 12    13     14

texts = st.lists(st.integers(T, C - 1), min_size=1, max_size=8)
pictures = st.lists(st.integers(C, len(VOCAB) - 1), min_size=4, max_size=4).map(lambda codes: [3, *codes, 4])
documents = st.lists(texts | pictures, max_size=4).map(lambda items: [1, *(id for item in items for id in item), 1])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_example_of_the_paper():
    ids, loss_mask = rotate(DOCUMENT, [(2, 4)], VOCAB)
    assert ids == [1, T, 5, 2, 3, C, C + 1, C + 2, C + 3, 4, 2, T + 3, T + 4, 21, T + 1, T + 2, 1]
    assert loss_mask == [1, 1, 0] + [1] * 14


@settings(max_examples=200)
@given(documents, st.integers(1, 16), st.integers(0, 2**31))
def test_unrotating_undoes_rotating(ids: list[int], count: int, seed: int):
    spans = sample_spans(all_segments(ids, VOCAB), count, seeded(seed))
    rotated, loss_mask = rotate(ids, spans, VOCAB)
    assert unrotate(rotated, VOCAB) == ids
    assert len(rotated) == len(loss_mask) == len(ids) + 2 * len(spans)
    assert [id for id, counts in zip(rotated, loss_mask, strict=True) if not counts] == [
        VOCAB.mask(k) for k in range(len(spans))]
    assert sorted(id for id in rotated if not 5 <= id < 37) == sorted(ids)


@settings(max_examples=200)
@given(documents, st.integers(1, 16), st.integers(0, 2**31))
def test_spans_are_ordered_apart_and_cross_no_border(ids: list[int], count: int, seed: int):
    spans = sample_spans(all_segments(ids, VOCAB), count, seeded(seed))
    assert len(spans) <= count
    assert bool(spans) == any(id >= T for id in ids)
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
    for start, end in spans:
        inside = ids[start:end]
        assert inside
        assert all(map(VOCAB.is_text, inside)) or all(map(VOCAB.is_code, inside))


def test_segments_end_at_special_ids():
    assert all_segments(DOCUMENT, VOCAB) == [(1, 4), (6, 10), (12, 14)]
    assert text_segments(DOCUMENT, VOCAB) == [(1, 4), (12, 14)]
    assert segments(DOCUMENT, VOCAB, VOCAB.is_code) == [(6, 10)]
    assert all_segments([1, 1], VOCAB) == []


def test_spans_stay_where_they_are_allowed():
    generator = seeded(0)
    for _ in range(200):
        for start, end in sample_spans([(1, 4)], 3, generator):
            assert 1 <= start < end <= 4


def test_nothing_allowed_gives_no_span_and_leaves_the_ids():
    assert sample_spans([], 1, seeded(0)) == []
    assert rotate([1, 1], [], VOCAB) == ([1, 1], [1, 1])


def test_the_number_of_spans_follows_the_clamped_poisson():
    counts = [span_count((i + 0.5) / 10_000) for i in range(10_000)]
    assert abs(counts.count(1) / 10_000 - 0.7358) < 1e-3  # P(0) + P(1)
    assert abs(counts.count(2) / 10_000 - 0.1839) < 1e-3
    assert span_count(0.0) == 1 and span_count(1 - 1e-17) == 16


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
