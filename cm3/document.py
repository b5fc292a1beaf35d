"""Documents: text and pictures in any order, and their way to ids and back.

    Document((Text("a red apple"), Image(codes)))
        <eos> a red apple <break> <image> c_1 .. c_hw </image> <eos>
    Document((Text("Caption: "), Mask(), Image(codes)))                                   as a prompt
        <eos> Caption: <mask:0> <break> <image> c_1 .. c_hw </image> <infill:0>           the model writes on from here
    Document((Text("a red apple"), Image(codes with HOLE in some cells)))                 as a prompt for a picture
        <eos> a red apple <break> <image> c_1 <mask:0> .. c_hw </image> <image>           the same picture, now whole

<break> stands where text and picture meet; neighbours of one kind join without it. A mask belongs to the text beside
it, and stands as text of its own between pictures. Text is always text: its tokenizer knows no special tokens.
"""

# torch leaves tolist() without a type
# pyright: reportUnknownMemberType=false

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from cm3.checks import check_text
from cm3.vocab import MAX_MASKS, Vocab

HOLE = -1  # in place of a code: to be drawn


class Tokenizer(Protocol):
    """What a document asks of a text tokenizer: ids from 0, and no special tokens added or understood."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True)
class Text:
    """Errors: TypeError for what is no string."""

    text: str

    def __post_init__(self) -> None:
        check_text("the text of a document", self.text)


@dataclass(frozen=True, eq=False)
class Image:
    """codes: [h, w] integers, row by row from the top, HOLE where one is missing; anything torch.as_tensor takes.

    Errors: ValueError for what is no grid of whole numbers."""

    codes: Tensor

    def __post_init__(self) -> None:
        try:
            codes = torch.as_tensor(self.codes)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"image codes must be rows of whole numbers of one length: {error}") from error
        if codes.ndim != 2 or codes.numel() == 0:
            raise ValueError(f"image codes must be a grid of rows and columns, but have shape {tuple(codes.shape)}")
        if codes.dtype.is_floating_point or codes.dtype.is_complex or codes.dtype == torch.bool:
            raise ValueError(f"image codes must be whole numbers, but are {str(codes.dtype).removeprefix('torch.')}")
        object.__setattr__(self, "codes", codes.long())

    @property
    def grid(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def holes(self) -> bool:
        return bool((self.codes == HOLE).any())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and torch.equal(self.codes, other.codes)

    def __hash__(self) -> int:
        return hash(tuple(cast(list[int], self.codes.flatten().tolist())))


@dataclass(frozen=True)
class Mask:
    """A gap that the model fills in."""


Item = Text | Image | Mask


@dataclass(frozen=True)
class Document(Sequence[Item]):
    items: tuple[Item, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.items, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]  # likewise
            raise TypeError(f"a document holds a tuple of Text, Image and Mask, but got {self.items!r:.60}")
        items = tuple(self.items)
        for item in items:
            if not isinstance(item, Item):  # pyright: ignore[reportUnnecessaryIsInstance]  # from callers without types
                raise ValueError(f"a document holds Text, Image and Mask, but got {type(item).__name__}: {item!r:.60}")
        if sum(isinstance(item, Mask) for item in items) > MAX_MASKS:
            raise ValueError(f"a document may have at most {MAX_MASKS} masks")
        object.__setattr__(self, "items", items)

    def __getitem__(self, index: Any) -> Any:
        return cast(Any, self.items[index])

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def to_json(self) -> list[dict[str, Any]]:
        """`[{"text": "a red apple"}, {"image": [[17, 4], [9, 0]]}, {"mask": true}]`"""
        return [item_to_json(item) for item in self.items]

    @classmethod
    def from_json(cls, data: list[dict[str, Any]]) -> "Document":
        """The document that to_json wrote. Errors: ValueError naming the item that is wrong."""
        if not isinstance(data, list):  # pyright: ignore[reportUnnecessaryIsInstance]  # read from a file
            raise ValueError(f"a document is a list of items, but got {type(data).__name__}")
        return cls(tuple(item_from_json(item) for item in data))


def item_to_json(item: Item) -> dict[str, Any]:
    if isinstance(item, Text):
        return {"text": item.text}
    if isinstance(item, Image):
        return {"image": item.codes.tolist()}
    return {"mask": True}


def item_from_json(item: Any) -> Item:
    match item:
        case {"text": str(text), **rest} if not rest:
            return Text(text)
        case {"image": list(), **rest} if not rest:
            return Image(item["image"])  # __post_init__ makes the tensor
        case {"mask": True, **rest} if not rest:
            return Mask()
        case _:
            pass
    raise ValueError(f'an item is {{"text": ...}}, {{"image": [[...]]}} or {{"mask": true}}, but got {item!r:.80}')


def _body(document: Document, vocab: Vocab, tokenizer: Tokenizer) -> list[int]:
    """<eos> and the items, without a close."""
    ids = [vocab.eos]
    masks = 0
    previous: type | None = None  # Text (a mask counts as text) or Image
    run = ""  # neighbouring texts are tokenised as one
    for item in document:
        if isinstance(item, Text) and not item.text:
            continue
        kind = Image if isinstance(item, Image) else Text
        if run and not isinstance(item, Text):
            ids += vocab.text_to_ids(tokenizer.encode(run))
            run = ""
        if previous not in (None, kind):
            ids.append(vocab.break_)
        previous = kind
        if isinstance(item, Text):
            run += item.text
        elif isinstance(item, Mask):
            ids.append(vocab.mask(masks))
            masks += 1
        else:
            codes = cast(list[int], item.codes.flatten().tolist())
            ids += [
                vocab.image,
                *(vocab.mask(0) if code == HOLE else vocab.code_to_id(code) for code in codes),
                vocab.end_image,
            ]
    if run:
        ids += vocab.text_to_ids(tokenizer.encode(run))
    return ids


def has_mask(document: Document) -> bool:
    return any(isinstance(item, Mask) for item in document)


def without_text(document: Document) -> Document:
    """Its pictures, with a mask for each run of text: the condition that guidance leaves out (CM3leon 3.1). A document
    without text gets one mask before its first picture."""
    items: list[Item] = []
    for item in document:
        kept = item if isinstance(item, Image) else Mask()
        if not (items and isinstance(kept, Mask) and isinstance(items[-1], Mask)):
            items.append(kept)
    return Document(tuple(items if any(isinstance(item, Mask) for item in items) else (Mask(), *items)))


def to_ids(document: Document, vocab: Vocab, tokenizer: Tokenizer) -> list[int]:
    """The finished document: <eos> items <eos>. Errors: ValueError for a Mask (use prompt_ids), a picture with holes,
    or a code that the vocabulary does not have."""
    if has_mask(document):
        raise ValueError("a document with a Mask is not finished: use prompt_ids")
    if any(isinstance(item, Image) and item.holes for item in document):
        raise ValueError("a document with holes in a picture is not finished")
    return [*_body(document, vocab, tokenizer), vocab.eos]


def open_ids(document: Document, vocab: Vocab, tokenizer: Tokenizer) -> list[int]:
    """The document without its close, to be written on."""
    return _body(document, vocab, tokenizer)


def prompt_ids(document: Document, vocab: Vocab, tokenizer: Tokenizer) -> list[int]:
    """What the model writes on from: with masks up to and with <infill:0>; without, the open document."""
    ids = _body(document, vocab, tokenizer)
    return [*ids, vocab.infill(0)] if has_mask(document) else ids


def draw_ids(document: Document, vocab: Vocab, tokenizer: Tokenizer) -> list[int]:
    """A prompt for a picture after the document: ... <break> <image>."""
    ids = _body(document, vocab, tokenizer)
    turn = [vocab.break_] if len(ids) > 1 and ids[-1] != vocab.end_image else []
    return [*ids, *turn, vocab.image]


def from_ids(ids: Sequence[int], vocab: Vocab, tokenizer: Tokenizer, grid: tuple[int, int]) -> Document:
    """The document that the ids spell. Spans moved by CM3's rotation go back to their masks; a mask whose span is
    missing stays a Mask, in a picture a HOLE. grid: rows and columns of a picture. Errors: ValueError for ids that
    spell no document."""
    body, spans = split_infills(ids, vocab)
    merged: list[int] = []
    for id in body:
        merged += spans.get(id - vocab.first_mask, [id]) if vocab.is_mask(id) else [id]
    items: list[Item] = []
    text: list[int] = []
    codes: list[int] | None = None  # of the open picture

    def close_text() -> None:
        if text:
            items.append(Text(tokenizer.decode(vocab.ids_to_text(text))))
            text.clear()

    for id in merged:
        if codes is not None:
            if vocab.is_code(id) or vocab.is_mask(id):
                codes.append(vocab.id_to_code(id) if vocab.is_code(id) else HOLE)
            elif id == vocab.end_image and len(codes) == grid[0] * grid[1]:
                items.append(Image(torch.tensor(codes).view(grid)))
                codes = None
            else:
                raise ValueError(
                    f"a picture of {grid[0]} x {grid[1]} codes cannot go on with {vocab.name(id)} after "
                    f"{len(codes)} codes"
                )
        elif vocab.is_text(id):
            text.append(id)
        elif vocab.is_mask(id) or id in (vocab.image, vocab.break_, vocab.eos):
            close_text()
            if vocab.is_mask(id):
                items.append(Mask())
            elif id == vocab.image:
                codes = []
        else:
            raise ValueError(f"{vocab.name(id)} has no place outside a picture")
    if codes is not None:
        raise ValueError(f"the last picture is not closed: it has {len(codes)} of {grid[0] * grid[1]} codes")
    close_text()
    return Document(tuple(items))


def split_infills(ids: Sequence[int], vocab: Vocab) -> tuple[list[int], dict[int, list[int]]]:
    """Rotated ids to the body, and the moved span of each mask number. A closing <eos> stays with the body."""
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
