"""From logits [B, V] to ids [B]: temperature, top-k, top-p, greedy. Pure functions; -inf stands for "never".

Each row has its own settings and its own generator, from which every draw takes one number: what a row gets does not
depend on the rows beside it.
"""

# torch types some of its functions in part only.
# pyright: reportUnknownMemberType=false

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cm3.engine.options import SamplingConfig

FEW = 128  # ids that top-p looks at before it sorts all
CLOSE = 1e-6  # sums of probabilities in single precision are not told apart below
TINY = 1e-20  # below this temperature the division would overflow: it is greedy there, as it is in the limit


def generator_of(seed: int) -> torch.Generator:
    """A generator on the CPU in which every bit of a seed from 0 to 2^63 - 1 counts.

    torch itself fills the 624 words of the Mersenne Twister from the lower 32 bits alone. Seeds below 2^32 are torch's
    own; of larger ones numpy's SeedSequence makes the words.
    """
    generator = torch.Generator().manual_seed(seed)
    if seed >= 2**32:
        state = generator.get_state()
        words = np.random.SeedSequence(seed).generate_state(624)
        state.view(torch.int64)[3 : 3 + 624] = torch.from_numpy(words.astype(np.int64))  # after seed, flags and place
        generator.set_state(state)
    return generator


class Uniforms:
    """Numbers from 0 to 1, one after the other, each as generator_of(seed) gives it; several are made at once."""

    def __init__(self, seed: int) -> None:
        self.generator = generator_of(seed)
        self.numbers: list[float] = []  # the next last

    def __next__(self) -> float:
        if not self.numbers:
            self.numbers = torch.rand(64, generator=self.generator, dtype=torch.float64).tolist()[::-1]
        return self.numbers.pop()


def greedy(logits: Tensor) -> Tensor:  # [B, V] -> [B]
    """The likeliest id; the first of equals."""
    return logits.argmax(-1)


def temperature(logits: Tensor, value: Tensor) -> Tensor:  # [B, V], [B] -> [B, V]
    """Divide by the temperature, which must be above 0."""
    return logits / value[:, None]


def top_k(logits: Tensor, k: Tensor) -> Tensor:  # [B, V], [B] -> [B, V]
    """Keep each row's k largest and those equal to the k-th; 0 keeps all."""
    size = logits.shape[-1]
    kept = torch.where(k == 0, size, k.clamp(max=size))  # [B]
    largest = logits.topk(int(kept.max()), dim=-1).values  # [B, max k], from the largest down
    kth = largest.gather(-1, kept[:, None] - 1)  # [B, 1]
    return logits.masked_fill(logits < kth, -math.inf)


class Kept(NamedTuple):
    """Some ids of each row, rising, and their logits, [B, K] each; -inf for those that are dropped."""

    ids: Tensor
    logits: Tensor


def top_p(logits: Tensor, p: Tensor) -> Kept:  # [B, V], [B]
    """Keep each row's smallest set of likeliest ids whose probabilities sum to p or more; at least one."""
    if logits.device.type == "cpu" and (few := likeliest_reach(logits, p)):
        return few
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.double().softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # of all that are likelier
    drop = (before >= p[:, None]) & (p[:, None] < 1)
    drop[:, 0] = False
    ids = torch.arange(logits.shape[-1], device=logits.device).expand_as(logits)
    return Kept(ids, logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), -math.inf))


def likeliest_reach(logits: Tensor, p: Tensor) -> Kept | None:  # [B, V], [B]
    """top_p without sorting all: None where the FEW likeliest do not reach p, where equals stand at the border, or
    where it is nearer than rounding tells."""
    if logits.shape[-1] <= FEW or bool((p >= 1).any()):
        return None
    ordered, ids = logits.topk(FEW, dim=-1)
    weights = (logits - ordered[:, :1]).exp().sum(-1, keepdim=True)  # of all, [B, 1]
    probabilities = (ordered - ordered[:, :1]).exp().double() / weights
    before = probabilities.cumsum(-1) - probabilities
    kept = (before < p[:, None]).sum(-1, keepdim=True).clamp(min=1)  # [B, 1]
    if int(kept.max()) == FEW or bool(((before - p[:, None]).abs() < CLOSE).any()):
        return None
    last, next_ = ordered.gather(-1, kept - 1), ordered.gather(-1, kept)
    if not bool((next_ < last).all()):
        return None
    ids, order = ids.sort(-1)
    return Kept(ids, ordered.masked_fill(ordered < last, -math.inf).gather(-1, order))


def draw(logits: Tensor, uniform: Tensor) -> Tensor:  # [B, V], [B] -> [B]
    """One id of each row with its softmax probability, by inverting the cumulative sum at a uniform number."""
    total = logits.double().softmax(-1).cumsum(-1)  # [B, V]
    point = uniform[:, None] * total[:, -1:]
    return torch.searchsorted(total, point, right=True).clamp(max=logits.shape[-1] - 1)[:, 0]


def sample(logits: Tensor, configs: Sequence[SamplingConfig], uniforms: Sequence[Uniforms]) -> Tensor:  # [B, V] -> [B]
    """Temperature, then top-k, then top-p, then one draw; greedy where the temperature is 0."""
    rows = [i for i, config in enumerate(configs) if config.temperature > TINY]
    ids = greedy(logits) if len(rows) < len(configs) else logits.new_empty(len(configs), dtype=torch.long)
    if not rows:
        return ids
    chosen = [configs[i] for i in rows]
    at = torch.tensor(rows, device=logits.device)

    def column(values: list[float] | list[int]) -> Tensor:
        return torch.tensor(values, device=logits.device)

    logits = temperature(logits[at], column([config.temperature for config in chosen]))
    if any(config.top_k for config in chosen):
        logits = top_k(logits, column([min(int(config.top_k), logits.shape[-1]) for config in chosen]))
    uniform = torch.tensor([next(uniforms[i]) for i in rows], dtype=torch.float64, device=logits.device)
    if any(config.top_p < 1 for config in chosen):
        some = top_p(logits, column([config.top_p for config in chosen]))
        ids[at] = some.ids.gather(-1, draw(some.logits, uniform)[:, None])[:, 0]
    else:
        ids[at] = draw(logits, uniform)
    return ids
