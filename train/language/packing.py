"""Token shards to batches of packed rows: whole documents side by side, each with positions of its own.

    row        <eos> a red apple <break> .. <eos> | <eos> Caption: .. <eos> | <pad> <pad>
    positions    0   1  2    3      4   ..   81   |   0      1     ..  79   |   0     1

Positions that start again mark a new document: transformers' masks (eager, sdpa, flex) and flash attention's varlen
kernels read them, so that no token sees another document.

The documents of an epoch come in one random order, cut into windows. A window's documents are packed, and its rows
shuffled. All of it is a pure function of the seed and the window, so that a run resumes exactly from a Position,
whatever the number of ranks and of loading processes.
"""

import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cm3.tokens.vocab import Vocab
from train.documents.shards import Shards
from train.language.objective import Forms, Objective, choose_forms, training_row


class Position(NamedTuple):
    """Where a run stands in its documents: `row` of `window` is the next, and `documents` came before it."""

    window: int = 0
    row: int = 0
    documents: int = 0


START = Position()


class Batch(NamedTuple):
    """ids, weights (of each id as a target), kinds and positions, each [R, T].
    See train/language/objective.py for weights and kinds."""

    ids: Tensor
    weights: Tensor
    kinds: Tensor
    positions: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        return Batch(*(one.to(device, non_blocking=non_blocking) for one in self))


class Step(NamedTuple):
    """What one rank computes in a step, and where the run stands after it.

    Attributes:
        parts: rows that go through the model together.
        position: of the next step.
        digest: a checksum of the whole step's documents, on all ranks: two runs with the same digests saw the same
            samples in the same order.
        bad: documents that could not be read, of this rank's rows; they are left out.
    """

    parts: list[Batch]
    position: Position
    digest: int
    bad: list[int]


class Plan(NamedTuple):
    """A window's packed rows: for each row the places of its documents in `documents` and `forms`."""

    rows: list[list[int]]
    documents: np.ndarray
    forms: Forms
    skipped: int


def pack(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Items in rows of at most `size`. Returns the places of each row's items.

    Row by row: the longest item left, then items near an even share of the room, the last two as a pair that fills it.
    Best-fit decreasing (arXiv 2404.10830) is as good where lengths differ much, but leaves 7 to 11 % of a row where it
    holds 3 to 6 documents of about one length, as captioned pictures are; this leaves 1 to 2 %.
    """
    waiting: dict[int, list[int]] = {}  # length -> items
    for item, length in enumerate(lengths):
        waiting.setdefault(length, []).append(item)
    keys, total, count = sorted(waiting), sum(lengths), len(lengths)

    def best(limit: int) -> int:
        """The longest that is at most `limit`; 0 where there is none."""
        place = bisect_right(keys, limit)
        return keys[place - 1] if place else 0

    rows = []
    while keys:
        length, room, row = keys[-1], size, []
        while length:
            row.append(waiting[length].pop())
            if not waiting[length]:
                del waiting[length], keys[bisect_left(keys, length)]
            total, count, room = total - length, count - 1, room - length
            length = best(room)
            left = round(room * count / total) if total else 0  # items that the room is for
            if length and left > 1:
                place = bisect_left(keys, room / left)
                near = [key for key in keys[max(0, place - 16) : place + 16] if key <= room] or [length]
                if left == 2:
                    length = max(near, key=lambda key: (key + best(room - key), -abs(key - room / left)))
                else:
                    length = min(near, key=lambda key: abs(key - room / left))
        rows.append(row)
    return rows


class Rows:
    """Packed rows of token shards, with random access by window.

    Args:
        shards: the documents.
        vocab: layout of the ids.
        objective: forms and weights.
        length: tokens a row, T; longer documents are left out.
        seed: of order, forms and random spans.
        window: documents that are packed together.

    Raises:
        ValueError: no document is short enough.
    """

    def __init__(self, shards: Shards, vocab: Vocab, objective: Objective, length: int, seed: int, window: int = 4096):
        self.shards, self.vocab, self.objective, self.length, self.seed = shards, vocab, objective, length, seed
        self.window = window
        self.per_epoch = -(-len(shards) // window)
        rows, columns = shards.meta["vocab"]["image_grid"]
        self.grid = rows, columns
        self.codes = max(rows * columns for rows, columns in (self.grid, *vocab.grids))
        self.answers = (shards.spans[:, :, 1] > 0).sum(1)  # [N]
        known, needed = shards.lengths > 0, shards.lengths + 2 * self.answers  # an answer that moves brings two ids
        self.too_long = int((needed > length).sum())
        if not (known & (needed <= length)).any():
            raise ValueError(
                f"{shards.folder}: none of the {len(shards)} documents fits in rows of {length} tokens; "
                f"the shortest has {needed[known].min(initial=2**31)}: make rows longer"
            )
        self.plan = lru_cache(maxsize=2)(self._plan)
        self._order = lru_cache(maxsize=2)(self._shuffle)

    def _shuffle(self, epoch: int) -> np.ndarray:  # [N]
        return np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.shards))

    def _plan(self, window: int) -> Plan:
        epoch, number = divmod(window, self.per_epoch)
        documents = self._order(epoch)[number * self.window : (number + 1) * self.window]
        rng = np.random.default_rng((self.seed, 1, window))
        forms = choose_forms(
            self.answers[documents],
            self.shards.texts[documents],
            self.shards.pictures[documents],
            self.codes,
            self.objective,
            rng,
            self.vocab.has_masks,
        )
        lengths = self.shards.lengths[documents] + forms.extra
        fits = np.flatnonzero((self.shards.lengths[documents] > 0) & (lengths <= self.length))
        packed = pack(lengths[fits].tolist(), self.length)
        rows = [[int(fits[item]) for item in packed[i]] for i in rng.permutation(len(packed))]
        return Plan(rows, documents, forms, len(documents) - len(fits))

    def row(self, window: int, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[int]]:
        """ids, weights, kinds, positions of a row, [T] each; and its documents that could not be read."""
        plan, epoch = self.plan(window), window // self.per_epoch
        ids, weights = np.full(self.length, self.vocab.pad), np.zeros(self.length, np.float32)
        kinds, positions = np.zeros(self.length, np.int64), np.empty(self.length, np.int64)
        at, bad = 0, []
        for place in plan.rows[number]:
            document = int(plan.documents[place])
            seed = int(np.random.SeedSequence((self.seed, 2, epoch, document)).generate_state(1)[0])
            try:
                stored = self.shards.document(document)
                made = training_row(
                    *stored,
                    int(plan.forms.form[place]),
                    int(plan.forms.masked[place]),
                    self.vocab,
                    self.objective,
                    self.grid,
                    seed,
                )
                if max(stored.ids) >= len(self.vocab):
                    raise ValueError(f"id {max(stored.ids)}")
                if at + len(made.ids) > self.length:
                    raise ValueError("it is longer than its plan")
            except (ValueError, IndexError, AssertionError):  # damaged in a shard that was not verified
                bad.append(document)
                continue
            end = at + len(made.ids)
            ids[at:end], weights[at:end], kinds[at:end] = made
            positions[at:end] = np.arange(end - at)
            at = end
        positions[at:] = np.arange(self.length - at)  # padding is a document of its own
        return ids, weights, kinds, positions, bad

    def places(self, position: Position, count: int) -> tuple[list[tuple[int, int]], Position]:
        """(window, row) of the next `count` rows, and the position after them."""
        out, (window, row, documents) = [], position
        while len(out) < count:
            plan = self.plan(window)
            taken = range(row, min(len(plan.rows), row + count - len(out)))
            out += [(window, number) for number in taken]
            documents += sum(len(plan.rows[number]) for number in taken)
            row = taken.stop
            if row == len(plan.rows):
                window, row = window + 1, 0
        return out, Position(window, row, documents)


class Steps(Dataset):
    """Steps of a run, to be asked for in rising order: the item s is the Step s.

    Args:
        rows: where they come from.
        per_step: rows a step on all ranks.
        micro: rows that go through the model together, at most.
        first: the step that stands at `position`.
        position: where the run stands.
        rank, world: this rank's share; the ranks' rows in order are one rank's rows.
    """

    def __init__(
        self,
        rows: Rows,
        per_step: int,
        micro: int,
        first: int = 0,
        position: Position = START,
        rank: int = 0,
        world: int = 1,
    ):
        assert per_step % world == 0 and 0 <= rank < world and micro > 0, f"{per_step=} {rank=} {world=} {micro=}"
        self.rows, self.per_step, self.micro, self.rank, self.world = rows, per_step, micro, rank, world
        self.next, self.position = first, position

    def __getitem__(self, step: int) -> Step:
        assert step >= self.next, f"step {step} is asked for after step {self.next - 1}"
        places: list[tuple[int, int]] = []
        while self.next <= step:
            places, self.position = self.rows.places(self.position, self.per_step)
            self.next += 1
        digest = 0
        for window, row in places:
            plan = self.rows.plan(window)
            digest = zlib.crc32(plan.documents[plan.rows[row]].tobytes(), digest)
        share = self.per_step // self.world
        mine = places[self.rank * share : (self.rank + 1) * share]
        made = [self.rows.row(*place) for place in mine]
        return Step(collate(made, self.micro), self.position, digest, [number for row in made for number in row[4]])


def collate(rows: Sequence[tuple], micro: int) -> list[Batch]:
    """Rows [T] to batches of at most `micro` rows."""
    arrays = [torch.from_numpy(np.stack(field)) for field in zip(*(row[:4] for row in rows), strict=True)]
    return [Batch(*(array[i : i + micro] for array in arrays)) for i in range(0, len(rows), micro)]


def load(steps: Steps, last: int, workers: int, pin: bool = False) -> Iterator[Step]:
    """The steps up to `last` (excluded), made ahead by `workers` processes (0: in this one, as they are asked for)."""
    return iter(
        DataLoader(
            steps,
            batch_size=None,
            sampler=range(steps.next, last),
            num_workers=workers,
            pin_memory=pin,
            prefetch_factor=4 if workers else None,
        )
    )
