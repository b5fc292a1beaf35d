"""Admission of requests, their time limits, and their end.

Each request runs in a thread that takes its ids from the engine, whose batch all requests share. At each id the thread
checks whether the request has timed out or its client has disconnected. Leaving the stream of ids removes the request's
sequences from the batch.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from threading import Event, Lock
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

T = TypeVar("T")
CONNECTION = "connection"  # key in a request's state: the connection, whose `abort` closes it
POLL = 0.2  # seconds between two looks at whether the client has disconnected


@dataclass(frozen=True)
class Limits:
    """Limits of the server.

    Attributes:
        body: bytes of a request.
        images: images of one request, sent or asked for.
        queue: images and texts of all requests that are in progress or waiting; more are rejected with status 429.
        seconds: from the start of a request to the end of its generation, waiting included; and again for the client to
            receive the response.
        pixels: of an image that is sent.
        arrival: seconds in which a request has to arrive.
    """

    body: int = 20_000_000
    images: int = 8
    queue: int = 64
    seconds: float = 60.0
    pixels: int = 4_000_000
    arrival: float = 30.0


class QueueFull(Exception):
    """The queue has no room for the request."""


class TimedOut(Exception):
    """The request has timed out."""


class Disconnected(Exception):
    """The client has disconnected, or the server is shutting down."""


class Ticket:
    """An admitted request: its deadline, and whether it was cancelled.

    Args:
        seconds: until the deadline.

    Attributes:
        cancelled: set when the client has disconnected, the request has ended or the server is shutting down.
    """

    def __init__(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        self.cancelled = Event()

    def check(self) -> None:
        """Raise Disconnected or TimedOut if the request has to end."""
        if self.cancelled.is_set():
            raise Disconnected
        if not self.seconds_left():
            raise TimedOut

    def seconds_left(self) -> float:
        """Seconds until the deadline, at least 0."""
        return max(0.0, self.deadline - time.monotonic())

    def watch(self, items: Generator[T]) -> Generator[T]:
        """Yield the items, and `check` at each. The generator that gives them is closed at the end."""
        with closing(items):
            for item in items:
                self.check()
                yield item


class Admission:
    """Admits requests while the queue has room, and runs them in threads."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.admitted = 0  # images and texts in progress or waiting
        self._lock = Lock()
        self._tickets: set[Ticket] = set()
        self._threads = CapacityLimiter(limits.queue)

    def has_room(self, count: int = 1) -> bool:
        """Whether `count` more images or texts would be admitted."""
        return self.admitted + count <= self.limits.queue

    @contextmanager
    def admit(self, count: int) -> Generator[Ticket]:
        """Admit a request for `count` images or texts, and cancel its ticket at the end.

        Raises:
            QueueFull: there is no room for so many.
        """
        ticket = Ticket(self.limits.seconds)
        with self._lock:
            if not self.has_room(count):
                raise QueueFull
            self.admitted += count
            self._tickets.add(ticket)
        try:
            yield ticket
        finally:
            ticket.cancelled.set()
            with self._lock:
                self.admitted -= count
                self._tickets.discard(ticket)

    async def run(self, ticket: Ticket, is_disconnected: Callable[[], Awaitable[bool]], work: Callable[[], T]) -> T:
        """Run work() in a thread and return its result. Its errors are raised here.

        Args:
            ticket: work() has to check it. It is cancelled when the client disconnects.
            is_disconnected: whether the client has disconnected.
            work: the function to run.
        """

        async def cancel_on_disconnect() -> None:
            while not await is_disconnected():
                await asyncio.sleep(POLL)
            ticket.cancelled.set()

        watching = asyncio.ensure_future(cancel_on_disconnect())
        try:
            return await to_thread.run_sync(work, limiter=self._threads)
        finally:
            watching.cancel()

    def stop(self) -> None:
        """Cancel all requests."""
        with self._lock:
            for ticket in self._tickets:
                ticket.cancelled.set()
