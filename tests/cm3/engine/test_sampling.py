"""Sampling: pure functions, one generator a row."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cm3.engine.options import GREEDY, SamplingConfig
from cm3.engine.sampling import NUM_LIKELIEST, Uniforms, draw, generator_of, greedy, sample, temperature, top_k, top_p

NEVER = -math.inf


def seeded(*seeds: int) -> list[Uniforms]:
    return [Uniforms(seed) for seed in seeds]


def some_logits(batch: int = 4, size: int = 50) -> Tensor:  # [B, V]
    return torch.randn(batch, size, generator=torch.Generator().manual_seed(0)) * 3


def kept(logits: Tensor) -> list[list[int]]:
    return [[i for i, x in enumerate(row) if x > NEVER] for row in logits.tolist()]


@given(st.integers(0, 2**32 - 1))
def test_small_seeds_are_torchs_own(seed: int):
    ours, torchs = generator_of(seed), torch.Generator().manual_seed(seed)
    assert torch.equal(torch.rand(9, generator=ours), torch.rand(9, generator=torchs))


@given(st.integers(2**32, 2**63 - 1))
def test_of_large_seeds_every_bit_counts(seed: int):
    def numbers(seed: int) -> tuple[int, ...]:
        return tuple(torch.randint(2**32, (700,), generator=generator_of(seed)).tolist())

    assert numbers(seed) == numbers(seed)
    assert len({numbers(one)[:9] for one in (seed, *(seed ^ (1 << bit) for bit in range(63)))}) == 64


def test_of_a_large_seed_torch_goes_through_numpys_mersenne_twister():
    twister = np.random.MT19937()
    words = np.random.SeedSequence(2**40 + 3).generate_state(624)
    state: Any = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    twister.state = state
    ours = torch.rand(1300, generator=generator_of(2**40 + 3)) * 2**24  # more than two fills of its 624 words
    assert ours.tolist() == [number % 2**24 for number in twister.random_raw(1300).tolist()]


def likeliest(logits: Tensor, p: Tensor) -> list[list[int]]:
    """The ids that top_p keeps, as they stand in it."""
    some = top_p(logits, p)
    assert torch.equal(some.logits, logits.gather(-1, some.ids).where(some.logits > NEVER, NEVER))
    return [[ids[i] for i in places] for ids, places in zip(some.ids.tolist(), kept(some.logits), strict=True)]


def test_top_k_keeps_the_k_largest_of_each_row():
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]] * 4)
    assert kept(top_k(logits, torch.tensor([1, 2, 0, 9]))) == [[1], [1, 2], [0, 1, 2, 3], [0, 1, 2, 3]]


def test_top_p_keeps_the_likeliest_that_reach_p():
    logits = torch.tensor([[0.2, 0.5, 0.3]] * 4).log()
    assert likeliest(logits, torch.tensor([0.4, 0.6, 0.9, 1.0])) == [[1], [1, 2], [0, 1, 2], [0, 1, 2]]


@given(st.integers(0, 1000), st.floats(0.01, 1.0))
def test_top_p_keeps_at_least_p_and_no_id_too_many(seed: int, p: float):
    logits = torch.randn(1, 20, generator=torch.Generator().manual_seed(seed)) * 4
    probabilities = logits.double().softmax(-1)[0]
    stay = torch.tensor(likeliest(logits, torch.tensor([p]))[0])
    assert probabilities[stay].sum() >= p - 1e-6
    if p < 1:
        assert len(stay) == 1 or probabilities[stay].sum() - probabilities[stay].min() < p + 1e-6


@given(st.integers(0, 1000), st.floats(0.01, 1.0), st.floats(0.1, 9.0), st.booleans())
def test_top_p_of_many_ids_is_that_of_all_of_them_sorted(seed: int, p: float, width: float, equals: bool):
    p = torch.tensor(p).item()  # in fp32, as the sampler has it: 0.9999999999999999 is 1
    logits = torch.randn(2, 3 * NUM_LIKELIEST, generator=torch.Generator().manual_seed(seed)) * width
    logits = logits.round() if equals else logits
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    sums = logits.double().softmax(-1).gather(-1, order).cumsum(-1)
    wanted = [sorted(ids[: int((total < p).sum()) + 1]) for ids, total in zip(order.tolist(), sums, strict=True)]
    assert p == 1 or likeliest(logits, torch.tensor([p, p])) == wanted


@pytest.mark.parametrize("seed", [0, 2**40 + 3])
def test_numbers_made_together_are_those_made_one_by_one(seed: int):
    numbers, generator = Uniforms(seed), generator_of(seed)
    for _ in range(200):
        assert next(numbers) == torch.rand(1, generator=generator, dtype=torch.float64).item()


def test_temperature_sharpens_and_flattens():
    logits = some_logits(2)
    cold, hot = temperature(logits, torch.tensor([0.5, 2.0])).softmax(-1).amax(-1)
    assert cold > logits[0].softmax(-1).max()
    assert hot < logits[1].softmax(-1).max()


@pytest.mark.parametrize(
    "config", [GREEDY, SamplingConfig(top_k=1), SamplingConfig(top_p=1e-9), SamplingConfig(temperature=1e-4)]
)
def test_top_1_equals_greedy(config: SamplingConfig):
    logits = some_logits()
    assert torch.equal(sample(logits, [config] * 4, seeded(0, 1, 2, 3)), greedy(logits))


@pytest.mark.parametrize(
    "config", [SamplingConfig(), SamplingConfig(top_k=5), SamplingConfig(temperature=0.7, top_p=0.8)]
)
def test_forbidden_ids_are_never_drawn(config: SamplingConfig):
    logits = some_logits(1).index_fill(-1, torch.arange(0, 50, 2), NEVER)
    for seed in range(50):
        assert sample(logits, [config], seeded(seed)).item() % 2 == 1


def test_one_legal_id_is_always_drawn():
    logits = torch.full((1, 9), NEVER)
    logits[0, 4] = -50.0
    assert all(sample(logits, [SamplingConfig(top_k=3, top_p=0.5)], seeded(seed)).item() == 4 for seed in range(20))


def test_draws_follow_the_probabilities():
    probabilities = torch.tensor([0.1, 0.2, 0.0, 0.7])
    numbers = torch.rand(4000, generator=generator_of(0), dtype=torch.float64)
    ids = draw(probabilities.log().expand(4000, -1), numbers)
    torch.testing.assert_close(ids.bincount(minlength=4) / 4000, probabilities, atol=0.03, rtol=0)


def test_a_row_draws_the_same_alone_as_in_any_batch():
    logits = some_logits()
    configs = [
        SamplingConfig(),
        SamplingConfig(temperature=0.5, top_k=7),
        GREEDY,
        SamplingConfig(temperature=1.5, top_p=0.7),
    ]
    together = [sample(logits, configs, gs) for gs in [seeded(0, 1, 2, 3)] for _ in range(5)]
    backwards = [sample(logits.flip(0), configs[::-1], gs).flip(0) for gs in [seeded(3, 2, 1, 0)] for _ in range(5)]
    assert torch.equal(torch.stack(together), torch.stack(backwards))
    for i in range(4):
        alone = [sample(logits[i : i + 1], configs[i : i + 1], gs) for gs in [seeded(i)] for _ in range(5)]
        assert torch.equal(torch.cat(alone), torch.stack(together)[:, i])


@given(st.integers(0, 10_000), st.floats(0.05, 0.99), st.floats(0.3, 5.0), st.sampled_from([0.3, 0.8, 1.0]))
def test_a_row_draws_the_same_beside_one_for_which_all_ids_are_sorted(seed: int, p: float, width: float, heat: float):
    logits = torch.randn(2, 4 * NUM_LIKELIEST, generator=torch.Generator().manual_seed(seed)) * width
    some, all_ids = SamplingConfig(temperature=heat, top_p=p), SamplingConfig()
    alone, beside = seeded(seed), seeded(seed, 0)
    for _ in range(4):
        both = sample(logits, [some, all_ids], beside)
        assert sample(logits[:1], [some], alone).item() == both[0]


def test_sampling_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    sample(some_logits(), [SamplingConfig()] * 4, seeded(0, 1, 2, 3))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(temperature=-0.1), "temperature .* -0.1, .* 0 "),
        (dict(temperature=math.nan), "temperature"),
        (dict(temperature=math.inf), "temperature"),
        (dict(top_k=-1), "top_k .* -1, .* 0 "),
        (dict(top_p=0.0), "top_p .* 0.0, .* 0 .* 1"),
        (dict(top_p=1.5), "top_p .* 1.5"),
    ],
)
def test_a_mistake_names_the_value_and_the_limit(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**options)
