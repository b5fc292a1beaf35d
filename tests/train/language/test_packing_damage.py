"""Documents that cannot be packed: too long, of a bad shard, damaged."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from cm3.tokens.vocab import Vocab
from documents import write_shards
from packing import COUNT, PLAIN, epoch_of, rows_of, same, whole_rows
from train.documents.shards import Shards
from train.language.objective import Objective
from train.language.packing import PackedSequences, Steps, load


def test_digests_tell_other_documents_and_other_orders_apart(shards: Shards):
    def digests(seed: int) -> list[int]:
        steps = Steps(rows_of(shards, seed=seed), 8, 8)
        return [steps[step].digest for step in range(10)]

    assert digests(0) == digests(0)
    assert len({*digests(0), *digests(1)}) == 20


def order(rows: PackedSequences, without: Sequence[int] = ()) -> list[int]:
    return [int(i) for i in rows._order(0) if i not in set(without)]


def test_documents_that_are_too_long_are_left_out_and_the_others_keep_their_windows(shards: Shards):
    long, short = rows_of(shards), rows_of(shards, length=50)
    needed = shards.lengths + 2 * short.answers  # an answer that moves brings two tokens
    fits = {*np.flatnonzero(needed <= 50).tolist()}
    assert 0 < len(fits) < COUNT and short.too_long == COUNT - len(fits)
    assert Counter(epoch_of(short, 0)) == Counter(fits)
    for window in range(short.per_epoch):
        many, few = long.plan(window), short.plan(window)
        np.testing.assert_array_equal(many.documents, few.documents)
        assert few.skipped == len(many.documents) - sum(map(len, few.sequences))


def test_documents_of_a_bad_shard_are_left_out_and_the_others_keep_their_order(folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "hurt")
    path = tmp_path / "hurt" / "train-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 255
    path.write_bytes(content)
    hurt, well = (rows_of(Shards(place, max_bad=0.5)) for place in (tmp_path / "hurt", folder))
    assert list(hurt.shards.bad) == ["train-00001.safetensors"]
    assert sorted(epoch_of(hurt, 0)) == [*range(100), *range(200, 300)]
    assert order(hurt, range(100, 200)) == order(well, range(100, 200))
    assert not any(Steps(hurt, 8, 8)[step].bad for step in range(1))


def test_rows_that_hold_no_document_at_all_are_refused(folder: Path, vq_folder: Path, tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"none of the 300 documents fits into a sequence of 20 tokens; the shortest has 3"
    ):
        rows_of(Shards(folder), length=20)
    asked = write_shards(tmp_path, vq_folder, [40] * 5, asked=1.0)
    with pytest.raises(
        ValueError, match="none of the 5 documents fits into a sequence of 40 tokens; the shortest has 42"
    ):
        rows_of(Shards(asked), length=40)  # each answer that moves brings two tokens
    assert len(rows_of(Shards(asked), length=42).plan(0).sequences) == 5


def damaged(folder: Path, out: Path, places: Sequence[int], ids: Sequence[int]) -> Shards:
    """Shards that are not verified, with ids of the first one changed."""
    shutil.copytree(folder, out)
    path = out / "train-00000.safetensors"
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[:8], "little")
    start = 8 + size + json.loads(content[8 : 8 + size])["ids"]["data_offsets"][0]
    for place, id in zip(places, ids, strict=True):
        content[start + 2 * place : start + 2 * place + 2] = int(id).to_bytes(2, "little")
    path.write_bytes(content)
    return Shards(out, verify=False)


def test_a_document_with_an_id_outside_the_vocabulary_is_named_and_left_out(folder: Path, tmp_path: Path):
    shards = Shards(folder)
    hurt = damaged(folder, tmp_path / "hurt", [int(shards.lengths[:7].sum()) + 5], [60_000])
    rows, well = rows_of(hurt), rows_of(shards)
    steps, one = Steps(rows, 8, 8), Steps(well, 8, 8)
    bad = []
    for step in range(-(-sum(len(rows.plan(w).sequences) for w in range(rows.per_epoch)) // 8)):
        made, other = steps[step], one[step]
        bad += made.bad
        assert made.digest == other.digest and made.position == other.position
        assert int(torch.cat([part.ids for part in made.parts]).max()) < len(shards.vocab())
        if not made.bad:
            assert same(made, other)
    assert bad[:1] == [7] and {*bad} == {7}


@pytest.mark.parametrize("seed", range(3))
def test_ids_damaged_anywhere_crash_nothing_and_leave_rows_of_whole_documents(folder: Path, tmp_path: Path, seed: int):
    shards, rng = Shards(folder), np.random.default_rng(seed)
    size = int(shards.lengths[:100].sum())
    places = rng.choice(size, 400, replace=False)
    ids = np.where(rng.random(400) < 0.5, rng.integers(0, 64, 400), rng.integers(0, 2**16, 400))
    hurt = damaged(folder, tmp_path / "hurt", places.tolist(), ids.tolist())
    rows = rows_of(hurt, Objective(text_masked=0.2, cm3_spans=0.3, inpainting=0.3, answers_masked=0.5))
    bad = set()
    for window in range(rows.per_epoch):
        for number in range(len(rows.plan(window).sequences)):
            row, weights, _, positions, more = rows.sequence(window, number)
            bad |= {*more}
            assert row.max() < len(rows.vocab) and positions[0] == 0
            assert (np.diff(positions)[positions[1:] != 0] == 1).all() and np.isfinite(weights).all()
    wrong = {i for i in range(100) if max(hurt.document(i).ids) >= len(rows.vocab)}
    assert wrong and wrong <= bad <= {*range(100)}


@pytest.mark.parametrize(
    "objective", [PLAIN, Objective(inpainting=1.0, text_masked=0.0, cm3_spans=0.0), Objective(answers_masked=0.0)]
)
@pytest.mark.parametrize("asked", [0.0, 1.0])
def test_images_without_a_beginning_or_an_end_are_left_out_or_harmless(
    vq_folder: Path, tmp_path: Path, asked: float, objective: Objective
):
    folder = write_shards(tmp_path / "well", vq_folder, [40] * 4, asked=asked)
    vocab, ids = Shards(folder).vocab(), Shards(folder).document(0).ids
    at = ids.index(vocab.image)
    places = [at - 1, 40 + at, 80 + ids.index(vocab.end_image), 120 + at + 3]
    hurt = damaged(folder, tmp_path / "hurt", places, [vocab.end_image, vocab.eos, vocab.break_, vocab.image])
    rows = rows_of(hurt, objective)
    made = [rows.sequence(0, number) for number in range(len(rows.plan(0).sequences))]
    assert {document for row in made for document in row[4]} <= {*range(4)}
    assert all(np.isfinite(row[1]).all() for row in made)


def test_a_row_whose_documents_are_all_damaged_is_padding(vq_folder: Path, tmp_path: Path):
    folder = write_shards(tmp_path / "well", vq_folder, [40] * 4, asked=0.0)
    hurt = damaged(folder, tmp_path / "hurt", [5, 45, 85, 125], [60_000] * 4)
    rows = rows_of(hurt, length=90)
    ids, weights, kinds, positions, bad = rows.sequence(0, 0)
    assert len(bad) == 2 and not ids.any() and not weights.any() and not kinds.any()
    assert positions.tolist() == list(range(90))


def test_the_vocabulary_is_that_of_the_shards(shards: Shards):
    ids = whole_rows(Steps(rows_of(shards), 8, 8)[0])[0]
    vocab: Vocab = shards.vocab()
    assert (ids >= vocab.first_code).any() and int(ids.max()) < len(vocab)
    assert sum(1 for _ in islice(load(Steps(rows_of(shards), 8, 8), 3, 0), 5)) == 3
