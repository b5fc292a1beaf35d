"""The grammar: whatever is drawn among the legal ids, a document comes out."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3.model.config import CM3Config
from cm3.tokens.document import Document, Image, Mask, Text
from cm3.tokens.document_state import DocumentState, Section
from cm3.tokens.encoding import from_ids, image_prompt_ids, prompt_ids
from cm3.tokens.grammar import Grammar, Legal, allowed
from cm3.tokens.text_tokenizer import TextTokenizer
from cm3.tokens.vocab import Vocab

GRID, CODES = (2, 2), 4
VOCAB = Vocab.from_config(CM3Config.preset("tiny"))
TOKENIZER = TextTokenizer.train([], vocab_size=256)
T, C = VOCAB.first_text, VOCAB.first_code
IMAGE = [3, C, C + 1, C + 2, C + 3, 4]


def play(state: Grammar, seed: int, special: float = 0.3) -> list[int]:
    """A row drawn evenly among what is legal: special ids with the given probability, where there is a choice."""
    rng = random.Random(seed)
    new = []
    while not state.done:
        legal = state.legal()
        free = ([rng.randrange(T, T + 256)] if legal.text else []) + (
            [rng.randrange(C, len(VOCAB))] if legal.codes else []
        )
        assert free or legal.special, "nothing is legal"
        if legal.special and (not free or rng.random() < special):
            id = rng.choice(legal.special)
        else:
            id = rng.choice(free)
        assert allowed([state])[0, id]
        if state.advance(id):
            new.append(id)
    return new


@pytest.mark.parametrize("prompt", [image_prompt_ids(Document((Text("a"),)), VOCAB, TOKENIZER), [1, 5, 2, 3], [1, 3]])
def test_an_image_has_exactly_its_codes_then_closes(prompt: list[int]):
    new = play(Grammar(VOCAB, prompt, "image", CODES), 0)
    assert len(new) == CODES + 1
    assert all(map(VOCAB.is_code, new[:-1]))
    assert new[-1] == VOCAB.end_image


@pytest.mark.parametrize(("prompt", "opening"), [([1], [3]), ([1, T], [2, 3]), ([1, T, 2], [3]), ([1, *IMAGE], [3])])
def test_what_leads_to_the_image_is_forced(prompt: list[int], opening: list[int]):
    new = play(Grammar(VOCAB, prompt, "image", CODES), 0)
    assert new[: len(opening)] == opening
    assert len(new) == len(opening) + CODES + 1


def test_an_image_begun_is_finished():
    assert len(play(Grammar(VOCAB, [1, 3, C, C + 1, C + 2], "image", CODES), 0)) == 2
    assert play(Grammar(VOCAB, [1, *IMAGE[:-1]], "image", CODES), 0) == [4]


@settings(max_examples=100)
@given(st.integers(0, 10_000))
def test_text_is_text_until_a_stop_that_is_not_part_of_it(seed: int):
    for prompt in ([1], [1, T], [1, *IMAGE, 2], [1, T, 5, 2, *IMAGE, 21], [1, 5, T, 6, 21, T, 22]):
        new = play(Grammar(VOCAB, prompt, "text", CODES, room=20), seed)
        assert all(map(VOCAB.is_text, new))
        assert len(new) <= 20


def test_the_stop_of_an_infill_is_the_next_infill_or_the_end():
    assert Grammar(VOCAB, [1, T, 5, 2, *IMAGE, 21], "text", CODES).legal() == Legal(text=True, special=(1,))
    assert Grammar(VOCAB, [1, 5, T, 6, 21, T], "text", CODES).legal() == Legal(text=True, special=(22,))
    assert Grammar(VOCAB, [1, T], "text", CODES).legal() == Legal(text=True, special=(2, 1))


@settings(max_examples=200)
@given(
    st.integers(0, 100_000),
    st.integers(1, 40),
    st.sampled_from(
        [
            Document(),
            Document((Text("ab"),)),
            Document((Image(((0, 1), (2, 3))),)),  # pyright: ignore
            Document((Text("Caption: "), Mask(), Image(((0, 1), (2, 3))))),  # pyright: ignore
            Document((Mask(), Text("a"), Mask(), Image(((0, 1), (2, 3))), Mask())),  # pyright: ignore
        ]
    ),
)
def test_every_document_can_be_read_back_and_keeps_to_its_room(seed: int, room: int, document: Document):
    prompt = prompt_ids(document, VOCAB, TOKENIZER)
    new = play(Grammar(VOCAB, prompt, "document", CODES, room), seed, special=0.5)
    assert 1 <= len(new) <= room
    back = from_ids([*prompt, *new], VOCAB, TOKENIZER, GRID)
    if new[-1] == VOCAB.eos:
        assert not any(isinstance(item, Mask) for item in back)


def test_documents_of_all_kinds_are_reached():
    found = set()
    for seed in range(200):
        new = play(Grammar(VOCAB, [1], "document", CODES, 60), seed, 0.5)
        found.add("".join("I" if isinstance(item, Image) else "T" for item in from_ids(new, VOCAB, TOKENIZER, GRID)))
    assert {"T", "I", "TI", "IT", "II", "TIT"} <= found


@settings(max_examples=50)
@given(st.integers(0, 10_000))
def test_masks_in_an_image_are_filled_with_the_codes_it_lacks(seed: int):
    one = [1, T, 2, 3, C, 5, C + 1, 4, 21]
    assert len(play(Grammar(VOCAB, one, "image", CODES), seed)) == 2
    two = [1, T, 5, 2, 3, 6, C, 7, 4, 21]  # a text mask, and two in the image that share three codes
    new = play(Grammar(VOCAB, two, "document", CODES, 50), seed)
    document = from_ids([*two, *new], VOCAB, TOKENIZER, GRID)
    assert [type(item) for item in document] == [Text, Image]
    assert document[1].codes.flatten().tolist().count(0) >= 1


HOLED = [3, C, 5, 5, C + 3, 4]


@pytest.mark.parametrize(
    "prompt",
    [
        [1, *HOLED],
        [1, *HOLED, 3],
        [1, *HOLED, 3, C],
        [1, T, 2, *HOLED, 3],
        [1, 5, 2, *HOLED, 3],  # a mask for the text
        [1, 3, 5, 5, 5, 5, 4, 3],
        [1, 3, C, C + 1, C + 2, 5, 4, 3],
        [1, *IMAGE, *HOLED, *HOLED, 3],
    ],
)
def test_a_whole_image_is_drawn_after_one_with_holes(prompt: list[int]):
    new = play(Grammar(VOCAB, prompt, "image", CODES), 0)
    held = sum(map(VOCAB.is_code, prompt[len(prompt) - prompt[::-1].index(4) :]))
    assert [id for id in new if id != 3] == [*filter(VOCAB.is_code, new), 4]
    assert sum(map(VOCAB.is_code, new)) == CODES - held


def test_an_image_of_many_holes_has_more_of_them_than_there_are_mask_numbers():
    prompt = [1, 3, C, *[5] * 62, C, 4, 3]
    assert len(play(Grammar(VOCAB, prompt, "image", 64), 0)) == 65
    done = play(Grammar(VOCAB, [*prompt, *[C] * 64, 4], "document", 64, room=100), 0)
    assert not any(map(VOCAB.is_infill, done))


def test_text_is_infilled_beside_an_image_with_holes():
    prompt = [1, 5, 2, *HOLED, *IMAGE, 21]  # as training writes it: masked text, a source with holes, the image
    state = Grammar(VOCAB, prompt, "document", CODES)
    assert state.legal() == Legal(text=True, special=(1,))


def test_a_mask_that_stands_several_times_may_still_be_filled():
    new = play(Grammar(VOCAB, [1, *HOLED, 21], "document", CODES, 50), 0)
    assert len(new) == 3 and all(map(VOCAB.is_code, new[:2])) and new[2] == VOCAB.eos


@settings(max_examples=50)
@given(
    st.integers(0, 10_000),
    st.lists(st.none() | st.integers(C, len(VOCAB) - 1), min_size=CODES, max_size=CODES),
    st.integers(0, CODES),
    st.sampled_from([[1, 3], [1, T], [1, *HOLED, 3], [1, *IMAGE], [1, T, 2, *IMAGE, 3]]),
)
def test_given_codes_are_forced_and_the_rest_is_free(seed: int, codes: list[int | None], begun: int, prompt: list[int]):
    held = [id if id is not None else C + 9 for id in codes[:begun]] if prompt[-1] == 3 else []
    state = Grammar(VOCAB, prompt + held, "image", CODES, given=codes)
    drawn, new = [], []
    while not state.done:
        if (id := state.forced()) is None:
            assert state.legal() == Legal(codes=True)
            id = random.Random(seed + len(new)).randrange(C, len(VOCAB))
            drawn.append(id)
        assert state.advance(id)
        new.append(id)
    image = held + [id for id in new if VOCAB.is_code(id)]
    assert len(image) == CODES and new[-1] == VOCAB.end_image
    assert [id for id, fixed in zip(image, codes, strict=True) if fixed is not None] == [*filter(None, codes)]
    assert len(drawn) == codes[len(held) :].count(None)


@pytest.mark.parametrize(
    ("prompt", "mode", "codes", "message"),
    [
        ([1, 3], "image", [C] * 3, "given has 3 codes, but an image has 4"),
        ([1, 3], "image", [], "given has 0 codes, but an image has 4"),
        ([1, 3], "image", [None, None, T, None], "given holds text 0, .* image codes, 384 to 415, or None"),
        ([1, 3], "image", [None, None, len(VOCAB), None], "given holds <unused:416>"),
        ([1, 3], "document", [None] * 4, "mode 'image'"),
        ([1], "text", [None] * 4, "mode 'image'"),
        ([1, *HOLED, 21], "image", [None] * 4, "no mask"),
        ([1, 3, C, C + 1], "image", [C, C + 2, None, None], "id 386 at grid position 1, but the prompt has 385 there"),
    ],
)
def test_given_codes_that_do_not_fit_are_refused(prompt: list[int], mode, codes: list[int | None], message: str):
    with pytest.raises(ValueError, match=message):
        Grammar(VOCAB, prompt, mode, CODES, given=codes)


@settings(max_examples=50)
@given(
    st.integers(0, 10_000),
    st.integers(1, 3),
    st.sampled_from([[1], [1, T, 2]]),
    st.sampled_from(["text", "image", "document"]),
)
def test_images_stand_side_by_side_in_a_prompt(seed: int, images: int, opening: list[int], mode):
    prompt = opening + IMAGE * images
    new = play(Grammar(VOCAB, prompt, mode, CODES, 40), seed)
    if mode == "text":
        assert new[0] == VOCAB.break_ and all(map(VOCAB.is_text, new[1:]))
        return
    back = from_ids([*prompt, *new], VOCAB, TOKENIZER, GRID)
    assert sum(isinstance(item, Image) for item in back) >= images + (mode == "image")


def test_documents_before_the_prompt_are_read_over():
    state = DocumentState(VOCAB, CODES)
    for id in [1, T, 2, *IMAGE, 1, T, 5, 1, T + 1]:
        state.read(id)
    assert state.section is Section.TEXT
    assert not any(map(state.spans.can_open, range(16)))


def test_allowed_is_a_row_for_each_state():
    states = [Grammar(VOCAB, [1, 3], "image", CODES), Grammar(VOCAB, [1], "text", CODES)]
    rows = allowed(states)
    assert rows.shape == (2, len(VOCAB))
    assert rows[0].tolist() == [VOCAB.is_code(id) for id in range(len(VOCAB))]
    assert rows[1].tolist() == [VOCAB.is_text(id) for id in range(len(VOCAB))]


@pytest.mark.parametrize(
    ("prompt", "mode", "message"),
    [
        ([1, 3, C], "text", "inside an image"),
        ([1, T, 5, 21], "image", "in place of a mask"),
        ([1, *IMAGE, 2], "image", "before text"),
        ([1], "drawing", "text, image, document"),
        ([1, C], "document", "code 0 cannot stand here"),
        ([1, 4], "document", "</image> cannot stand here"),
        ([1, 3, 4], "document", "</image> cannot stand here"),
        ([1, 3, C, T], "document", "text 0 cannot stand here"),
        ([1, T, 21], "document", "<infill:0> cannot stand here"),
        ([1, T, 2, T], "document", "text 0 cannot stand here"),
        ([1, 40], "document", "<unused:40> cannot stand here"),
        ([1, 3, *[C] * 4, 5, 4], "document", "</image> cannot stand here"),  # a mask for nothing
        ([1, 3, C, C, C, 5, 6, 4], "image", "</image> cannot stand here"),  # two masks for one code
        ([1, 3, C, 5, 5, 4, 3], "image", "</image> cannot stand here"),  # of three holes two
        ([1, 3, C, 5, 5, 5, 5, 4, 3], "image", "</image> cannot stand here"),
        ([1, 3, C, 5], "image", "inside an image that has masks"),
        ([1, 3, *[C] * 4, 5], "document", "inside an image that has masks"),
        ([1, 6, 21], "text", "<infill:0> cannot stand here"),  # there is a <mask:1> only
    ],
)
def test_a_prompt_that_cannot_be_written_on_is_refused(prompt: list[int], mode, message: str):
    with pytest.raises(ValueError, match=message):
        Grammar(VOCAB, prompt, mode, CODES)
