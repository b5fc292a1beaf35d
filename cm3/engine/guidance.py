"""Guidance: combines the logits that several prompts give for the same continuation.

The pure functions come first. The guides below apply them to the logits of a request's sequences: of its prompt, then
of its extra prompts.

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
    """Classifier-free guidance: uncond + scale (cond - uncond) (CM3leon 3.1).

    Args:
        cond: logits with the condition. They must be finite: forbid ids after guidance, not before.
        uncond: logits without it, finite too.
        scale: 1 gives exactly `cond`, 0 exactly `uncond`. A tensor broadcasts.
    """
    return torch.lerp(uncond, cond, scale)


def three_way(
    none: Tensor, image: Tensor, full: Tensor, image_scale: float, text_scale: float
) -> Tensor:  # [..., V] -> [..., V]
    """Guidance for editing: none + image_scale (image - none) + text_scale (full - image) (CM3leon 3.1; InstructPix2Pix
    3.2.1).

    Args:
        none: finite logits without conditions.
        image: finite logits with the source image only.
        full: finite logits with the source image and the instruction.
        image_scale: scale of the source image.
        text_scale: scale of the instruction.
    """
    return none + image_scale * (image - none) + text_scale * (full - image)


def contrastive_top_k(cond: Tensor, uncond: Tensor, k: int, alpha: float) -> Tensor:  # [..., V] -> [..., V]
    """Contrastive decoding (CD-K): log p_cond - log p_uncond where p_cond >= alpha * (k-th largest p_cond), -inf
    elsewhere (CM3leon 3.1).

    Args:
        cond: logits with the condition; -inf for ids that are forbidden.
        uncond: logits without it, finite where `cond` is.
        k: 1 to V; 1 is ordinary contrastive decoding. If fewer than k ids are finite, all of them are plausible.
        alpha: above 0, at most 1.
    """
    assert 1 <= k <= cond.shape[-1], f"k is {k} of {cond.shape[-1]} ids"
    ours, theirs = cond.log_softmax(-1), uncond.log_softmax(-1)  # logarithms, so that probabilities below 1e-38 count
    kth = ours.topk(k, dim=-1).values[..., -1:]  # [..., 1]
    plausible = (ours >= kth + math.log(alpha)) & (ours > -math.inf)
    return (ours - theirs).masked_fill(~plausible, -math.inf)


def forbid(logits: Tensor, legal: Tensor | None) -> Tensor:  # [..., V] -> [..., V]
    """-inf where an id is not legal. None allows all ids."""
    return logits if legal is None else logits.masked_fill(~legal, -math.inf)


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance with one extra prompt.

    Attributes:
        image: scale for image codes. 1 is off, 0 uses the extra prompt alone.
        text: scale for all other ids.
        schedule: "falling": from `image` at an image's first code linearly to 1 at its end.

    Raises:
        ValueError: a scale is below 0 or above MAX_SCALE.
        TypeError: a scale is no number.
    """

    image: float = 1.0
    text: float = 1.0
    schedule: Schedule = "constant"
    num_extra: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_scale("image", self.image)
        check_scale("text", self.text)

    @property
    def off(self) -> bool:
        return self.image == self.text == 1

    def scale(self, codes: bool, progress: float) -> float:
        """The scale for the next id, an image code or not."""
        if not codes:
            return self.text
        return self.image if self.schedule == "constant" else self.image + progress * (1 - self.image)

    def __call__(self, logits: Tensor, legal: Tensor | None, codes: bool, progress: float = 0.0) -> Tensor:
        return forbid(classifier_free(logits[0], logits[1], self.scale(codes, progress)), legal)


@dataclass(frozen=True)
class ContrastiveTopK:
    """Contrastive decoding with one extra prompt.

    Attributes:
        k, alpha: ids with at least alpha times the k-th largest probability are plausible; both among the legal ids.

    Raises:
        ValueError: k is below 1, or alpha is not above 0 and at most 1.
    """

    k: int
    alpha: float
    num_extra: ClassVar[int] = 1
    off: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_contrast((self.k, self.alpha))

    def __call__(self, logits: Tensor, legal: Tensor | None, codes: bool, progress: float = 0.0) -> Tensor:
        cond, uncond = forbid(logits, legal)
        return contrastive_top_k(cond, uncond, min(self.k, cond.shape[-1]), self.alpha)


@dataclass(frozen=True)
class ThreeWay:
    """Guidance for editing, with two extra prompts.

    Attributes:
        image: scale of the source image.
        text: scale of the instruction. Guidance is off if both are 1.

    Raises:
        ValueError: a scale is below 0 or above MAX_SCALE.
        TypeError: a scale is no number.
    """

    image: float
    text: float
    num_extra: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_scale("image", self.image)
        check_scale("text", self.text)

    @property
    def off(self) -> bool:
        return self.image == self.text == 1

    def __call__(self, logits: Tensor, legal: Tensor | None, codes: bool, progress: float = 0.0) -> Tensor:
        full, image, none = logits
        return forbid(three_way(none, image, full, self.image, self.text), legal)


# A guide has `num_extra`, the number of extra prompts that it needs, and `off`, whether they would change nothing.
# It is called with the sequences' logits, finite, [1 + num_extra, ..., V]; the legal ids, bool [..., V], None for all;
# whether an image code comes next; and the share of the image's codes that are there. It returns scores, [..., V], with
# -inf for ids that are not legal.
Guide = ClassifierFree | ContrastiveTopK | ThreeWay
