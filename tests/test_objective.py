"""Training rows: the form of each document, and what each token's loss counts."""

from dataclasses import replace

import numpy as np
import pytest

from cm3.masking import unrotate
from cm3.vocab import Vocab
from train.objective import ASK, CM3, DRAW, FREE, KINDS, Objective, Row, choose_forms, training_row

VOCAB = Vocab(64, 300, 32)
WORDS = VOCAB.text_to_ids([5, 6, 7, 8, 9])
CODES = VOCAB.code_to_id(list(range(16)))
PICTURE = [VOCAB.break_, VOCAB.image, *CODES, VOCAB.end_image, VOCAB.eos]
DRAWING = [VOCAB.eos, *WORDS, *PICTURE]
# <eos> p p ANSWER ANSWER p ANSWER <break> ...
ASKING = [VOCAB.eos, *VOCAB.text_to_ids([10, 11, 20, 21, 12, 22]), *PICTURE]
SPANS = [(3, 5), (6, 7)]
PROMPT, ANSWER, FIRST, OTHER = range(1, 5)

ANY = Objective(first_codes=8)


def row(ids: list[int], spans: list[tuple[int, int]], form: int, seed: int = 0, objective: Objective = ANY) -> Row:
    moved = {DRAW: 0, FREE: 1, CM3: 1 + seed % 4, ASK: len(spans)}[form]
    return training_row(ids, spans, form, moved, VOCAB, objective, seed)


def kinds_of(row: Row) -> dict[int, int]:
    """id -> kind, of ids that stand once."""
    return {int(id): int(kind) for id, kind in zip(row.ids, row.kinds, strict=True)}


FORMS = [(DRAWING, [], DRAW), (DRAWING, [], FREE), (DRAWING, [], CM3), (ASKING, SPANS, ASK)]


@pytest.mark.parametrize(("ids", "spans", "form"), FORMS, ids=["draw", "free", "cm3", "ask"])
@pytest.mark.parametrize("seed", range(20))
def test_unrotated_a_row_is_its_document(ids, spans, form: int, seed: int):
    assert unrotate(row(ids, spans, form, seed).ids.tolist(), VOCAB) == ids


@pytest.mark.parametrize(("ids", "spans", "form"), FORMS, ids=["draw", "free", "cm3", "ask"])
@pytest.mark.parametrize("seed", range(20))
def test_masks_and_the_opening_never_count_and_every_code_does(ids, spans, form: int, seed: int):
    out = row(ids, spans, form, seed)
    masks = (out.ids >= VOCAB.first_mask) & (out.ids < VOCAB.first_infill)
    assert not out.weights[masks].any() and not out.kinds[masks].any()
    assert out.weights[0] == out.kinds[0] == 0
    codes = out.ids >= VOCAB.first_code
    assert codes.sum() == 16
    assert np.isin(out.kinds[codes], (FIRST, OTHER)).all() and (out.kinds[codes] == FIRST).sum() == 8
    assert ((out.weights == 0) == (out.kinds == 0)).all()


@pytest.mark.parametrize(("ids", "spans", "form"), FORMS, ids=["draw", "free", "cm3", "ask"])
@pytest.mark.parametrize("seed", range(20))
def test_a_row_is_no_longer_than_its_form_says(ids, spans, form: int, seed: int):
    moved = {DRAW: 0, FREE: 1, CM3: 1 + seed % 4, ASK: len(spans)}[form]
    length = len(row(ids, spans, form, seed).ids)
    assert length <= len(ids) + 2 * moved and (form == CM3 or length == len(ids) + 2 * moved)


def test_a_drawing_reads_from_left_to_right_with_the_picture_in_full_weight():
    out = row(DRAWING, [], DRAW, objective=Objective(prompt=0.25, first_codes=3, first=2.0, code=1.0))
    assert out.ids.tolist() == DRAWING
    expected = [0] + [0.25] * 6 + [0] + [2.0] * 3 + [1.0] * 13 + [0] + [0.25]
    np.testing.assert_array_equal(out.weights, np.array(expected, np.float32))


def test_the_first_codes_of_each_picture_have_their_weight():
    two = [*DRAWING[:-1], VOCAB.break_, *WORDS, *PICTURE]
    kinds = row(two, [], DRAW, objective=Objective(first_codes=5)).kinds
    assert (kinds == FIRST).sum() == 10 and (kinds == OTHER).sum() == 22


def test_without_its_text_a_picture_follows_a_mask_and_the_words_come_last():
    out = row(DRAWING, [], FREE)
    head = [VOCAB.eos, VOCAB.mask(0), *PICTURE[:-1], VOCAB.infill(0)]
    assert out.ids.tolist() == [*head, *WORDS, VOCAB.eos]
    assert out.kinds[len(head) :].tolist() == [ANSWER] * 6  # the words and the <eos> that ends them


def test_answers_and_the_tokens_that_end_them_have_the_weight_of_answers():
    out = row(ASKING, SPANS, ASK, objective=Objective(answer=5.0))
    moved = [VOCAB.infill(0), *ASKING[3:5], VOCAB.infill(1), ASKING[6], VOCAB.eos]
    assert out.ids[-6:].tolist() == moved
    assert out.weights[-5:].tolist() == [5.0] * 5
    assert out.kinds[-5:].tolist() == [ANSWER] * 5


def test_questions_and_markup_before_the_answers_count_little_or_nothing():
    kinds = kinds_of(row(ASKING, SPANS, ASK))
    assert all(kinds[id] == PROMPT for id in (*ASKING[1:3], ASKING[5], VOCAB.break_))
    assert all(kinds[id] == 0 for id in (VOCAB.infill(0), VOCAB.image, VOCAB.end_image, VOCAB.mask(0), VOCAB.mask(1)))


def test_answers_are_moved_whatever_the_shares_say():
    answers, texts = np.array([2, 1, 3]), np.array([1, 1, 1])
    for objective in (Objective(free=1.0), Objective(cm3=1.0, free=0.0), Objective()):
        forms = choose_forms(answers, texts, objective, np.random.default_rng(0))
        assert forms.form.tolist() == [ASK] * 3 and forms.moved.tolist() == [2, 1, 3]


def test_the_forms_have_their_shares():
    none = np.zeros(20_000, int)
    forms = choose_forms(none, none + 1, Objective(free=0.3, cm3=0.2), np.random.default_rng(0))
    shares = [(forms.form == form).mean() for form in (DRAW, FREE, CM3, ASK)]
    assert shares == pytest.approx([0.5, 0.3, 0.2, 0], abs=0.02)
    assert not forms.moved[forms.form == DRAW].any() and (forms.moved[forms.form == FREE] == 1).all()
    random = forms.moved[forms.form == CM3]
    assert random.min() == 1 and random.max() >= 4  # a clamped Poisson number


def test_no_more_texts_move_than_there_are_masks():
    forms = choose_forms(np.zeros(4, int), np.array([0, 3, 16, 40]), Objective(free=1.0), np.random.default_rng(0))
    assert forms.moved.tolist() == [0, 3, 16, 16]
    many = [VOCAB.eos, *(id for i in range(20) for id in (*VOCAB.text_to_ids([i]), *PICTURE[:-1], VOCAB.break_))]
    out = training_row([*many[:-1], VOCAB.eos], [], FREE, 16, VOCAB, ANY, 0)
    assert unrotate(out.ids.tolist(), VOCAB) == [*many[:-1], VOCAB.eos]


def test_evaluation_sees_documents_as_they_read():
    none = np.zeros(100, int)
    assert not choose_forms(none, none + 1, Objective(free=0.5, cm3=0.5).plain(), np.random.default_rng(0)).form.any()
    assert replace(ANY, free=0.0, cm3=0.0) == ANY.plain()


def test_a_seed_gives_the_same_row():
    for one, two in zip(row(DRAWING, [], CM3, 7), row(DRAWING, [], CM3, 7), strict=True):
        np.testing.assert_array_equal(one, two)


def test_every_kind_has_a_name():
    assert len(KINDS) == OTHER
