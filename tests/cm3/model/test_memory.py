"""Memory is reckoned before it is taken."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from cm3.model.config import CM3Config
from cm3.model.kv_cache import KVCache
from cm3.model.memory import free_bytes, max_sequences_in_memory, memory, sequence_bytes
from cm3.model.transformer import CM3ForCausalLM

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, dict(num_key_value_heads=2, num_hidden_layers=3)])
def test_weights_and_cache_are_what_is_taken(dtype: torch.dtype, options: dict[str, int]):
    model = CM3ForCausalLM(CM3Config.preset("tiny", **options)).to(dtype)  # pyright: ignore[reportArgumentType]
    cache = KVCache(model.config, 5, 32)
    cache.prefill(torch.arange(5), 4)
    model(torch.full((5, 4), 70), cache=cache, use_cache=True)
    taken = Counter[str]()
    for layer in cache.kv_layers:
        assert layer.keys is not None and layer.values is not None
        taken["cache"] += layer.keys.nbytes + layer.values.nbytes
    for parameter in model.parameters():
        taken["weights"] += parameter.nbytes
    reckoned = memory(model.config, model.num_parameters(), 5, 32, 20, dtype)
    assert (reckoned.weights, reckoned.cache) == (taken["weights"], taken["cache"])
    assert reckoned.cache == 5 * sequence_bytes(model.config, 32, dtype)
    assert reckoned.activations > 5 * len(model.lm_head.weight) * 4


def test_free_memory_is_what_the_kernel_says(monkeypatch: pytest.MonkeyPatch):
    free = free_bytes(CPU)
    assert free is None or free > 1e8
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "MemTotal: 9 kB\nMemAvailable:     2048 kB\n")
    assert free_bytes(CPU) == 2048 * 1024
    config = CM3Config.preset("tiny")
    sequences = max_sequences_in_memory(config, 64, torch.float32, CPU)
    assert sequences == 0.9 * 2048 * 1024 / sequence_bytes(config, 64, torch.float32)

    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)  # not Linux
    assert free_bytes(CPU) is None
    assert max_sequences_in_memory(config, 64, torch.float32, CPU) == float("inf")
