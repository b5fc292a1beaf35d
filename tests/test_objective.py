"""Training rows: the form of each document, and what each token's loss counts."""

from dataclasses import replace

import numpy as np
import pytest

from cm3.masking import unrotate
from cm3.vocab import Vocab
from train.objective import KINDS, Objective, Row, training_row

VOCAB = Vocab(64, 300, 32)
WORDS = VOCAB.text_to_ids([5, 6, 7, 8, 9])
CODES = VOCAB.code_to_id(list(range(16)))
PICTURE = [VOCAB.break_, VOCAB.image, *CODES, VOCAB.end_image, VOCAB.eos]
DRAW = [VOCAB.eos, *WORDS, *PICTURE]
# <eos> p p ANSWER ANSWER p ANSWER <break> ...
ASK = [VOCAB.eos, *VOCAB.text_to_ids([10, 11, 20, 21, 12, 22]), *PICTURE]
SPANS = [(3, 5), (6, 7)]
PROMPT, ANSWER, FIRST, OTHER = range(1, 5)

ANY = Objective(first_codes=8)
LEFT_TO_RIGHT, FREE, RANDOM = (replace(ANY, free=free, cm3=cm3) for free, cm3 in ((0, 0), (1, 0), (0, 1)))


def row(ids: list[int], spans: list[tuple[int, int]], objective: Objective, seed: int = 0) -> Row:
    return training_row(ids, spans, VOCAB, objective, np.random.default_rng(seed))


def kinds_of(row: Row) -> dict[int, int]:
    """id -> kind, of ids that stand once."""
    return {int(id): int(kind) for id, kind in zip(row.ids, row.kinds, strict=True)}


FORMS = [(DRAW, [], LEFT_TO_RIGHT), (DRAW, [], FREE), (DRAW, [], RANDOM), (ASK, SPANS, ANY)]


@pytest.mark.parametrize(("ids", "spans", "objective"), FORMS, ids=["draw", "free", "cm3", "ask"])
@pytest.mark.parametrize("seed", range(20))
def test_unrotated_a_row_is_its_document(ids, spans, objective: Objective, seed: int):
    assert unrotate(row(ids, spans, objective, seed).ids.tolist(), VOCAB) == ids


@pytest.mark.parametrize(("ids", "spans", "objective"), FORMS, ids=["draw", "free", "cm3", "ask"])
@pytest.mark.parametrize("seed", range(20))
def test_masks_and_the_opening_never_count_and_every_code_does(ids, spans, objective: Objective, seed: int):
    out = row(ids, spans, objective, seed)
    masks = (out.ids >= VOCAB.first_mask) & (out.ids < VOCAB.first_infill)
    assert not out.weights[masks].any() and not out.kinds[masks].any()
    assert out.weights[0] == out.kinds[0] == 0
    codes = out.ids >= VOCAB.first_code
    assert codes.sum() == 16
    assert np.isin(out.kinds[codes], (FIRST, OTHER)).all() and (out.kinds[codes] == FIRST).sum() == 8
    assert ((out.weights == 0) == (out.kinds == 0)).all()


def test_a_drawing_reads_from_left_to_right_with_the_picture_in_full_weight():
    out = row(DRAW, [], Objective(free=0, cm3=0, prompt=0.25, first_codes=3, first=2.0, code=1.0))
    assert out.ids.tolist() == DRAW
    expected = [0] + [0.25] * 5 + [0, 0] + [2.0] * 3 + [1.0] * 13 + [0] + [0.25]
    np.testing.assert_array_equal(out.weights, np.array(expected, np.float32))


def test_without_its_text_a_picture_follows_a_mask_and_the_words_come_last():
    out = row(DRAW, [], FREE)
    head = [VOCAB.eos, VOCAB.mask(0), *PICTURE[:-1], VOCAB.infill(0)]
    assert out.ids.tolist() == [*head, *WORDS, VOCAB.eos]
    assert out.kinds[len(head) :].tolist() == [ANSWER] * 6  # the words and the <eos> that ends them


def test_answers_and_the_tokens_that_end_them_have_the_weight_of_answers():
    out = row(ASK, SPANS, Objective(answer=5.0))
    moved = [VOCAB.infill(0), *ASK[3:5], VOCAB.infill(1), ASK[6], VOCAB.eos]
    assert out.ids[-6:].tolist() == moved
    assert out.weights[-5:].tolist() == [5.0] * 5
    assert out.kinds[-5:].tolist() == [ANSWER] * 5


def test_questions_and_markup_before_the_answers_count_little_or_nothing():
    kinds = kinds_of(row(ASK, SPANS, Objective()))
    assert all(kinds[id] == PROMPT for id in (ASK[1], ASK[2], ASK[5]))
    assert all(kinds[id] == 0 for id in (VOCAB.break_, VOCAB.image, VOCAB.end_image, VOCAB.mask(0), VOCAB.mask(1)))


def test_answers_are_moved_whatever_the_shares_say():
    assert row(ASK, SPANS, Objective(free=1.0)).ids.tolist() == row(ASK, SPANS, LEFT_TO_RIGHT).ids.tolist()


def test_the_forms_have_their_shares():
    objective, forms = Objective(free=0.3, cm3=0.2), []
    rng = np.random.default_rng(0)
    for _ in range(1000):
        out = training_row(DRAW, [], VOCAB, objective, rng).ids.tolist()
        forms.append("draw" if out == DRAW else "free" if out[1:3] == [VOCAB.mask(0), VOCAB.break_] else "cm3")
    assert forms.count("draw") / 1000 == pytest.approx(0.5, abs=0.05)
    assert forms.count("free") / 1000 == pytest.approx(0.3, abs=0.05)


def test_a_seed_gives_the_same_row():
    for one, two in zip(row(DRAW, [], RANDOM, 7), row(DRAW, [], RANDOM, 7), strict=True):
        np.testing.assert_array_equal(one, two)


def test_every_kind_has_a_name():
    assert len(KINDS) == OTHER
