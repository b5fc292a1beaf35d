"""Requests: the prompts of each task as the model reads them, sequence by sequence."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cm3 import CM3
from cm3.engine.guidance import ClassifierFree, ContrastiveTopK, ThreeWay
from cm3.engine.options import MAX_SEED, EditOptions, GenerateOptions, SamplingConfig
from cm3.engine.request import Request
from cm3.tasks.prompts import CANDIDATE, MAX_TEXT, Prompts, candidate_seed, ways_of
from cm3.tokens.document import HOLE, Answer, Document, Image, Mask, Text
from cm3.tokens.encoding import encode, text_ids, to_ids
from cm3.tokens.masking import rotate
from cm3.tokens.text_tokenizer import TextTokenizer
from cm3.tokens.vocab import Vocab

SAMPLING = SamplingConfig(temperature=0.8, top_p=0.9)
IMAGE = Image(torch.arange(16).view(4, 4))
HOLED = Image(IMAGE.codes.masked_fill(torch.eye(4, dtype=torch.bool), HOLE))
APPLE = Document((Text("a red apple"),))


def options(decoding: Any, n: int = 1, best_of: int = 1, seed: int = 0) -> GenerateOptions:
    drawn: dict[str, Any] = dict(n=n, best_of=best_of, seed=seed, temperature=0.8, top_p=0.9)
    return GenerateOptions(guidance=3.0, decoding=decoding, contrast=(4, 0.5), **drawn)


TOKENIZER = TextTokenizer.train(["abcdefgh"] * 9, vocab_size=270, min_frequency=2)
SHORT = Prompts(Vocab(64, 270, 32), TOKENIZER, (4, 4), context=12)


@pytest.fixture
def requests(tiny: CM3) -> Prompts:
    return tiny.prompts


@pytest.fixture
def sequences(tiny: CM3):
    """The prompts of a request in words: text as it reads, the codes of an image as #, a hole as _."""

    def spell(ids: list[int]) -> str:
        out, text = "", []
        for id in [*ids, tiny.vocab.eos]:
            if tiny.vocab.is_text(id):
                text.append(id)
                continue
            out += tiny.text_tokenizer.decode(tiny.vocab.ids_to_text(text))
            text = []
            out += "#" if tiny.vocab.is_code(id) else tiny.vocab.name(id)
        out = out.removesuffix("<eos>").replace("#" * 16, "16#")
        return out.replace("<mask:0>###", "_###").replace("#<mask:0>", "#_")

    def of(request: Request) -> list[str]:
        return [spell(list(prompt)) for prompt in (request.prompt, *request.extra_prompts)]

    return of


def test_a_drawing_has_its_text_and_a_sequence_without(requests: Prompts, sequences):
    [one] = requests.drawings(APPLE, options("top-p", 1, 1, 7))
    assert sequences(one) == ["<eos>a red apple<break><image>", "<eos><mask:0><break><image>"]
    assert (one.mode, one.guide, one.sampling, one.seed) == ("image", ClassifierFree(image=3.0), SAMPLING, 7)


def test_a_drawing_after_a_structure_has_the_structure_behind_its_text(requests: Prompts, sequences):
    document = Document((Text("From edges: a cat"), IMAGE))
    [one] = requests.drawings(document, options("top-p", 1, 1, 0))
    assert sequences(one) == ["<eos>From edges: a cat<break><image>16#</image><image>", "<eos><mask:0><break><image>"]


def test_an_edit_has_three_lanes(requests: Prompts, sequences):
    asked = EditOptions(image_guidance=1.5, text_guidance=3.0, temperature=0.7, seed=5, keep=0)
    one = requests.edit(" make it blue ", IMAGE, asked)
    assert (one.guide, one.sampling, one.seed) == (ThreeWay(1.5, 3.0), asked.sampling, 5)
    assert one.expected is None and one.logit_bias == 0
    assert sequences(one) == [
        "<eos>Edit: make it blue<break><image>16#</image><image>",
        "<eos><mask:0><break><image>16#</image><image>",
        "<eos><mask:0><break><image>",
    ]
    arabic = requests.edit("اجعل الخلفية زرقاء", IMAGE, asked)
    assert sequences(arabic)[0].startswith("<eos>عدّل: اجعل")


def test_an_edit_expects_the_codes_of_its_source(requests: Prompts, tiny: CM3):
    one = requests.edit("make it blue", IMAGE, EditOptions(keep=2.5))
    assert one.expected == tiny.vocab.code_to_id(IMAGE.codes.flatten().tolist()) and one.logit_bias == 2.5


def test_a_hole_is_given_all_other_codes(requests: Prompts, sequences, tiny: CM3):
    one = requests.hole(Document((Text("a cat"), HOLED)), 3.0, SAMPLING, 1)
    holes = "<image>_####_####_####_</image><image>"
    assert sequences(one) == [f"<eos>a cat<break>{holes}", f"<eos><mask:0><break>{holes}"]
    assert one.given is not None
    assert [i for i, id in enumerate(one.given) if id is None] == [0, 5, 10, 15]
    kept = [id for id in one.given if id is not None]
    assert tiny.vocab.id_to_code(kept) == [i for i in range(16) if i % 5]


@pytest.mark.parametrize("items", [(HOLED,), (Text(""), HOLED)])
def test_a_hole_that_nothing_is_said_of_has_one_sequence(requests: Prompts, sequences, items: tuple):
    one = requests.hole(Document(items), 3.0, SAMPLING, 1)
    assert sequences(one) == ["<eos><mask:0><break><image>_####_####_####_</image><image>"]
    assert one.guide is None


def test_a_question_stands_before_its_image_and_the_answer_comes_last(requests: Prompts, sequences):
    one = requests.text("Caption: ", IMAGE, SAMPLING, 0)
    assert sequences(one) == ["<eos>Caption: <mask:0><break><image>16#</image><infill:0>"]
    assert one.mode == "text"


EARLIER = [("What is this?", "a cat"), ("Is it red?", "no"), ("What colour is it?", "blue")]


def test_a_question_behind_others_reads_as_documents_with_several_answers_are_learnt(tiny: CM3):
    requests = Prompts(tiny.vocab, tiny.text_tokenizer, (4, 4), context=10_000)
    asked = requests.text("Which style?", IMAGE, SAMPLING, 3, EARLIER)
    learnt = encode(
        Document(
            (
                *(item for q, a in EARLIER[1:] for item in (Text(q if q == "Is it red?" else f" {q}"), Answer(a))),
                *(Text(" Which style?"), Answer("flat"), IMAGE),
            )
        ),
        tiny.vocab,
        tiny.text_tokenizer,
    )
    rotated, _ = rotate(learnt.ids, learnt.spans, tiny.vocab)
    assert rotated == [*asked.prompt, *text_ids("flat", tiny.vocab, tiny.text_tokenizer), tiny.vocab.eos]


def test_of_what_came_before_the_last_that_fits_counts(tiny: CM3):
    def prompt(context: int, before: Any) -> Any:
        short = Prompts(tiny.vocab, tiny.text_tokenizer, (4, 4), context)
        return short.text("Which style?", IMAGE, SAMPLING, 0, before).prompt

    whole, last, none = (prompt(10_000, before) for before in (EARLIER[1:], EARLIER[2:], []))
    assert len(none) < len(last) < len(whole)
    for wanted in (whole, last, none):
        assert prompt(len(wanted) + MAX_TEXT, EARLIER) == wanted
    assert prompt(10_000, [("a" * 9_000_000, "b"), *EARLIER[2:]]) == last  # not tokenised


def test_more_of_a_document_is_guided_by_its_images_alone(requests: Prompts, sequences):
    one = requests.more(Document((Text("a cat"), IMAGE)), ClassifierFree(2.0, 3.0), SAMPLING, 50, 0)
    assert sequences(one) == ["<eos>a cat<break><image>16#</image>", "<eos><mask:0><break><image>16#</image>"]
    assert (one.mode, one.max_new_tokens) == ("document", 50)


def test_candidates_have_their_own_seeds_and_those_of_the_next_image(requests: Prompts):
    made = requests.drawings(APPLE, options("both", 2, 3, 10))
    assert [one.seed for one in made] == [(i + j * CANDIDATE) % 2**32 for i in (10, 11) for j in range(3)]
    later = requests.drawings(APPLE, options("both", 1, 3, 11))
    assert made[3:] == later


def test_seeds_of_candidates_stay_seeds():
    for seed in (0, 2**32 - 1, 2**32 + 5, MAX_SEED - 1):
        seeds = [candidate_seed(seed, j) for j in range(64)]
        assert seeds[0] == seed and len(set(seeds)) == 64
        assert {one >> 32 for one in seeds} == {seed >> 32}


def test_both_ways_of_decoding_take_turns_by_the_seed(requests: Prompts):
    free, contrastive = ways_of(options("both"))
    assert free == (ClassifierFree(image=3.0), SAMPLING)
    assert contrastive == (ContrastiveTopK(4, 0.5), SamplingConfig(temperature=0.8))
    for seed in (4, 5):
        made = requests.drawings(APPLE, options("both", 4, 1, seed))
        assert [one.guide for one in made] == [(free, contrastive)[(seed + i) % 2][0] for i in range(4)]


def test_seeds_and_ways_out_of_range_are_refused(requests: Prompts):
    with pytest.raises(ValueError, match="decoding is 'beam', but must be one of top-p, cd-k, both"):
        ways_of(options("beam"))
    for seed in (-1, MAX_SEED):
        for ask in (
            lambda seed=seed: requests.drawings(APPLE, options("top-p", 1, 1, seed)),
            lambda seed=seed: requests.edit("a", IMAGE, EditOptions(seed=seed)),
            lambda seed=seed: requests.hole(Document((HOLED,)), 1.0, SAMPLING, seed),
            lambda seed=seed: requests.text("a", IMAGE, SAMPLING, seed),
            lambda seed=seed: requests.more(APPLE, ClassifierFree(), SAMPLING, 9, seed),
        ):
            with pytest.raises(ValueError, match=f"seed is {seed}, but must be 0 to"):
                ask()


@given(
    st.lists(st.text(st.characters(), max_size=30), max_size=4),
    st.integers(0, 40),
    st.sampled_from([" ", "\ud800", "🍎"]),
)
def test_a_text_is_refused_for_its_length_only_where_it_cannot_fit(texts: list[str], times: int, filler: str):
    requests = SHORT
    longest = max(requests.text_tokenizer.tokenizer.get_vocab(), key=len)
    dense = requests.text_tokenizer.tokenizer.decoder.decode([longest]) * times  # pyright: ignore
    for document in (
        Document(tuple(map(Text, texts))),
        Document((Text(dense), *map(Text, texts))),
        Document((*map(Text, texts), Text(filler * times))),
    ):
        ids = to_ids(document, requests.vocab, requests.text_tokenizer)
        text_ids = sum(map(requests.vocab.is_text, ids))
        if text_ids <= requests.context:
            assert requests.ids(document, to_ids) == ids
        elif (
            sum(len(item.text) for item in document if isinstance(item, Text))
            > requests.context * requests.text_tokenizer.max_bytes
        ):
            with pytest.raises(ValueError, match="too long and leaves no room: the limit is 12 tokens"):
                requests.ids(document, to_ids)


def test_the_densest_text_that_fits_is_taken_and_a_character_more_is_not():
    vocab = SHORT.text_tokenizer.tokenizer.get_vocab()
    word = next(name for name in sorted(vocab, key=len)[::-1] if name.isascii())
    fits = word * SHORT.context
    assert len(word) == SHORT.text_tokenizer.max_bytes and len(SHORT.text_tokenizer.encode(fits)) == SHORT.context
    assert len(SHORT.ids(Document((Text(fits),)), to_ids)) == SHORT.context + 2
    message = f"a text of {len(fits) + 1} characters is too long .* hold {len(fits)} characters at the very most"
    with pytest.raises(ValueError, match=message):
        SHORT.ids(Document((Text(fits), Text("a"))), to_ids)


def test_guidance_is_checked_where_it_does_not_count_too(requests: Prompts):
    with pytest.raises(ValueError, match="the image scale of guidance is -1.0, but must be 0 to 1,000,000"):
        requests.hole(Document((HOLED,)), -1.0, SAMPLING, 0)


def test_images_of_another_grid_are_refused(requests: Prompts):
    small = Image(torch.tensor([[1, HOLE], [3, 4]]))
    for ask in (
        lambda: requests.edit("a", small, EditOptions()),
        lambda: requests.hole(Document((small,)), 1.0, SAMPLING, 0),
        lambda: requests.text("a", small, SAMPLING, 0),
        lambda: requests.more(Document((small, Mask())), ClassifierFree(), SAMPLING, 9, 0),
    ):
        with pytest.raises(ValueError, match=r"an image of 2 x 2 codes: the model's images have 4 x 4"):
            ask()
