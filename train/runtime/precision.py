"""The number format of a forward pass: 16 bits where the device computes them fast, 32 elsewhere."""

import time
from contextlib import nullcontext
from functools import lru_cache

import torch


def bf16_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies bf16 faster than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and cpu_bf16_is_fast()


@lru_cache
def cpu_bf16_is_fast() -> bool:
    """Without AVX-512 BF16 a CPU emulates bf16, many times slower. With it, only a trial tells: an AMD Zen 5 multiplies
    4 times as fast as in fp32, an Intel Xeon whose AMX is hidden from its guests half as fast."""
    if not torch.cpu._is_avx512_bf16_supported():  # no public query exists
        return False
    return product_seconds(torch.bfloat16) < product_seconds(torch.float32)


def product_seconds(dtype: torch.dtype, side: int = 512, trials: int = 5) -> float:
    """The shortest time of a product of two square matrices, after one to warm up."""
    one, other = torch.ones(2, side, side, dtype=dtype)
    times = []
    for _ in range(trials + 1):
        started = time.perf_counter()
        torch.mm(one, other)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether "auto", "bf16" or "fp32" means bf16 on the device."""
    return bf16_is_fast(device) if precision == "auto" else precision == "bf16"


def autocast(precision: str, device: torch.device):
    """The context of a forward pass in `precision` ("auto", "bf16" or "fp32")."""
    return torch.autocast(device.type, torch.bfloat16) if uses_bf16(precision, device) else nullcontext()
