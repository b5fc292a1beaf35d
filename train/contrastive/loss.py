"""The contrastive loss of the scorer, augmentation of its images, and retrieval."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cm3.model.scorer import Scorer
from train.contrastive.pairs import Names

IGNORED = -1e4  # a logit that counts nothing; finite, since 0 times infinity is not a number


def contrastive_loss(texts: Tensor, images: Tensor, scale: Tensor, concepts: Sequence[str]) -> Tensor:
    """Compute the symmetric InfoNCE (CLIP, Radford et al. 2021, section 2.3), in nats.

    Two pairs of the same concept are not negatives of each other: those logits are ignored.

    Args:
        texts: unit vectors, [N, P].
        images: unit vectors, [N, P]; row i belongs to row i of the texts.
        scale: of the similarities.
        concepts: what each pair shows, N.
    """
    number = {name: i for i, name in enumerate(dict.fromkeys(concepts))}
    concept = torch.tensor([number[name] for name in concepts], device=texts.device)
    own = torch.arange(len(concepts), device=texts.device)
    ignored = (concept[:, None] == concept) & (own[:, None] != own)  # [N, N]
    logits = (scale * texts @ images.T).masked_fill(ignored, IGNORED)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def with_code_noise(codes: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Replace codes by those that another image of the batch has at the same grid position.

    Args:
        codes: [N, h, w].
        most: largest share of an image's codes that is replaced; each image has a random share up to that.
        generator: of the random numbers.
    """
    share = most * torch.rand(len(codes), 1, 1, generator=generator)
    other = torch.randint(len(codes), codes.shape, generator=generator)  # [N, h, w]
    replaced = torch.rand(codes.shape, generator=generator) < share
    return torch.where(replaced, codes.gather(0, other), codes)


def with_patch_dropout(patches: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Leave out a random share of the patches [N, L, D] of each image; at least one stays."""
    keep = max(1, round((1 - share) * patches.shape[1]))
    chosen = torch.rand(patches.shape[:2], generator=generator).argsort(1)[:, :keep]  # [N, keep]
    return patches.gather(1, chosen[..., None].expand(-1, -1, patches.shape[2]).to(patches.device))


def encode_by_length(scorer: Scorer, texts: Sequence[list[int]], parts: int = 4) -> Tensor:
    """Encode texts as `scorer.encode_texts` does, [N, P], with less padding: in parts of similar length."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    size = -(-len(order) // parts)
    vectors = [scorer.encode_texts([texts[i] for i in order[at : at + size]]) for at in range(0, len(order), size)]
    return torch.cat(vectors)[torch.tensor(order).argsort()]


@torch.no_grad()
def retrieval(scorer: Scorer, names: Names, codes: Tensor, concepts: Sequence[str]) -> dict[str, float]:
    """Compute the share of images whose name comes first among all names, and among the first five.

    Args:
        scorer: on its device.
        names: of all concepts.
        codes: of the images, [N, h, w].
        concepts: what each image shows, N. An image whose concept has no name counts as not found.
    """
    vectors = torch.cat([scorer.encode_codes(part.long()) for part in codes.split(256)])
    similarity = vectors @ scorer.encode_texts(names.texts).T  # [N, names]
    right = torch.tensor([[mine == other for other in names.concepts] for mine in concepts], device=vectors.device)
    best = similarity.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    found = right.any(1)
    before = (similarity > best).sum(1)
    return {f"top{k}": (found & (before < k)).float().mean().item() for k in (1, 5)}
