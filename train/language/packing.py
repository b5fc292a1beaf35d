"""Token shards to batches of packed sequences: whole documents side by side, each with positions of its own.

    sequence     <eos> a red apple <break> .. <eos> | <eos> Caption: .. <eos> | <pad> <pad>
    positions      0   1  2    3      4   ..   81   |   0      1     ..  79   |   0     1

A position of 0 starts a new document: the masks of transformers (eager, sdpa, flex) and flash attention's varlen
kernels read the positions, so that no token attends to another document.

The documents of an epoch are shuffled and cut into windows. The documents of a window are packed, and the packed
sequences shuffled. All of it is a pure function of the seed and the window: a run resumes exactly from a Position,
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
from train.language.objective import Forms, Objective, choose_forms, training_sequence


class Position(NamedTuple):
    """Where a run stands in its data.

    Attributes:
        window: the current window, counted over all epochs.
        sequence: the next packed sequence of the window.
        documents: documents that came before.
    """

    window: int = 0
    sequence: int = 0
    documents: int = 0


START = Position()


class Batch(NamedTuple):
    """B packed sequences of T tokens.

    Attributes:
        ids: token ids, [B, T].
        weights: loss weight of each id as a target, [B, T] float32.
        kinds: TargetKind of each id (train/language/objective.py), [B, T].
        positions: position of each id in its document, [B, T].
    """

    ids: Tensor
    weights: Tensor
    kinds: Tensor
    positions: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """Return the batch on a device."""
        return Batch(*(one.to(device, non_blocking=non_blocking) for one in self))


class Step(NamedTuple):
    """What one rank computes in a step.

    Attributes:
        parts: micro-batches.
        position: position of the next step.
        digest: checksum of the documents of all ranks in this step: two runs with the same digests saw the same
            samples in the same order.
        bad: documents of this rank that could not be read; they are left out.
    """

    parts: list[Batch]
    position: Position
    digest: int
    bad: list[int]


class Plan(NamedTuple):
    """How a window is packed.

    Attributes:
        sequences: for each packed sequence, the indices of its documents in `documents` and `forms`.
        documents: numbers of the window's documents in the shards.
        forms: their forms.
        skipped: number of documents that do not fit.
    """

    sequences: list[list[int]]
    documents: np.ndarray
    forms: Forms
    skipped: int


def pack(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Pack items into sequences of at most `size` tokens.

    Each sequence takes the longest item left, then items near an even share of the room, the last two as a pair that
    fills it. Best-fit decreasing (arXiv 2404.10830) is as good where lengths differ much, but leaves 7 to 11 % padding
    in a sequence of 3 to 6 documents of about one length, as captioned images are; this leaves 1 to 2 %.

    Args:
        lengths: tokens of each item, at most `size`.
        size: tokens of a packed sequence.

    Returns:
        For each packed sequence the indices of its items.
    """
    waiting: dict[int, list[int]] = {}  # length -> items
    for item, length in enumerate(lengths):
        waiting.setdefault(length, []).append(item)
    keys, total, count = sorted(waiting), sum(lengths), len(lengths)

    def best(limit: int) -> int:
        """Return the largest length that is at most `limit`; 0 where there is none."""
        place = bisect_right(keys, limit)
        return keys[place - 1] if place else 0

    packed = []
    while keys:
        length, room, sequence = keys[-1], size, []
        while length:
            sequence.append(waiting[length].pop())
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
        packed.append(sequence)
    return packed


class PackedSequences:
    """Packed sequences of token shards, with random access by window.

    Args:
        shards: the documents.
        vocab: layout of the ids.
        objective: shares of the forms, and loss weights.
        length: tokens of a sequence, T; longer documents are left out.
        seed: of the order, the forms and the random spans.
        window: number of documents that are packed together.

    Attributes:
        too_long: number of documents that are longer than a sequence.

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
        known, needed = shards.lengths > 0, shards.lengths + 2 * self.answers  # a masked answer adds two ids
        self.too_long = int((needed > length).sum())
        if not (known & (needed <= length)).any():
            raise ValueError(
                f"{shards.folder}: none of the {len(shards)} documents fits into a sequence of {length} tokens; "
                f"the shortest has {needed[known].min(initial=2**31)}: raise data.seq_len"
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
            self.shards.images[documents],
            self.codes,
            self.objective,
            rng,
            self.vocab.has_masks,
        )
        lengths = self.shards.lengths[documents] + forms.extra
        fits = np.flatnonzero((self.shards.lengths[documents] > 0) & (lengths <= self.length))
        packed = pack(lengths[fits].tolist(), self.length)
        sequences = [[int(fits[item]) for item in packed[i]] for i in rng.permutation(len(packed))]
        return Plan(sequences, documents, forms, len(documents) - len(fits))

    def sequence(self, window: int, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[int]]:
        """Encode one packed sequence.

        Returns:
            ids, weights, kinds and positions, [T] each; and its documents that could not be read.
        """
        plan, epoch = self.plan(window), window // self.per_epoch
        ids, weights = np.full(self.length, self.vocab.pad), np.zeros(self.length, np.float32)
        kinds, positions = np.zeros(self.length, np.int64), np.empty(self.length, np.int64)
        at, bad = 0, []
        for place in plan.sequences[number]:
            document = int(plan.documents[place])
            seed = int(np.random.SeedSequence((self.seed, 2, epoch, document)).generate_state(1)[0])
            try:
                stored = self.shards.document(document)
                made = training_sequence(
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
        """Return (window, sequence) of the next `count` sequences, and the position after them."""
        out, (window, next_, documents) = [], position
        while len(out) < count:
            plan = self.plan(window)
            taken = range(next_, min(len(plan.sequences), next_ + count - len(out)))
            out += [(window, number) for number in taken]
            documents += sum(len(plan.sequences[number]) for number in taken)
            next_ = taken.stop
            if next_ == len(plan.sequences):
                window, next_ = window + 1, 0
        return out, Position(window, next_, documents)


class Steps(Dataset):
    """The steps of a run, to be asked for in rising order: item s is the Step s.

    Args:
        sequences: where they come from.
        per_step: sequences in a step, on all ranks.
        micro: largest number of sequences in a micro-batch.
        first: the step that stands at `position`.
        position: where the run stands.
        rank: this rank; the ranks' sequences in order are those of a single rank.
        world: number of ranks.
    """

    def __init__(
        self,
        sequences: PackedSequences,
        per_step: int,
        micro: int,
        first: int = 0,
        position: Position = START,
        rank: int = 0,
        world: int = 1,
    ):
        assert per_step % world == 0 and 0 <= rank < world and micro > 0, f"{per_step=} {rank=} {world=} {micro=}"
        self.sequences, self.per_step, self.micro = sequences, per_step, micro
        self.rank, self.world = rank, world
        self.next, self.position = first, position

    def __getitem__(self, step: int) -> Step:
        assert step >= self.next, f"step {step} is asked for after step {self.next - 1}"
        places: list[tuple[int, int]] = []
        while self.next <= step:
            places, self.position = self.sequences.places(self.position, self.per_step)
            self.next += 1
        digest = 0
        for window, number in places:
            plan = self.sequences.plan(window)
            digest = zlib.crc32(plan.documents[plan.sequences[number]].tobytes(), digest)
        share = self.per_step // self.world
        made = [self.sequences.sequence(*place) for place in places[self.rank * share : (self.rank + 1) * share]]
        bad = [document for one in made for document in one[4]]
        return Step(collate(made, self.micro), self.position, digest, bad)


def collate(sequences: Sequence[tuple], micro: int) -> list[Batch]:
    """Stack sequences [T] to batches of at most `micro`."""
    arrays = [torch.from_numpy(np.stack(field)) for field in zip(*(one[:4] for one in sequences), strict=True)]
    return [Batch(*(array[i : i + micro] for array in arrays)) for i in range(0, len(sequences), micro)]


def load(steps: Steps, last: int, workers: int, pin: bool = False) -> Iterator[Step]:
    """Load the steps up to `last` (excluded).

    Args:
        steps: to load.
        last: the step to stop before.
        workers: processes that load ahead; 0 = load in this process, when a step is asked for.
        pin: whether to pin the memory, for faster copies to a GPU.
    """
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
