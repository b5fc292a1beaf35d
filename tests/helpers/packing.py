"""Rows of packed documents."""

from pathlib import Path

import numpy as np
import torch

from documents import write_shards
from train.documents.shards import Shards
from train.language.objective import Objective
from train.language.packing import PackedSequences, Step

PLAIN = Objective().plain()
COUNT = 300


def like_captioned_images(count: int, seed: int = 0) -> list[int]:
    """From 70 to 114 tokens, 84 in the mean: 64 codes and what is said of them."""
    return (70 + 44 * np.random.default_rng(seed).beta(2, 4.28, count)).round().astype(int).tolist()


def captioned_shards(folder: Path, vq_folder: Path) -> Path:
    """Three shards of 100 documents, 30 to 74 tokens each."""
    lengths = [length - 40 for length in like_captioned_images(COUNT)]
    return write_shards(folder, vq_folder, lengths, per_shard=100)


def rows_of(
    shards: Shards, objective: Objective = PLAIN, length: int = 128, seed: int = 0, window: int = 64
) -> PackedSequences:
    return PackedSequences(shards, shards.vocab(), objective, length, seed, window)


def epoch_of(rows: PackedSequences, epoch: int) -> list[int]:
    """The documents of an epoch, in the order of their rows."""
    plans = [rows.plan(window) for window in range(epoch * rows.per_epoch, (epoch + 1) * rows.per_epoch)]
    return [int(plan.documents[place]) for plan in plans for row in plan.sequences for place in row]


def whole_rows(step: Step) -> list[torch.Tensor]:
    """ids, weights, kinds, positions of all rows of a step."""
    return [torch.cat(arrays) for arrays in zip(*step.parts, strict=True)]


def same(one: Step, two: Step) -> bool:
    equal = [torch.equal(a, b) for x, y in zip(one.parts, two.parts, strict=True) for a, b in zip(x, y, strict=True)]
    return all(equal) and one[1:] == two[1:]
