"""The training data of the scorer: pairs of a text and an image, from token shards."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cm3.tokens.encoding import parts
from train.documents.shards import Shards
from train.runtime.seeds import generator


class Pairs(NamedTuple):
    """Texts with their images.

    Attributes:
        texts: ids of each text, from 0.
        codes: of each image, [N, h, w] int32.
        concepts: what each image shows.
    """

    texts: list[list[int]]
    codes: Tensor
    concepts: list[str]


class Names(NamedTuple):
    """The names among which the name of an image is searched.

    Attributes:
        texts: ids of each name, from 0.
        concepts: the concept of each name.
    """

    texts: list[list[int]]
    concepts: list[str]


def pairs_of(shards: Shards) -> Pairs:
    """Read the captioned documents, `<eos> text <break> <image> codes </image> <eos>`, into memory.

    The concept of an image is "code" in its row of the manifest, or its name; without either, each document is a
    concept of its own.

    Raises:
        ValueError: there are none.
    """
    vocab, grid = shards.vocab(), tuple(shards.meta["vocab"]["image_grid"])
    texts, codes, concepts = [], [], []
    for number in np.flatnonzero((shards.spans[:, 0, 1] == 0) & (shards.texts == 1)).tolist():
        ids = shards.document(number).ids if shards.lengths[number] else []
        found = parts(ids, vocab)
        if [part.is_image for part in found] == [False, True]:
            text, image = (ids[part.start : part.end] for part in found)
            facts = shards.sample(number)
            texts.append(vocab.ids_to_text(text))
            codes.append([vocab.id_to_code(id) for id in image if vocab.is_code(id)])
            concepts.append(str(facts.get("code") or facts.get("name") or number))
    if not texts:
        raise ValueError(
            f"{shards.folder} has no captioned images in its split {shards.split!r}: a text, an image and nothing else"
        )
    return Pairs(texts, torch.tensor(codes, dtype=torch.int32).view(-1, *grid), concepts)


def distinct_images(pairs: Pairs, most: int) -> Pairs:
    """Return at most so many pairs, spread over all, with each image once."""
    last = {tuple(codes): i for i, codes in enumerate(pairs.codes.flatten(1).tolist())}
    chosen = sorted(last.values())
    chosen = chosen[:: -(-len(chosen) // most)]
    return Pairs([pairs.texts[i] for i in chosen], pairs.codes[chosen], [pairs.concepts[i] for i in chosen])


def names_of(held_out: Pairs) -> Names:
    """Return one caption of each held-out concept: those among which the images' own are searched."""
    first = dict(zip(reversed(held_out.concepts), reversed(held_out.texts), strict=True))
    return Names(list(first.values()), list(first))


def batch_indices(step: int, count: int, batch_size: int, seed: int) -> list[int]:
    """Return the pairs of a step. An epoch has each of `count` pairs once, but for a rest smaller than a batch."""
    batch_size = min(batch_size, count)
    epoch, batch = divmod(step, count // batch_size)
    order = torch.randperm(count, generator=generator(seed, 0, epoch))
    return order[batch * batch_size : (batch + 1) * batch_size].tolist()
