"""From a stored document to a training row: which form of the CM3 objective, and how much each token's loss counts.

draw     <eos> words <break> <image> codes </image> <eos>                       left to right
free     <eos> <mask:0> <break> <image> codes </image> <infill:0> words <eos>   teaches the branch without text
cm3      random spans (CM3leon 2.2)
ask      the answers moved behind the image
tell     <eos> <image> codes </image> <break> question answer <break> question answer <eos>   the same left to right
text     <eos> words answer words answer <eos>                                  without an image: as it stands
holes    <eos> words <break> <image> codes and <mask:0> </image> <image> codes </image> <eos>
         the image with some of its codes missing, then whole: how a hole of any form is filled (CM3.infill)

A document's form is chosen before it is read, so that its length is known when rows are packed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from typing import NamedTuple

import numpy as np
import torch

from cm3.tokens.document import Span
from cm3.tokens.encoding import before_last, hidden, image_spans, in_turns, join, last_grid, parts
from cm3.tokens.masking import all_segments, rotate, sample_holes, sample_spans, span_count, text_segments
from cm3.tokens.vocab import MAX_MASKS, Vocab

DRAW, FREE, CM3, ASK, HOLES, TELL, TEXT = range(7)


@dataclass(frozen=True)
class Objective:
    """Shares and weights.

    Attributes:
        free: share of the captioned documents whose whole text is masked.
        cm3: share of the captioned documents with random spans.
        holes: share of the captioned documents of one image whose image stands twice, first with holes; in half of
            them the text is masked too.
        ask: share of the documents with answers whose answers are moved; in the others the image comes first, then
            all the text, left to right.
        prompt: weight of text that stands before an image.
        answer: weight of text that stands behind it, and of the token that ends it.
        first_codes: how many of an image's first codes have the weight `first`.
        first: their weight.
        code: weight of the other codes.
        source: weight of the codes of an image that another image follows at once: what an edit begins with.
        retrieved: where several documents are stored as one, factor of the weights of all before the last (RA-CM3,
            Yasunaga et al. 2022: 0.1).
        copied: factor of the weights of those codes, in the form with holes, that the image with holes has too: what
            an edit leaves alone is copied in the same way.
        asked: factor of the weights of codes in documents with answers, whose images are to be seen and not drawn.
        noise: share of the drawn images that are read with mistakes, while the targets stay: who draws reads own
            mistakes, and must go by the words nevertheless (the aim of scheduled sampling, Bengio et al. 2015). Half of
            them begin as another image, up to half of it; in the others up to half of the codes are another's.

    Targets of weight 0 are not computed, and no figure counts them.
    """

    free: float = 0.15
    cm3: float = 0.05
    holes: float = 0.0
    ask: float = 1.0
    prompt: float = 0.1
    answer: float = 5.0
    first_codes: int = 24
    first: float = 1.5
    code: float = 1.0
    source: float = 0.1
    retrieved: float = 0.1
    copied: float = 0.0
    asked: float = 1.0
    noise: float = 0.0

    def plain(self) -> "Objective":
        """Every document as it reads, answers last: what evaluation sees. The weights stay."""
        return replace(self, free=0.0, cm3=0.0, holes=0.0, noise=0.0)


class Forms(NamedTuple):
    """Of some documents: form [N], one of DRAW, FREE, CM3, ASK, HOLES, TELL, TEXT; moved [N], how many spans move
    at most; extra [N], how many ids a row has beyond its document at most."""

    form: np.ndarray
    moved: np.ndarray
    extra: np.ndarray


class Row(NamedTuple):
    """ids [T]; weights [T] float32, of each id as a target; kinds [T]: 0 nothing, then 1 + index in KINDS."""

    ids: np.ndarray
    weights: np.ndarray
    kinds: np.ndarray


KINDS = ("prompt", "answer", "first codes", "other codes", "source codes")
DRAWN = (3, 4)  # kinds of the codes that words or holes ask for


def choose_forms(
    answers: np.ndarray,
    texts: np.ndarray,
    images: np.ndarray,
    codes: int,
    objective: Objective,
    rng: np.random.Generator,
    has_masks: bool = True,
) -> Forms:
    """The form of each document. A row is 2 ids longer than its document for each span that moves, a whole image
    longer with holes, a <break> for each answer but the first that is told, and an <end_turn> for each turn, at most.

    Args:
        answers: marked answers of each document, [N].
        texts: runs of text in each, [N].
        images: images in each, [N].
        codes: of an image, at most.
        objective: the shares.
        rng: chooses.
        has_masks: of the vocabulary. Where people and model take turns, documents read left to right, answers last.
    """
    draws = rng.random((2, len(answers)))
    if not has_masks:
        none = np.zeros(len(answers), int)
        return Forms(np.where(answers > 0, TELL, DRAW), none, np.maximum(answers, 1))
    steps = np.cumsum([objective.free, objective.cm3, objective.holes])
    form = np.select([draws[0] < step for step in steps], [FREE, CM3, HOLES], DRAW)
    form = np.where((form == HOLES) & (images != 1), DRAW, form)
    form = np.where(answers > 0, np.where(draws[0] < objective.ask, ASK, TELL), form)
    form = np.where((answers > 0) & (images == 0), TEXT, form)
    texts = np.minimum(texts, MAX_MASKS)
    moved = np.select([form == ASK, form == FREE, (form == HOLES) & (draws[1] < 0.5)], [answers, texts, texts], 0)
    for i in np.flatnonzero(form == CM3):
        moved[i] = span_count(draws[1, i])
    return Forms(form, moved, 2 * moved + np.select([form == HOLES, form == TELL], [codes + 2, answers - 1], 0))


def training_row(
    ids: list[int],
    spans: Sequence[Span],
    form: int,
    moved: int,
    vocab: Vocab,
    objective: Objective,
    grid: tuple[int, int],
    seed: int,
) -> Row:
    """One document as the model learns it.

    Args:
        ids: the stored document, `<eos> ... <eos>`.
        spans: its answers; none for a caption with its image.
        form: its form, as choose_forms gives it.
        moved: how many spans are moved, as choose_forms gives it.
        vocab: the layout.
        objective: the weights.
        grid: rows and columns of an image, where the document does not say.
        seed: of random spans and holes.
    """
    generator = torch.Generator().manual_seed(seed)
    told: Sequence[Span] = []  # answers that are not moved
    if form in (FREE, HOLES):
        spans = text_segments(ids, vocab)[:moved]
    elif form == CM3:
        spans = sample_spans(all_segments(ids, vocab), moved, generator)
    elif form == TELL:
        (ids, told), spans = _told(ids, spans, vocab), []
    elif form == TEXT:
        told, spans = spans, []
    elif form == DRAW:
        spans = []
    if not vocab.has_masks:
        ids, told = in_turns(ids, told, vocab)
    rotated, counted = rotate(ids, spans, vocab)
    copied: list[int] = []
    if form == HOLES:
        holes = sample_holes(last_grid(rotated, vocab) or grid, generator).flatten().tolist()
        rotated, counted, copied = _with_holes(rotated, counted, holes, vocab)
    row, targets, images = np.array(rotated), np.array(counted) > 0, image_spans(rotated, vocab)
    is_code = row >= vocab.first_code
    infills = np.isin(row, vocab.infills)
    behind = np.cumsum(infills) > 0
    for start, end in told:
        behind[start : end + 1] = True
    seen, before, source = np.cumsum(is_code), np.zeros(len(row), int), np.zeros(len(row), bool)
    for (start, end), (following, _) in zip_longest(images, images[1:], fillvalue=(-1, -1)):
        before[start:] = seen[start]
        source[start:end] = end == following
    early = seen - before <= objective.first_codes
    kinds = np.select([is_code & source, is_code & early, is_code, behind & ~infills], [5, 3, 4, 2], 1)
    given = (row < vocab.first_text) & ~behind & ~np.isin(row, vocab.turns)  # the grammar writes these
    kinds[~targets | given] = 0
    kinds[0] = 0
    # The token that ends an answer counts with it, so that the model learns to stop: <eos>, the next <infill:k>, or the
    # next <break>. The first <infill:0> is always given.
    kinds[infills] = np.where(np.cumsum(infills)[infills] > 1, 2, 0)
    if not behind.any():
        kinds[-1] = 1
    weights = np.array(
        [0, objective.prompt, objective.answer, objective.first, objective.code, objective.source], np.float32
    )
    out = weights[kinds]
    if form in (ASK, TELL):
        out[is_code] *= np.float32(objective.asked)
    out[copied] *= np.float32(objective.copied)
    out[: before_last(rotated, vocab)] *= np.float32(objective.retrieved)
    kinds[out == 0] = 0
    return Row(row, out, kinds)


def _told(ids: list[int], spans: Sequence[Span], vocab: Vocab) -> tuple[list[int], list[Span]]:
    """What stands before the last answer's <break> moved to the end, each question with its answer a text of its own.
    Returns the document and the places of its answers."""
    found = parts(ids, vocab)
    text = next(i for i, part in enumerate(found) if part.end >= spans[-1][1])  # that has the answers
    cuts = [found[0].start, *(end for _, end in spans[:-1]), found[text].end]
    rest = ids[found[text + 1].start : -1]
    out, places = join([rest, *(ids[start:end] for start, end in pairwise(cuts))], vocab)
    moves = [place - cut for (place, _), cut in zip(places[1:], cuts, strict=False)]
    return out, [(start + move, end + move) for (start, end), move in zip(spans, moves, strict=True)]


def _with_holes(
    ids: list[int], targets: list[int], holes: list[bool], vocab: Vocab
) -> tuple[list[int], list[int], list[int]]:
    """Before the one image the same with a <mask:0> in each hole.

    Args:
        ids, targets: of the document, T each.
        holes: of each code of the image.
        vocab: the layout.

    Returns:
        ids and targets, T + h w + 2 each, and the places of the image's codes that are no holes.
    """
    (start, end), *_ = image_spans(ids, vocab)
    image, inside = ids[start:end], iter(holes)
    source = hidden(image, holes, vocab)
    copied = [place for place, id in enumerate(image, start + len(source)) if vocab.is_code(id) and not next(inside)]
    return (
        [*ids[:start], *source, *ids[start:]],
        [*targets[:start], *map(int, map(vocab.is_code, source)), *targets[start:]],
        copied,
    )
