"""Guidance: pure functions that put together the logits of several prompts for the same continuation."""

from torch import Tensor


def classifier_free(cond: Tensor, uncond: Tensor, scale: Tensor | float) -> Tensor:  # [..., V] -> [..., V]
    """uncond + scale (cond - uncond): 1 is the conditional alone, 0 the unconditional (CM3leon 3.1).

    cond, uncond: finite logits; forbid ids after guidance, not before. scale: a number, or one that broadcasts."""
    return uncond + scale * (cond - uncond)
