"""Documents packed into rows: each once an epoch, the same whatever was asked for before, little padding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3.tokens.masking import unrotate
from packing import COUNT, epoch_of, like_captioned_images, rows_of, same, whole_rows
from train.documents.shards import Shards
from train.language.objective import Form, Objective
from train.language.packing import Position, Steps, load, pack


def with_a_longer_tail(count: int, seed: int = 0) -> list[int]:
    """The same limits, 84.4 in the mean."""
    return np.clip(np.round(70 + np.random.default_rng(seed).gamma(2.0, 7.2, count)), 70, 114).astype(int).tolist()


def log_normal(count: int, seed: int = 0) -> list[int]:
    return np.clip(np.random.default_rng(seed).lognormal(4.4, 0.8, count), 8, 512).astype(int).tolist()


@settings(max_examples=50)
@given(st.lists(st.integers(1, 100), max_size=60), st.integers(100, 300))
def test_packing_places_each_item_once_and_fills_no_row_beyond_its_size(lengths: list[int], size: int):
    rows = pack(lengths, size)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert all(row and sum(lengths[item] for item in row) <= size for row in rows)


@pytest.mark.parametrize("size", [256, 512])
def test_less_than_2_percent_of_captioned_images_rows_is_padding(size: int):
    lengths = like_captioned_images(4096)
    assert min(lengths) >= 70 and max(lengths) <= 114 and abs(np.mean(lengths) - 84) < 0.5
    assert sum(lengths) > 0.98 * size * len(pack(lengths, size))


def test_rows_of_three_documents_are_packed_almost_as_well_as_three_in_each_row_would_be():
    lengths = with_a_longer_tail(4096)
    assert len(pack(lengths, 256)) < 1.02 * len(lengths) / 3
    assert sum(lengths) > 0.99 * 512 * len(pack(lengths, 512))


@pytest.mark.parametrize("size", [512, 1024])
def test_less_than_2_percent_of_rows_is_padding_where_lengths_differ_much(size: int):
    lengths = log_normal(4096)
    assert sum(lengths) > 0.98 * size * len(pack(lengths, size))


def test_each_document_comes_once_an_epoch_and_in_another_order_in_the_next(shards: Shards):
    rows = rows_of(shards)
    first, second = epoch_of(rows, 0), epoch_of(rows, 1)
    assert sorted(first) == sorted(second) == list(range(COUNT))
    assert first != second
    assert {*first[:60]} != {*second[:60]}  # not the same windows in another order of rows


def test_a_row_holds_its_documents_whole_each_with_positions_of_its_own(shards: Shards):
    rows = rows_of(shards, Objective(text_masked=0.2, cm3_spans=0.2, inpainting=0.3, answers_masked=1.0))
    vocab, seen, forms = rows.vocab, 0, set()
    for window in range(rows.per_epoch):
        plan = rows.plan(window)
        for number, places in enumerate(plan.sequences):
            ids, weights, kinds, positions, bad = rows.sequence(window, number)
            starts = [*np.flatnonzero(positions == 0).tolist(), rows.length]
            parts = [slice(a, b) for a, b in zip(starts, starts[1:], strict=False)]
            assert not bad and len(parts) - len(places) in (0, 1)  # the last may be padding
            for part, place in zip(parts, places, strict=False):
                form, document = int(plan.forms.form[place]), shards.document(int(plan.documents[place])).ids
                row = ids[part].tolist()
                if form == Form.INPAINTING:  # without its first image, which has the holes
                    row = [*row[: row.index(vocab.image)], *row[row.index(vocab.end_image) + 1 :]]
                assert unrotate(row, vocab) == document
                size = len(document) + int(plan.forms.extra[place])
                assert part.stop - part.start <= size and (form == Form.CM3_SPANS or part.stop - part.start == size)
                forms.add(form)
                assert positions[part].tolist() == list(range(part.stop - part.start))
                assert weights[part][0] == 0 and kinds[part][0] == 0 and weights[part].any()
                seen += 1
            for part in parts[len(places) :]:
                assert (ids[part] == vocab.pad).all() and not weights[part].any() and not kinds[part].any()
    assert seen == COUNT and len(forms) == 5


def test_told_answers_are_packed_as_long_as_they_are(shards: Shards):
    rows = rows_of(shards, Objective(text_masked=0.0, cm3_spans=0.0, answers_masked=0.0))
    for window in range(rows.per_epoch):
        plan = rows.plan(window)
        assert not plan.forms.extra.any() and not plan.forms.masked.any()  # one answer each, so no more <break>
        for number, places in enumerate(plan.sequences):
            ids, *_ = rows.sequence(window, number)
            stored = [id for place in places for id in shards.document(int(plan.documents[place])).ids]
            assert sorted(ids[ids != rows.vocab.pad].tolist()) == sorted(stored)


def test_rows_are_functions_of_seed_and_window_whatever_was_asked_for_before(shards: Shards):
    objective = Objective(text_masked=0.2, cm3_spans=0.2, inpainting=0.2)
    warm, cold = rows_of(shards, objective), rows_of(shards, objective)
    for window in range(12):
        warm.plan(window)
    places = [(0, 1), (7, 2), (11, 0)]
    for place in places:
        for one, two in zip(warm.sequence(*place), cold.sequence(*place), strict=True):
            np.testing.assert_array_equal(one, two)
    other = rows_of(shards, objective, seed=1)
    assert not any((warm.sequence(*place)[0] == other.sequence(*place)[0]).all() for place in places)


def test_random_spans_of_a_document_differ_between_epochs(shards: Shards):
    rows = rows_of(shards, Objective(text_masked=0.0, cm3_spans=1.0), window=COUNT)

    def variants(epoch: int) -> dict[int, list[int]]:
        plan, out = rows.plan(epoch), {}
        for number, places in enumerate(plan.sequences):
            ids, *_, positions, _ = rows.sequence(epoch, number)
            starts = [*np.flatnonzero(positions == 0).tolist(), rows.length]
            for i, place in enumerate(places):
                out[int(plan.documents[place])] = ids[starts[i] : starts[i + 1]].tolist()
        return out

    first, second = variants(0), variants(1)
    asked = rows.answers > 0
    assert all(first[i] == second[i] for i in np.flatnonzero(asked).tolist())
    assert np.mean([first[i] != second[i] for i in np.flatnonzero(~asked).tolist()]) > 0.9


@settings(max_examples=15)
@given(st.integers(0, 60), st.sampled_from([1, 2, 4]))
def test_resuming_at_any_position_gives_the_same_steps(shards: Shards, first: int, world: int):
    rows = rows_of(shards, Objective(text_masked=0.2, cm3_spans=0.2, inpainting=0.2))
    rank = first % world
    steps = Steps(rows, 8, 2, rank=rank, world=world)
    position = steps[first - 1].position if first else Position()
    resumed = Steps(rows_of(shards, rows.objective), 8, 2, first, position, rank, world)
    assert all(same(steps[step], resumed[step]) for step in range(first, first + 3))


def test_steps_that_were_skipped_change_nothing(shards: Shards):
    rows = rows_of(shards)
    one, two = Steps(rows, 8, 8), Steps(rows, 8, 8)
    each = [one[step] for step in range(40)]
    assert same(two[17], each[17]) and same(two[39], each[39])


def test_a_position_that_another_number_of_ranks_reached_is_the_same(shards: Shards):
    rows = rows_of(shards)
    positions = [
        [Steps(rows, 8, 1, rank=world - 1, world=world)[step].position for step in (0, 30)] for world in (1, 2, 4)
    ]
    assert positions[0] == positions[1] == positions[2]
    assert positions[0][1].window >= rows.per_epoch  # it went through the data
    assert positions[0][1].documents > COUNT


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_ranks_rows_together_are_one_ranks_rows(shards: Shards, world: int):
    rows = rows_of(shards, Objective())
    one = Steps(rows, 8, 8)
    ranks = [Steps(rows, 8, 3, rank=rank, world=world) for rank in range(world)]
    for step in range(20):
        alone, parts = one[step], [each[step] for each in ranks]
        together = [torch.cat(arrays) for arrays in zip(*map(whole_rows, parts), strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(together, whole_rows(alone), strict=True))
        assert {part.digest for part in parts} == {alone.digest}


def test_processes_that_load_ahead_give_the_same_steps(shards: Shards):
    def steps() -> Steps:
        rows = rows_of(shards, Objective(text_masked=0.2, cm3_spans=0.2, inpainting=0.2))
        return Steps(rows, 4, 3, 5, Steps(rows, 4, 3)[4].position)

    here, there = list(load(steps(), 25, 0)), list(load(steps(), 25, 2))
    assert len(here) == len(there) == 20
    assert all(same(one, two) for one, two in zip(here, there, strict=True))


@pytest.mark.parametrize(("micro", "sizes"), [(1, [1] * 8), (3, [3, 3, 2]), (8, [8]), (99, [8])])
def test_micro_batches_hold_the_rows_of_the_step_in_order(shards: Shards, micro: int, sizes: list[int]):
    rows = rows_of(shards)
    step = Steps(rows, 8, micro)[0]
    assert [len(part.ids) for part in step.parts] == sizes
    assert all(torch.equal(a, b) for a, b in zip(whole_rows(step), whole_rows(Steps(rows, 8, 8)[0]), strict=True))
    dtypes = [torch.int64, torch.float32, torch.int64, torch.int64]
    assert [array.dtype for array in step.parts[0]] == dtypes and step.parts[0].ids.shape[1] == rows.length
