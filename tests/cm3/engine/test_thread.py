"""One thread takes the steps: everybody gets what they would get alone, and nobody waits for ever."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import get_ident

import pytest
import torch

from cm3.engine.engine import Engine, generate_naive
from cm3.engine.request import Request
from cm3.engine.thread import EngineThread
from cm3.model.transformer import CM3ForCausalLM
from tests.cm3.engine.test_engine_queue import GRID, REQUESTS, VOCAB, check_idle
from tests.helpers.models import build


@pytest.fixture(scope="module")
def model() -> CM3ForCausalLM:
    return build()


@pytest.fixture(scope="module")
def expected(model: CM3ForCausalLM) -> list[list[int]]:
    return generate_naive(model, VOCAB, REQUESTS, GRID)


@pytest.fixture
def engine(model: CM3ForCausalLM) -> Iterator[Engine]:
    engine = Engine(model, VOCAB, GRID)
    with EngineThread(engine):
        yield engine
    assert engine.thread is None


def wait_until_idle(engine: Engine) -> None:
    for _ in range(6_000):  # a minute
        if not engine.active:
            break
        time.sleep(0.01)
    check_idle(engine)


def test_its_thread_may_have_more_of_torchs_threads_than_all_others(
    model: CM3ForCausalLM, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
):
    engine, had, before = Engine(model, VOCAB, GRID), set[int](), torch.get_num_threads()
    advance = engine.advance

    def watched() -> None:
        had.add(torch.get_num_threads())
        advance()

    monkeypatch.setattr(engine, "advance", watched)
    torch.set_num_threads(1)
    try:
        with EngineThread(engine, threads=3), ThreadPoolExecutor(1) as pool:
            assert torch.get_num_threads() == pool.submit(torch.get_num_threads).result() == 1
            assert engine.generate(REQUESTS[:1]) == expected[:1]
        assert had == {3}
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("sequences", [3, 192])
def test_many_callers_get_what_they_would_get_alone(
    model: CM3ForCausalLM, expected: list[list[int]], sequences: int, monkeypatch: pytest.MonkeyPatch
):
    engine, steppers = Engine(model, VOCAB, GRID, max_sequences=sequences), set[int]()
    advance = engine.advance

    def watched() -> None:
        steppers.add(get_ident())
        advance()

    monkeypatch.setattr(engine, "advance", watched)
    jobs = [[i, (i + 3) % len(REQUESTS)] for i in range(len(REQUESTS))] * 4
    with EngineThread(engine) as thread, ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda job: engine.generate([REQUESTS[i] for i in job]), jobs))
        wait_until_idle(engine)
        assert steppers == {thread.thread.ident}
    assert found == [[expected[i] for i in job] for job in jobs]


def test_nothing_asked_is_nothing_given(engine: Engine):
    assert engine.generate([]) == []


def test_ids_come_as_they_are_written(engine: Engine, expected: list[list[int]]):
    stream = engine.stream(REQUESTS[:1])
    first = next(stream)
    assert first == (0, expected[0][0])
    assert [id for _, id in stream] == expected[0][1:]


def test_who_stops_listening_frees_the_batch(engine: Engine, expected: list[list[int]]):
    stream = engine.stream(REQUESTS)
    next(stream)
    stream.close()
    wait_until_idle(engine)
    assert engine.generate(REQUESTS) == expected


def test_a_bad_request_is_told_to_who_sent_it(engine: Engine, expected: list[list[int]]):
    other = engine.stream(REQUESTS[:1])
    with pytest.raises(ValueError, match="leaves no room"):
        engine.generate([REQUESTS[1], Request([1] * 1000, "text", 5)])
    assert [id for _, id in other] == expected[0]
    wait_until_idle(engine)


def test_a_model_that_fails_is_told_to_all_and_the_next_call_is_right(
    engine: Engine, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
):
    def fails(*_: object) -> torch.Tensor:
        raise RuntimeError("the device is gone")

    with monkeypatch.context() as patch, ThreadPoolExecutor(3) as pool:
        patch.setattr(engine, "_prefill", fails)
        for future in [pool.submit(engine.generate, REQUESTS[i : i + 1]) for i in range(3)]:
            with pytest.raises(RuntimeError, match="the device is gone"):
                future.result(60)
    assert engine.generate(REQUESTS) == expected
    wait_until_idle(engine)


def test_who_waits_when_the_thread_ends_is_told(model: CM3ForCausalLM, expected: list[list[int]]):
    engine = Engine(model, VOCAB, GRID)
    with EngineThread(engine):
        stream = engine.stream(REQUESTS)
        next(stream)
    with pytest.raises(RuntimeError, match="has been stopped"):
        list(stream)
    check_idle(engine)
    assert engine.generate(REQUESTS) == expected  # by its callers again


def test_who_comes_when_the_thread_has_ended_does_not_wait(model: CM3ForCausalLM):
    engine = Engine(model, VOCAB, GRID)
    with EngineThread(engine) as thread:
        late = thread.stream(REQUESTS)  # asked of it before, begun after
    with pytest.raises(RuntimeError, match="has been stopped"):
        next(late)
    check_idle(engine)


def test_an_engine_has_one_thread(engine: Engine):
    with pytest.raises(RuntimeError, match="has a thread already"), EngineThread(engine):
        pass
