"""The parts of a checkpoint, each with tensors and plain values.

A part is a nested dict of both, or an object with state_dict() and load_state_dict(): a module that no wrapper renames,
a scheduler, or one of the classes here.
"""

import random
import warnings
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.stateful import Stateful
from torch.optim import Optimizer

TUPLE = "__tuple__"  # how JSON, which has only lists, holds a tuple


class ModelAndOptimizers:
    """A model, bare or under DDP, FSDP2 or torch.compile, with the optimizers of its parameters, as one part.

    Every tensor is saved under the parameter's name in the bare model, so that it loads under any other wrapper and
    number of ranks.
    """

    def __init__(self, model: nn.Module, optimizers: list[Optimizer]):
        self.model, self.optimizers = model, optimizers

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors of the model and the optimizers themselves, not copies."""
        for optimizer in self.optimizers:
            fill_state(optimizer)
        return {
            "model": get_model_state_dict(self.model),
            "optimizers": get_optimizer_state_dict(self.model, self.optimizers),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_model_state_dict(self.model, state["model"])
        set_optimizer_state_dict(self.model, self.optimizers, state["optimizers"])


def fill_state(optimizer: Optimizer) -> None:
    """Give parameters that have not been updated yet the zeros that their first update would start from.

    PyTorch's own way, a step with a learning rate of 0, leaves AdamW counting from 1: the run would not be the same.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not parameter.requires_grad or optimizer.state[parameter]:
                continue
            state = optimizer.state[parameter]
            if isinstance(optimizer, torch.optim.Muon):
                state["momentum_buffer"] = torch.zeros_like(parameter)
                continue
            assert isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW), f"no zeros known for {type(optimizer)}"
            on_device = group["fused"] or group["capturable"]
            state["step"] = torch.zeros((), device=parameter.device if on_device else "cpu")
            for name in ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ())):
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)


class RandomState:
    """The global generators of Python, NumPy, PyTorch and this rank's GPU, as one part.

    With another number of ranks than at the save they keep their state, with a warning.
    """

    def state_dict(self) -> dict[str, Any]:
        name, keys, *rest = np.random.get_state()
        return {
            "ranks": ranks(),
            "python": random.getstate(),
            "numpy": (name, np.asarray(keys).tolist(), *rest),
            "torch": to_hex(torch.get_rng_state()),
            "cuda": to_hex(torch.cuda.get_rng_state()) if torch.cuda.is_available() else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["ranks"] != ranks():
            if rank() == 0:
                warnings.warn(
                    f"the checkpoint holds the random states of {state['ranks']} ranks, this run has "
                    f"{ranks()}: its generators are left as they are",
                    stacklevel=2,
                )
            return
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.set_rng_state(from_hex(state["torch"]))
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(from_hex(state["cuda"]))


def to_hex(state: Tensor) -> str:
    return bytes(state.tolist()).hex()


def from_hex(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def state_of(part: Any) -> dict[str, Any]:
    return part.state_dict() if isinstance(part, Stateful) else part


def split(state: dict[str, Any], prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors by dotted key, and the nested dict without them, ready for JSON."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for key, value in state.items():
        assert isinstance(key, str), f"{prefix}{key!r}: only strings can be keys"
        if isinstance(value, Tensor):
            more = {prefix + key: value.detach()}
        elif isinstance(value, dict):
            more, values[key] = split(value, f"{prefix}{key}.")
        else:
            more, values[key] = {}, packed(value, prefix + key)
        assert not tensors.keys() & more.keys(), f"two tensors have the name {sorted(tensors.keys() & more.keys())}"
        tensors |= more
    return tensors, values


def packed(value: Any, place: str) -> Any:
    """Return the value as JSON can hold it."""
    if isinstance(value, list | tuple):
        items = [packed(item, place) for item in value]
        return {TUPLE: items} if isinstance(value, tuple) else items
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value), f"{place}: only strings can be keys, not {list(value)[:3]}"
        return {key: packed(item, place) for key, item in value.items()}
    assert value is None or isinstance(value, str | int | float), f"{place} is {type(value)}, not a plain value"
    return value


def unpacked(value: dict[str, Any]) -> Any:
    return tuple(value[TUPLE]) if TUPLE in value else value


def merged(template: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with the template's tensors in their places."""
    state = dict(values)
    for key, value in template.items():
        if isinstance(value, Tensor):
            state[key] = value
        elif isinstance(value, dict) and isinstance(state.get(key), dict):
            state[key] = merged(value, state[key])
    return state
