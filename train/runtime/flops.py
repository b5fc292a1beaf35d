"""FLOPs of a training step, and model FLOPs utilisation (MFU)."""

from collections.abc import Iterable

import torch

from cm3.model.config import CM3Config

# Dense bf16 peaks in FLOP/s, from the manufacturers' data sheets.
PEAKS = {"B200": 2.25e15, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}


def matrix_parameters(config: CM3Config) -> int:
    """Count the parameters that every token is multiplied with: all but embeddings and norms.

    A tied output layer counts.
    """
    assert config.intermediate_size and config.num_key_value_heads and config.vocab_size
    d, kv = config.hidden_size, config.num_key_value_heads * config.head_dim
    mlp = (3 if config.activation == "swiglu" else 2) * d * config.intermediate_size
    return config.num_hidden_layers * (2 * d * d + 2 * d * kv + mlp) + d * config.vocab_size


def flops_per_token(config: CM3Config, seq_len: int) -> float:
    """Return the FLOPs of a token, forward and backward (Chowdhery et al. 2022, PaLM, appendix B).

    These are 6 for each parameter of `matrix_parameters`, and attention over the whole sequence. Recomputed activations
    do not count.
    """
    return 6 * matrix_parameters(config) + 12 * config.num_hidden_layers * config.hidden_size * seq_len


def muon_flops(config: CM3Config) -> float:
    """Return the FLOPs of a step of Muon: 5 Newton-Schulz iterations of 3 products for each matrix in a block."""
    assert config.intermediate_size and config.num_key_value_heads
    d, kv = config.hidden_size, config.num_key_value_heads * config.head_dim
    wide = [(config.intermediate_size, d)] * (3 if config.activation == "swiglu" else 2)
    sides = [sorted(shape) for shape in [(d, d)] * 2 + [(kv, d)] * 2 + wide]
    return config.num_hidden_layers * sum(5 * (2 * m * m * n + 2 * m**3 + 2 * m * m * n) for m, n in sides)


def step_flops(config: CM3Config, seq_len: int, tokens: int, optimizers: Iterable[torch.optim.Optimizer]) -> float:
    """Return the FLOPs of a step on `tokens` tokens, padding included. AdamW's few for each parameter are left out."""
    muon = any(isinstance(one, torch.optim.Muon) for one in optimizers)
    return tokens * flops_per_token(config, seq_len) + (muon_flops(config) if muon else 0)


def utilisation(config: CM3Config, seq_len: int, tokens_per_second: float, device: torch.device) -> dict[str, float]:
    """Return {"mfu": share of the device's bf16 peak} where the peak is known, else {}."""
    if device.type != "cuda":
        return {}
    name = torch.cuda.get_device_name(device)
    peak = next((peak for key, peak in PEAKS.items() if key in name), None)
    return {"mfu": tokens_per_second * flops_per_token(config, seq_len) / peak} if peak else {}
