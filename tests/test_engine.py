"""The engine: as the naive generator, whatever the batch."""

import random

import pytest
import torch

from cm3.config import CM3Config
from cm3.engine import Request, generate, generate_naive, stream
from cm3.sampling import GREEDY, SamplingConfig
from cm3.transformer import CM3ForCausalLM
from cm3.vocab import Vocab

GRID = (2, 2)
VARIANTS = {"rope": {}, "learned": dict(position="learned", norm="layernorm", qk_norm=False, activation="relu")}


@pytest.fixture(params=VARIANTS, scope="module")
def model(request: pytest.FixtureRequest) -> CM3ForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CM3ForCausalLM(CM3Config.preset("tiny", **VARIANTS[request.param]))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


VOCAB = Vocab.from_config(CM3Config.preset("tiny"))
T, C = VOCAB.first_text, VOCAB.first_code
PICTURE = [3, C, C + 1, C + 2, C + 3, 4]
NOTHING = [1, 5, 2, 3]


def jobs() -> list[Request]:
    """Different jobs, lengths, settings and seeds."""
    return [
        Request([1, T, T + 1, 2, 3], NOTHING, "image", guidance=3.0, seed=1),
        Request([1, T + 9, 2, 3], NOTHING, "image", guidance=1.5, seed=2, sampling=SamplingConfig(0.8, 10, 0.9)),
        Request([1, T, T + 5], [1, 5], "image", guidance=2.0, seed=3),
        Request([1, T, 5, 2, *PICTURE, 21], mode="text", max_new_tokens=9, seed=4),
        Request([1, T, 5, 2, *PICTURE, 21], mode="text", max_new_tokens=5, sampling=GREEDY),
        Request([1], mode="document", max_new_tokens=30, seed=5),
        Request([1, T, T], mode="document", max_new_tokens=12, seed=6),
        Request([1, T, 2, 3, C, 5, C + 1, 4, 21], mode="image", seed=7),
        Request([1, 5, T, 6, 2, *PICTURE, 21], mode="document", max_new_tokens=20, seed=8),
        Request([1, *PICTURE[:-1]], mode="image", seed=9),
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
    pieces = list(stream(model, VOCAB, jobs(), GRID))
    rows = [[id for row, id in pieces if row == i] for i in range(len(jobs()))]
    assert rows == generate(model, VOCAB, jobs(), GRID)
    first = [row for row, _ in pieces[:40]]
    assert len(set(first)) > 5  # side by side, not one after the other


def test_the_seed_decides(model: CM3ForCausalLM):
    requests = [Request([1, T, 2, 3], mode="image", seed=seed) for seed in (1, 1, 2, 3)]
    a, b, c, d = generate(model, VOCAB, requests, GRID)
    assert a == b
    assert a != c or a != d


def test_nothing_touches_the_global_generator(model: CM3ForCausalLM):
    before = torch.get_rng_state()
    generate(model, VOCAB, jobs(), GRID)
    assert torch.equal(torch.get_rng_state(), before)


def test_pictures_are_exactly_their_codes_and_the_close(model: CM3ForCausalLM):
    for seed in range(5):
        [new] = generate(model, VOCAB, [Request([1, T, 2, 3], mode="image", seed=seed, max_new_tokens=1)], GRID)
        assert all(map(VOCAB.is_code, new[:-1]))
        assert len(new) == 5
        assert new[-1] == VOCAB.end_image


def test_text_has_no_stop_and_no_more_than_was_asked(model: CM3ForCausalLM):
    requests = [Request([1, T, 5, 2, *PICTURE, 21], mode="text", max_new_tokens=3, seed=seed) for seed in range(8)]
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


def test_guidance_of_one_needs_no_second_lane_and_changes_nothing(model: CM3ForCausalLM):
    plain = Request([1, T, 2, 3], mode="image", seed=4)
    one = Request([1, T, 2, 3], NOTHING, mode="image", seed=4, guidance=1.0)
    zero = Request([1, T, 2, 3], NOTHING, mode="image", seed=4, guidance=0.0)
    unconditional = Request(NOTHING, mode="image", seed=4)
    a, b, c, d = generate(model, VOCAB, [plain, one, zero, unconditional], GRID)
    assert a == b
    assert c == d


def test_the_close_needs_no_step_of_the_model(model: CM3ForCausalLM, monkeypatch: pytest.MonkeyPatch):
    calls = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **kwargs: calls.append(kwargs["input_ids"].shape) or forward(**kwargs))
    generate(model, VOCAB, [Request([1, T], NOTHING, mode="image", guidance=2.0)], GRID)
    assert calls == [(2, 4), (2, 1), (2, 1), (2, 1)]  # the prompt with <break> <image>, and three of four codes


def test_no_requests_give_nothing(model: CM3ForCausalLM):
    assert generate(model, VOCAB, [], GRID) == []


def test_a_long_document_stays_within_the_context(model: CM3ForCausalLM):
    limit = model.config.max_position_embeddings
    prompt = [1] + [T] * (limit - 4)
    for seed in range(5):
        [new] = generate(model, VOCAB, [Request(prompt, mode="document", max_new_tokens=999, seed=seed)], GRID)
        assert 1 <= len(new) <= 3


@pytest.mark.parametrize("request_", [Request([1] + [T] * 127, mode="text"), Request([1] + [T] * 121, mode="image"),
                                      Request([1] + [T] * 123 + [2, 3], mode="document"),
                                      Request([1], [1] + [T] * 127, "image", guidance=2.0)])
def test_a_prompt_without_room_names_the_limit(model: CM3ForCausalLM, request_: Request):
    with pytest.raises(ValueError, match="the limit is 128 tokens, so shorten it by"):
        generate(model, VOCAB, [request_], GRID)


@pytest.mark.parametrize(("options", "word"), [(dict(max_new_tokens=0), "max_new_tokens"), (dict(guidance=-1), "-1"),
                                               (dict(guidance=2.0), "unconditional"), (dict(prompt=[]), "no ids")])
def test_a_mistake_in_a_request_is_named(options: dict, word: str):
    with pytest.raises(ValueError, match=word):
        Request(**{"prompt": [1], **options})
