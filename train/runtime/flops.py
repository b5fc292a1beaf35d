"""Arithmetic of a training step, and the share of the device that it uses."""

from collections.abc import Iterable

import torch

from cm3.model.config import CM3Config

# Dense bf16 peaks in FLOP/s, from the makers' data sheets.
PEAKS = {"B200": 2.25e15, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}


def matrix_parameters(config: CM3Config) -> int:
    """Parameters that every token is multiplied with: all but embeddings and norms; a tied head counts."""
    assert config.intermediate_size and config.num_key_value_heads and config.vocab_size
    d, kv = config.hidden_size, config.num_key_value_heads * config.head_dim
    mlp = (3 if config.activation == "swiglu" else 2) * d * config.intermediate_size
    return config.num_hidden_layers * (2 * d * d + 2 * d * kv + mlp) + d * config.vocab_size


def flops_per_token(config: CM3Config, row: int) -> float:
    """Forward and backward: 6 for each such parameter, and attention over the whole row (Chowdhery et al. 2022, PaLM,
    appendix B). Recomputed activations do not count."""
    return 6 * matrix_parameters(config) + 12 * config.num_hidden_layers * config.hidden_size * row


def muon_flops(config: CM3Config) -> float:
    """Of a step of Muon: five Newton-Schulz iterations of three products for each matrix inside the blocks."""
    assert config.intermediate_size and config.num_key_value_heads
    d, kv = config.hidden_size, config.num_key_value_heads * config.head_dim
    wide = [(config.intermediate_size, d)] * (3 if config.activation == "swiglu" else 2)
    sides = [sorted(shape) for shape in [(d, d)] * 2 + [(kv, d)] * 2 + wide]
    return config.num_hidden_layers * sum(5 * (2 * m * m * n + 2 * m**3 + 2 * m * m * n) for m, n in sides)


def step_flops(config: CM3Config, row: int, tokens: int, optimizers: Iterable[torch.optim.Optimizer]) -> float:
    """FLOPs of a step on `tokens` tokens, padding included. AdamW's are left out: a few for each parameter."""
    muon = any(isinstance(one, torch.optim.Muon) for one in optimizers)
    return tokens * flops_per_token(config, row) + (muon_flops(config) if muon else 0)


def utilisation(config: CM3Config, row: int, tokens_per_second: float, device: torch.device) -> dict[str, float]:
    """{"mfu": share of the device's peak in bf16} where the peak is known, else nothing."""
    if device.type != "cuda":
        return {}
    name = torch.cuda.get_device_name(device)
    peak = next((peak for key, peak in PEAKS.items() if key in name), None)
    return {"mfu": tokens_per_second * flops_per_token(config, row) / peak} if peak else {}
