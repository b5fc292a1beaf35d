"""KVCache: what is written is seen, in order, within the room that was taken."""

import pytest
import torch

from cm3.cache import KVCache
from cm3.config import CM3Config

CONFIG = CM3Config.preset("tiny")


def states(length: int, seed: int = 0) -> torch.Tensor:  # [B, G, T, K]
    return torch.randn(3, 2, length, 8, generator=torch.Generator().manual_seed(seed))


def test_each_update_returns_all_that_was_seen():
    cache = KVCache(CONFIG, max_length=8)
    parts = [states(3, 0), states(1, 1), states(4, 2)]
    for i, part in enumerate(parts):
        keys, values = cache.update(part, -part, 0)
        assert torch.equal(keys, torch.cat(parts[: i + 1], dim=2))
        assert torch.equal(values, -keys)
    assert cache.get_seq_length() == 8
    assert cache.get_mask_sizes(1, 0) == (9, 0)


def test_no_step_moves_the_past():
    cache = KVCache(CONFIG, max_length=8)
    first, _ = cache.update(states(3), states(3), 0)
    second, _ = cache.update(states(1), states(1), 0)
    assert first.data_ptr() == second.data_ptr()


def test_layers_are_apart():
    cache = KVCache(CONFIG, max_length=4)
    cache.update(states(2, 0), states(2, 0), 0)
    keys, _ = cache.update(states(2, 1), states(2, 1), 1)
    assert torch.equal(keys, states(2, 1))


def test_more_than_the_room_is_the_programmers_mistake():
    cache = KVCache(CONFIG, max_length=4)
    with pytest.raises(AssertionError, match="holds 4 tokens, not 5"):
        cache.update(states(5), states(5), 0)


def test_cropping_and_resetting_forget_the_end():
    cache = KVCache(CONFIG, max_length=4)
    for layer in range(CONFIG.num_hidden_layers):
        cache.update(states(3), states(3), layer)
    cache.crop(-2)
    keys, _ = cache.update(states(1, 5), states(1, 5), 0)
    assert torch.equal(keys, torch.cat((states(3)[:, :, :1], states(1, 5)), dim=2))
    cache.reset()
    assert cache.get_seq_length() == 0


def test_lanes_can_be_selected_and_repeated():
    cache = KVCache(CONFIG, max_length=4)
    cache.update(states(2), states(2), 0)
    cache.batch_select_indices(torch.tensor([2, 0]))
    keys, _ = cache.update(states(1)[:2], states(1)[:2], 0)
    assert torch.equal(keys[:, :, :2], states(2)[[2, 0]])
    cache.batch_repeat_interleave(2)
    keys, _ = cache.update(states(1)[[0, 0, 1, 1]], states(1)[[0, 0, 1, 1]], 0)
    assert torch.equal(keys[:, :, :2], states(2)[[2, 2, 0, 0]])
