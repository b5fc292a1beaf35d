"""Distances between images."""

import math

import torch
from torch import Tensor


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio in dB, [B], of images [B, 3, H, W] in [-1, 1]."""
    return 10 * torch.log10(4 / (a - b).square().mean((1, 2, 3)).clamp_min(1e-10))


def frechet(a: Tensor, b: Tensor) -> float:
    """Compute the Frechet distance of two sets of features, [N, F] and [M, F], as Gaussians.

    tr sqrt(A B) of the covariances is the nuclear norm of the product of the centred sets, an N x M matrix.
    """
    a, b = a.double(), b.double()
    x, y = ((s - s.mean(0)) / math.sqrt(len(s) - 1) for s in (a, b))
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return (shift + x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x @ y.T).sum()).clamp_min(0).item()
