"""Encoding of documents as ids, and decoding of ids to documents.

    Document((Text("a red apple"), Image(codes)))
        <eos> a red apple <break> <image> c_1 .. c_hw </image> <eos>
    Document((Text("Caption: "), Mask(), Image(codes)))                                   as a prompt
        <eos> Caption: <mask:0> <break> <image> c_1 .. c_hw </image> <infill:0>           the model continues from here
    Document((Text("a red apple"), Image(codes with some HOLEs)))                         as a prompt for an image
        <eos> a red apple <break> <image> c_1 <mask:0> .. c_hw </image> <image>           then the whole image
    Document((Text("Caption: "), Answer("a red apple"), Image(codes)))                    for training
        <eos> Caption: a red apple <break> <image> c_1 .. c_hw </image> <eos>             and the span of the answer

<break> is between text and image; texts, or images, that follow each other have none. A mask counts as text. A string
never becomes a special token, because the text tokenizer has none.

That is the form "cm3". In the form "chameleon" (Chameleon, arXiv 2405.09818; Anole) there are no masks and no <break>.
The user's turn ends with <end_turn>, and the model's reply follows:

    Document((Text("a red apple"), Image(codes)))
        <bos> a red apple <image> c_1 .. c_hw </image> <eos>
    reply_ids(Document((Image(codes), Text("What is this?"))))                            as a prompt
        <bos> <image> c_1 .. c_hw </image> What is this? <end_turn>                       the model continues from here

Special tokens are written and read only here, in masking.py (which moves spans), and in document_state.py and
grammar.py (which id may follow).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import torch

from cm3.tensors import to_ints
from cm3.tokens.document import HOLE, Answer, Document, Image, Item, Mask, Span, Text, has_mask
from cm3.tokens.vocab import Grid, Vocab


class Tokenizer(Protocol):
    """What is needed of a text tokenizer: ids from 0, without special tokens."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


class Encoded(NamedTuple):
    """An encoded document.

    Attributes:
        ids: `<eos> ... <eos>`.
        spans: the range of each answer in the ids.
    """

    ids: list[int]
    spans: list[Span]


def _body(document: Document, vocab: Vocab, tokenizer: Tokenizer) -> Encoded:
    """The ids of a document without its end."""
    if has_mask(document) and not vocab.has_masks:
        raise ValueError("this model was trained without masks: leave them out, and let it continue")
    ids, spans = [vocab.bos], list[Span]()
    masks = 0
    previous: type | None = None  # Text (a mask counts as text) or Image
    run = ""  # adjacent texts are tokenised together
    for item in document:
        if isinstance(item, Text) and not item.text:
            continue
        kind = Image if isinstance(item, Image) else Text
        if run and type(item) is not Text:
            ids += text_ids(run, vocab, tokenizer)
            run = ""
        if vocab.has_masks and previous not in (None, kind):
            ids.append(vocab.break_)
        previous = kind
        if isinstance(item, Answer):
            start = len(ids)
            ids += text_ids(item.text, vocab, tokenizer)
            spans.append((start, len(ids)))
        elif isinstance(item, Text):
            run += item.text
        elif isinstance(item, Mask):
            ids.append(vocab.mask(masks))
            masks += 1
        else:
            ids += image_ids(item, vocab)
    if run:
        ids += text_ids(run, vocab, tokenizer)
    return Encoded(ids, spans)


def text_ids(text: str, vocab: Vocab, tokenizer: Tokenizer) -> list[int]:
    """The ids of a text."""
    return vocab.text_to_ids(tokenizer.encode(text))


def image_ids(image: Image, vocab: Vocab) -> list[int]:
    """`<image> c_1 .. c_hw </image>`, with <mask:0> in place of each missing code.

    Raises:
        ValueError: a code that the vocabulary does not have.
    """
    inside = (vocab.mask(0) if code == HOLE else vocab.code_to_id(code) for code in to_ints(image.codes))
    return [*opening_ids(vocab, image.grid), *inside, vocab.end_image]


def roles(vocab: Vocab) -> dict[str, int]:
    """Special tokens by their names in transformers."""
    return {
        "bos_token": vocab.bos,
        "eos_token": vocab.eos,
        "pad_token": vocab.pad,
        "boi_token": vocab.image,
        "eoi_token": vocab.end_image,
        "image_token": vocab.placeholder,
    }


def opening_ids(vocab: Vocab, grid: Grid | None = None) -> list[int]:
    """The ids before an image's first code. `grid`: None for the usual one."""
    return [vocab.image, *(vocab.grid_ids(grid) if grid else ())]


def last_grid(ids: Sequence[int], vocab: Vocab) -> Grid | None:
    """The grid of the last image in the ids; None if it is the usual one."""
    last = max((i for i, id in enumerate(ids) if id == vocab.image), default=len(ids)) + 1
    return vocab.grid(ids[last]) if last < len(ids) and vocab.is_grid(ids[last]) else None


def encode(document: Document, vocab: Vocab, tokenizer: Tokenizer) -> Encoded:
    """Encode a document for training: `<eos> items <eos>`, and the spans of its answers.

    Raises:
        ValueError: a Mask (use prompt_ids), or a code that the vocabulary does not have.
    """
    if has_mask(document):
        raise ValueError("a document with a Mask is not finished: use prompt_ids")
    ids, spans = _body(document, vocab, tokenizer)
    return Encoded([*ids, vocab.eos], spans)


def to_ids(document: Document, vocab: Vocab, tokenizer: Tokenizer) -> list[int]:
    """Encode a finished document: `<eos> items <eos>`.

    Raises:
        ValueError: a Mask (use prompt_ids), an image with holes, or a code that the vocabulary does not have.
    """
    ids = encode(document, vocab, tokenizer).ids
    if any(isinstance(item, Image) and item.holes for item in document):
        raise ValueError("a document with holes in an image is not finished")
    return ids


def open_ids(document: Document, vocab: Vocab, tokenizer: Tokenizer) -> list[int]:
    """Encode a document without its end, so that it can be continued."""
    return _body(document, vocab, tokenizer).ids


def prompt_ids(document: Document, vocab: Vocab, tokenizer: Tokenizer) -> list[int]:
    """Encode a prompt. With masks it ends with <infill:0>; without, it is the document without its end."""
    ids = open_ids(document, vocab, tokenizer)
    return [*ids, vocab.infill(0)] if has_mask(document) else ids


def image_prompt_ids(document: Document, vocab: Vocab, tokenizer: Tokenizer, grid: Grid | None = None) -> list[int]:
    """Encode the prompt of an image: the document, then <break> <image>, or <end_turn> <image>.

    Args:
        document: before the image.
        vocab: layout of the ids.
        tokenizer: text tokenizer.
        grid: rows and columns of the image; None = the usual ones.
    """
    ids = reply_ids(document, vocab, tokenizer)
    turn = [vocab.break_] if vocab.has_masks and len(ids) > 1 and ids[-1] != vocab.end_image else []
    return [*ids, *turn, *opening_ids(vocab, grid)]


def unconditional(vocab: Vocab) -> Document:
    """Return the document of the unconditional prompt of guidance."""
    return Document((Mask(),)) if vocab.has_masks else Document()


def reply_ids(document: Document, vocab: Vocab, tokenizer: Tokenizer) -> list[int]:
    """Encode a document that the model continues, with <end_turn> at its end in the form "chameleon"."""
    ids = open_ids(document, vocab, tokenizer)
    return [*ids, vocab.end_turn] if len(ids) > 1 and not vocab.has_masks else ids


def completion_ids(text: str, vocab: Vocab, tokenizer: Tokenizer) -> list[int]:
    """Encode what follows a prompt for one text: the text and <eos>."""
    return [*text_ids(text, vocab, tokenizer), vocab.eos]


def next_span_ids(k: int, vocab: Vocab) -> list[int]:
    """What ends the span of mask k - 1 and begins that of mask k."""
    return [vocab.infill(k)]


def next_turn_ids(reply: str, question: str, vocab: Vocab, tokenizer: Tokenizer) -> list[int]:
    """What follows a prompt in a conversation: the reply, and the user's next turn."""
    return [*text_ids(reply, vocab, tokenizer), *text_ids(question, vocab, tokenizer), vocab.end_turn]


class Part(NamedTuple):
    """A run of text, or an image from <image> to </image>, at ids[start:end]."""

    is_image: bool
    start: int
    end: int


def parts(ids: Sequence[int], vocab: Vocab) -> list[Part]:
    """The texts and images of a finished document. A mask counts as text."""
    found: list[Part] = []
    start, between = None, (vocab.bos, vocab.break_, *vocab.ends)
    for i, id in enumerate(ids):
        inside = start is not None and ids[start] == vocab.image
        if inside and id != vocab.end_image:
            continue
        if start is not None and (inside or id == vocab.image or id in between):
            found.append(Part(inside, start, i + inside))
            start = None
        if start is None and id not in between and id != vocab.end_image:
            start = i
    return [*found, Part(ids[start] == vocab.image, start, len(ids))] if start is not None else found


def split(ids: list[int], vocab: Vocab) -> list[tuple[list[int], bool]]:
    """The ids of each run of text and of each image, and whether it is an image, up to the first <eos> or <pad>."""
    start = 1 if ids and ids[0] == vocab.bos else next((i for i, id in enumerate(ids) if id != vocab.pad), len(ids))
    end = next((i for i in range(start + 1, len(ids)) if ids[i] in (vocab.eos, vocab.pad)), len(ids))
    found = parts(ids[start:end], vocab)
    runs = ((ids[start + part.start : start + part.end], part.is_image) for part in found)
    return [([id for id in run if vocab.is_code(id) or vocab.is_text(id)], image) for run, image in runs]


def image_spans(ids: list[int], vocab: Vocab) -> list[Span]:
    """The ranges of the images, from <image> to </image>, in a document that may be rotated.

    Raises:
        ValueError: an image without its end.
    """
    spans: list[Span] = []
    for _ in range(ids.count(vocab.image)):
        start = ids.index(vocab.image, spans[-1][1] if spans else 0)
        spans.append((start, ids.index(vocab.end_image, start) + 1))
    return spans


def before_last(ids: Sequence[int], vocab: Vocab) -> int:
    """Number of ids before the last of several documents, `<eos> one <eos> other <eos>`; 0 if there is only one."""
    return max((i + 1 for i in range(1, len(ids) - 1) if ids[i] == vocab.eos), default=0)


def last_codes(ids: list[int], vocab: Vocab) -> list[int]:
    """The codes of the last image, from 0; all codes if there is no <image>."""
    starts = [i for i, id in enumerate(ids) if id == vocab.image]
    return [vocab.id_to_code(id) for id in ids[starts[-1] if starts else 0 :] if vocab.is_code(id)]


def masked_image(image: Sequence[int], holes: Sequence[bool], vocab: Vocab) -> list[int]:
    """Replace the codes of an image by <mask:0> where `holes` is True."""
    is_hole = iter(holes)
    return [vocab.mask(0) if vocab.is_code(id) and next(is_hole) else id for id in image]


def join(pieces: Iterable[list[int]], vocab: Vocab) -> Encoded:
    """Join the ids of texts and images: `<eos> pieces <eos>`, with <break> between all but two images. The spans are
    the ranges of the pieces."""
    ids, ranges = [vocab.bos], list[Span]()
    for piece in pieces:
        if vocab.has_masks and len(ids) > 1 and (ids[-1] != vocab.end_image or piece[0] != vocab.image):
            ids.append(vocab.break_)
        ranges.append((len(ids), len(ids) + len(piece)))
        ids += piece
    return Encoded([*ids, vocab.eos], ranges)


def from_ids(
    ids: Sequence[int], vocab: Vocab, tokenizer: Tokenizer, grid: tuple[int, int], spans: Sequence[Span] = ()
) -> Document:
    """Decode ids to a document.

    Spans that CM3's rotation has moved go back to their masks. A mask without a span stays a Mask, or a HOLE in an
    image.

    Args:
        ids: the ids.
        vocab: the vocabulary.
        tokenizer: the text tokenizer.
        grid: the usual rows and columns of an image.
        spans: of answers, as `encode` returns them, if the ids are not rotated.

    Raises:
        ValueError: the ids spell no document.
    """
    merged, borders = merge_infills(ids, vocab), borders_of(spans)
    items: list[Item] = []
    text: list[int] = []
    codes: list[int] | None = None  # of the open image
    usual = grid

    def close_text(kind: type[Text] = Text) -> None:
        if text:
            items.append(kind(tokenizer.decode(vocab.ids_to_text(text))))
            text.clear()

    for i, id in enumerate(merged):
        if i in borders:
            close_text(Answer if borders[i] else Text)
        if codes is not None:
            if vocab.is_code(id) or vocab.is_mask(id):
                codes.append(vocab.id_to_code(id) if vocab.is_code(id) else HOLE)
            elif id == vocab.end_image and len(codes) == grid[0] * grid[1]:
                items.append(Image(torch.tensor(codes).view(grid)))
                codes, grid = None, usual
            elif vocab.is_grid(id) and not codes:
                grid = vocab.grid(id)
            else:
                raise ValueError(
                    f"an image of {grid[0]} x {grid[1]} codes cannot go on with {vocab.name(id)} after "
                    f"{len(codes)} codes"
                )
        elif vocab.is_text(id):
            text.append(id)
        elif vocab.is_mask(id) or id in (vocab.image, vocab.break_, vocab.bos, *vocab.ends):
            close_text()
            if vocab.is_mask(id):
                items.append(Mask())
            elif id == vocab.image:
                codes = []
        else:
            raise ValueError(f"{vocab.name(id)} cannot stand outside an image")
    if codes is not None:
        raise ValueError(f"the last image is not closed: it has {len(codes)} of {grid[0] * grid[1]} codes")
    close_text()
    return Document(tuple(items))


def in_turns(ids: list[int], answers: Sequence[Span], vocab: Vocab) -> Encoded:
    """Add the <end_turn> of prompts to an encoded document of the form "chameleon": before each answer, or, without
    answers, before the image that is the last of several parts.

    Args:
        ids: the document.
        answers: the spans of its answers.
        vocab: the vocabulary.
    """
    found = parts(ids, vocab)
    last_image = [found[-1].start] if len(found) > 1 and found[-1].is_image else []
    cuts = [start for start, _ in answers] or last_image
    with_turns, moved, before = list[int](), list[Span](), 0
    for count, cut in enumerate(cuts, 1):
        with_turns += [*ids[before:cut], vocab.end_turn]
        moved += [(start + count, end + count) for start, end in answers[count - 1 : count]]
        before = cut
    return Encoded([*with_turns, *ids[before:]], moved)


def borders_of(spans: Sequence[Span]) -> dict[int, bool]:
    """Positions at which answers start or end, and whether one ends there."""
    return {start: False for start, _ in spans} | {end: True for _, end in spans}


def merge_infills(ids: Sequence[int], vocab: Vocab) -> list[int]:
    """Undo CM3's rotation: move each span back to its mask. A mask without a span stays."""
    body, spans = split_infills(ids, vocab)
    merged: list[int] = []
    for id in body:
        merged += spans.get(id - vocab.first_mask, [id]) if vocab.is_mask(id) else [id]
    return merged


def split_infills(ids: Sequence[int], vocab: Vocab) -> tuple[list[int], dict[int, list[int]]]:
    """Split rotated ids into the body, with the closing <eos>, and the span of each mask number."""
    first = next((i for i, id in enumerate(ids) if vocab.is_infill(id)), len(ids))
    body, span = list(ids[:first]), list[int]()
    spans: dict[int, list[int]] = {}
    for id in ids[first:]:
        if vocab.is_infill(id):
            span = spans.setdefault(id - vocab.first_infill, [])
        elif id == vocab.eos:
            body.append(id)
            break
        else:
            span.append(id)
    return body, spans
