"""Tensors that are read when they are written: memory holds one of them and its copy."""

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cm3.hf.chameleon import ROWS
from cm3.hf.model_folder import INDEX, WEIGHTS

TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True)
class Stored:
    """A tensor that is read when it is written.

    Attributes:
        name: in the file.
        shape, dtype: known before it is read.
        read: returns the tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


def write_safetensors(path: Path, tensors: Sequence[Stored]) -> None:
    """Write a safetensors file, one tensor at a time.

    safetensors' own writer needs all tensors in memory. The format is a length, a table and the bytes
    (huggingface.co/docs/safetensors).

    Raises:
        ValueError: a tensor is not fp32, fp16 or bf16.
    """
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for one in tensors:
        if one.dtype not in TYPES:
            raise ValueError(f"{one.name} is of type {str(one.dtype).removeprefix('torch.')}: give fp32, fp16 or bf16")
        start, end = end, end + torch.Size(one.shape).numel() * one.dtype.itemsize
        table[one.name] = {"dtype": TYPES[one.dtype], "shape": list(one.shape), "data_offsets": [start, end]}
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for one in tensors:
            tensor = one.read().contiguous()
            assert (tensor.shape, tensor.dtype) == (one.shape, one.dtype), f"{one.name}: {tensor.shape}, {tensor.dtype}"
            file.flush()
            tensor.flatten().view(torch.uint8).numpy().tofile(file)


def write_shards(folder: Path, shards: Sequence[Sequence[Stored]]) -> None:
    """Write model.safetensors, or several files and their index."""
    if len(shards) == 1:
        write_safetensors(folder / WEIGHTS, shards[0])
        return
    file_of: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / name, tensors)
        file_of |= {one.name: name for one in tensors}
    size = sum(torch.Size(one.shape).numel() * one.dtype.itemsize for tensors in shards for one in tensors)
    index = {"metadata": {"total_size": size}, "weight_map": file_of}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def stored(name: str, shape: list[int], dtype: torch.dtype, tensors: Mapping[str, Tensor]) -> Stored:
    """A tensor of a file that is read later."""
    return Stored(name, tuple(shape), dtype, lambda: tensors[name])


def reordered(one: Stored, rows: Sequence[int], count: int) -> Stored:
    """Reorder the rows of a tensor that has one for each id.

    Args:
        one: the tensor; others than those of ROWS are returned as they are.
        rows: for each new row the old one; -1 for a row of zeros.
        count: number of rows that it must have.

    Raises:
        ValueError: it has another number of rows.
    """
    if one.name not in ROWS:
        return one
    if one.shape[0] != count:
        raise ValueError(f"{one.name} has {one.shape[0]} rows, but the vocabulary has {count}")
    old = torch.tensor(rows)

    def read() -> Tensor:
        moved = one.read()[old.clamp(min=0)]
        return moved.masked_fill_((old < 0)[:, None], 0)

    return Stored(one.name, (len(rows), *one.shape[1:]), one.dtype, read)
