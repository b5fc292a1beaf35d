"""Precision of a forward pass: bf16 where the device computes it fast, fp32 elsewhere."""

import time
from contextlib import nullcontext
from functools import lru_cache

import torch


def bf16_is_fast(device: torch.device) -> bool:
    """Return whether the device multiplies matrices faster in bf16 than in fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and cpu_bf16_is_fast()


@lru_cache
def cpu_bf16_is_fast() -> bool:
    """Return whether the CPU multiplies matrices faster in bf16 than in fp32.

    Without AVX-512 BF16 a CPU emulates bf16, many times slower. With it, only a measurement decides: an AMD Zen 5 is 4
    times as fast as in fp32, an Intel Xeon whose AMX is hidden from its guests half as fast.
    """
    if not torch.cpu._is_avx512_bf16_supported():  # no public query exists
        return False
    return product_seconds(torch.bfloat16) < product_seconds(torch.float32)


def product_seconds(dtype: torch.dtype, side: int = 512, trials: int = 5) -> float:
    """Return the shortest time of a product of two square matrices; the first product is not timed."""
    one, other = torch.ones(2, side, side, dtype=dtype)
    times = []
    for _ in range(trials + 1):
        started = time.perf_counter()
        torch.mm(one, other)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Return whether a precision ("auto", "bf16" or "fp32") is bf16 on the device."""
    return bf16_is_fast(device) if precision == "auto" else precision == "bf16"


def autocast(precision: str, device: torch.device):
    """Return the context manager of a forward pass in a precision ("auto", "bf16" or "fp32")."""
    return torch.autocast(device.type, torch.bfloat16) if uses_bf16(precision, device) else nullcontext()
