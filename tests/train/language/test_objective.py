"""Training rows: the form of each document, and what each token's loss counts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cm3.tokens.masking import sample_holes, unrotate
from cm3.tokens.vocab import Vocab
from train.language.objective import KINDS, Form, Forms, Objective, TrainingSequence, choose_forms, training_sequence

VOCAB = Vocab(64, 300, 32)
WORDS = VOCAB.text_to_ids([5, 6, 7, 8, 9])
CODES = VOCAB.code_to_id(list(range(16)))
IMAGE = [VOCAB.break_, VOCAB.image, *CODES, VOCAB.end_image, VOCAB.eos]
DRAWING = [VOCAB.eos, *WORDS, *IMAGE]
# <eos> p p ANSWER ANSWER p ANSWER <break> ...
ASKING = [VOCAB.eos, *VOCAB.text_to_ids([10, 11, 20, 21, 12, 22]), *IMAGE]
SPANS = [(3, 5), (6, 7)]
EDITING = [VOCAB.eos, *WORDS, *IMAGE[:-1], *IMAGE[1:]]  # two images side by side: before and after
GRID = 4, 4
PROMPT, ANSWER, FIRST, OTHER, SOURCE = range(1, 6)

ANY = Objective(first_codes=8)


def moved(spans: list[tuple[int, int]], form: int, seed: int) -> int:
    return {
        Form.LEFT_TO_RIGHT: 0,
        Form.TEXT_MASKED: 1,
        Form.CM3_SPANS: 1 + seed % 4,
        Form.ANSWERS_MASKED: len(spans),
        Form.INPAINTING: seed % 2,
        Form.IMAGE_FIRST: 0,
    }[Form(form)]


def row(
    ids: list[int], spans: list[tuple[int, int]], form: int, seed: int = 0, objective: Objective = ANY
) -> TrainingSequence:
    return training_sequence(ids, spans, form, moved(spans, form, seed), VOCAB, objective, GRID, seed)


def forms_of(answers: np.ndarray, texts: np.ndarray, objective: Objective, images: np.ndarray | None = None) -> Forms:
    images = np.ones_like(answers) if images is None else images
    return choose_forms(answers, texts, images, 16, objective, np.random.default_rng(0))


def kinds_of(row: TrainingSequence) -> dict[int, int]:
    """id -> kind, of ids that stand once."""
    return {int(id): int(kind) for id, kind in zip(row.ids, row.kinds, strict=True)}


SEEDS = st.integers(0, 2**32 - 1)
FORMS = [
    (DRAWING, [], Form.LEFT_TO_RIGHT),
    (DRAWING, [], Form.TEXT_MASKED),
    (DRAWING, [], Form.CM3_SPANS),
    (ASKING, SPANS, Form.ANSWERS_MASKED),
]


@pytest.mark.parametrize(("ids", "spans", "form"), FORMS, ids=["draw", "free", "cm3", "ask"])
@given(seed=SEEDS)
def test_unrotated_a_row_is_its_document(ids, spans, form: int, seed: int):
    assert unrotate(row(ids, spans, form, seed).ids.tolist(), VOCAB) == ids


@pytest.mark.parametrize(("ids", "spans", "form"), FORMS, ids=["draw", "free", "cm3", "ask"])
@given(seed=SEEDS)
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
@given(seed=SEEDS)
def test_a_row_is_no_longer_than_its_form_says(ids, spans, form: int, seed: int):
    length, most = len(row(ids, spans, form, seed).ids), len(ids) + 2 * moved(spans, form, seed)
    assert length <= most and (form == Form.CM3_SPANS or length == most)


def test_a_drawing_reads_from_left_to_right_with_the_image_in_full_weight():
    out = row(
        DRAWING,
        [],
        Form.LEFT_TO_RIGHT,
        objective=Objective(prompt_weight=0.25, first_codes=3, first_code_weight=2.0, code_weight=1.0),
    )
    assert out.ids.tolist() == DRAWING
    expected = [0] + [0.25] * 6 + [0] + [2.0] * 3 + [1.0] * 13 + [0] + [0.25]
    np.testing.assert_array_equal(out.weights, np.array(expected, np.float32))


def test_the_first_codes_of_each_image_have_their_weight():
    two = [*DRAWING[:-1], VOCAB.break_, *WORDS, *IMAGE]
    kinds = row(two, [], Form.LEFT_TO_RIGHT, objective=Objective(first_codes=5)).kinds
    assert (kinds == FIRST).sum() == 10 and (kinds == OTHER).sum() == 22


def test_without_its_text_an_image_follows_a_mask_and_the_words_come_last():
    out = row(DRAWING, [], Form.TEXT_MASKED)
    head = [VOCAB.eos, VOCAB.mask(0), *IMAGE[:-1], VOCAB.infill(0)]
    assert out.ids.tolist() == [*head, *WORDS, VOCAB.eos]
    assert out.kinds[len(head) :].tolist() == [ANSWER] * 6  # the words and the <eos> that ends them


def test_answers_and_the_tokens_that_end_them_have_the_weight_of_answers():
    out = row(ASKING, SPANS, Form.ANSWERS_MASKED, objective=Objective(answer_weight=5.0))
    moved = [VOCAB.infill(0), *ASKING[3:5], VOCAB.infill(1), ASKING[6], VOCAB.eos]
    assert out.ids[-6:].tolist() == moved
    assert out.weights[-5:].tolist() == [5.0] * 5
    assert out.kinds[-5:].tolist() == [ANSWER] * 5


def test_questions_and_markup_before_the_answers_count_little_or_nothing():
    kinds = kinds_of(row(ASKING, SPANS, Form.ANSWERS_MASKED))
    assert all(kinds[id] == PROMPT for id in (*ASKING[1:3], ASKING[5], VOCAB.break_))
    assert all(kinds[id] == 0 for id in (VOCAB.infill(0), VOCAB.image, VOCAB.end_image, VOCAB.mask(0), VOCAB.mask(1)))


def test_answers_are_moved_whatever_the_shares_say():
    answers, texts = np.array([2, 1, 3]), np.array([1, 1, 1])
    for objective in (Objective(text_masked=1.0), Objective(cm3_spans=1.0, text_masked=0.0), Objective()):
        forms = forms_of(answers, texts, objective)
        assert forms.form.tolist() == [Form.ANSWERS_MASKED] * 3 and forms.masked.tolist() == [2, 1, 3]
        assert forms.extra.tolist() == [4, 2, 6]


def test_the_forms_have_their_shares():
    none = np.zeros(20_000, int)
    forms = forms_of(none, none + 1, Objective(text_masked=0.3, cm3_spans=0.2, inpainting=0.1))
    shares = [
        (forms.form == form).mean()
        for form in (
            Form.LEFT_TO_RIGHT,
            Form.TEXT_MASKED,
            Form.CM3_SPANS,
            Form.INPAINTING,
            Form.ANSWERS_MASKED,
            Form.IMAGE_FIRST,
        )
    ]
    assert shares == pytest.approx([0.4, 0.3, 0.2, 0.1, 0, 0], abs=0.02)
    assert (
        not forms.masked[forms.form == Form.LEFT_TO_RIGHT].any()
        and (forms.masked[forms.form == Form.TEXT_MASKED] == 1).all()
    )
    random = forms.masked[forms.form == Form.CM3_SPANS]
    assert random.min() == 1 and random.max() >= 4  # a clamped Poisson number
    without_words = forms.masked[forms.form == Form.INPAINTING] == 1
    assert without_words.mean() == pytest.approx(0.5, abs=0.05)
    assert (forms.extra == 2 * forms.masked + np.where(forms.form == Form.INPAINTING, 18, 0)).all()
    told = forms_of(none + 2, none + 1, Objective(answers_masked=0.7))
    assert [(told.form == form).mean() for form in (Form.ANSWERS_MASKED, Form.IMAGE_FIRST)] == pytest.approx(
        [0.7, 0.3], abs=0.02
    )
    assert (told.extra == np.where(told.form == Form.ANSWERS_MASKED, 4, 1)).all()


def test_only_documents_of_one_image_have_holes():
    images = np.arange(1000) % 4
    forms = forms_of(
        np.zeros(1000, int), np.ones(1000, int), Objective(text_masked=0.0, cm3_spans=0.0, inpainting=1.0), images
    )
    assert (forms.form == np.where(images == 1, Form.INPAINTING, Form.LEFT_TO_RIGHT)).all()
    assert not forms.extra[images != 1].any()


def test_no_more_texts_move_than_there_are_masks():
    forms = forms_of(np.zeros(4, int), np.array([0, 3, 16, 40]), Objective(text_masked=1.0))
    assert forms.masked.tolist() == [0, 3, 16, 16]
    many = [VOCAB.eos, *(id for i in range(20) for id in (*VOCAB.text_to_ids([i]), *IMAGE[:-1], VOCAB.break_))]
    out = training_sequence([*many[:-1], VOCAB.eos], [], Form.TEXT_MASKED, 16, VOCAB, ANY, GRID, 0)
    assert unrotate(out.ids.tolist(), VOCAB) == [*many[:-1], VOCAB.eos]


def test_evaluation_sees_documents_as_they_read():
    none = np.zeros(100, int)
    assert not forms_of(none, none + 1, Objective(text_masked=0.4, cm3_spans=0.3, inpainting=0.3).plain()).form.any()
    assert replace(ANY, text_masked=0.0, cm3_spans=0.0, inpainting=0.0) == replace(ANY, inpainting=0.5).plain()


@given(seed=SEEDS)
def test_the_holes_of_an_image_are_to_be_filled_in_its_second_copy(seed: int):
    """By turns with its words before it, and with a mask in their place and the words behind."""
    out = row(DRAWING, [], Form.INPAINTING, seed)
    ids, masked = out.ids.tolist(), seed % 2
    assert len(ids) == len(DRAWING) + 2 * masked + 18  # as choose_forms says
    start, again = (i for i, id in enumerate(ids) if id == VOCAB.image)
    assert again == start + 18
    assert unrotate(ids[:start] + ids[again:], VOCAB) == DRAWING
    source, whole = ids[start + 1 : again - 1], ids[again + 1 : again + 17]
    holes = np.array(source) == VOCAB.mask(0)
    generator = torch.Generator().manual_seed(seed)
    np.testing.assert_array_equal(holes, sample_holes(GRID, generator).flatten().numpy())
    assert holes.any() and all(a == b for a, b, hole in zip(source, whole, holes, strict=True) if not hole)
    assert (VOCAB.mask(0) in ids[:start]) == (VOCAB.infill(0) in ids) == bool(masked)


@given(seed=SEEDS)
def test_of_an_image_with_holes_only_what_is_missing_counts_unless_copies_do_too(seed: int):
    objective = Objective(first_codes=5, first_code_weight=2.0, code_weight=1.0, source_code_weight=0.25)
    out = row(DRAWING, [], Form.INPAINTING, seed, objective)
    start, again = np.flatnonzero(out.ids == VOCAB.image).tolist()
    source, whole = slice(start + 1, start + 17), slice(again + 1, again + 17)
    holes = out.ids[source] == VOCAB.mask(0)
    np.testing.assert_array_equal(out.kinds[source], np.where(holes, 0, SOURCE))
    np.testing.assert_array_equal(out.weights[source], np.where(holes, 0, 0.25).astype(np.float32))
    np.testing.assert_array_equal(out.kinds[whole], np.where(holes, [FIRST] * 5 + [OTHER] * 11, 0))
    np.testing.assert_array_equal(out.weights[whole] > 0, holes)
    masks = (out.ids >= VOCAB.first_mask) & (out.ids < VOCAB.first_infill)
    assert not out.weights[masks].any() and ((out.weights == 0) == (out.kinds == 0)).all()
    assert out.kinds[-1] == (ANSWER if seed % 2 else PROMPT)
    told = row(DRAWING, [], Form.INPAINTING, seed, replace(objective, copied_code_factor=0.5))
    np.testing.assert_array_equal(told.weights[whole], ([2.0] * 5 + [1.0] * 11) * np.where(holes, 1, 0.5))
    np.testing.assert_array_equal(told.kinds[whole], [FIRST] * 5 + [OTHER] * 11)
    elsewhere = np.delete(np.arange(len(out.ids)), whole)
    np.testing.assert_array_equal(told.weights[elsewhere], out.weights[elsewhere])


def test_an_image_that_another_follows_at_once_is_a_source():
    out = row(
        EDITING,
        [],
        Form.LEFT_TO_RIGHT,
        objective=Objective(first_codes=3, first_code_weight=2.0, code_weight=1.0, source_code_weight=0.25),
    )
    codes = out.ids >= VOCAB.first_code
    assert out.kinds[codes].tolist() == [SOURCE] * 16 + [FIRST] * 3 + [OTHER] * 13
    assert out.weights[codes].tolist() == [0.25] * 16 + [2.0] * 3 + [1.0] * 13
    apart = [*DRAWING[:-1], VOCAB.break_, *WORDS, *IMAGE]
    assert SOURCE not in row(apart, [], Form.LEFT_TO_RIGHT).kinds
    three = [*EDITING[:-1], *IMAGE[1:]]
    assert (row(three, [], Form.LEFT_TO_RIGHT).kinds == SOURCE).sum() == 32


def test_what_is_told_stands_behind_the_image_and_ends_with_a_break():
    out = row(
        ASKING,
        SPANS,
        Form.IMAGE_FIRST,
        objective=Objective(answer_weight=5.0, prompt_weight=0.25, first_codes=16, first_code_weight=1.0),
    )
    text = [VOCAB.break_, *ASKING[1:5], VOCAB.break_, *ASKING[5:7], VOCAB.eos]
    assert out.ids.tolist() == [VOCAB.eos, *IMAGE[1:-1], *text]
    assert len(out.ids) == len(ASKING) + 1  # as choose_forms says
    prompts, answers = [PROMPT] * 3, [ANSWER] * 3  # <break> p p; ANSWER ANSWER and the <break> that ends them
    assert out.kinds.tolist() == [0, 0, *[FIRST] * 16, 0, *prompts, *answers, PROMPT, ANSWER, ANSWER]
    assert out.weights[-9:].tolist() == [0.25] * 3 + [5.0] * 3 + [0.25] + [5.0] * 2


def test_telling_needs_no_other_ids_than_asking():
    for spans in (SPANS, SPANS[:1], [(1, 2), (2, 3)]):
        told = row(ASKING, spans, Form.IMAGE_FIRST).ids.tolist()
        assert sorted(told) == sorted([*ASKING, *[VOCAB.break_] * (len(spans) - 1)])


@pytest.mark.parametrize("form", [Form.CM3_SPANS, Form.INPAINTING])
def test_a_seed_gives_the_same_row(form: int):
    for one, two in zip(row(DRAWING, [], form, 7), row(DRAWING, [], form, 7), strict=True):
        np.testing.assert_array_equal(one, two)


def test_every_kind_has_a_name():
    assert len(KINDS) == SOURCE


def test_images_that_are_asked_about_count_as_much_as_is_wished():
    for form in (Form.ANSWERS_MASKED, Form.IMAGE_FIRST):
        whole, less = (row(ASKING, SPANS, form, objective=Objective(vqa_code_factor=asked)) for asked in (1.0, 0.1))
        codes = whole.ids >= VOCAB.first_code
        assert np.allclose(less.weights[codes], 0.1 * whole.weights[codes]) and whole.weights[codes].any()
        assert (less.weights[~codes] == whole.weights[~codes]).all()
        none = row(ASKING, SPANS, form, objective=Objective(vqa_code_factor=0))
        np.testing.assert_array_equal(none.kinds, np.where(codes, 0, whole.kinds))  # nor are they computed
    drawn = [
        row(DRAWING, [], Form.LEFT_TO_RIGHT, objective=Objective(vqa_code_factor=asked)).weights for asked in (1.0, 0.1)
    ]
    assert (drawn[0] == drawn[1]).all()


def test_answers_without_an_image_stay_in_their_place_and_count_as_answers():
    ids = [VOCAB.eos, *WORDS, *WORDS, VOCAB.eos]
    span = (1 + len(WORDS), 1 + 2 * len(WORDS))
    one, none = np.array([1]), np.array([0])
    forms = choose_forms(one, one, none, 16, Objective(), np.random.default_rng(0))
    assert forms.form == [Form.TEXT_ONLY] and forms.masked == [0] and forms.extra == [0]
    made = training_sequence(
        ids, [span], Form.TEXT_ONLY, 0, VOCAB, Objective(prompt_weight=0.2, answer_weight=3.0), (4, 4), 0
    )
    assert made.ids.tolist() == ids
    expected = [0.0, *[0.2] * len(WORDS), *[3.0] * len(WORDS), 3.0]
    np.testing.assert_allclose(made.weights, expected, rtol=1e-6)


def test_documents_before_the_last_count_by_their_factor():
    one = [*WORDS, *IMAGE]
    ids = [VOCAB.eos, *one, *one]
    whole = training_sequence(ids, [], Form.LEFT_TO_RIGHT, 0, VOCAB, Objective(retrieved_factor=1.0), (4, 4), 0).weights
    less = training_sequence(ids, [], Form.LEFT_TO_RIGHT, 0, VOCAB, Objective(retrieved_factor=0.1), (4, 4), 0).weights
    border = 1 + len(one)
    np.testing.assert_allclose(less[:border], whole[:border] * np.float32(0.1), rtol=1e-6)
    np.testing.assert_array_equal(less[border:], whole[border:])
    assert (whole[border:] > 0).any()
