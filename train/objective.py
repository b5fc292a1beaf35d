"""From a stored document to a training row: which form of the CM3 objective, and how much each token's loss counts.

draw     <eos> words <break> <image> codes </image> <eos>                       left to right
free     <eos> <mask:0> <break> <image> codes </image> <infill:0> words <eos>   teaches the branch without text
cm3      random spans (CM3leon 2.2)
ask      the answers moved behind the picture
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from cm3.masking import all_segments, rotate, sample_spans, text_segments
from cm3.vocab import Vocab


@dataclass(frozen=True)
class Objective:
    """Shares and weights.

    Attributes:
        free: share of the captioned documents whose whole text is masked.
        cm3: share of the captioned documents with random spans.
        prompt: weight of text that stands before a picture.
        answer: weight of text that stands behind it, and of the token that ends it.
        first_codes: how many of a picture's first codes have the weight `first`.
        first: their weight.
        code: weight of the other codes.
    """

    free: float = 0.15
    cm3: float = 0.05
    prompt: float = 0.1
    answer: float = 5.0
    first_codes: int = 24
    first: float = 1.5
    code: float = 1.0


class Row(NamedTuple):
    """ids [T]; weights [T] float32, of each id as a target; kinds [T]: 0 nothing, then 1 + index in KINDS."""

    ids: np.ndarray
    weights: np.ndarray
    kinds: np.ndarray


KINDS = ("prompt", "answer", "first codes", "other codes")


def training_row(ids: list[int], spans: list[tuple[int, int]], vocab: Vocab, objective: Objective,
                 rng: np.random.Generator) -> Row:  # fmt: skip
    """One document as the model learns it.

    Args:
        ids: the stored document, `<eos> ... <eos>`.
        spans: its answers; none for a caption with its picture.
        vocab: the layout.
        objective: shares and weights.
        rng: chooses the form.
    """
    if not spans:
        form = rng.random()
        if form < objective.free:
            spans = text_segments(ids, vocab)
        elif form < objective.free + objective.cm3:
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            spans = sample_spans(all_segments(ids, vocab), generator)
    rotated, counted = rotate(ids, spans, vocab)
    row = np.array(rotated)
    is_code, special = row >= vocab.first_code, row < vocab.first_text
    infills = (row >= vocab.first_infill) & (row < vocab.first_infill + 16)
    behind = np.cumsum(infills) > 0
    early = np.cumsum(is_code) <= objective.first_codes
    kinds = np.select([is_code & early, is_code, behind & ~infills], [3, 4, 2], 1)
    kinds[(np.array(counted) == 0) | (special & ~behind & (row != vocab.eos))] = 0  # markup before the answers is given
    kinds[0] = 0
    # The token that ends an answer counts with it, so that the model learns to stop: <eos>, or the next <infill:k>.
    kinds[infills & (np.cumsum(infills) > 1)] = 2
    if not behind.any():
        kinds[-1] = 1
    weights = np.array([0, objective.prompt, objective.answer, objective.first, objective.code], np.float32)
    return Row(row, weights[kinds], kinds)
