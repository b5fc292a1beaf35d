"""Documents: text and images in any order, as Python objects and as JSON. encoding.py encodes them as ids.

Document((Text("a red apple"), Image(codes)))                            an image with its text
Document((Text("Caption: "), Mask(), Image(codes)))                      a mask that the model fills with text
Document((Text("Caption: "), Answer("a red apple"), Image(codes)))       the same, for training
Document((Text("a red apple"), Image(codes with some HOLEs)))         codes to generate
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from cm3.checks import check_text
from cm3.tensors import to_ints, to_rows
from cm3.tokens.vocab import MAX_MASKS

HOLE = -1  # in place of a code that is to be generated
Span = tuple[int, int]  # start and end of a range of ids, end excluded


@dataclass(frozen=True)
class Text:
    """A text.

    Raises:
        TypeError: it is not a string.
    """

    text: str

    def __post_init__(self) -> None:
        check_text("the text of a document", self.text)


@dataclass(frozen=True)
class Answer(Text):
    """A text that the model learns to generate. It is tokenised apart from the text beside it."""


@dataclass(frozen=True, eq=False)
class Image:
    """An image as codes.

    Args:
        codes: [h, w] integers, row by row from the top, with HOLE for missing codes; anything that torch.as_tensor
            takes.

    Raises:
        ValueError: the codes are no grid of whole numbers.
    """

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
        """Rows and columns."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def holes(self) -> bool:
        """Whether codes are missing."""
        return bool((self.codes == HOLE).any())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and torch.equal(self.codes, other.codes)

    def __hash__(self) -> int:
        return hash(tuple(to_ints(self.codes)))


@dataclass(frozen=True)
class Mask:
    """Stands for text that the model fills in."""


Item = Text | Image | Mask


@dataclass(frozen=True)
class Document(Sequence[Item]):
    """A sequence of texts, images and masks.

    Raises:
        TypeError: the items are not iterable.
        ValueError: an item is of another type, or there are more than 16 masks.
    """

    items: tuple[Item, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.items, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]  # from callers without types
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
        """The document that to_json wrote.

        Raises:
            ValueError: an item is wrong; the message names it.
        """
        if not isinstance(data, list):  # pyright: ignore[reportUnnecessaryIsInstance]  # read from a file
            raise ValueError(f"a document is a list of items, but got {type(data).__name__}")
        return cls(tuple(item_from_json(item) for item in data))


def item_to_json(item: Item) -> dict[str, Any]:
    """One item as JSON."""
    if isinstance(item, Text):
        return {"answer" if isinstance(item, Answer) else "text": item.text}
    if isinstance(item, Image):
        return {"image": to_rows(item.codes)}
    return {"mask": True}


def item_from_json(item: Any) -> Item:
    """The item that item_to_json wrote.

    Raises:
        ValueError: anything else.
    """
    match item:
        case {"text": str(text), **rest} if not rest:
            return Text(text)
        case {"answer": str(text), **rest} if not rest:
            return Answer(text)
        case {"image": list(), **rest} if not rest:
            return Image(item["image"])  # Image makes a tensor of it
        case {"mask": True, **rest} if not rest:
            return Mask()
        case _:
            pass
    raise ValueError(
        f'an item is {{"text": ...}}, {{"answer": ...}}, {{"image": [[...]]}} or {{"mask": true}}, but got {item!r:.80}'
    )


def check_document(document: Any) -> None:
    """Raise a TypeError for anything but a Document."""
    if not isinstance(document, Document):
        raise TypeError(f'a document is wanted, such as Document((Text("a cat"),)), but got {document!r:.60}')


def has_mask(document: Document) -> bool:
    """Whether a document has a Mask."""
    return any(isinstance(item, Mask) for item in document)


def images_only(document: Document) -> Document:
    """The images of a document, without texts and masks."""
    return Document(tuple(item for item in document if isinstance(item, Image)))


def without_text(document: Document) -> Document:
    """The document with a mask in place of each run of text, as the unconditional prompt of guidance (CM3leon 3.1). A
    document without text gets one mask before its first image."""
    items: list[Item] = []
    for item in document:
        kept = item if isinstance(item, Image) else Mask()
        if not (items and isinstance(kept, Mask) and isinstance(items[-1], Mask)):
            items.append(kept)
    return Document(tuple(items if any(isinstance(item, Mask) for item in items) else (Mask(), *items)))
