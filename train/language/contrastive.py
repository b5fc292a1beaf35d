"""Contrastive training of the scorer: pairs of texts and images, the loss, and retrieval."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cm3.model.scorer import Scorer
from cm3.tokens.encoding import parts
from train.documents.shards import Shards


class Pairs(NamedTuple):
    """Texts with their images: ids from 0 of each text, codes [N, h, w] int32, and what each image shows."""

    texts: list[list[int]]
    codes: Tensor
    concepts: list[str]


class Names(NamedTuple):
    """What an image may be called: ids from 0 of each name, and the concept that bears it."""

    texts: list[list[int]]
    concepts: list[str]


def pairs_of(shards: Shards) -> Pairs:
    """The captioned documents, `<eos> words <break> <image> codes </image> <eos>`, all in memory.

    An image shows its row's "code"; where rows have none, only one image's own documents show the same.
    Raises ValueError where there are none.
    """
    vocab, grid = shards.vocab(), tuple(shards.meta["vocab"]["image_grid"])
    texts, codes, concepts = [], [], []
    for number in np.flatnonzero((shards.spans[:, 0, 1] == 0) & (shards.texts == 1)).tolist():
        ids = shards.document(number).ids if shards.lengths[number] else []
        found = parts(ids, vocab)
        if [part.is_image for part in found] == [False, True]:
            words, image = (ids[part.start : part.end] for part in found)
            facts = shards.sample(number)
            texts.append(vocab.ids_to_text(words))
            codes.append([vocab.id_to_code(id) for id in image if vocab.is_code(id)])
            concepts.append(str(facts.get("code") or facts.get("name") or number))
    if not texts:
        raise ValueError(
            f"{shards.folder} has no captioned images in its split {shards.split!r}: a text, an image and nothing else"
        )
    return Pairs(texts, torch.tensor(codes, dtype=torch.int32).view(-1, *grid), concepts)


def names_of(shards: Shards, held: Pairs) -> dict[str, Names]:
    """What held-out images are told apart by: every concept's name in each language, from concepts.json; without
    that file, one caption of each concept among them."""
    path = shards.folder / "concepts.json"
    if not path.is_file():
        first = dict(zip(reversed(held.concepts), reversed(held.texts), strict=True))
        return {"captions": Names(list(first.values()), list(first))}
    text = shards.text_tokenizer()
    concepts: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    languages = next(iter(concepts.values()))["name"]
    return {
        language: Names([text.encode(facts["name"][language]) for facts in concepts.values()], list(concepts))
        for language in languages
    }


def spoiled(codes: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Codes [N, h, w] of which a share, for each image up to `most`, is replaced by those that another image of
    the batch has there."""
    share = most * torch.rand(len(codes), 1, 1, generator=generator)
    other = torch.randint(len(codes), codes.shape, generator=generator)  # [N, h, w]
    replaced = torch.rand(codes.shape, generator=generator) < share
    return torch.where(replaced, codes.gather(0, other), codes)


def thinned(cells: Tensor, drop: float, generator: torch.Generator) -> Tensor:
    """Cells [N, L, D] without a random share of them, at least one kept."""
    keep = max(1, round((1 - drop) * cells.shape[1]))
    chosen = torch.rand(cells.shape[:2], generator=generator).argsort(1)[:, :keep]  # [N, keep]
    return cells.gather(1, chosen[..., None].expand(-1, -1, cells.shape[2]).to(cells.device))


def by_length(scorer: Scorer, texts: Sequence[list[int]], parts: int = 4) -> Tensor:
    """What `scorer.encode_texts` gives, [N, P], with less padding: texts of like length go through it together."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    size = -(-len(order) // parts)
    vectors = [scorer.encode_texts([texts[i] for i in order[at : at + size]]) for at in range(0, len(order), size)]
    return torch.cat(vectors)[torch.tensor(order).argsort()]


def contrast(texts: Tensor, images: Tensor, scale: Tensor, concepts: Sequence[str], same: str) -> Tensor:
    """Symmetric InfoNCE (CLIP, Radford et al. 2021, section 2.3), in nats.

    Args:
        texts, images: [N, P] unit vectors; row i of both is a pair.
        scale: of the similarities.
        concepts: what each pair shows.
        same: as in Config.
    """
    number = {name: i for i, name in enumerate(dict.fromkeys(concepts))}
    owner = torch.tensor([number[name] for name in concepts], device=texts.device)
    alike = owner[:, None] == owner  # [N, N]
    own = torch.eye(len(concepts), dtype=torch.bool, device=texts.device)
    logits = scale * texts @ images.T
    if same == "mask":
        logits = logits.masked_fill(alike & ~own, -1e4)  # finite: 0 times infinity is no number
    right = (alike if same == "share" else own).float()
    right = right / right.sum(1, keepdim=True)  # symmetric: concepts are as many in rows as in columns
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


@torch.no_grad()
def retrieval(scorer: Scorer, names: Names, codes: Tensor, concepts: Sequence[str]) -> dict[str, float]:
    """Share of images [N, h, w] whose right name comes first, and among the first five."""
    vectors = torch.cat([scorer.encode_codes(part.long()) for part in codes.split(256)])
    similarity = vectors @ scorer.encode_texts(names.texts).T  # [N, names]
    right = torch.tensor([[mine == other for other in names.concepts] for mine in concepts], device=vectors.device)
    best = similarity.masked_fill(~right, -2.0).amax(1, keepdim=True)
    before = (similarity > best).sum(1) + 1000 * (best[:, 0] == -2.0)  # a concept without a name is never found
    return {f"top{k}": (before < k).float().mean().item() for k in (1, 5)}
