"""Which ids are legal next, row by row: text, exactly h*w image codes and then the close, whole documents.

A Grammar reads the prompt, then follows what is generated. States of a document, read from left to right:

    start -> text -> <break> -> <image> -> h*w codes -> </image> -> <break> -> text ...      closed by <eos>
    after the body's masks: <infill:0> span <infill:1> span ... <eos>
    in the form "chameleon" (encoding.py) text and images follow on each other without <break>; a turn ends and begins
    as a document does

A mask inside an image is filled with as many codes as the image lacks. Where one mask stands several times in an
image, each stands for exactly one code that is missing; nothing fills them if no <infill> follows:

    <eos> <image> c <mask:0> <mask:0> c </image> <image> -> the whole image, drawn anew        a source with holes
"""

import math
from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cm3.tokens.vocab import Vocab

Mode = Literal["text", "image", "document"]
MODES: tuple[Mode, ...] = ("text", "image", "document")


class Legal(NamedTuple):
    """text: every text id. codes: every image code. special: these ids besides."""

    text: bool = False
    codes: bool = False
    special: tuple[int, ...] = ()


class Grammar:
    """One row's state.

    mode: "text" ends at the first id that is no text; "image" ends with one image's </image> (or with the codes of
    one mask); "document" ends with <eos>.
    codes: image codes in an image of the usual grid, h*w.
    room: new ids at most. No image is begun that it cannot hold, and an image that is due is always finished.
    given: for mode "image", the id of each code that is fixed, from the image's first; None = free.
    Errors: ValueError for an unknown mode, a prompt that leaves no place for what the mode wants, or a given that
    does not fit.
    """

    def __init__(
        self,
        vocab: Vocab,
        prompt: Sequence[int],
        mode: Mode,
        codes: int,
        room: float = math.inf,
        given: Sequence[int | None] | None = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, but is {mode!r}")
        self.vocab, self.mode, self.codes = vocab, mode, codes
        self.most = max([codes, *(rows * columns for rows, columns in vocab.grids)])  # in an image of any grid
        self.room, self.done = math.inf, False
        self._begin()
        for id in prompt:
            self._read(id)
        if mode == "text" and (self.state in ("codes", "end") or self._codes_span()):
            raise ValueError("the prompt is inside an image: text cannot follow")
        if mode == "image" and self.state == "span" and not self._codes_span():
            raise ValueError("the prompt asks for text in place of a mask: an image cannot follow")
        if mode == "image" and self._turns("text"):
            raise ValueError("the prompt ends with a <break> before text: an image cannot follow")
        if self.state in ("codes", "end") and self.holes:
            raise ValueError("the prompt ends inside an image that has masks: close the image first")
        self.room = room
        self.given: list[int | None] | None = None if given is None else list(given)
        if given is not None:
            self._check_given(prompt)

    def _begin(self) -> None:
        self.state = "start"  # start, text, turn (after <break>), codes, end (of them), after (an image), span
        self.turn_to = ""  # "image" or "text": what stands after the <break>
        self.size = self.codes  # of the open image
        self.fresh = False  # whether it may still say its grid
        self.left = 0  # codes that the open image, or the masks of the span's image, still lack
        self.masks: dict[int, int | None] = {}  # of each mask number the image it lies in, None = it is text
        self.holes: list[int] = []  # mask numbers in the open image
        self.lacking: list[int] = []  # of each image, the codes its masks stand for
        self.span: int = -1  # number of the span being filled
        self.span_length = 0

    def copy(self) -> "Grammar":
        """Another that goes on from here by itself."""
        other = copy(self)
        other.masks, other.holes, other.lacking = dict(self.masks), list(self.holes), list(self.lacking)
        return other

    def legal(self) -> Legal:
        """What may come next; not to be asked when done."""
        v, state = self.vocab, self.state
        if state == "codes":
            given = self.given[self.cell] if self.given else None
            grids = self._grids() if self.fresh and self.mode == "document" else ()
            return Legal(codes=True, special=grids) if given is None else Legal(special=(given,))
        if state == "end":
            return Legal(special=(v.end_image,))
        if state == "span":
            return self._legal_span()
        if state == "turn":
            return Legal(text=True) if self._turns("text") else Legal(special=(v.image,))
        if self.mode == "image":
            return Legal(special=(v.break_ if state == "text" and v.has_masks else v.image,))
        if not v.has_masks:
            drawn = (v.image,) if self.mode == "document" and self._fits(1) else ()
            return Legal(text=True, special=(*drawn, *(v.ends if state != "start" else ())))
        if state == "start":
            return Legal(text=True, special=(v.image,) if self.mode == "document" and self._fits(1) else ())
        if state == "text":
            turn = (v.break_,) if self.mode == "text" or self._fits(2) else ()
            return Legal(text=True, special=(*turn, v.eos))
        if self.mode == "text":  # after an image
            return Legal(special=(v.break_,))
        again = (v.image,) if self._fits(1) else ()
        return Legal(special=(*again, *((v.break_,) if self.room > 1 else ()), v.eos))

    def forced(self) -> int | None:
        """The next id if only one is legal: it needs no model."""
        legal = self.legal()
        return legal.special[0] if len(legal.special) == 1 and not (legal.text or legal.codes) else None

    @property
    def cell(self) -> int:
        """Of the open image, where the next code stands: how many it has."""
        return self.size - self.left

    @property
    def drawn(self) -> float:
        """Share of the open image's codes that stand, 0 outside of one."""
        return 1 - self.left / self.size if self.state == "codes" else 0.0

    @property
    def longest(self) -> int:
        """Ids that may still come, at most: the room, and an image beyond it."""
        assert self.room < math.inf, "a row without a limit"
        return int(max(self.room, 0)) + self.most + 3

    @property
    def needed(self) -> int:
        """Ids that must come, at least: what is open, or what the mode is for."""
        if self.state in ("codes", "end"):
            return self.left + 1
        if self._codes_span():
            return self.left
        if self._turns("image"):
            return self.codes + 2
        if self.mode == "image":
            return self.codes + (3 if self.state == "text" and self.vocab.has_masks else 2)
        return 1

    def advance(self, id: int) -> bool:
        """Take the next id; whether it belongs to the answer (the stop of "text" and of a mask does not)."""
        assert not self.done, "the row is done"
        if self.mode != "document" and self._stops(id):
            self.done = True
            return False
        self._read(id)
        self.room -= 1
        drawn = self.mode == "image" and self.state == "after"
        self.done = drawn or id in self.vocab.ends or (self.room <= 0 and not self._owes())
        return True

    def _check_given(self, prompt: Sequence[int]) -> None:
        if self.mode != "image" or self.state == "span":
            raise ValueError("given codes need an image to draw: mode 'image', and a prompt that asks for no mask")
        assert self.given is not None
        if len(self.given) != self.size:
            raise ValueError(f"given has {len(self.given)} codes, but an image has {self.size}")
        for id in self.given:
            if id is not None and not self.vocab.is_code(id):
                raise ValueError(
                    f"given holds {self.vocab.name(id)}, but must hold ids of image codes, "
                    f"{self.vocab.first_code} to {len(self.vocab) - 1}, or None"
                )
        drawn = self.cell if self.state in ("codes", "end") else 0
        for cell, id in enumerate(prompt[len(prompt) - drawn :]):
            if self.given[cell] not in (None, id):
                raise ValueError(f"given holds id {self.given[cell]} at cell {cell}, but the prompt has {id} there")

    def _stops(self, id: int) -> bool:
        if self.state == "span":
            return self.vocab.is_special(id)
        before_text = ("start", "text") if self.vocab.has_masks else ("start", "text", "after")
        return self.mode == "text" and self.state in before_text and self.vocab.is_special(id)

    def _owes(self) -> bool:
        """Whether an image is due or open, or a mask of an image lacks codes."""
        return self._turns("image") or self.state in ("codes", "end") or (self._codes_span() and self.left > 0)

    def _turns(self, to: str) -> bool:
        return self.state == "turn" and self.turn_to == to

    def _fits(self, extra: int) -> bool:
        """Whether the codes, their close, and so many ids before them fit."""
        return self.room >= self.codes + 1 + extra

    def _grids(self) -> tuple[int, ...]:
        """The grids whose codes, and their close, fit."""
        ids = range(self.vocab.first_grid, self.vocab.first_grid + len(self.vocab.grids))
        return tuple(id for id in ids if self.room >= math.prod(self.vocab.grid(id)) + 2)

    def _codes_span(self) -> bool:
        return self.state == "span" and self.masks[self.span] is not None

    def _legal_span(self) -> Legal:
        v, following = self.vocab, self.span + 1
        stop = v.infill(following) if following in self.masks else v.eos
        if not self._codes_span():
            return Legal(text=True, special=(stop,))
        later = sum(k > self.span and image == self.masks[self.span] for k, image in self.masks.items())
        ends = self.span_length > 0 and (later > 0 or self.left == 0)
        return Legal(codes=self.left > later, special=(stop,) if ends else ())

    def _read(self, id: int) -> None:
        v, state = self.vocab, self.state
        if state == "span" and not v.is_special(id):
            self.span_length += 1
            if v.is_code(id):
                self._take_code()
        elif v.is_infill(id):
            self._open_span(id - v.first_infill)
        elif id == v.bos or id in v.ends:  # the end of one document is the beginning of the next
            self._expect(state != "codes" and state != "end", id)
            self._begin()
        elif v.is_mask(id):
            inside = state in ("codes", "end")
            self._expect(inside or state in ("start", "text") or self._turns("text"), id)
            number = id - v.first_mask
            self.masks.setdefault(number, len(self.lacking) if inside else None)
            if inside:
                self.holes.append(number)
                self.fresh = False
            else:
                self.state = "text"
        elif v.is_text(id):
            follows = state in ("start", "text") or (state == "after" and not v.has_masks)
            self._expect(follows or self._turns("text"), id)
            self.state = "text"
        elif id == v.break_:
            self._expect(v.has_masks and state in ("text", "after"), id)
            self.state, self.turn_to = "turn", "image" if state == "text" else "text"
        elif id == v.image:
            follows = state in ("start", "after") or (state == "text" and not v.has_masks)
            self._expect(follows or self._turns("image"), id)
            self.state, self.size, self.left, self.holes, self.fresh = "codes", self.codes, self.codes, [], True
        elif v.is_grid(id):
            self._expect(self.fresh, id)
            self.size = self.left = math.prod(v.grid(id))
            self.fresh = False
        elif v.is_code(id):
            self._expect(state == "codes", id)
            self.fresh = False
            self._take_code()
            self.state = "codes" if self.left else "end"
        elif id == v.end_image:
            self._expect(state in ("codes", "end") and self._closes(), id)
            self.lacking.append(self.left)
            self.state, self.left = "after", 0
        else:
            self._expect(False, id)

    def _closes(self) -> bool:
        """Whether the open image is whole: each mask in it stands for codes that it lacks."""
        several = 0 < len(self.holes) == len(set(self.holes))  # a mask that stands once may stand for several codes
        return self.left == len(self.holes) or (several and self.left > len(self.holes))

    def _take_code(self) -> None:
        self._expect(self.left > 0, self.vocab.first_code)
        self.left -= 1
        if self.state == "span":
            image = self.masks[self.span]
            assert image is not None
            self.lacking[image] = self.left

    def _open_span(self, k: int) -> None:
        self._expect(k == self.span + 1 and k in self.masks, self.vocab.infill(k))
        self.state, self.span, self.span_length = "span", k, 0
        image = self.masks[k]
        self.left = 0 if image is None else self.lacking[image]

    def _expect(self, holds: bool, id: int) -> None:
        if not holds:
            raise ValueError(f"{self.vocab.name(id)} cannot stand here: the ids spell no document")


@lru_cache(256)
def ids_of(legal: Legal, vocab: Vocab) -> Tensor:  # bool [V]
    """True where an id is legal. It is kept: not to be written to."""
    row = torch.zeros(len(vocab), dtype=torch.bool)
    if legal.text:
        row[vocab.first_text : vocab.first_code] = True
    if legal.codes:
        row[vocab.first_code :] = True
    for id in legal.special:
        row[id] = True
    return row


def legal_ids(rows: Sequence[Legal], vocab: Vocab) -> Tensor:  # bool [B, V]
    """True where an id is legal next, row by row."""
    return torch.stack([ids_of(legal, vocab) for legal in rows])


def allowed(states: Sequence[Grammar]) -> Tensor:  # bool [B, V]
    """True where an id is legal next."""
    return legal_ids([state.legal() for state in states], states[0].vocab)
