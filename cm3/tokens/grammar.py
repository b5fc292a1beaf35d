"""The grammar: which ids may come next in a sequence, while it is generated.

A Grammar reads the prompt, then follows what is generated. document_state.py says what a document is. The grammar adds
the mode (text, an image, or a whole document), the room that is left, and codes that are given.
"""

import math
from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cm3.tokens.document_state import DocumentState, Section
from cm3.tokens.vocab import Vocab

Mode = Literal["text", "image", "document"]
MODES: tuple[Mode, ...] = ("text", "image", "document")


class Legal(NamedTuple):
    """The ids that may come next.

    Attributes:
        text: every text id.
        codes: every image code.
        special: these ids besides.
    """

    text: bool = False
    codes: bool = False
    special: tuple[int, ...] = ()


class Grammar:
    """The grammar's state for one sequence.

    Args:
        vocab: the vocabulary.
        prompt: ids that the sequence begins with.
        mode: "text" ends at the first id that is no text. "image" ends with the </image> of one image, or with the
            codes of one mask. "document" ends with <eos>.
        codes: number of codes of an image of the usual grid, h*w.
        room: new ids at most. No image is begun for which there is no room. An image that is open or must come is
            always finished.
        given: for mode "image": for each code of the image the id that it must have, or None.

    Attributes:
        done: whether the sequence has ended.
        max_codes: number of codes of an image of the largest grid.

    Raises:
        ValueError: the mode is unknown, the prompt cannot be continued in this mode, or `given` does not fit.
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
        self.vocab, self.mode, self.codes, self.room = vocab, mode, codes, room
        self.max_codes = max([codes, *(rows * columns for rows, columns in vocab.grids)])
        self.done = False
        self._state = DocumentState(vocab, codes)
        for id in prompt:
            self._state.read(id)
        self._check_prompt()
        self._given: list[int | None] | None = None if given is None else list(given)
        if self._given is not None:
            self._check_given(self._given, prompt)

    def copy(self) -> "Grammar":
        """An independent grammar in the same state."""
        other = copy(self)
        other._state = self._state.copy()
        return other

    def legal(self) -> Legal:
        """The ids that may come next. Not to be called when done."""
        v, section, image = self.vocab, self._state.section, self._state.image
        if image is not None:
            if not image.missing:
                return Legal(special=(v.end_image,))
            given = self._given[image.size - image.missing] if self._given else None
            if given is not None:
                return Legal(special=(given,))
            grids = self._grids_that_fit() if image.may_set_grid and self.mode == "document" else ()
            return Legal(codes=True, special=grids)
        if section is Section.SPAN:
            return self._legal_in_span()
        if section is Section.BEFORE_TEXT:
            return Legal(text=True)
        if section is Section.BEFORE_IMAGE:
            return Legal(special=(v.image,))
        if self.mode == "image":
            return Legal(special=(v.break_ if section is Section.TEXT and v.has_masks else v.image,))
        return self._legal_between_images() if v.has_masks else self._legal_in_turns()

    def _legal_between_images(self) -> Legal:
        """In modes "text" and "document" of the form "cm3", outside images and spans."""
        v, section = self.vocab, self._state.section
        if section is Section.START:
            return Legal(text=True, special=(v.image,) if self.mode == "document" and self._image_fits(1) else ())
        if section is Section.TEXT:
            to_image = (v.break_,) if self.mode == "text" or self._image_fits(2) else ()
            return Legal(text=True, special=(*to_image, v.eos))
        if self.mode == "text":  # after an image
            return Legal(special=(v.break_,))
        image = (v.image,) if self._image_fits(1) else ()
        return Legal(special=(*image, *((v.break_,) if self.room > 1 else ()), v.eos))

    def _legal_in_turns(self) -> Legal:
        """In modes "text" and "document" of the form "chameleon", outside images."""
        v = self.vocab
        image = (v.image,) if self.mode == "document" and self._image_fits(1) else ()
        return Legal(text=True, special=(*image, *(v.ends if self._state.section is not Section.START else ())))

    def _legal_in_span(self) -> Legal:
        v, spans = self.vocab, self._state.spans
        stop = v.infill(spans.number + 1) if spans.has_next() else v.eos
        if not spans.is_codes:
            return Legal(text=True, special=(stop,))
        may_end = spans.length > 0 and (spans.later > 0 or spans.missing == 0)
        return Legal(codes=spans.missing > spans.later, special=(stop,) if may_end else ())

    def forced(self) -> int | None:
        """The next id if only one is legal, so that the model is not needed; None otherwise."""
        legal = self.legal()
        return legal.special[0] if len(legal.special) == 1 and not (legal.text or legal.codes) else None

    @property
    def image_size(self) -> int:
        """Number of codes of the open image, or of one of the usual grid."""
        image = self._state.image
        return self.codes if image is None else image.size

    @property
    def position(self) -> int | None:
        """Grid position of the next code, counted row by row; None where no code of an open image comes next."""
        image = self._state.image
        return image.size - image.missing if image is not None and image.missing else None

    @property
    def image_progress(self) -> float:
        """Share of the open image's codes that are there; 0 where no code comes next."""
        image = self._state.image
        return 0.0 if image is None or not image.missing else 1 - image.missing / image.size

    @property
    def max_remaining(self) -> int:
        """Ids that may still come, at most: the room, and an image that is begun in it."""
        assert self.room < math.inf, "a sequence without a limit"
        return int(max(self.room, 0)) + self.max_codes + 3

    @property
    def min_remaining(self) -> int:
        """Ids that have to come, at least: the rest of what is open, or what the mode is for."""
        state = self._state
        if state.image is not None:
            return state.image.missing + 1
        if state.in_code_span:
            return state.spans.missing
        if state.section is Section.BEFORE_IMAGE:
            return self.codes + 2
        if self.mode == "image":
            return self.codes + (3 if state.section is Section.TEXT and self.vocab.has_masks else 2)
        return 1

    def advance(self, id: int) -> bool:
        """Take the next id.

        Returns:
            Whether the id belongs to the answer. The id that ends mode "text", or the span of one mask, does not.
        """
        assert not self.done, "the sequence has ended"
        if self.mode != "document" and self._is_stop(id):
            self.done = True
            return False
        self._state.read(id)
        self.room -= 1
        has_image = self.mode == "image" and self._state.section is Section.AFTER_IMAGE
        self.done = has_image or id in self.vocab.ends or (self.room <= 0 and not self._image_is_due())
        return True

    def _check_prompt(self) -> None:
        state = self._state
        if self.mode == "text" and (state.image is not None or state.in_code_span):
            raise ValueError("the prompt is inside an image: text cannot follow")
        if self.mode == "image" and state.section is Section.SPAN and not state.in_code_span:
            raise ValueError("the prompt asks for text in place of a mask: an image cannot follow")
        if self.mode == "image" and state.section is Section.BEFORE_TEXT:
            raise ValueError("the prompt ends with a <break> before text: an image cannot follow")
        if state.image is not None and state.image.masks:
            raise ValueError("the prompt ends inside an image that has masks: close the image first")

    def _check_given(self, given: Sequence[int | None], prompt: Sequence[int]) -> None:
        if self.mode != "image" or self._state.section is Section.SPAN:
            raise ValueError("given codes need an image to draw: mode 'image', and a prompt that asks for no mask")
        if len(given) != self.image_size:
            raise ValueError(f"given has {len(given)} codes, but an image has {self.image_size}")
        for id in given:
            if id is not None and not self.vocab.is_code(id):
                raise ValueError(
                    f"given holds {self.vocab.name(id)}, but must hold ids of image codes, "
                    f"{self.vocab.first_code} to {len(self.vocab) - 1}, or None"
                )
        image = self._state.image
        count = 0 if image is None else image.size - image.missing
        for position, id in enumerate(prompt[len(prompt) - count :]):
            if given[position] not in (None, id):
                raise ValueError(
                    f"given holds id {given[position]} at grid position {position}, but the prompt has {id} there"
                )

    def _is_stop(self, id: int) -> bool:
        section = self._state.section
        if section is Section.SPAN:
            return self.vocab.is_special(id)
        ends_text = section in (Section.START, Section.TEXT)
        ends_text = ends_text or (section is Section.AFTER_IMAGE and not self.vocab.has_masks)
        return self.mode == "text" and ends_text and self.vocab.is_special(id)

    def _image_is_due(self) -> bool:
        """Whether an image must come or is open, or a mask of an image lacks codes."""
        state = self._state
        return (
            state.image is not None
            or state.section is Section.BEFORE_IMAGE
            or (state.in_code_span and state.spans.missing > 0)
        )

    def _image_fits(self, before: int) -> bool:
        """Whether there is room for `before` ids, the codes and </image>."""
        return self.room >= self.codes + 1 + before

    def _grids_that_fit(self) -> tuple[int, ...]:
        """The ids of the grids for which there is room: the id itself, the codes and </image>."""
        ids = range(self.vocab.first_grid, self.vocab.first_grid + len(self.vocab.grids))
        return tuple(id for id in ids if self.room >= math.prod(self.vocab.grid(id)) + 2)


@lru_cache(256)
def _mask_of(legal: Legal, vocab: Vocab) -> Tensor:  # bool [V]; shared, not to be written to
    mask = torch.zeros(len(vocab), dtype=torch.bool)
    if legal.text:
        mask[vocab.first_text : vocab.first_code] = True
    if legal.codes:
        mask[vocab.first_code :] = True
    for id in legal.special:
        mask[id] = True
    return mask


def legal_mask(legal: Sequence[Legal], vocab: Vocab) -> Tensor:  # bool [B, V]
    """True where an id may come next, for each sequence."""
    return torch.stack([_mask_of(one, vocab) for one in legal])


def allowed(grammars: Sequence[Grammar]) -> Tensor:  # bool [B, V]
    """True where an id may come next, for each grammar."""
    return legal_mask([grammar.legal() for grammar in grammars], grammars[0].vocab)
