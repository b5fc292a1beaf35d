"""What is being written, piece by piece: text once its characters are whole, a picture after each row of codes."""

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import NamedTuple

from PIL import Image

from cm3.tokens.vocab import Grid, Vocab


class Piece(NamedTuple):
    """What CM3.stream yields. index: which picture or text of the call. content: more text, or the picture so far."""

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  # tuple.index is nothing to ask of a piece
    content: str | Image.Image


def pieces(
    pairs: Iterable[tuple[int, int]],
    vocab: Vocab,
    usual: Grid,
    grids: Mapping[int, Grid],
    text: Callable[[list[int]], str],
    picture: Callable[[int, list[int], Grid], Image.Image],
) -> Generator[Piece]:
    """pairs: (number of a text or picture, id) as they come. grids: of the pictures by their numbers, where they are
    not the usual one and the ids do not say so. text: of ids of text. picture: of a number, the ids of the codes so
    far, whole rows, and the grid."""
    said_grid, drawn = None, dict(grids)
    written: dict[int, list[int]] = {}  # ids of each number
    said: dict[int, str] = {}
    for number, id in pairs:
        if vocab.is_code(id):
            if number not in written and said_grid:
                drawn[number] = said_grid
            mine, grid = written.setdefault(number, []), drawn.get(number, usual)
            mine.append(id)
            said_grid = None
            if len(mine) % grid[1] == 0:
                yield Piece(number, picture(number, mine, grid))
        elif vocab.is_grid(id):
            said_grid = vocab.grid(id)
        elif vocab.is_text(id):
            mine = written.setdefault(number, [])
            mine.append(id)
            whole, before = text(mine), said.get(number, "")
            if not whole.endswith("\ufffd"):  # a character of several tokens is not yet whole
                said[number] = whole
                yield Piece(number, whole[len(before) :])
    for number, mine in written.items():
        if vocab.is_text(mine[0]) and (rest := text(mine)[len(said.get(number, "")) :]):
            yield Piece(number, rest)
