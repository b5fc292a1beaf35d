"""A task under way: batches of requests for the engine, one after the other, until there is a result.

A task is a generator. It yields a batch, receives the new ids of each of its requests, and may yield another batch;
what it returns is the result. `CM3.run` drives a job to its end, `CM3.stream` shows the pieces on the way.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Generic, NamedTuple, TypeVar

from PIL import Image as PIL_Image
from torch import Tensor

from cm3.engine.request import Request

R = TypeVar("R")


class Piece(NamedTuple):
    """A part of a streamed result.

    Attributes:
        index: which image or text of the job.
        content: more text, or the image so far.
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  # tuple.index is of no use for a piece
    content: str | PIL_Image.Image


class Batch(NamedTuple):
    """Requests that the engine runs together, and how their pieces are shown.

    Attributes:
        requests: one for each text or image, or for each candidate of an image.
        show: makes an image from the index of its piece and its codes, [h, w].
        indices: of each request's piece; None for a request that is not shown, and in place of all: its own number.
        pieces: shown after the requests.
    """

    requests: list[Request]
    show: Callable[[int, Tensor], PIL_Image.Image]
    indices: Sequence[int | None] | None = None
    pieces: Sequence[Piece] = ()

    @property
    def shown(self) -> dict[int, int]:
        """Number of a request that is shown -> index of its piece."""
        indices = range(len(self.requests)) if self.indices is None else self.indices
        return {number: index for number, index in enumerate(indices) if index is not None}


Phases = Generator[Batch, list[list[int]], R]  # yields batches, receives the new ids of each request


class Job(Generic[R]):
    """A task that can be run once, with a result of type R.

    The first batch is made at once, so that a mistake in the task's arguments is raised here.

    Attributes:
        batch: what the engine has to run next; None at the end.
    """

    def __init__(self, phases: Phases[R]) -> None:
        self._phases = phases
        self._results: list[R] = []
        self.batch: Batch | None = None
        self._go_on(None)

    @property
    def requests(self) -> list[Request]:
        """The requests of the present batch."""
        return [] if self.batch is None else self.batch.requests

    @property
    def result(self) -> R:
        """What the task gives, once there are no more batches."""
        assert self.batch is None, "the job has another batch to run"
        return self._results[0]

    def give(self, new: list[list[int]]) -> None:
        """Hand over the new ids of each request of the batch, and go on to the next batch or to the result."""
        assert len(new) == len(self.requests), f"{len(new)} answers to {len(self.requests)} requests"
        self._go_on(new)

    def _go_on(self, new: list[list[int]] | None) -> None:
        try:
            self.batch = next(self._phases) if new is None else self._phases.send(new)
        except StopIteration as end:
            self.batch = None
            self._results.append(end.value)
