"""From a stored document to a training row: which form of the CM3 objective, and how much each token's loss counts.

draw     <eos> words <break> <image> codes </image> <eos>                       left to right
free     <eos> <mask:0> <break> <image> codes </image> <infill:0> words <eos>   teaches the branch without text
cm3      random spans (CM3leon 2.2)
ask      the answers moved behind the picture

A document's form is chosen before it is read, so that its length is known when rows are packed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from cm3.masking import Span, all_segments, rotate, sample_spans, span_count, text_segments
from cm3.vocab import MAX_MASKS, Vocab

DRAW, FREE, CM3, ASK = range(4)


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

    def plain(self) -> "Objective":
        """Every document as it reads, answers last: what evaluation sees. The weights stay."""
        return Objective(0.0, 0.0, self.prompt, self.answer, self.first_codes, self.first, self.code)


class Forms(NamedTuple):
    """Of some documents: form [N], one of DRAW, FREE, CM3, ASK; moved [N], how many spans move at most."""

    form: np.ndarray
    moved: np.ndarray


class Row(NamedTuple):
    """ids [T]; weights [T] float32, of each id as a target; kinds [T]: 0 nothing, then 1 + index in KINDS."""

    ids: np.ndarray
    weights: np.ndarray
    kinds: np.ndarray


KINDS = ("prompt", "answer", "first codes", "other codes")


def choose_forms(answers: np.ndarray, texts: np.ndarray, objective: Objective, rng: np.random.Generator) -> Forms:
    """The form of each document. A row is 2 tokens longer than its document for each span that moves.

    Args:
        answers: marked answers of each document, [N].
        texts: runs of text in each, [N].
        objective: the shares.
        rng: chooses.
    """
    draws = rng.random((2, len(answers)))
    form = np.where(draws[0] < objective.free, FREE, np.where(draws[0] < objective.free + objective.cm3, CM3, DRAW))
    form = np.where(answers > 0, ASK, form)
    moved = np.select([form == ASK, form == FREE], [answers, np.minimum(texts, MAX_MASKS)], 0)
    for i in np.flatnonzero(form == CM3):
        moved[i] = span_count(draws[1, i])
    return Forms(form, moved)


def training_row(ids: list[int], spans: Sequence[Span], form: int, moved: int, vocab: Vocab, objective: Objective,
                 seed: int) -> Row:  # fmt: skip
    """One document as the model learns it.

    Args:
        ids: the stored document, `<eos> ... <eos>`.
        spans: its answers; none for a caption with its picture.
        form, moved: as choose_forms has them.
        vocab: the layout.
        objective: the weights.
        seed: of random spans.
    """
    if form == FREE:
        spans = text_segments(ids, vocab)[:moved]
    elif form == CM3:
        spans = sample_spans(all_segments(ids, vocab), moved, torch.Generator().manual_seed(seed))
    elif form == DRAW:
        spans = []
    rotated, counted = rotate(ids, spans, vocab)
    row = np.array(rotated)
    is_code = row >= vocab.first_code
    infills = (row >= vocab.first_infill) & (row < vocab.first_infill + MAX_MASKS)
    behind = np.cumsum(infills) > 0
    seen = np.cumsum(is_code)
    early = seen - np.maximum.accumulate(np.where(row == vocab.image, seen, 0)) <= objective.first_codes
    kinds = np.select([is_code & early, is_code, behind & ~infills], [3, 4, 2], 1)
    given = (row < vocab.first_text) & ~behind & (row != vocab.eos) & (row != vocab.break_)  # the grammar writes these
    kinds[(np.array(counted) == 0) | given] = 0
    kinds[0] = 0
    # The token that ends an answer counts with it, so that the model learns to stop: <eos>, or the next <infill:k>. The
    # first <infill:0> is always given.
    kinds[infills] = np.where(np.cumsum(infills)[infills] > 1, 2, 0)
    if not behind.any():
        kinds[-1] = 1
    weights = np.array([0, objective.prompt, objective.answer, objective.first, objective.code], np.float32)
    return Row(row, weights[kinds], kinds)
