"""Estimates of the memory that a model needs for a batch, from its configuration alone, and the memory that is free."""

from pathlib import Path
from typing import NamedTuple

import torch

from cm3.model.config import CM3Config

USABLE = 0.9  # share of the free memory that is used; the rest is for what the estimate leaves out
SAMPLING_BYTES = 4 + 4 + 8 + 8  # of a logit while an id is sampled: single precision, guided, twice double precision
BLOCK = 32  # the cache's length is a multiple of it


class Memory(NamedTuple):
    """Bytes.

    Attributes:
        weights: of the model.
        cache: keys and values.
        activations: of one forward pass and of its logits, at most.
    """

    weights: int
    cache: int
    activations: int


def padded_length(tokens: int) -> int:
    """Length of the cache for sequences of so many tokens."""
    return -(-tokens // BLOCK) * BLOCK


def sequence_bytes(config: CM3Config, length: int, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one sequence with room for `length` tokens."""
    assert config.num_key_value_heads is not None
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * length * dtype.itemsize


def memory(config: CM3Config, parameters: int, sequences: int, length: int, tokens: int, dtype: torch.dtype) -> Memory:
    """Estimate the memory of a model with a batch.

    Args:
        config: of the model.
        parameters: number of its parameters.
        sequences: of the batch.
        length: tokens of a sequence in the cache.
        tokens: of one forward pass, at most.
        dtype: of parameters, keys and values.
    """
    assert config.vocab_size is not None and config.intermediate_size is not None
    token = (6 * config.hidden_size + 3 * config.intermediate_size) * dtype.itemsize
    sampling = sequences * config.vocab_size * SAMPLING_BYTES
    return Memory(
        parameters * dtype.itemsize, sequences * sequence_bytes(config, length, dtype), tokens * token + sampling
    )


def free_bytes(device: torch.device) -> int | None:
    """Free memory of the device; None if it is not known."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    try:
        facts = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:  # not Linux
        return None
    available = next((line for line in facts.splitlines() if line.startswith("MemAvailable:")), None)
    return None if available is None else int(available.split()[1]) * 1024


def max_sequences_in_memory(config: CM3Config, length: int, dtype: torch.dtype, device: torch.device) -> float:
    """Number of sequences whose keys and values fit into the free memory; infinite if that is not known."""
    free = free_bytes(device)
    return float("inf") if free is None else USABLE * free / sequence_bytes(config, length, dtype)
