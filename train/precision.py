"""The number format of a forward pass: 16 bits where the device computes them fast, 32 elsewhere."""

from contextlib import nullcontext

import torch


def bf16_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies bf16 natively (a CPU without AVX-512 BF16 emulates it, many times slower)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()  # no public query exists


def autocast(precision: str, device: torch.device):
    """The context of a forward pass in `precision` ("auto", "bf16" or "fp32")."""
    bf16 = bf16_is_fast(device) if precision == "auto" else precision == "bf16"
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
