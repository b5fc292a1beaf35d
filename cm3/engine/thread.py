"""One thread that takes all steps of an engine, for a server: who asks only waits for what is written.

Where every asking thread takes steps itself, each has torch's helpers of its own, and all of them contend for the
interpreter's lock with the thread that answers the network.
"""

from collections.abc import Generator, Sequence
from queue import Empty, SimpleQueue
from threading import Event, Thread

import torch

from cm3.engine.engine import Engine
from cm3.engine.request import Request

ENDED = "the engine has been stopped"
New = list[tuple[int, int]]  # (place of the request, id)


def reserve_threads() -> int:
    """Let this thread and those to come have one of torch's threads each. Returns how many there were, for
    EngineThread. Call it before the model is loaded."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    return threads


class Listener:
    """What one caller asked for, and the box where what is written of it arrives: new ids, and whether those are the
    last; or an error."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = list(requests)
        self.numbers: list[int] = []  # of the requests, once they are submitted
        self.box: SimpleQueue[tuple[New, bool] | BaseException] = SimpleQueue()


class EngineThread:
    """While it is entered, the engine's `stream` and `generate` are served by it.

    with EngineThread(model.engine):
        ...

    threads: of torch's, for the steps; None = as torch has it. All other threads should have one (reserve_threads):
    where they have helpers too, these outnumber the cores, and OpenMP's go to sleep after every operation. An image
    drawn alone then takes twice as long.
    """

    def __init__(self, engine: Engine, threads: int | None = None) -> None:
        self.engine, self.threads = engine, threads
        # One that comes again has stopped listening; None = the end.
        self.inbox: SimpleQueue[Listener | None] = SimpleQueue()
        self.listeners: list[Listener] = []
        self.ended, self.begun = False, Event()
        self.thread = Thread(target=self._work, name="cm3-engine", daemon=True)

    def __enter__(self) -> "EngineThread":
        if self.engine.thread is not None:
            raise RuntimeError("the engine has a thread already")
        self.engine.thread = self
        others = torch.get_num_threads()
        self.thread.start()
        self.begun.wait()
        torch.set_num_threads(others)  # for this thread and those to come; the engine's keeps its own
        return self

    def __exit__(self, *_: object) -> None:
        """What is under way ends with a RuntimeError for those who wait for it."""
        self.engine.thread = None
        self.ended = True  # before what is left is read: who comes later sees it
        self.inbox.put(None)
        self.thread.join()
        self._take_back(self.listeners + self._unread(), RuntimeError(ENDED))

    def stream(self, requests: Sequence[Request]) -> Generator[tuple[int, int]]:
        """As Engine.stream."""
        listener, last = Listener(requests), not requests
        try:
            if not last:
                self.inbox.put(listener)
                if self.ended and not self.thread.is_alive():
                    raise RuntimeError(ENDED)
            while not last:
                said = listener.box.get()
                if isinstance(said, BaseException):
                    last = True
                    raise said
                new, last = said
                yield from new
        finally:
            if not last:
                self.inbox.put(listener)

    def _work(self) -> None:
        engine = self.engine
        if self.threads is not None:
            torch.get_num_threads()  # a thread takes over the process's number once: now, and not later
            torch.set_num_threads(self.threads)
        self.begun.set()
        while True:
            try:
                listener = self.inbox.get(block=not self.listeners)
            except Empty:
                with engine.lock:
                    if not any(self._deliver(one) for one in list(self.listeners)):
                        engine.advance()
                continue
            if listener is None:
                break
            with engine.lock:
                self._take(listener)

    def _unread(self) -> list[Listener]:
        """Those that came behind the end."""
        left: list[Listener] = []
        while not self.inbox.empty():
            if (listener := self.inbox.get()) is not None:
                left.append(listener)
        return left

    def _take(self, listener: Listener) -> None:
        """A new one, or one that has stopped listening."""
        if listener.numbers:
            self._take_back([listener])
            return
        try:
            for request in listener.requests:
                listener.numbers.append(self.engine.submit(request))
            self.listeners.append(listener)
        except Exception as error:
            self._take_back([listener], error)

    def _take_back(self, listeners: Sequence[Listener], error: Exception | None = None) -> None:
        for listener in listeners:
            for number in listener.numbers:
                self.engine.cancel(number)
            if error is not None:
                listener.box.put(error)
        self.listeners = [listener for listener in self.listeners if listener not in listeners]

    def _deliver(self, listener: Listener) -> bool:
        """Give the caller what is new; whether there was anything."""
        try:
            new = self.engine.fetch(listener.numbers)
        except BaseException as error:
            self._take_back([listener])
            listener.box.put(error)
            return True
        last = not any(number in self.engine.rows for number in listener.numbers)
        if last:
            self.listeners.remove(listener)
        if new or last:
            first = listener.numbers[0]
            listener.box.put(([(number - first, id) for number, id in new], last))
        return bool(new) or last
