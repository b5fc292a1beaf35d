"""The vocabulary: one flat range of ids, special | text | image codes.

     0     1     2       3       4        5 .. 20      21 .. 36
    <pad> <eos> <break> <image> </image> <mask:0..15> <infill:0..15>
     37    38         39            40 ..     .. 63      64 ..      64+text ..
    <bos> <end_turn> <placeholder> <grid:h x w> unused | text ids | image codes

Three forms of documents share it (encoding.py). In "cm3" and "plan", <eos> begins and ends a document, <break> is
between text and image, and there are masks. In "chameleon", <bos> begins a document, and <end_turn> ends the user's
turn. An image of another grid than the usual one has <grid> after <image>.

A string that spells a special token never becomes its id, because this module does not read text.
"""

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from cm3.model.config import CM3Config

MAX_MASKS = 16  # CM3, section 2: n = clamp(Poisson(1), 1, 16)

Ids = TypeVar("Ids", int, list[int], Tensor)
Grid = tuple[int, int]  # rows and columns of codes


@dataclass(frozen=True)
class Vocab:
    """The layout of the vocabulary, and the arithmetic of its ids.

    Attributes:
        num_special: number of special ids, used or not.
        num_text: number of text ids.
        num_codes: number of image codes.
        form: of documents, one of config.FORMS.
        grids: rows and columns of images that do not have the usual grid.
    """

    num_special: int
    num_text: int
    num_codes: int
    form: str = "cm3"
    grids: tuple[Grid, ...] = ()

    pad = 0
    eos = 1
    break_ = 2
    image = 3
    end_image = 4
    first_mask = 5
    first_infill = first_mask + MAX_MASKS
    infills = range(first_infill, first_infill + MAX_MASKS)
    begin = 37  # <bos>, where it is not <eos>
    end_turn = 38
    placeholder = 39  # in place of each code of an image that is not encoded yet; not trained
    first_grid = 40

    @classmethod
    def from_config(cls, config: CM3Config) -> "Vocab":
        sizes = config.num_special_tokens, config.text_vocab_size, config.image_vocab_size
        return cls(*sizes, config.document_form, tuple((rows, columns) for rows, columns in config.image_grids))

    def __len__(self) -> int:
        return self.num_special + self.num_text + self.num_codes

    @property
    def bos(self) -> int:
        """The first id of a document."""
        return self.eos if self.has_masks else self.begin

    @property
    def has_masks(self) -> bool:
        """Whether the form is "cm3" or "plan", with masks and <break>; otherwise it is "chameleon", with turns."""
        return self.form != "chameleon"

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that may end a document, or the model's turn."""
        return (self.eos,) if self.has_masks else (self.eos, self.end_turn)

    @property
    def turns(self) -> tuple[int, ...]:
        """The special ids that may follow text, among which the model chooses."""
        return (self.eos, self.break_) if self.has_masks else (self.eos, self.image)

    @property
    def first_text(self) -> int:
        return self.num_special

    @property
    def first_code(self) -> int:
        return self.num_special + self.num_text

    def mask(self, k: int) -> int:
        """Id of <mask:k>.

        Raises:
            ValueError: k outside 0..15.
        """
        return self.first_mask + _within(k, MAX_MASKS, "mask number")

    def infill(self, k: int) -> int:
        """Id of <infill:k>.

        Raises:
            ValueError: k outside 0..15.
        """
        return self.first_infill + _within(k, MAX_MASKS, "infill number")

    def text_to_ids(self, text_ids: Ids) -> Ids:
        """The tokenizer's ids (from 0) to ids of the vocabulary."""
        return _shift(text_ids, self.first_text, 0, self.num_text, "text id")

    def ids_to_text(self, ids: Ids) -> Ids:
        """Ids of the vocabulary to the tokenizer's ids (from 0)."""
        return _shift(ids, -self.first_text, self.first_text, self.first_code, "id of text")

    def code_to_id(self, codes: Ids) -> Ids:
        """Image codes (from 0) to ids of the vocabulary."""
        return _shift(codes, self.first_code, 0, self.num_codes, "image code")

    def id_to_code(self, ids: Ids) -> Ids:
        """Ids of the vocabulary to image codes (from 0)."""
        return _shift(ids, -self.first_code, self.first_code, len(self), "id of an image code")

    def is_special(self, id: int) -> bool:
        return 0 <= id < self.first_text

    def is_text(self, id: int) -> bool:
        return self.first_text <= id < self.first_code

    def is_code(self, id: int) -> bool:
        return self.first_code <= id < len(self)

    def is_mask(self, id: int) -> bool:
        return self.first_mask <= id < self.first_infill

    def is_infill(self, id: int) -> bool:
        return id in self.infills

    def is_grid(self, id: int) -> bool:
        return self.first_grid <= id < self.first_grid + len(self.grids)

    def grid(self, id: int) -> Grid:
        """Rows and columns of a grid id."""
        return self.grids[id - self.first_grid]

    def grid_ids(self, grid: Grid) -> list[int]:
        """The ids after <image> for an image of this grid: none for the usual one."""
        return [self.first_grid + self.grids.index(grid)] if grid in self.grids else []

    def name(self, id: int) -> str:
        """The name of an id, for people: `<eos>`, `<mask:0>`, `text 17`, `code 5`."""
        if self.is_code(id):
            return f"code {id - self.first_code}"
        if self.is_text(id):
            return f"text {id - self.first_text}"
        if self.is_mask(id):
            return f"<mask:{id - self.first_mask}>"
        if self.is_infill(id):
            return f"<infill:{id - self.first_infill}>"
        if self.is_grid(id):
            return "<grid:{} x {}>".format(*self.grid(id))
        return NAMES.get(id, f"<unused:{id}>")


NAMES = {
    Vocab.pad: "<pad>",
    Vocab.eos: "<eos>",
    Vocab.break_: "<break>",
    Vocab.image: "<image>",
    Vocab.end_image: "</image>",
    Vocab.begin: "<bos>",
    Vocab.end_turn: "<end_turn>",
    Vocab.placeholder: "<placeholder>",
}


def _within(k: int, limit: int, what: str) -> int:
    if not 0 <= k < limit:
        raise ValueError(f"{what} {k} is out of range: there are {limit}, 0 to {limit - 1}")
    return k


def _shift(values: Ids, offset: int, low: int, high: int, what: str) -> Ids:
    if isinstance(values, int):
        least = most = values
    elif len(values) == 0:
        return values
    elif isinstance(values, Tensor):
        least, most = (int(x) for x in values.aminmax())
    else:
        least, most = min(values), max(values)
    if least < low or most >= high:
        raise ValueError(f"{what} {least if least < low else most} is out of range: {low} to {high - 1}")
    if isinstance(values, list):
        return [value + offset for value in values]
    return values + offset
