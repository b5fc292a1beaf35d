"""Admission of requests to the model, their time limits, and their end.

Each request has a thread that takes its ids from the engine, whose batch all requests share. At each id the thread
checks whether its time is over or its client has hung up. Leaving the stream of ids frees the request's places in the
batch.
"""

import asyncio
import ctypes
import sys
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from threading import Event, Lock
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

T = TypeVar("T")
CONNECTION = "connection"  # in the state of a request: what `cut` ends it with
M_MMAP_THRESHOLD, LARGE = -3, 4 * 2**20  # of malloc.h; bytes
DECODING = 2  # images at once: a file of a few kilobytes becomes one of 16 MB


def give_memory_back() -> None:
    """Let this process give large pieces of memory, such as images, back to the system once they are free.

    glibc keeps them otherwise: once it has freed one, it takes others of that size from the heaps of the threads, which
    shrink only from their ends. 24 images of 4 million pixels at once left a server 890 MB larger. Does nothing where
    the C library has no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)


@dataclass(frozen=True)
class Limits:
    """Limits of the server.

    Attributes:
        body: bytes of a request.
        images: images of one request, sent or asked for.
        queue: images and answers under way or waiting, of all requests; more are rejected with status 429.
        seconds: for a request, with its waiting; and again for its answer to be received.
        pixels: of an image that is sent.
        arrival: seconds in which a request has to arrive.
    """

    body: int = 20_000_000
    images: int = 8
    queue: int = 64
    seconds: float = 60.0
    pixels: int = 4_000_000
    arrival: float = 30.0


class Busy(Exception):
    """The queue is full."""


class TooLate(Exception):
    """The time is over."""


class Gone(Exception):
    """The client has hung up, or the server is shutting down."""


class Ticket:
    """A request that was admitted.

    Args:
        seconds: that it may take.
    """

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.gone = Event()

    def check(self) -> None:
        """Raise Gone or TooLate where the request has to end."""
        if self.gone.is_set():
            raise Gone
        if not self.left():
            raise TooLate

    def left(self) -> float:
        """The seconds that are left, at least 0."""
        return max(0.0, self.end - time.monotonic())

    def watch(self, items: Generator[T]) -> Generator[T]:
        """Pass items on, and check the ticket at each. The generator that gives them is closed at the end."""
        with closing(items):
            for item in items:
                self.check()
                yield item


class Desk:
    """Admits requests, and runs them in threads."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.taken, self.lock = 0, Lock()
        self.tickets: set[Ticket] = set()
        self.threads = CapacityLimiter(limits.queue)

    def has_room(self, count: int = 1) -> bool:
        """Whether so many more images or answers are admitted."""
        return self.taken + count <= self.limits.queue

    @contextmanager
    def admit(self, count: int) -> Generator[Ticket]:
        """Admit so many images or answers, or raise Busy."""
        ticket = Ticket(self.limits.seconds)
        with self.lock:
            if not self.has_room(count):
                raise Busy
            self.taken += count
            self.tickets.add(ticket)
        try:
            yield ticket
        finally:
            ticket.gone.set()  # whatever of it still runs is to end
            with self.lock:
                self.taken -= count
                self.tickets.discard(ticket)

    async def run(self, ticket: Ticket, gone: Callable[[], Awaitable[bool]], work: Callable[[], T]) -> T:
        """Run work() in a thread.

        Args:
            ticket: which work() checks.
            gone: whether the client has hung up.
            work: the work; its errors are raised here.
        """

        async def listen() -> None:
            while not await gone():
                await asyncio.sleep(0.2)
            ticket.gone.set()

        listening = asyncio.ensure_future(listen())
        try:
            return await to_thread.run_sync(work, limiter=self.threads)
        finally:
            listening.cancel()

    def stop(self) -> None:
        """End all requests."""
        with self.lock:
            for ticket in self.tickets:
                ticket.gone.set()
