"""Guidance: the logits of several prompts for the same continuation, put together.

First pure functions of logits, then guides: what a request is guided by. A guide reads the logits of a row's lanes, the
request's own prompt first, then its further ones:

    ClassifierFree, ContrastiveTopK    full | without the condition
    ThreeWay                           full | image only | nothing
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cm3.engine.options import Schedule, check_contrast, check_scale


def classifier_free(cond: Tensor, uncond: Tensor, scale: Tensor | float) -> Tensor:  # [..., V] -> [..., V]
    """uncond + scale (cond - uncond): 1 is exactly the conditional, 0 exactly the unconditional (CM3leon 3.1).

    cond, uncond: finite logits; forbid ids after guidance, not before. scale: a number, or one that broadcasts."""
    return torch.lerp(uncond, cond, scale)


def three_way(
    none: Tensor, image: Tensor, full: Tensor, image_scale: float, text_scale: float
) -> Tensor:  # [..., V] -> [..., V]
    """none + image_scale (image - none) + text_scale (full - image), for editing (CM3leon 3.1; InstructPix2Pix 3.2.1).

    none, image, full: finite logits after nothing, after the image alone, after the image and the text."""
    return none + image_scale * (image - none) + text_scale * (full - image)


def contrastive_top_k(cond: Tensor, uncond: Tensor, k: int, alpha: float) -> Tensor:  # [..., V] -> [..., V]
    """CD-K: log p_cond - log p_uncond where p_cond >= alpha * (k-th largest p_cond), -inf elsewhere (CM3leon 3.1).

    cond, uncond: logits; -inf in cond = never, and uncond is finite where cond is. k: 1 to V, 1 = ordinary
    contrastive decoding; where fewer than k ids are finite, all of them are plausible. alpha: above 0, at most 1."""
    assert 1 <= k <= cond.shape[-1], f"k is {k} of {cond.shape[-1]} ids"
    ours, theirs = cond.log_softmax(-1), uncond.log_softmax(-1)  # as logarithms: no probability is lost below 1e-38
    kth = ours.topk(k, dim=-1).values[..., -1:]  # [..., 1]
    plausible = (ours >= kth + math.log(alpha)) & (ours > -math.inf)
    return (ours - theirs).masked_fill(~plausible, -math.inf)


def forbid(logits: Tensor, legal: Tensor | None) -> Tensor:  # [..., V] -> [..., V]
    """-inf where an id is not legal; None = all are."""
    return logits if legal is None else logits.masked_fill(~legal, -math.inf)


@dataclass(frozen=True)
class ClassifierFree:
    """image: scale where an image code is drawn. text: scale elsewhere. 1 = off; 0 = the further prompt alone.
    schedule: "falling": from image at an image's first code evenly down to 1 at its end.

    Errors: ValueError for a scale below 0 or above MAX_SCALE, TypeError for what is no number."""

    image: float = 1.0
    text: float = 1.0
    schedule: Schedule = "constant"
    further: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_scale("image", self.image)
        check_scale("text", self.text)

    @property
    def off(self) -> bool:
        return self.image == self.text == 1

    def scale(self, codes: bool, drawn: float) -> float:
        if not codes:
            return self.text
        return self.image if self.schedule == "constant" else self.image + drawn * (1 - self.image)

    def __call__(self, logits: Tensor, legal: Tensor | None, codes: bool, drawn: float = 0.0) -> Tensor:
        return forbid(classifier_free(logits[0], logits[1], self.scale(codes, drawn)), legal)


@dataclass(frozen=True)
class ContrastiveTopK:
    """k, alpha: plausible is what has alpha times the k-th largest probability, or more; both among the legal ids.

    Errors: ValueError for a k below 1, or an alpha that is not above 0 and at most 1."""

    k: int
    alpha: float
    further: ClassVar[int] = 1
    off: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_contrast((self.k, self.alpha))

    def __call__(self, logits: Tensor, legal: Tensor | None, codes: bool, drawn: float = 0.0) -> Tensor:
        cond, uncond = forbid(logits, legal)
        return contrastive_top_k(cond, uncond, min(self.k, cond.shape[-1]), self.alpha)


@dataclass(frozen=True)
class ThreeWay:
    """image, text: scales of the source image and of the instruction; both 1 = off.

    Errors: ValueError for a scale below 0 or above MAX_SCALE, TypeError for what is no number."""

    image: float
    text: float
    further: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_scale("image", self.image)
        check_scale("text", self.text)

    @property
    def off(self) -> bool:
        return self.image == self.text == 1

    def __call__(self, logits: Tensor, legal: Tensor | None, codes: bool, drawn: float = 0.0) -> Tensor:
        full, image, none = logits
        return forbid(three_way(none, image, full, self.image, self.text), legal)


# further: how many prompts it needs besides the request's own. off: whether they would change nothing.
# Called with the lanes' logits, finite, [1 + further, ..., V]; the legal ids, bool [..., V], None = all; whether image
# codes are among them; and the share of the image that stands, from 0 to 1. Gives scores, [..., V], with -inf at what
# is not legal.
Guide = ClassifierFree | ContrastiveTopK | ThreeWay
