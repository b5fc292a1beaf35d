"""Linear layers that are as fast with few rows on a CPU, as decoding has them, as their weights can be read."""

# torch is typed in part only.
# pyright: reportUnknownMemberType=false

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _few() -> int:
    """How many rows MKL multiplies faster as (W x^T)^T: on AMD's processors up to 8, four times; on Intel's none, they
    are twice as slow then (benchmarks/linear.py). The vendor decides and no stopwatch: results stay the same to the
    bit."""
    facts = Path("/proc/cpuinfo")
    amd = facts.is_file() and "AuthenticAMD" in facts.read_text("utf-8", "replace")
    return 8 if amd and torch.backends.mkl.is_available() else 0


FEW = _few()  # rows


class Linear(nn.Linear):
    """A layer without bias; with few rows on a CPU, as decoding has them, it reads its weights as fast as they come."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # [..., in] -> [..., out]
        return project(input, self.weight)


def project(x: Tensor, weight: Tensor) -> Tensor:  # [..., in], [out, in] -> [..., out]
    """x W^T; of few rows in fp32 on an AMD processor as (W x^T)^T, for one row too if it is there twice."""
    rows = x.shape[:-1].numel()
    plain = type(weight) in (Tensor, nn.Parameter)  # a quantised or sharded one knows F.linear alone
    if not (plain and 0 < rows <= FEW) or x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_grad_enabled():
        return F.linear(x, weight)
    flat = x.reshape(rows, -1)
    if rows == 1:
        return (weight @ torch.cat((flat, flat)).t())[:, :1].reshape(*x.shape[:-1], -1)
    return (weight @ flat.t()).t().reshape(*x.shape[:-1], -1)
