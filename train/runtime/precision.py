"""The number format of a forward pass: 16 bits where the device computes them fast, 32 elsewhere."""

from contextlib import nullcontext

import torch


def bf16_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies bf16 natively (a CPU without AVX-512 BF16 emulates it, many times slower)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()  # no public query exists


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether "auto", "bf16" or "fp32" means bf16 on the device."""
    return bf16_is_fast(device) if precision == "auto" else precision == "bf16"


def autocast(precision: str, device: torch.device):
    """The context of a forward pass in `precision` ("auto", "bf16" or "fp32")."""
    return torch.autocast(device.type, torch.bfloat16) if uses_bf16(precision, device) else nullcontext()
