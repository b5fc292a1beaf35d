"""How far images are from one another."""

import math

import torch
from torch import Tensor


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB. Args: [B, 3, H, W] in [-1, 1]. Returns: [B]."""
    return 10 * torch.log10(4 / (a - b).square().mean((1, 2, 3)).clamp_min(1e-10))


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance between the Gaussians with the means and covariances of two sets of features [N, F], [M, F].

    tr sqrt(A B) of the covariances is the nuclear norm of the product of the centred sets, which needs N x M alone.
    """
    a, b = a.double(), b.double()
    x, y = ((s - s.mean(0)) / math.sqrt(len(s) - 1) for s in (a, b))
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return (shift + x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x @ y.T).sum()).clamp_min(0).item()
