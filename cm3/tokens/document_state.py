"""The state of a document while its ids are read: in which section the next id stands, and what is still missing.

    <eos> -> text -> <break> -> <image> -> h*w codes -> </image> -> <break> -> text ...      closed by <eos>
    after all text and images, a span for each mask: <infill:0> span <infill:1> span ... <eos>

In the form "chameleon" (encoding.py), text and images follow each other without <break>, and a turn ends and begins as
a document does.

A mask inside an image stands for codes that the image lacks. A mask that stands there once may stand for several codes.
If one mask stands there several times, each stands for one code. The codes follow in the mask's span. Without a span
they stay missing:

    <eos> <image> c <mask:0> <mask:0> c </image> <image> -> the whole image, generated anew    a source with holes
"""

import math
from copy import copy
from enum import Enum, auto

from cm3.tokens.vocab import Vocab


class Section(Enum):
    """The section of a document in which the next id stands."""

    START = auto()  # after <eos>
    TEXT = auto()  # after text, or after a mask that stands for text
    BEFORE_IMAGE = auto()  # after the <break> that ends a text
    BEFORE_TEXT = auto()  # after the <break> that follows an image
    IMAGE = auto()  # between <image> and </image>
    AFTER_IMAGE = auto()  # after </image>
    SPAN = auto()  # after <infill:k>


class OpenImage:
    """An image between <image> and </image>.

    Args:
        size: number of codes of the whole image.

    Attributes:
        missing: codes that have not been read.
        masks: numbers of the masks inside, in order.
        may_set_grid: whether a <grid> may come next, which changes the size.
    """

    def __init__(self, size: int) -> None:
        self.size = self.missing = size
        self.masks: list[int] = []
        self.may_set_grid = True

    def copy(self) -> "OpenImage":
        other = copy(self)
        other.masks = list(self.masks)
        return other

    def set_size(self, size: int) -> None:
        """Read a <grid>."""
        self.size = self.missing = size
        self.may_set_grid = False

    def add_code(self) -> None:
        self.missing -= 1
        self.may_set_grid = False

    def add_mask(self, number: int) -> None:
        self.masks.append(number)
        self.may_set_grid = False

    def is_whole(self) -> bool:
        """Whether </image> may come next: each mask stands for at least one missing code."""
        masks_differ = 0 < len(self.masks) == len(set(self.masks))
        return self.missing == len(self.masks) or (masks_differ and self.missing > len(self.masks))


class Spans:
    """The masks of a document, and the spans that they stand for.

    Attributes:
        number: of the open span; -1 before the first.
        length: number of ids of the open span.
    """

    def __init__(self) -> None:
        self.number, self.length = -1, 0
        self._image_of: dict[int, int | None] = {}  # mask number to the index of its image; None for text
        self._missing: list[int] = []  # for each image, the codes that its masks still stand for

    def copy(self) -> "Spans":
        other = copy(self)
        other._image_of, other._missing = dict(self._image_of), list(self._missing)
        return other

    def add_mask(self, number: int, in_image: bool) -> None:
        self._image_of.setdefault(number, len(self._missing) if in_image else None)

    def close_image(self, missing: int) -> None:
        """Note how many codes a closed image lacks."""
        self._missing.append(missing)

    def can_open(self, number: int) -> bool:
        """Whether <infill:number> may come next."""
        return number == self.number + 1 and number in self._image_of

    def open(self, number: int) -> None:
        self.number, self.length = number, 0

    def has_next(self) -> bool:
        """Whether another span follows the open one."""
        return self.number + 1 in self._image_of

    @property
    def is_codes(self) -> bool:
        """Whether the open span belongs to an image."""
        return self._image_of[self.number] is not None

    @property
    def missing(self) -> int:
        """Codes that the image of the open span lacks; 0 for a span of text."""
        image = self._image_of[self.number]
        return 0 if image is None else self._missing[image]

    @property
    def later(self) -> int:
        """Number of later spans of the same image. Each needs a code."""
        image = self._image_of[self.number]
        return sum(number > self.number and other == image for number, other in self._image_of.items())

    def add(self, is_code: bool) -> None:
        """Read an id of the open span."""
        self.length += 1
        image = self._image_of[self.number]
        if is_code and image is not None:
            self._missing[image] -= 1


class DocumentState:
    """What has been read of a document.

    Args:
        vocab: the vocabulary.
        codes: number of codes of an image of the usual grid.

    Attributes:
        section: where the next id stands.
        image: the open image, in Section.IMAGE only.
        spans: the masks and their spans.
    """

    def __init__(self, vocab: Vocab, codes: int) -> None:
        self.vocab, self.codes = vocab, codes
        self._begin()

    def _begin(self) -> None:
        self.section = Section.START
        self.image: OpenImage | None = None
        self.spans = Spans()

    def copy(self) -> "DocumentState":
        other = copy(self)
        other.image = None if self.image is None else self.image.copy()
        other.spans = self.spans.copy()
        return other

    @property
    def in_code_span(self) -> bool:
        """Whether a span of codes is open."""
        return self.section is Section.SPAN and self.spans.is_codes

    def read(self, id: int) -> None:
        """Read the next id.

        Raises:
            ValueError: an id that cannot stand here.
        """
        v = self.vocab
        if self.section is Section.SPAN and not v.is_special(id):
            self._expect(not v.is_code(id) or self.spans.missing > 0, id)
            self.spans.add(v.is_code(id))
        elif v.is_infill(id):
            number = id - v.first_infill
            self._expect(self.image is None and self.spans.can_open(number), id)
            self.spans.open(number)
            self.section = Section.SPAN
        elif id == v.bos or id in v.ends:  # the end of one document is the beginning of the next
            self._expect(self.image is None, id)
            self._begin()
        elif self.image is None:
            self._read_outside_image(id)
        else:
            self._read_in_image(self.image, id)

    def _read_outside_image(self, id: int) -> None:
        v, section = self.vocab, self.section
        if v.is_mask(id):
            self._expect(section in (Section.START, Section.TEXT, Section.BEFORE_TEXT), id)
            self.spans.add_mask(id - v.first_mask, in_image=False)
            self.section = Section.TEXT
        elif v.is_text(id):
            follows_image = section is Section.AFTER_IMAGE and not v.has_masks
            self._expect(section in (Section.START, Section.TEXT, Section.BEFORE_TEXT) or follows_image, id)
            self.section = Section.TEXT
        elif id == v.break_:
            self._expect(v.has_masks and section in (Section.TEXT, Section.AFTER_IMAGE), id)
            self.section = Section.BEFORE_IMAGE if section is Section.TEXT else Section.BEFORE_TEXT
        elif id == v.image:
            follows_text = section is Section.TEXT and not v.has_masks
            self._expect(section in (Section.START, Section.AFTER_IMAGE, Section.BEFORE_IMAGE) or follows_text, id)
            self.section, self.image = Section.IMAGE, OpenImage(self.codes)
        else:
            self._expect(False, id)

    def _read_in_image(self, image: OpenImage, id: int) -> None:
        v = self.vocab
        if v.is_code(id):
            self._expect(image.missing > 0, id)
            image.add_code()
        elif v.is_mask(id):
            image.add_mask(id - v.first_mask)
            self.spans.add_mask(id - v.first_mask, in_image=True)
        elif v.is_grid(id):
            self._expect(image.may_set_grid, id)
            image.set_size(math.prod(v.grid(id)))
        elif id == v.end_image:
            self._expect(image.is_whole(), id)
            self.spans.close_image(image.missing)
            self.section, self.image = Section.AFTER_IMAGE, None
        else:
            self._expect(False, id)

    def _expect(self, holds: bool, id: int) -> None:
        if not holds:
            raise ValueError(f"{self.vocab.name(id)} cannot stand here: the ids spell no document")
