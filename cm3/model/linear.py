"""Linear layers that are fast on CPUs for small batches, as in decoding, where reading the weights takes the time."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _transposed_rows() -> int:
    """Number of rows up to which MKL multiplies faster as (W x^T)^T.

    On AMD processors 8: up to four times as fast. On Intel processors 0: half as fast (benchmarks/linear.py). The
    vendor decides, not a measurement, so that results are the same to the bit in every run.
    """
    facts = Path("/proc/cpuinfo")
    amd = facts.is_file() and "AuthenticAMD" in facts.read_text("utf-8", "replace")
    return 8 if amd and torch.backends.mkl.is_available() else 0


TRANSPOSED_ROWS = _transposed_rows()


class Linear(nn.Linear):
    """A layer without bias, fast on CPUs for small batches."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)  # pyright: ignore[reportUnknownMemberType]

    def forward(self, input: Tensor) -> Tensor:  # [..., in] -> [..., out]
        return project(input, self.weight)


def project(x: Tensor, weight: Tensor) -> Tensor:  # [..., in], [out, in] -> [..., out]
    """x W^T, computed as (W x^T)^T for few rows in fp32 on an AMD processor. A single row is doubled for that."""
    rows = x.shape[:-1].numel()
    plain = type(weight) in (Tensor, nn.Parameter)  # quantised or sharded weights support F.linear only
    if (
        not (plain and 0 < rows <= TRANSPOSED_ROWS)
        or x.device.type != "cpu"
        or x.dtype != torch.float32
        or torch.is_grad_enabled()
    ):
        return F.linear(x, weight)
    flat = x.reshape(rows, -1)
    if rows == 1:
        return (weight @ torch.cat((flat, flat)).t())[:, :1].reshape(*x.shape[:-1], -1)
    return (weight @ flat.t()).t().reshape(*x.shape[:-1], -1)
