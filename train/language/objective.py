"""From a stored document to a training sequence: its form under the CM3 objective, and the loss weight of each token.

    Form             sequence
    LEFT_TO_RIGHT    <eos> text <break> <image> codes </image> <eos>
    TEXT_MASKED      <eos> <mask:0> <break> <image> codes </image> <infill:0> text <eos>
                     trains the branch without text of classifier-free guidance
    CM3_SPANS        random spans are masked (CM3Leon, section 2.2)
    ANSWERS_MASKED   the answers are masked and stand behind the image
    IMAGE_FIRST      <eos> <image> codes </image> <break> question answer <break> question answer <eos>
                     the same documents left to right
    TEXT_ONLY        <eos> text answer text answer <eos>
    INPAINTING       <eos> text <break> <image> codes and <mask:0> </image> <image> codes </image> <eos>
                     the image with some of its codes masked, then the whole image (CM3.infill)

A document's form is chosen before the document is read, so that its length is known when sequences are packed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import pairwise, zip_longest
from typing import NamedTuple

import numpy as np
import torch

from cm3.tokens.document import Span
from cm3.tokens.encoding import before_last, image_spans, in_turns, join, last_grid, masked_image, parts
from cm3.tokens.masking import all_segments, rotate, sample_holes, sample_spans, span_count, text_segments
from cm3.tokens.vocab import MAX_MASKS, Vocab


class Form(IntEnum):
    """The order in which a document's tokens are trained; the module's docstring shows each."""

    LEFT_TO_RIGHT = 0
    TEXT_MASKED = 1
    CM3_SPANS = 2
    ANSWERS_MASKED = 3
    INPAINTING = 4
    IMAGE_FIRST = 5
    TEXT_ONLY = 6


class TargetKind(IntEnum):
    """What a token is as a target of the loss.

    Attributes:
        IGNORED: no loss is computed.
        PROMPT: text before an image, or without one.
        ANSWER: an answer or masked text, with the token that ends it.
        FIRST_CODE: one of an image's first codes.
        CODE: any other code.
        SOURCE_CODE: a code of an image that another image follows at once, as the source of an edit.
    """

    IGNORED = 0
    PROMPT = 1
    ANSWER = 2
    FIRST_CODE = 3
    CODE = 4
    SOURCE_CODE = 5


KINDS = ("prompt", "answer", "first codes", "other codes", "source codes")  # log labels of TargetKind 1 to 5


@dataclass(frozen=True)
class Objective:
    """Shares of the forms, and loss weights of the tokens. Targets of weight 0 are neither computed nor counted.

    Attributes:
        text_masked: share of captioned documents whose whole text is masked.
        cm3_spans: share of captioned documents with random spans masked.
        inpainting: share of captioned documents with one image in the inpainting form; half of them have their text
            masked too.
        answers_masked: share of documents with answers whose answers are masked; the others are trained image first.
        prompt_weight: weight of text before an image.
        answer_weight: weight of answers, and of the tokens that end them.
        first_codes: number of an image's codes, from the first, that have the weight `first_code_weight`.
        first_code_weight: weight of these codes.
        code_weight: weight of all other codes.
        source_code_weight: weight of the codes of an image that another image follows at once (an edit's source).
        retrieved_factor: where one document holds several, factor of all weights before the last (RA-CM3, Yasunaga et
            al. 2022, uses 0.1).
        copied_code_factor: factor of the weights of codes that the inpainting form shows unmasked, and that are
            therefore only copied.
        vqa_code_factor: factor of the weights of codes in documents with answers.
    """

    text_masked: float = 0.15
    cm3_spans: float = 0.05
    inpainting: float = 0.0
    answers_masked: float = 1.0
    prompt_weight: float = 0.1
    answer_weight: float = 5.0
    first_codes: int = 24
    first_code_weight: float = 1.5
    code_weight: float = 1.0
    source_code_weight: float = 0.1
    retrieved_factor: float = 0.1
    copied_code_factor: float = 0.0
    vqa_code_factor: float = 1.0

    def plain(self) -> "Objective":
        """Return the objective of evaluations: no text masked but answers, the same weights."""
        return replace(self, text_masked=0.0, cm3_spans=0.0, inpainting=0.0)


class Forms(NamedTuple):
    """The forms of N documents.

    Attributes:
        form: Form of each document, [N].
        masked: largest number of spans that are masked, [N].
        extra: largest number of ids that the training sequence has beyond the document, [N].
    """

    form: np.ndarray
    masked: np.ndarray
    extra: np.ndarray


class TrainingSequence(NamedTuple):
    """A training sequence of T tokens.

    Attributes:
        ids: token ids, [T].
        weights: loss weight of each id as a target, [T] float32.
        kinds: TargetKind of each id, [T].
    """

    ids: np.ndarray
    weights: np.ndarray
    kinds: np.ndarray


def choose_forms(
    answers: np.ndarray,
    texts: np.ndarray,
    images: np.ndarray,
    codes: int,
    objective: Objective,
    rng: np.random.Generator,
    has_masks: bool = True,
) -> Forms:
    """Choose the form of each document.

    The extra ids are at most: 2 for each masked span; a second image in the inpainting form; a <break> for each answer
    but the first in the image-first form; an <end_turn> for each turn of a conversation.

    Args:
        answers: number of marked answers in each document, [N].
        texts: number of runs of text in each, [N].
        images: number of images in each, [N].
        codes: largest number of codes of an image.
        objective: the shares.
        rng: random generator.
        has_masks: whether the vocabulary has mask tokens. Without them (Chameleon, where user and model take turns)
            all documents are trained left to right, with the answers last.
    """
    draws = rng.random((2, len(answers)))
    if not has_masks:
        none = np.zeros(len(answers), int)
        return Forms(np.where(answers > 0, Form.IMAGE_FIRST, Form.LEFT_TO_RIGHT), none, np.maximum(answers, 1))
    steps = np.cumsum([objective.text_masked, objective.cm3_spans, objective.inpainting])
    captioned = [Form.TEXT_MASKED, Form.CM3_SPANS, Form.INPAINTING]
    form = np.select([draws[0] < step for step in steps], captioned, Form.LEFT_TO_RIGHT)
    form = np.where((form == Form.INPAINTING) & (images != 1), Form.LEFT_TO_RIGHT, form)
    asking = np.where(draws[0] < objective.answers_masked, Form.ANSWERS_MASKED, Form.IMAGE_FIRST)
    form = np.where(answers > 0, asking, form)
    form = np.where((answers > 0) & (images == 0), Form.TEXT_ONLY, form)
    texts = np.minimum(texts, MAX_MASKS)
    without_text = (form == Form.INPAINTING) & (draws[1] < 0.5)
    masked = np.select(
        [form == Form.ANSWERS_MASKED, form == Form.TEXT_MASKED, without_text], [answers, texts, texts], 0
    )
    for i in np.flatnonzero(form == Form.CM3_SPANS):
        masked[i] = span_count(draws[1, i])
    more = np.select([form == Form.INPAINTING, form == Form.IMAGE_FIRST], [codes + 2, answers - 1], 0)
    return Forms(form, masked, 2 * masked + more)


def training_sequence(
    ids: list[int],
    spans: Sequence[Span],
    form: int,
    masked: int,
    vocab: Vocab,
    objective: Objective,
    grid: tuple[int, int],
    seed: int,
) -> TrainingSequence:
    """Encode one document for training.

    Args:
        ids: the stored document, `<eos> ... <eos>`.
        spans: its answers; empty for a caption with its image.
        form: its Form.
        masked: number of spans to mask, as `choose_forms` gives it.
        vocab: layout of the ids.
        objective: the weights.
        grid: rows and columns of an image, where the document does not say.
        seed: of random spans and masks.
    """
    generator = torch.Generator().manual_seed(seed)
    in_place: Sequence[Span] = []  # answers that are not masked
    if form in (Form.TEXT_MASKED, Form.INPAINTING):
        spans = text_segments(ids, vocab)[:masked]
    elif form == Form.CM3_SPANS:
        spans = sample_spans(all_segments(ids, vocab), masked, generator)
    elif form == Form.IMAGE_FIRST:
        (ids, in_place), spans = _image_first(ids, spans, vocab), []
    elif form == Form.TEXT_ONLY:
        in_place, spans = spans, []
    elif form == Form.LEFT_TO_RIGHT:
        spans = []
    if not vocab.has_masks:
        ids, in_place = in_turns(ids, in_place, vocab)
    rotated, counted = rotate(ids, spans, vocab)
    copied: list[int] = []
    if form == Form.INPAINTING:
        holes = sample_holes(last_grid(rotated, vocab) or grid, generator).flatten().tolist()
        rotated, counted, copied = _with_masked_image(rotated, counted, holes, vocab)
    row = np.array(rotated)
    kinds = _target_kinds(row, np.array(counted) > 0, in_place, objective.first_codes, vocab)
    by_kind = [
        0,
        objective.prompt_weight,
        objective.answer_weight,
        objective.first_code_weight,
        objective.code_weight,
        objective.source_code_weight,
    ]
    weights = np.array(by_kind, np.float32)[kinds]
    if form in (Form.ANSWERS_MASKED, Form.IMAGE_FIRST):
        weights[row >= vocab.first_code] *= np.float32(objective.vqa_code_factor)
    weights[copied] *= np.float32(objective.copied_code_factor)
    weights[: before_last(rotated, vocab)] *= np.float32(objective.retrieved_factor)
    kinds[weights == 0] = TargetKind.IGNORED
    return TrainingSequence(row, weights, kinds)


def _target_kinds(
    row: np.ndarray, targets: np.ndarray, answers: Sequence[Span], first_codes: int, vocab: Vocab
) -> np.ndarray:
    """Return the TargetKind of each id of a sequence, [T].

    Args:
        row: the ids, [T].
        targets: whether the loss of each id is computed, [T].
        answers: places of answers that are not masked.
        first_codes: as in Objective.
        vocab: layout of the ids.
    """
    is_code = row >= vocab.first_code
    infills = np.isin(row, vocab.infills)
    answer = np.cumsum(infills) > 0
    for start, end in answers:
        answer[start : end + 1] = True
    images = image_spans(row.tolist(), vocab)
    seen, before, source = np.cumsum(is_code), np.zeros(len(row), int), np.zeros(len(row), bool)
    for (start, end), (following, _) in zip_longest(images, images[1:], fillvalue=(-1, -1)):
        before[start:] = seen[start]
        source[start:end] = end == following
    early = seen - before <= first_codes
    kinds = np.select(
        [is_code & source, is_code & early, is_code, answer & ~infills],
        [TargetKind.SOURCE_CODE, TargetKind.FIRST_CODE, TargetKind.CODE, TargetKind.ANSWER],
        TargetKind.PROMPT,
    )
    given = (row < vocab.first_text) & ~answer & ~np.isin(row, vocab.turns)  # the grammar writes these
    kinds[~targets | given] = TargetKind.IGNORED
    kinds[0] = TargetKind.IGNORED
    # The token that ends an answer counts with it, so that the model learns to stop: <eos>, the next <infill:k>, or the
    # next <break>. The first <infill:0> is always given.
    kinds[infills] = np.where(np.cumsum(infills)[infills] > 1, TargetKind.ANSWER, TargetKind.IGNORED)
    if not answer.any():
        kinds[-1] = TargetKind.PROMPT
    return kinds


def _image_first(ids: list[int], spans: Sequence[Span], vocab: Vocab) -> tuple[list[int], list[Span]]:
    """Move the text to the end of the document, each question with its answer as one run of text.

    Returns:
        The document, and the places of its answers.
    """
    found = parts(ids, vocab)
    text = next(i for i, part in enumerate(found) if part.end >= spans[-1][1])  # the part with the answers
    cuts = [found[0].start, *(end for _, end in spans[:-1]), found[text].end]
    rest = ids[found[text + 1].start : -1]
    out, places = join([rest, *(ids[start:end] for start, end in pairwise(cuts))], vocab)
    moves = [place - cut for (place, _), cut in zip(places[1:], cuts, strict=False)]
    return out, [(start + move, end + move) for (start, end), move in zip(spans, moves, strict=True)]


def _with_masked_image(
    ids: list[int], targets: list[int], holes: list[bool], vocab: Vocab
) -> tuple[list[int], list[int], list[int]]:
    """Put a copy of the document's one image before it, in which <mask:0> replaces the masked codes.

    Args:
        ids: of the document, T.
        targets: whether the loss of each id is computed, T.
        holes: whether each code of the image is masked.
        vocab: layout of the ids.

    Returns:
        ids and targets, T + h w + 2 each; and the places, in the whole image, of the codes that are not masked.
    """
    (start, end), *_ = image_spans(ids, vocab)
    image, inside = ids[start:end], iter(holes)
    source = masked_image(image, holes, vocab)
    copied = [place for place, id in enumerate(image, start + len(source)) if vocab.is_code(id) and not next(inside)]
    return (
        [*ids[:start], *source, *ids[start:]],
        [*targets[:start], *map(int, map(vocab.is_code, source)), *targets[start:]],
        copied,
    )
