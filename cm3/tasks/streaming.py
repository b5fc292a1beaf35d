"""Pieces of texts and images while the engine writes them: text once its characters are complete, an image after each
row of codes, with the rest still white."""

from collections.abc import Generator, Iterable, Iterator

from PIL import Image as PIL_Image

from cm3.tasks.images import Processor
from cm3.tasks.job import Batch, Piece
from cm3.tokens.encoding import last_grid
from cm3.tokens.vocab import Grid


def pieces(batch: Batch, new: Iterable[tuple[int, int]], processor: Processor) -> Generator[Piece]:
    """Show the pieces of a batch.

    Args:
        batch: what the engine runs.
        new: (number of the request, id) as they come.
        processor: turns ids into texts and codes.
    """
    blanks: dict[Grid, list[int]] = {}
    writers = {i: Writer(batch, i, index, processor, blanks) for i, index in batch.shown.items()}
    for number, id in new:
        if number in writers:
            yield from writers[number].take(id)
    for writer in writers.values():
        yield from writer.rest()
    yield from batch.pieces


class Writer:
    """What one request writes. In mode "document" each run of text and each image is a piece of its own.

    Args:
        batch: what the engine runs.
        number: of the request.
        index: of its first piece.
        processor: turns ids into texts and codes.
        blanks: the ids of white images, by grid; filled on demand.
    """

    def __init__(
        self, batch: Batch, number: int, index: int, processor: Processor, blanks: dict[Grid, list[int]]
    ) -> None:
        request = batch.requests[number]
        self.batch, self.processor, self.blanks = batch, processor, blanks
        self.several = request.mode == "document"
        self.index = index - self.several  # each piece of a document adds one
        self.kind = ""
        self.usual = last_grid(request.prompt, processor.vocab) or processor.grid
        self.next_grid: Grid | None = None
        self._begin()

    def _begin(self) -> None:
        self.ids: list[int] = []
        self.said = ""
        self.grid, self.next_grid = self.next_grid or self.usual, None

    def take(self, id: int) -> Iterator[Piece]:
        """Take the next id."""
        vocab = self.processor.vocab
        kind = "text" if vocab.is_text(id) else "image" if vocab.is_code(id) else ""
        if vocab.is_grid(id):
            self.next_grid = vocab.grid(id)
        if self.several and kind not in ("", self.kind):
            yield from self.rest()
            self.index += 1
            self._begin()
        self.kind = kind
        if kind:
            self.ids.append(id)
        if kind == "image" and len(self.ids) % self.grid[1] == 0:
            yield Piece(self.index, self._image())
        elif kind == "text":
            text = self.processor.text(self.ids)
            if not text.endswith("\ufffd"):  # a character of several tokens is not complete yet
                yield self._more(text)

    def rest(self) -> Iterator[Piece]:
        """The end of a text whose last character stays incomplete."""
        if self.ids and self.processor.vocab.is_text(self.ids[0]):
            text = self.processor.text(self.ids)
            if text != self.said:
                yield self._more(text)

    def _more(self, text: str) -> Piece:
        more, self.said = text[len(self.said) :], text
        return Piece(self.index, more)

    def _image(self) -> PIL_Image.Image:
        grid = None if self.grid == self.processor.grid else self.grid
        if self.grid not in self.blanks:
            self.blanks[self.grid] = self.processor.blank(grid)
        ids = self.ids + self.blanks[self.grid][len(self.ids) :]
        return self.batch.show(self.index, self.processor.codes(ids, grid))
