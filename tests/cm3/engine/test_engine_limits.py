"""What fits into the engine and what does not: long prompts, given codes, mistakes in requests."""

from typing import Any

import pytest

from cm3.engine.engine import Engine, generate_naive
from cm3.engine.guidance import ClassifierFree, ContrastiveTopK, ThreeWay
from cm3.engine.request import Request
from cm3.model.config import CM3Config
from cm3.model.transformer import CM3ForCausalLM
from cm3.tokens.vocab import Vocab
from engines import GUIDED, NOTHING
from tests.helpers.models import build

GRID = (2, 2)
VARIANTS = {"rope": {}, "learned": dict(position="learned", norm="layernorm", qk_norm=False, activation="relu")}


@pytest.fixture(params=VARIANTS, scope="module")
def model(request: pytest.FixtureRequest) -> CM3ForCausalLM:
    return build(**VARIANTS[request.param])


VOCAB = Vocab.from_config(CM3Config.preset("tiny"))
T, C = VOCAB.first_text, VOCAB.first_code


def generate(model: CM3ForCausalLM, vocab: Vocab, requests: list[Request], grid: tuple[int, int]) -> list[list[int]]:
    return Engine(model, vocab, grid).generate(requests)


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
