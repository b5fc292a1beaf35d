"""Sampling: from logits [B, V] to ids [B], with temperature, top-k, top-p, or greedily. Pure functions.

A logit of -inf forbids an id. Each row has its own settings and its own random numbers, one for each id, so that its
result does not depend on the other rows.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cm3.engine.options import SamplingConfig
from cm3.tensors import to_floats

NUM_LIKELIEST = 128  # ids that top-p sorts first; if they do not suffice, it sorts all
TOLERANCE = 1e-6  # rounding error of sums of probabilities in single precision
MIN_TEMPERATURE = 1e-20  # below, the division could overflow: sampling is greedy, as in the limit


def generator_of(seed: int) -> torch.Generator:
    """A CPU generator that depends on every bit of a seed from 0 to 2^63 - 1.

    torch fills the 624 words of the Mersenne Twister from the lower 32 bits of a seed only. Seeds below 2^32 give
    torch's own generator. For larger seeds, numpy's SeedSequence makes the words.
    """
    generator = torch.Generator().manual_seed(seed)
    if seed >= 2**32:
        state = generator.get_state()
        words = np.random.SeedSequence(seed).generate_state(624)
        state.view(torch.int64)[3 : 3 + 624] = torch.tensor(words.astype(np.int64))  # after the seed and flags
        generator.set_state(state)
    return generator


class Uniforms:
    """An iterator of the uniform random numbers, from 0 to 1, of generator_of(seed). It makes several at once."""

    def __init__(self, seed: int) -> None:
        self.generator = generator_of(seed)
        self.numbers: list[float] = []  # in reverse order

    def __next__(self) -> float:
        if not self.numbers:
            numbers = torch.rand(64, generator=self.generator, dtype=torch.float64)
            self.numbers = to_floats(numbers)[::-1]
        return self.numbers.pop()


def greedy(logits: Tensor) -> Tensor:  # [B, V] -> [B]
    """The likeliest id; the first of several."""
    return logits.argmax(-1)


def temperature(logits: Tensor, value: Tensor) -> Tensor:  # [B, V], [B] -> [B, V]
    """Divide by the temperature of each row, which must be above 0."""
    return logits / value[:, None]


def top_k(logits: Tensor, k: Tensor) -> Tensor:  # [B, V], [B] -> [B, V]
    """Keep the k largest logits of each row, and those equal to the k-th. 0 keeps all."""
    size = logits.shape[-1]
    kept = torch.where(k == 0, size, k.clamp(max=size))  # [B]
    largest = logits.topk(int(kept.max()), dim=-1).values  # [B, max k], descending
    kth = largest.gather(-1, kept[:, None] - 1)  # [B, 1]
    return logits.masked_fill(logits < kth, -math.inf)


class Kept(NamedTuple):
    """Some ids of each row.

    Attributes:
        ids: [B, K], ascending.
        logits: [B, K]; -inf for ids that are dropped.
    """

    ids: Tensor
    logits: Tensor


def top_p(logits: Tensor, p: Tensor) -> Kept:  # [B, V], [B]
    """Keep the smallest set of likeliest ids of each row whose probabilities sum to p or more; at least one."""
    if logits.device.type == "cpu" and (kept := _top_p_of_likeliest(logits, p)):
        return kept
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.double().softmax(-1)
    before = probabilities.cumsum(-1) - probabilities  # of all likelier ids
    drop = (before >= p[:, None]) & (p[:, None] < 1)
    drop[:, 0] = False
    ids = torch.arange(logits.shape[-1], device=logits.device).expand_as(logits)
    return Kept(ids, logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), -math.inf))


def _top_p_of_likeliest(logits: Tensor, p: Tensor) -> Kept | None:  # [B, V], [B]
    """top_p without sorting all ids.

    None if the likeliest ids do not sum to p, if the last that is kept and the next are equally likely, or if rounding
    could decide which is the last.
    """
    if logits.shape[-1] <= NUM_LIKELIEST or bool((p >= 1).any()):
        return None
    ordered, ids = logits.topk(NUM_LIKELIEST, dim=-1)
    weights = (logits - ordered[:, :1]).exp().sum(-1, keepdim=True)  # sum over all ids, [B, 1]
    probabilities = (ordered - ordered[:, :1]).exp().double() / weights
    before = probabilities.cumsum(-1) - probabilities
    kept = (before < p[:, None]).sum(-1, keepdim=True).clamp(min=1)  # [B, 1]
    if int(kept.max()) == NUM_LIKELIEST or bool(((before - p[:, None]).abs() < TOLERANCE).any()):
        return None
    last, next_ = ordered.gather(-1, kept - 1), ordered.gather(-1, kept)
    if not bool((next_ < last).all()):
        return None
    ids, order = ids.sort(-1)
    return Kept(ids, ordered.masked_fill(ordered < last, -math.inf).gather(-1, order))


def draw(logits: Tensor, uniform: Tensor) -> Tensor:  # [B, V], [B] -> [B]
    """Draw one id of each row from its softmax, by inverting the cumulative sum at a uniform random number."""
    total = logits.double().softmax(-1).cumsum(-1)  # [B, V]
    point = uniform[:, None] * total[:, -1:]
    return torch.searchsorted(total, point, right=True).clamp(max=logits.shape[-1] - 1)[:, 0]


def sample(logits: Tensor, configs: Sequence[SamplingConfig], uniforms: Sequence[Uniforms]) -> Tensor:  # [B, V] -> [B]
    """Apply temperature, top-k and top-p, and draw one id of each row. Rows with temperature 0 are greedy."""
    rows = [i for i, config in enumerate(configs) if config.temperature > MIN_TEMPERATURE]
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
