"""KVCache: sequences of unequal length side by side, each as if it were alone."""

import copy
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cm3.model.kv_cache import KVCache
from cm3.model.transformer import CM3ForCausalLM
from tests.helpers.models import build

LENGTHS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def model() -> CM3ForCausalLM:
    return build()


def read(model: CM3ForCausalLM, cache: KVCache, ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
    return model(ids, attention_mask=mask, position_ids=positions, cache=cache, use_cache=True).logits


def prefill(model: CM3ForCausalLM, cache: KVCache, sequences: Sequence[int], rows: list[list[int]]) -> Tensor:
    longest = max(map(len, rows))
    cache.prefill(torch.tensor(sequences), longest)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return read(model, cache, ids, torch.arange(longest)[None], None)


def decode(model: CM3ForCausalLM, cache: KVCache, lengths: Sequence[int], rows: list[list[int]]) -> Tensor:
    count = len(rows[0])
    positions = torch.tensor(lengths)[:, None] + torch.arange(count)
    seen = max(lengths) + count
    cache.decode(positions, seen)
    mask = (torch.arange(seen) <= positions[:, :, None])[:, None]
    return read(model, cache, torch.tensor(rows), positions, mask)


def random_rows(lengths: Sequence[int], seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(64, 400, (length,), generator=generator).tolist() for length in lengths]


@torch.inference_mode()
@settings(max_examples=20)
@given(LENGTHS, st.integers(1, 3), st.integers(0, 99))
def test_each_lane_is_as_if_it_were_alone(model: CM3ForCausalLM, lengths: list[tuple[int, int]], count: int, seed: int):
    """Prompts of any lengths, then as many ids in each sequence, twice."""
    begun = random_rows([length for length, _ in lengths], seed)
    cache = KVCache(model.config, len(begun), 16)
    got = [prefill(model, cache, range(len(begun)), begun)]
    rows = [list(row) for row in begun]
    for step in range(2):
        new = random_rows([count] * len(rows), seed + 1 + step)
        got.append(decode(model, cache, [len(row) for row in rows], new))
        rows = [row + more for row, more in zip(rows, new, strict=True)]
    for i, row in enumerate(rows):
        alone = model(torch.tensor([row]), use_cache=False).logits[0]
        length = len(begun[i])
        torch.testing.assert_close(got[0][i, :length], alone[:length], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.cat([got[1][i], got[2][i]]), alone[length:], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_lanes_join_move_and_grow(model: CM3ForCausalLM):
    first, second, third = random_rows([5, 3, 7], 1)
    cache = KVCache(model.config, 2, 8)
    prefill(model, cache, [0, 1], [first, second])
    cache.resize(3, 16)
    prefill(model, cache, [2], [third])
    cache.copy(torch.tensor([0, 1]), torch.tensor([1, 2]), 7)  # the first leaves, the others close up
    got = decode(model, cache, [3, 7], [[99], [98]])
    for i, row in enumerate(([*second, 99], [*third, 98])):
        alone = model(torch.tensor([row]), use_cache=False).logits[0, -1]
        torch.testing.assert_close(got[i, -1], alone, atol=1e-4, rtol=1e-4)
    assert cache.get_max_length() == 16
    with pytest.raises(AssertionError, match="grows"):
        cache.resize(1, 16)


@torch.inference_mode()
def test_what_lies_behind_a_lane_counts_for_nothing(model: CM3ForCausalLM):
    rows = random_rows([4, 9], 2)
    cache = KVCache(model.config, 2, 16)
    prefill(model, cache, [0, 1], rows)
    other = copy.deepcopy(cache)
    for layer in other.kv_layers:
        assert layer.keys is not None and layer.values is not None
        layer.keys[0, :, 5:], layer.values[0, :, 5:] = 1e4, 1e4
    assert torch.equal(decode(model, cache, [4, 9], [[70], [71]]), decode(model, other, [4, 9], [[70], [71]]))


@torch.inference_mode()
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_mask_for_each_lane_works_with_either_attention(model: CM3ForCausalLM, implementation: str):
    rows = random_rows([4, 9], 3)
    other = copy.deepcopy(model)
    other.set_attn_implementation(implementation)
    cache = KVCache(model.config, 2, 16)
    prefill(other, cache, [0, 1], rows)
    positions = torch.tensor([[4], [9]])
    cache.decode(positions, 10)
    mask = (torch.arange(10) <= positions).long()  # [L, S], as flash attention takes it too
    got = read(other, cache, torch.tensor([[70], [71]]), positions, mask)
    for i, row in enumerate(([*rows[0], 70], [*rows[1], 71])):
        torch.testing.assert_close(got[i, -1], model(torch.tensor([row])).logits[0, -1], atol=1e-4, rtol=1e-4)
