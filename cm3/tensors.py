"""Tensors as lists. PyTorch does not type Tensor.tolist."""

from typing import Any, cast

from torch import Tensor


def to_ints(values: Tensor) -> list[int]:
    """Return the values of a tensor of integers of any shape, in order."""
    return cast(list[int], _to_list(values.flatten()))


def to_floats(values: Tensor) -> list[float]:
    """Return the values of a tensor of floats of any shape, in order."""
    return cast(list[float], _to_list(values.flatten()))


def to_rows(values: Tensor) -> list[list[int]]:
    """Return the rows of a tensor of integers, [N, M]."""
    return cast(list[list[int]], _to_list(values))


def _to_list(values: Tensor) -> Any:
    return cast(Any, values).tolist()
