"""What lies in a run's checkpoints."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load


def newest(out: Path) -> Path:
    """The folder of a run's newest complete checkpoint."""
    return max(path for path in (out / "checkpoints").iterdir() if path.name.removeprefix("step-").isdigit())


def tensors_of(out: Path) -> dict[str, Tensor]:
    """Every tensor of a run's newest checkpoint, by its dotted place."""
    reader = FileSystemReader(newest(out))
    facts: dict[str, Any] = reader.read_metadata().state_dict_metadata
    state: dict[str, Any] = {name: torch.empty(fact.size, dtype=fact.properties.dtype) for name, fact in facts.items()}
    load(state, storage_reader=reader, no_dist=True)
    return state


def values_of(out: Path) -> dict[str, Any]:
    """The other values of it, those of the first rank."""
    return json.loads((newest(out) / "values.json").read_text())[0]


def same_tensors(one: Path, two: Path) -> bool:
    """Whether the newest checkpoints of two runs hold the same bits."""
    a, b = tensors_of(one), tensors_of(two)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
