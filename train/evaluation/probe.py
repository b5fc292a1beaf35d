"""Linear probes of codes across styles: what can be read off the codes of a style that the reader never saw?

A probe is ridge regression onto one-hot labels, solved in closed form from the Gram matrix. Each group of images (a
design: one artist's way of drawing) is left out once, and the penalty is chosen inside the other groups alone.

Shapes: N images, F features, L labels, K codes, Z dimensions of a code.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PENALTIES = (1e-2, 1e-1, 1.0, 10.0, 100.0)  # in units of the Gram matrix's mean diagonal


class Probe(NamedTuple):
    """Shares of images in groups left out, averaged over the groups.

    Attributes:
        top1: whose label comes first.
        top5: whose label is among the first five.
        chance1: hit by always giving the most frequent label of the other groups.
        chance5: hit by always giving their five most frequent labels.
    """

    top1: float
    top5: float
    chance1: float
    chance5: float


def bag_of_codes(codes: Tensor, num_codes: int) -> Tensor:
    """Codes [N, h, w] -> square roots of how often each occurs, with norm 1, [N, K]."""
    flat = codes.flatten(1)
    counts = torch.zeros(len(flat), num_codes).scatter_add_(1, flat, torch.ones(flat.shape))
    return F.normalize(counts.sqrt(), dim=1)


def code_vectors(codes: Tensor, codebook: Tensor) -> Tensor:
    """Codes [N, h, w] and codebook [K, Z] -> the code vectors in a row, [N, h * w * Z]."""
    return F.embedding(codes, codebook).flatten(1)


def across_groups(features: Tensor, labels: Mapping[str, Sequence[str]], groups: Sequence[str]) -> dict[str, Probe]:
    """A probe for each kind of label.

    Args:
        features: [N, F].
        labels: kind -> the label of each image.
        groups: the group of each image; at least three, so that the penalty can be chosen without the one left out.

    Raises:
        ValueError: fewer than three groups.
    """
    names = sorted(set(groups))
    if len(names) < 3:
        raise ValueError(f"the images have {len(names)} designs: a probe across styles needs at least 3")
    member = {name: torch.tensor([group == name for group in groups]) for name in names}
    onehot = {kind: _onehot(values) for kind, values in labels.items()}
    centred = (features - features.mean(0)).double()
    gram = centred @ centred.T  # [N, N]
    found: dict[str, list[Tensor]] = {kind: [] for kind in labels}
    for i, name in enumerate(names):
        test, inner = member[name], member[names[(i + 1) % len(names)]]
        trials = [_scores(gram, onehot, ~test & ~inner, inner, penalty) for penalty in PENALTIES]
        for kind, target in onehot.items():
            best = max(range(len(PENALTIES)), key=lambda p: _hits(trials[p][kind], target[inner], 1))
            scores = _scores(gram, {kind: target}, ~test, test, PENALTIES[best])[kind]
            frequent = target[~test].sum(0).expand(int(test.sum()), -1)  # [n, L]
            found[kind].append(torch.tensor([_hits(s, target[test], k) for s in (scores, frequent) for k in (1, 5)]))
    return {kind: Probe(*torch.stack(rows).mean(0).tolist()) for kind, rows in found.items()}


def _onehot(values: Sequence[str]) -> Tensor:  # [N, L]
    column = {value: i for i, value in enumerate(sorted(set(values)))}
    return F.one_hot(torch.tensor([column[value] for value in values]), len(column)).double()


def _scores(gram: Tensor, targets: dict[str, Tensor], train: Tensor, test: Tensor, penalty: float) -> dict[str, Tensor]:
    """Ridge regression on the images `train`, read at the images `test` (masks [N]): kind -> [n, L]."""
    inside, across = gram[train][:, train], gram[test][:, train]
    mean = inside.mean(0)  # features centred on the training images alone, by way of the Gram matrix
    across = across - across.mean(1, keepdim=True) - mean + mean.mean()
    inside = inside - mean - mean[:, None] + mean.mean()
    inside.diagonal().add_(penalty * inside.diagonal().mean())
    factor = torch.linalg.cholesky(inside)
    out = {}
    for kind, target in targets.items():
        prior = target[train].mean(0)
        out[kind] = across @ torch.cholesky_solve(target[train] - prior, factor) + prior
    return out


def _hits(scores: Tensor, target: Tensor, k: int) -> float:
    """Share of rows whose label (one-hot [n, L]) is among the k highest scores [n, L]."""
    best = scores.topk(min(k, scores.shape[1])).indices
    return target.gather(1, best).sum(1).mean().item()
