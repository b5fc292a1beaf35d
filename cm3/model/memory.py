"""How many bytes a model needs to run a batch, and how many are free: reckoned before a run, from the config alone."""

# torch types some of its functions in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from pathlib import Path
from typing import NamedTuple

import torch

from cm3.model.config import CM3Config

SPARE = 0.9  # of what is free; the rest is for what is not reckoned
SCORES = 4 + 4 + 8 + 8  # bytes of each logit while an id is drawn from it: as it is, guided, twice in double precision
SLOTS = 32  # room is taken in multiples of it


class Memory(NamedTuple):
    """Bytes. weights: of the model. cache: keys and values. activations: of one call and of the logits, at most."""

    weights: int
    cache: int
    activations: int


def room(tokens: int) -> int:
    """Slots that are taken for a lane of so many tokens."""
    return -(-tokens // SLOTS) * SLOTS


def lane_bytes(config: CM3Config, slots: int, dtype: torch.dtype) -> int:
    """Keys and values of one lane with room for so many tokens."""
    assert config.num_key_value_heads is not None
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * slots * dtype.itemsize


def memory(config: CM3Config, parameters: int, lanes: int, slots: int, tokens: int, dtype: torch.dtype) -> Memory:
    """Of a model with so many parameters. lanes, slots: of the cache. tokens: read in one call, at most."""
    assert config.vocab_size is not None and config.intermediate_size is not None
    token = (6 * config.hidden_size + 3 * config.intermediate_size) * dtype.itemsize
    drawing = lanes * config.vocab_size * SCORES
    return Memory(parameters * dtype.itemsize, lanes * lane_bytes(config, slots, dtype), tokens * token + drawing)


def free_bytes(device: torch.device) -> int | None:
    """What may be taken on the device; None = not known."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    try:
        facts = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:  # not Linux
        return None
    available = next((line for line in facts.splitlines() if line.startswith("MemAvailable:")), None)
    return None if available is None else int(available.split()[1]) * 1024


def lanes_that_fit(config: CM3Config, slots: int, dtype: torch.dtype, device: torch.device) -> float:
    """How many lanes there is room for; infinite where what is free is not known."""
    free = free_bytes(device)
    return float("inf") if free is None else SPARE * free / lane_bytes(config, slots, dtype)
