"""The engine's queue: requests come and go at any time, and each gets what it would get alone."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3.engine import engine as engine_module
from cm3.engine.engine import Engine, generate_naive
from cm3.engine.guidance import ClassifierFree, ThreeWay
from cm3.engine.options import GREEDY, SamplingConfig
from cm3.engine.request import Request
from cm3.model.config import CM3Config
from cm3.model.transformer import CM3ForCausalLM
from cm3.tokens.vocab import Vocab
from tests.helpers.models import build

GRID = (2, 3)
VOCAB = Vocab.from_config(CM3Config.preset("tiny"))
T, C = VOCAB.first_text, VOCAB.first_code
IMAGE = [3, *range(C, C + 6), 4]
NOTHING = [1, 5, 2, 3]
GUIDED: dict[str, Any] = dict(guide=ClassifierFree(image=3.0), extra_prompts=[NOTHING])
REQUESTS = [
    Request([1, T, T + 1, 2, 3], "image", seed=1, **GUIDED),
    Request([1, T, 2, 3], "image", given=[None, C, C, None, None, C], seed=2, **GUIDED),
    Request([1, T, 5, 2, *IMAGE, 21], "text", 9, seed=3),
    Request([1, T, 5, 2, *IMAGE, 21], "text", 9, GREEDY),
    Request([1, T, T, T], "document", 25, SamplingConfig(temperature=0.9, top_p=0.9), seed=4),
    Request([1, T, 2, *IMAGE, 3], "image", guide=ThreeWay(1.5, 2.0), extra_prompts=[[1, *IMAGE, 3], [1, 3]]),
    Request([1, T], "image", given=[C] * 6),  # nothing is left to draw
]


@pytest.fixture(scope="module")
def model() -> CM3ForCausalLM:
    return build()


@pytest.fixture(scope="module")
def expected(model: CM3ForCausalLM) -> list[list[int]]:
    return generate_naive(model, VOCAB, REQUESTS, GRID)


def finish(engine: Engine) -> dict[int, list[int]]:
    new: dict[int, list[int]] = {}
    while step := engine.step():
        for number, id in step:
            new.setdefault(number, []).append(id)
    return new


def check_idle(engine: Engine) -> None:
    assert not engine.active and not engine.running and not engine.waiting and engine.cache is None


@settings(max_examples=25)
@given(st.data())
def test_whenever_requests_come_and_go_each_gets_its_own(
    model: CM3ForCausalLM, expected: list[list[int]], data: st.DataObject
):
    engine = Engine(model, VOCAB, GRID, max_sequences=data.draw(st.integers(3, 9)))
    kinds: dict[int, int] = {}  # which of REQUESTS each number is
    new: dict[int, list[int]] = {}
    cancelled: set[int] = set()
    for action in data.draw(st.lists(st.sampled_from("aaasssc"), max_size=40)):
        if action == "a":
            kind = data.draw(st.integers(0, len(REQUESTS) - 1))
            kinds[engine.submit(REQUESTS[kind])] = kind
        elif action == "s":
            for number, id in engine.step():
                assert number not in cancelled
                new.setdefault(number, []).append(id)
        elif kinds:
            number = data.draw(st.sampled_from(sorted(kinds)))
            engine.cancel(number)
            cancelled.add(number)
            del kinds[number]
        assert sum(len(row.sequences) for row in engine.running) <= engine.max_sequences
        assert [sequence for row in engine.running for sequence in row.sequences] == list(
            range(sum(len(row.prompts) for row in engine.running))
        )
    for number, ids in finish(engine).items():
        new.setdefault(number, []).extend(ids)
    for number, kind in kinds.items():
        assert new[number] == expected[kind]
    check_idle(engine)


def test_more_requests_than_lanes_wait_their_turn(model: CM3ForCausalLM, expected: list[list[int]]):
    engine = Engine(model, VOCAB, GRID, max_sequences=4)
    assert engine.generate(REQUESTS * 3) == expected * 3
    with pytest.raises(ValueError, match="a request of 3 sequences, but the engine's batch has 2"):
        Engine(model, VOCAB, GRID, max_sequences=2).submit(REQUESTS[5])


def test_a_prefill_is_of_bounded_size(
    model: CM3ForCausalLM, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engine_module, "PREFILL_TOKENS", 20)
    sizes: list[int] = []
    prefill = Engine._prefill  # pyright: ignore[reportPrivateUsage]

    def counted(self: Engine, rows: Any) -> torch.Tensor:
        prompts = [prompt for row in rows for prompt in row.prompts]
        sizes.append(len(prompts) * max(map(len, prompts)))
        assert len(rows) == 1 or sizes[-1] <= 20
        return prefill(self, rows)

    monkeypatch.setattr(Engine, "_prefill", counted)
    assert Engine(model, VOCAB, GRID).generate(REQUESTS) == expected
    assert len(sizes) > 3


def test_attention_that_takes_no_mask_of_its_own_reads_id_by_id(
    model: CM3ForCausalLM, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engine_module, "ANY_MASK", ())  # as with flash attention: a mask of sequences and length
    assert Engine(model, VOCAB, GRID).generate(REQUESTS) == expected
    eager = build()
    eager.set_attn_implementation("eager")
    monkeypatch.undo()
    assert Engine(eager, VOCAB, GRID).generate(REQUESTS) == expected


@pytest.mark.slow
def test_compiled_steps_give_the_same_ids(expected: list[list[int]]):
    model = build()
    engine = Engine(model, VOCAB, GRID, compile=True)
    assert engine.generate(REQUESTS) == expected
    assert engine.generate(REQUESTS[:1]) == expected[:1]


def test_equal_prompts_are_read_once(model: CM3ForCausalLM, monkeypatch: pytest.MonkeyPatch):
    shapes, forward = [], model.model.forward

    def counted(**kwargs: Any):
        shapes.append(tuple(kwargs["input_ids"].shape))
        return forward(**kwargs)

    monkeypatch.setattr(model.model, "forward", counted)
    requests = [Request([1, T + words, 2, 3], "image", seed=i, **GUIDED) for words in (0, 1) for i in range(4)]
    new = Engine(model, VOCAB, GRID).generate(requests)
    assert shapes == [(3, 4)] + [(16, 1)] * 5
    monkeypatch.undo()
    assert new == generate_naive(model, VOCAB, requests, GRID)


def test_where_only_codes_come_the_head_gives_only_codes(model: CM3ForCausalLM, monkeypatch: pytest.MonkeyPatch):
    sizes, sample_next = [], engine_module.sample_next

    def counted(logits: torch.Tensor, *rest: Any) -> list[int]:
        sizes.append(logits.shape[1])
        return sample_next(logits, *rest)

    monkeypatch.setattr(engine_module, "sample_next", counted)
    Engine(model, VOCAB, GRID).generate(REQUESTS[:2])
    assert set(sizes) == {VOCAB.num_codes}
    sizes.clear()
    Engine(model, VOCAB, GRID).generate(REQUESTS[:3])
    assert set(sizes) == {len(VOCAB)}  # text too, to the end
    other = build()
    other.lm_head.weight = torch.nn.Parameter(other.lm_head.weight, requires_grad=False)
    monkeypatch.setattr(
        other, "lm_head", torch.nn.Sequential(other.lm_head)
    )  # no plain layer, as where it is quantised
    sizes.clear()
    Engine(other, VOCAB, GRID).generate(REQUESTS[:2])
    assert set(sizes) == {len(VOCAB)}


def test_threads_share_the_batch(model: CM3ForCausalLM, expected: list[list[int]]):
    engine = Engine(model, VOCAB, GRID)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(engine.generate, REQUESTS[i % 7 :]) for i in range(24)]
        for i, future in enumerate(futures):
            assert future.result() == expected[i % 7 :]
    check_idle(engine)


def test_who_stops_listening_cancels(model: CM3ForCausalLM, expected: list[list[int]]):
    engine = Engine(model, VOCAB, GRID)
    stream = engine.stream(REQUESTS)
    for _ in range(20):
        next(stream)
    assert engine.running
    stream.close()
    check_idle(engine)
    assert engine.generate(REQUESTS) == expected


# what can go wrong


def test_a_bad_request_among_good_ones_alone_is_refused(model: CM3ForCausalLM, expected: list[list[int]]):
    engine = Engine(model, VOCAB, GRID)
    numbers = [engine.submit(request) for request in REQUESTS[:3]]
    engine.step()
    bad = Request([1, 4], "text"), Request([1] + [T] * 127, "text"), Request([1, *IMAGE[:3]], "text")
    for request, message in zip(bad, ("spell no document", "shorten it by 1", "inside an image"), strict=True):
        with pytest.raises(ValueError, match=message):
            engine.submit(request)
    new = finish(engine)
    for number, ids in zip(numbers, expected[:3], strict=True):
        assert new[number] == ids[len(ids) - len(new[number]) :]
    with pytest.raises(ValueError, match="spell no document"):
        engine.generate([*REQUESTS, bad[0]])
    check_idle(engine)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj", "model.layers.0.self_attn.k_proj", "lm_head"])
def test_not_a_number_is_an_error_that_names_the_first_layer(name: str, expected: list[list[int]]):
    model = build()
    engine = Engine(model, VOCAB, GRID)
    module = model.get_submodule(name)
    assert isinstance(module, torch.nn.Linear)
    whole = module.weight.detach().clone()
    with torch.no_grad():
        module.weight[3, 3] = torch.nan
    with pytest.raises(FloatingPointError, match=f"the first is {name}:.*too large for torch.float32"):
        engine.generate(REQUESTS[2:3])
    check_idle(engine)
    with torch.no_grad():
        module.weight.copy_(whole)
    assert engine.generate(REQUESTS) == expected


def test_a_device_out_of_memory_leaves_the_engine_as_it_was(
    model: CM3ForCausalLM, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
):
    engine, calls, forward = Engine(model, VOCAB, GRID, max_sequences=4), [], model.model.forward

    def failing(**kwargs: Any):
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(**kwargs)

    monkeypatch.setattr(model.model, "forward", failing)
    numbers = [engine.submit(request) for request in REQUESTS]
    new: dict[int, list[int]] = {}
    failures = 0
    while engine.active:
        try:
            for number, id in engine.step():
                new.setdefault(number, []).append(id)
        except torch.OutOfMemoryError:
            failures += 1
    assert failures == 1
    lost = [number for i, number in enumerate(numbers) if new.get(number) != expected[i]]
    assert len(lost) == 2  # those that ran: four sequences
    check_idle(engine)


def test_lanes_wait_for_memory_and_one_that_never_fits_is_told(
    model: CM3ForCausalLM, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
):
    engine = Engine(model, VOCAB, GRID)
    most: list[int] = []
    monkeypatch.setattr(engine_module, "max_sequences_in_memory", lambda *_: 3.5)
    for _ in engine.stream(REQUESTS * 2):
        most.append(sum(len(row.sequences) for row in engine.running))
    assert max(most) == 3
    assert engine.generate(REQUESTS * 2) == expected * 2
    monkeypatch.setattr(engine_module, "max_sequences_in_memory", lambda *_: 1.5)
    with pytest.raises(MemoryError, match="keys and values of 32 tokens for 2 prompts take .* MB, which are not free"):
        engine.generate(REQUESTS)
    check_idle(engine)
    assert engine.generate(REQUESTS[2:4]) == expected[2:4]
