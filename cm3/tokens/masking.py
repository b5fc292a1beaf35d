"""The CM3 objective as pure functions on lists of ids: sample spans, rotate them to the end, and undo the rotation.

    <eos> a  red  apple <break> <image> c1 c2 </image> <eos>
             ^^^^^^^^^^ a span
    <eos> a <mask:0> <break> <image> c1 c2 </image> <infill:0> red apple <eos>
            ^ no loss

Spans are pairs (start, end), end excluded, sorted and disjoint. A tensor as argument gives a tensor.
Source: CM3 (arXiv 2201.07520), section 2; CM3leon, section 2.2.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from cm3.tensors import to_floats, to_ints
from cm3.tokens.document import Span
from cm3.tokens.encoding import merge_infills
from cm3.tokens.vocab import MAX_MASKS, Vocab

Ids = TypeVar("Ids", list[int], Tensor)
POISSON_MEAN = 1.0


class Rotated(NamedTuple):
    """A rotated document.

    Attributes:
        ids: the rotated sequence.
        loss_mask: 0 at every <mask:*>, 1 at every other id, which is a target of the loss.
    """

    ids: list[int]
    loss_mask: list[int]


def segments(ids: Sequence[int], vocab: Vocab, allowed: Callable[[int], bool]) -> list[Span]:
    """The longest runs of ids that a span may lie in: ids for which `allowed` is true.

    Special ids end a run, and so does a change between text and codes. So no span crosses <break>, <image>, </image> or
    <eos>.
    """
    runs: list[Span] = []
    start, kind = 0, ""
    for i, id in enumerate(ids):
        here = "" if id < vocab.first_text or not allowed(id) else "text" if id < vocab.first_code else "code"
        if here != kind:
            if kind:
                runs.append((start, i))
            start, kind = i, here
    if kind:
        runs.append((start, len(ids)))
    return runs


def text_segments(ids: Sequence[int], vocab: Vocab) -> list[Span]:
    """The runs in which spans of text may lie."""
    return segments(ids, vocab, vocab.is_text)


def all_segments(ids: Sequence[int], vocab: Vocab) -> list[Span]:
    """The runs in which spans of text or of image codes may lie."""
    return segments(ids, vocab, lambda id: True)


def span_count(u: float) -> int:
    """Number of spans of a document: clamp(Poisson(1), 1, 16), from a uniform number in [0, 1) (CM3, section 2)."""
    return min(max(_poisson(u), 1), MAX_MASKS)


def sample_spans(allowed: Sequence[Span], count: int, generator: torch.Generator) -> list[Span]:
    """Sample `count` spans.

    The ends of a span are two uniform draws over the allowed positions of all segments. The span is cut to the segment
    that the first draw is in. A span that overlaps an earlier one is drawn again, with 4 `count` draws in all, so that
    there may be fewer spans. Without allowed positions there is none.

    In one segment of s positions, a single span has length n with probability 1 / s for n = 1, else 2 (s - n + 1) /
    s^2. Of several segments, each has the span with the probability of its share of the positions. If the second draw
    is after the segment, the span goes to its end; if before, to its start. (CM3 has one segment; CM3leon says only
    that no span leaves a segment.)
    """
    size = sum(end - start for start, end in allowed)
    if not size:
        return []
    draws = uniform(8 * count, generator)
    spans: list[Span] = []
    for i in range(0, 8 * count, 2):
        low, high = int(draws[i] * size), int(draws[i + 1] * size)
        span = _within(allowed, low, high)
        if all(span[1] <= start or end <= span[0] for start, end in spans):
            spans.append(span)
        if len(spans) == count:
            break
    return sorted(spans)


def sample_holes(grid: tuple[int, int], generator: torch.Generator) -> Tensor:  # -> [h, w] bool
    """Sample the holes of an image for inpainting: a rectangle, all but a rectangle, one side, or a brush stroke, with
    equal probability. At least one grid position is a hole.

    Args:
        grid: (h, w), rows and columns of codes.
        generator: random numbers.

    Returns:
        [h, w], True for a hole.
    """
    h, w = grid
    kind, *draws = uniform(8, generator)
    holes = torch.zeros(h, w, dtype=torch.bool)
    if kind < 0.5:
        top, bottom = sorted(int(draw * h) for draw in draws[:2])
        left, right = sorted(int(draw * w) for draw in draws[2:4])
        holes[top : bottom + 1, left : right + 1] = True
        return holes if kind < 0.25 or holes.all() else ~holes
    if kind < 0.75:  # one side: above, below, left or right of a line
        if draws[0] < 0.5:
            holes[: 1 + int(draws[1] * (h - 1))] = True
        else:
            holes[:, : 1 + int(draws[1] * (w - 1))] = True
        return holes.flip(0, 1) if draws[2] < 0.5 else holes
    # A stroke: a random walk of a brush that is one or two grid positions wide.
    row, column, thick = int(draws[0] * h), int(draws[1] * w), 1 + int(draws[2] * 2)
    for turn in uniform(h + w, generator):
        holes[row : row + thick, column : column + thick] = True
        dy, dx = ((0, 1), (1, 0), (0, -1), (-1, 0))[int(turn * 4)]
        row, column = min(max(row + dy, 0), h - 1), min(max(column + dx, 0), w - 1)
    return holes


def uniform(count: int, generator: torch.Generator) -> list[float]:
    """Uniform random numbers in [0, 1)."""
    numbers = torch.rand(count, generator=generator, dtype=torch.float64)
    return to_floats(numbers)


def _poisson(u: float) -> int:
    """The Poisson number whose cumulative probability first exceeds u."""
    n, p = 0, math.exp(-POISSON_MEAN)
    total = p
    while u >= total and n < MAX_MASKS:
        n += 1
        p *= POISSON_MEAN / n
        total += p
    return n


def _within(allowed: Sequence[Span], a: int, b: int) -> Span:
    """The span between the a-th and the b-th allowed position, cut to the segment of the a-th."""
    for start, end in allowed:
        size = end - start
        if a < size:
            other = min(max(start + b, start), end - 1)
            return min(start + a, other), max(start + a, other) + 1
        a, b = a - size, b - size
    raise AssertionError("position beyond the allowed segments")


def rotate(ids: Ids, spans: Sequence[Span], vocab: Vocab) -> tuple[Ids, Ids]:
    """Move each span to the end of the document, before its closing <eos>, and leave <mask:k> in its place.

    Returns:
        The ids and the loss mask (0 at each <mask:*>, 1 elsewhere). Without spans the ids are unchanged.
    """
    if isinstance(ids, Tensor):
        rotated, loss_mask = _rotate(to_ints(ids), spans, vocab)
        return ids.new_tensor(rotated), ids.new_tensor(loss_mask)
    return _rotate(ids, spans, vocab)


def _rotate(ids: list[int], spans: Sequence[Span], vocab: Vocab) -> Rotated:
    assert len(spans) <= MAX_MASKS, f"{len(spans)} spans, at most {MAX_MASKS}"
    closed = len(ids) > 1 and ids[-1] == vocab.eos
    last = len(ids) - closed
    body: list[int] = []
    loss_mask: list[int] = []
    tail: list[int] = []
    at = 0
    for k, (start, end) in enumerate(spans):
        assert at <= start < end <= last, f"span {start, end} of {list(spans)} overlaps, is empty or leaves 0..{last}"
        body += ids[at:start]
        loss_mask += [1] * (start - at)
        body.append(vocab.first_mask + k)
        loss_mask.append(0)
        tail.append(vocab.first_infill + k)
        tail += ids[start:end]
        at = end
    body += ids[at:last]
    body += tail
    body += ids[last:]
    return Rotated(body, loss_mask + [1] * (len(body) - len(loss_mask)))


def unrotate(ids: Ids, vocab: Vocab) -> Ids:
    """Undo the rotation: move each span back to its mask. A mask without a span stays."""
    if isinstance(ids, Tensor):
        return ids.new_tensor(merge_infills(to_ints(ids), vocab))
    return merge_infills(ids, vocab)
