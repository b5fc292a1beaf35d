"""The engine: as the naive generator, whatever the batch."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3.engine.engine import Engine, generate_naive
from cm3.engine.guidance import ClassifierFree, ContrastiveTopK, ThreeWay
from cm3.engine.options import GREEDY, SamplingConfig
from cm3.engine.request import Request
from cm3.model.config import CM3Config
from cm3.model.transformer import CM3ForCausalLM
from cm3.tokens.vocab import Vocab
from tests.helpers.models import build

GRID = (2, 2)
VARIANTS = {"rope": {}, "learned": dict(position="learned", norm="layernorm", qk_norm=False, activation="relu")}


@pytest.fixture(params=VARIANTS, scope="module")
def model(request: pytest.FixtureRequest) -> CM3ForCausalLM:
    return build(**VARIANTS[request.param])


VOCAB = Vocab.from_config(CM3Config.preset("tiny"))
T, C = VOCAB.first_text, VOCAB.first_code
IMAGE = [3, C, C + 1, C + 2, C + 3, 4]
NOTHING = [1, 5, 2, 3]


HOLED = [3, C, 5, 5, C + 3, 4]


def generate(model: CM3ForCausalLM, vocab: Vocab, requests: list[Request], grid: tuple[int, int]) -> list[list[int]]:
    return Engine(model, vocab, grid).generate(requests)


GUIDED: dict[str, Any] = dict(guide=ClassifierFree(image=3.0), extra_prompts=[NOTHING])


def jobs() -> list[Request]:
    """Different jobs, guides, lengths, settings and seeds."""
    spoken = [1, T, 5, 2, *IMAGE, 21]
    return [
        Request([1, T, T + 1, 2, 3], "image", seed=1, **GUIDED),
        Request(
            [1, T + 9, 2, 3],
            "image",
            guide=ContrastiveTopK(3, 0.5),
            extra_prompts=[NOTHING],
            seed=2,
            sampling=SamplingConfig(temperature=0.8, top_k=10, top_p=0.9),
        ),
        Request([1, T, T + 5], "image", guide=ClassifierFree(image=2.0), extra_prompts=[[1, 5]], seed=3),
        Request(
            [1, T, T + 4, 2, *IMAGE, 3],
            "image",
            guide=ThreeWay(1.5, 7.5),
            extra_prompts=[[1, *IMAGE, 3], [1, 3]],
            seed=3,
        ),
        Request(spoken, "text", max_new_tokens=9, seed=4),
        Request(spoken, "text", max_new_tokens=5, sampling=GREEDY),
        Request(spoken, "text", 9, guide=ClassifierFree(text=2.0), extra_prompts=[[1, 5, 21]], seed=5),
        Request([1], "document", max_new_tokens=30, seed=5),
        Request([1, T, T], "document", 25, guide=ClassifierFree(3.0, 1.5), extra_prompts=[[1, 5]], seed=6),
        Request([1, T, 2, 3, C, 5, C + 1, 4, 21], "image", seed=7),
        Request([1, 5, T, 6, 2, *IMAGE, 21], "document", max_new_tokens=20, seed=8),
        Request([1, *IMAGE[:-1]], "image", seed=9),
        Request(
            [1, T, 2, *HOLED, 3],
            "image",
            guide=ThreeWay(3.0, 2.0),
            extra_prompts=[[1, 5, 2, *HOLED, 3], NOTHING],
            given=[C, None, None, C + 3],
            seed=10,
        ),
        Request([1, T, 2, 3], "image", given=[None, C + 5, None, None], seed=11, **GUIDED),
        Request(
            [1, T, 2, 3, C],
            "image",
            given=[C, None, C + 7, None],
            guide=ContrastiveTopK(9, 0.1),
            extra_prompts=[[1, 3, C]],
            seed=12,
        ),
        Request([1, T, 2, 3], "image", given=[C, C + 1, C + 2, C + 3], seed=13, **GUIDED),
    ]


def test_fast_equals_naive(model: CM3ForCausalLM):
    assert generate(model, VOCAB, jobs(), GRID) == generate_naive(model, VOCAB, jobs(), GRID)


def test_a_row_is_the_same_alone_in_a_batch_and_in_any_order(model: CM3ForCausalLM):
    requests = jobs()
    together = generate(model, VOCAB, requests, GRID)
    assert [generate(model, VOCAB, [request], GRID)[0] for request in requests] == together
    order = list(range(len(requests)))
    random.Random(0).shuffle(order)
    shuffled = generate(model, VOCAB, [requests[i] for i in order], GRID)
    assert shuffled == [together[i] for i in order]


def test_streaming_gives_the_same_ids_piece_by_piece(model: CM3ForCausalLM):
    pieces = list(Engine(model, VOCAB, GRID).stream(jobs()))
    rows = [[id for row, id in pieces if row == i] for i in range(len(jobs()))]
    assert rows == generate(model, VOCAB, jobs(), GRID)
    first = [row for row, _ in pieces[:40]]
    assert len(set(first)) > 8  # side by side, not one after the other


def test_the_seed_decides(model: CM3ForCausalLM):
    requests = [Request([1, T, 2, 3], mode="image", seed=seed) for seed in (1, 1, 2, 3)]
    a, b, c, d = generate(model, VOCAB, requests, GRID)
    assert a == b
    assert a != c or a != d


def test_nothing_touches_the_global_generator(model: CM3ForCausalLM):
    before = torch.get_rng_state()
    generate(model, VOCAB, jobs(), GRID)
    assert torch.equal(torch.get_rng_state(), before)


def test_images_are_exactly_their_codes_and_the_close(model: CM3ForCausalLM):
    for seed in range(5):
        [new] = generate(model, VOCAB, [Request([1, T, 2, 3], mode="image", seed=seed, max_new_tokens=1)], GRID)
        assert all(map(VOCAB.is_code, new[:-1]))
        assert len(new) == 5
        assert new[-1] == VOCAB.end_image


def test_text_has_no_stop_and_no_more_than_was_asked(model: CM3ForCausalLM):
    requests = [Request([1, T, 5, 2, *IMAGE, 21], mode="text", max_new_tokens=3, seed=seed) for seed in range(8)]
    for new in generate(model, VOCAB, requests, GRID):
        assert len(new) <= 3
        assert all(map(VOCAB.is_text, new))


def test_greedy_follows_the_models_own_argmax(model: CM3ForCausalLM):
    [new] = generate(model, VOCAB, [Request([1, T, 2, 3], mode="image", sampling=GREEDY)], GRID)
    ids = [1, T, 2, 3]
    for code in new[:4]:
        logits = model(torch.tensor([ids])).logits[0, -1, C:]
        assert logits.argmax() + C == code
        ids.append(code)


def test_a_guide_that_is_off_needs_no_extra_sequence_and_changes_nothing(model: CM3ForCausalLM):
    plain = Request([1, T, 2, 3], "image", seed=4)
    off = [
        Request([1, T, 2, 3], "image", seed=4, guide=guide, extra_prompts=extra_prompts)
        for guide, extra_prompts in (
            (ClassifierFree(), []),
            (ClassifierFree(), [NOTHING]),
            (ThreeWay(1, 1), [NOTHING] * 2),
        )
    ]
    zero = Request([1, T, 2, 3], "image", seed=4, guide=ClassifierFree(image=0.0), extra_prompts=[NOTHING])
    unconditional = Request(NOTHING, "image", seed=4)
    a, *same, c, d = generate(model, VOCAB, [plain, *off, zero, unconditional], GRID)
    assert same == [a] * 3
    assert c == d != a


@settings(max_examples=6)
@given(st.data())
def test_any_batch_gives_each_row_what_the_naive_generator_does(model: CM3ForCausalLM, data: st.DataObject):
    """Rows of 1, 2 and 3 sequences on another grid, with any codes given."""
    codes = st.none() | st.lists(st.none() | st.integers(C, len(VOCAB) - 1), min_size=9, max_size=9)
    ways: list[dict[str, Any]] = [
        {},
        GUIDED,
        dict(guide=ContrastiveTopK(4, 0.3), extra_prompts=[[1, 3]]),
        dict(guide=ThreeWay(1.5, 7.5), extra_prompts=[[1, 3, *[C] * 9, 4, 3], [1, 3]]),
    ]
    requests = [
        Request(
            [1, *[T] * data.draw(st.integers(1, 9))],
            "image",
            given=data.draw(codes),
            seed=seed,
            expected=data.draw(st.lists(st.integers(C, len(VOCAB) - 1), min_size=9, max_size=9)),
            logit_bias=data.draw(st.sampled_from([0.0, 2.0])),
            **ways[i],
        )
        for seed, i in enumerate(data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4)))
    ]
    requests.append(Request([1, T, T], "document", 9, guide=ClassifierFree(2.0, 2.0), extra_prompts=[[1, 5]]))
    new = generate(model, VOCAB, requests, (3, 3))
    assert new == generate_naive(model, VOCAB, requests, (3, 3))
    for request, ids in zip(requests[:-1], new, strict=False):
        assert ids[:2] == [2, 3] and len(ids) == 12 and ids[-1] == VOCAB.end_image
        fixed = request.given or [None] * 9
        assert all(VOCAB.is_code(id) and want in (None, id) for id, want in zip(ids[2:-1], fixed, strict=True))


def by_hand(model: CM3ForCausalLM, request: Request, formula) -> list[int]:
    """Greedy codes: each sequence whole through the model, put together by a formula in NumPy."""
    sequences = [list(ids) for ids in (request.prompt, *request.extra_prompts)]
    for cell, fixed in enumerate(request.given or [None] * 4):
        if fixed is None:
            with torch.inference_mode():
                logits = [model(torch.tensor([ids])).logits[0, -1, C:].double().numpy() for ids in sequences]
            scores = formula(*logits)
            if request.expected:
                scores[request.expected[cell] - C] += request.logit_bias
            fixed = C + int(np.argmax(scores))
        for ids in sequences:
            ids.append(fixed)
    return sequences[0][-4:]


def contrast(cond: np.ndarray, uncond: np.ndarray) -> np.ndarray:
    p, q = (np.exp(x) / np.exp(x).sum() for x in (cond, uncond))
    return np.where(p >= 0.2 * np.sort(p)[-5], np.log(p / q), -np.inf)


WAYS = {
    "none": (None, [], lambda full: full),
    "classifier-free": (ClassifierFree(image=4.0), [NOTHING], lambda full, none: none + 4 * (full - none)),
    "contrastive": (ContrastiveTopK(5, 0.2), [NOTHING], contrast),
    "three-way": (
        ThreeWay(1.5, 6.0),
        [[1, *IMAGE, 3], NOTHING],
        lambda full, image, none: none + 1.5 * (image - none) + 6 * (full - image),
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("codes", [[None] * 4, [None, C + 9, C + 2, None], [C + 5, None, C + 5, C], [C] * 4])
@pytest.mark.parametrize("bias", [0.0, 0.05, 1.0])
def test_guided_given_and_expected_codes_are_those_made_by_hand(
    model: CM3ForCausalLM, way: str, codes: list[int | None], bias: float
):
    guide, extra_prompts, formula = WAYS[way]
    expected = [C + 1, C + 9, C + 2, C + 30]
    request = Request(
        [1, T, 2, *IMAGE, 3], "image", 256, GREEDY, guide, extra_prompts, codes, 0, expected, logit_bias=bias
    )
    assert generate(model, VOCAB, [request], GRID) == [[*by_hand(model, request, formula), VOCAB.end_image]]


@pytest.mark.parametrize(("mode", "expected"), [("image", [C] * 3), ("image", [C, C, C, T]), ("document", [C] * 4)])
def test_what_is_expected_is_the_codes_of_one_image(model: CM3ForCausalLM, mode: Any, expected: list[int]):
    request = Request([1, T, 2, 3], mode, expected=expected, logit_bias=1.0)
    with pytest.raises(ValueError, match="expected must hold the ids of 4 image codes, in mode 'image'"):
        generate(model, VOCAB, [request], GRID)


def test_falling_guidance_is_that_made_by_hand(model: CM3ForCausalLM):
    """From 5 at the first of four codes down by one with each."""
    guide = ClassifierFree(image=5.0, schedule="falling")
    scales = iter((5, 4, 3, 2))
    request = Request([1, T, 2, *IMAGE, 3], "image", 256, GREEDY, guide, [NOTHING])
    hand = by_hand(model, request, lambda full, none: none + next(scales) * (full - none))
    beside = Request([1, T, 2, 3], "image", given=[C, None, None, None], guide=guide, extra_prompts=[NOTHING])
    new = generate(model, VOCAB, [request, beside], GRID)
    assert new == [[*hand, VOCAB.end_image], generate_naive(model, VOCAB, [beside], GRID)[0]]


def test_free_codes_depend_on_the_given_ones_and_on_every_lane(model: CM3ForCausalLM):
    def last(first: int = C, middle: int = C, image: int = T, none: int = T) -> list[float]:
        extra_prompts = [[1, T + 1, 2, 3], [1, image, 2, 3], [1, none, 2, 3]]
        requests = [
            Request(
                extra_prompts[0],
                "image",
                given=[first, None, middle, None],
                guide=ThreeWay(2.0, 3.0),
                extra_prompts=extra_prompts[1:],
                seed=seed,
            )
            for seed in range(8)
        ]
        return [ids[3] for ids in generate(model, VOCAB, requests, GRID)]

    same = last()
    assert same == last()
    for change in (dict(first=C + 1), dict(middle=C + 1), dict(image=T + 7), dict(none=T + 7)):
        assert last(**change) != same


def test_the_image_scale_is_for_codes_and_the_text_scale_for_text(model: CM3ForCausalLM):
    def of(guide: ClassifierFree) -> tuple[list[list[int]], list[list[int]]]:
        images = [Request([1, T, 2, 3], "image", guide=guide, extra_prompts=[NOTHING], seed=seed) for seed in range(4)]
        text = Request([1, T, 5, 2, *IMAGE, 21], "text", 9, guide=guide, extra_prompts=[[1, 5, 21]], seed=1)
        new = generate(model, VOCAB, [*images, text], GRID)
        return new[:4], new[4:]

    plain, image, text = of(ClassifierFree()), of(ClassifierFree(image=5.0)), of(ClassifierFree(text=5.0))
    assert image[0] != plain[0] and image[1] == plain[1]
    assert text[0] == plain[0] and text[1] != plain[1]


def test_the_close_needs_no_step_of_the_model(model: CM3ForCausalLM, monkeypatch: pytest.MonkeyPatch):
    calls = shapes(model, monkeypatch)
    generate(model, VOCAB, [Request([1, T], "image", **GUIDED)], GRID)
    assert calls == [(2, 4), (2, 1), (2, 1), (2, 1)]  # the prompt with <break> <image>, and three of four codes


def test_given_codes_are_read_together_and_never_drawn(model: CM3ForCausalLM, monkeypatch: pytest.MonkeyPatch):
    calls = shapes(model, monkeypatch)
    hole = [C, C, None, C, C, C, None, None, C, C, C, C, C, C, C, C]
    infill = Request([1, T, 2, 3], "image", given=hole, **GUIDED)
    generate(model, VOCAB, [infill, infill], (4, 4))
    assert calls == [(2, 6), (4, 4), (4, 1)]  # each prompt once, with two codes; a drawn code and three; a drawn code
    calls.clear()
    generate(model, VOCAB, [infill, Request([1, T, 2, 3], "image")], (4, 4))
    assert calls[0] == (3, 6) and all(length == 1 for _, length in calls[1:])  # never more than every row has
    calls.clear()
    generate(model, VOCAB, [Request([1, T], "image", given=[C] * 4, **GUIDED)], GRID)
    assert calls == []


def shapes(model: CM3ForCausalLM, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Of each call of the model: sequences and ids."""
    calls, forward = [], model.model.forward

    def counted(**kwargs: Any):
        calls.append(kwargs["input_ids"].shape)
        return forward(**kwargs)

    monkeypatch.setattr(model.model, "forward", counted)
    return calls


def test_no_requests_give_nothing(model: CM3ForCausalLM):
    assert generate(model, VOCAB, [], GRID) == []


def test_a_long_document_stays_within_the_context(model: CM3ForCausalLM):
    limit = model.config.max_position_embeddings
    prompt = [1] + [T] * (limit - 4)
    for seed in range(5):
        [new] = generate(model, VOCAB, [Request(prompt, mode="document", max_new_tokens=999, seed=seed)], GRID)
        assert 1 <= len(new) <= 3


def test_a_finished_row_beside_longer_ones_does_not_pass_the_last_position(model: CM3ForCausalLM):
    limit = model.config.max_position_embeddings
    requests = [Request([1] + [T] * (limit - 8), "text", max_new_tokens=7)]
    requests += [Request([1, T, 2, 3], "image", seed=seed) for seed in range(4)]
    new = generate(model, VOCAB, requests, (4, 4))
    assert new == [generate(model, VOCAB, [request], (4, 4))[0] for request in requests]


def test_what_leads_to_the_image_in_an_extra_prompt_counts_as_its_length(model: CM3ForCausalLM):
    """128 ids hold an extra prompt of 121, its <break> <image>, and five of the image."""
    fits, over = (
        Request([1, T, 2, 3], "image", guide=ClassifierFree(2.0), extra_prompts=[[1] + [T] * words])
        for words in (120, 121)
    )
    full = Request([1] + [T] * 120, "image", given=[C, None, C, C])
    for request in (fits, full):
        assert generate(model, VOCAB, [request], GRID) == generate_naive(model, VOCAB, [request], GRID)
    with pytest.raises(ValueError, match="124 tokens .* the 5 .* shorten it by 1"):
        generate(model, VOCAB, [over], GRID)


LONG = [1] + [T] * 127


@pytest.mark.parametrize(
    "request_",
    [
        Request(LONG, "text"),
        Request([1] + [T] * 121, "image"),
        Request([1] + [T] * 123 + [2, 3], "document"),
        Request([1], "image", guide=ClassifierFree(2.0), extra_prompts=[LONG]),
        Request([1], "image", guide=ThreeWay(2.0, 2.0), extra_prompts=[[1], LONG]),
    ],
)
def test_a_prompt_without_room_names_the_limit(model: CM3ForCausalLM, request_: Request):
    with pytest.raises(ValueError, match="the limit is 128 tokens, so shorten it by"):
        generate(model, VOCAB, [request_], GRID)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(max_new_tokens=0), "max_new_tokens"),
        (dict(prompt=[]), "no ids"),
        (dict(guide=ClassifierFree(2.0)), "ClassifierFree.* needs 1 extra prompts, but got 0"),
        (dict(guide=ContrastiveTopK(2, 0.5), extra_prompts=[[1], [1]]), "needs 1 .* got 2"),
        (dict(guide=ThreeWay(2.0, 2.0), extra_prompts=[[1]]), "needs 2 .* got 1"),
        (dict(guide=ThreeWay(1.0, 1.0), extra_prompts=[[1]]), "needs 2 .* got 1"),
        (dict(extra_prompts=[[1]]), "no guide needs 0"),
        (dict(guide=ClassifierFree(2.0), extra_prompts=[[]]), "extra prompt has no ids"),
    ],
)
def test_a_mistake_in_a_request_is_named(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Request(**{"prompt": [1], **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(guide=ContrastiveTopK(417, 0.5), extra_prompts=[NOTHING]), "k of .* is 417, but there are 416 ids"),
        (dict(guide=ClassifierFree(2.0), extra_prompts=[[1, 3, C]]), r"lack \[5, 4\] ids .* the same code"),
        (dict(given=[C] * 3), "given has 3 codes"),
        (dict(given=[T] * 4), "given holds text 0"),
        (dict(given=[C] * 4, mode="document"), "mode 'image'"),
    ],
)
def test_what_does_not_fit_the_model_is_named(model: CM3ForCausalLM, options: dict, message: str):
    request = Request(**{"prompt": [1, T, 2, 3], "mode": "image", **options})
    for run in (generate, generate_naive):
        with pytest.raises(ValueError, match=message):
            run(model, VOCAB, [request], GRID)


def test_k_may_be_the_whole_vocabulary(model: CM3ForCausalLM):
    request = Request([1, T, 2, 3], "image", guide=ContrastiveTopK(416, 0.5), extra_prompts=[NOTHING])
    assert len(generate(model, VOCAB, [request], GRID)[0]) == 5
