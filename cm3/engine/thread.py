"""One thread that runs all steps of an engine, for a server. The threads of the requests only wait for new ids.

If each of them ran steps, each would have its own pool of torch's threads, and all of them would contend for the
interpreter's lock with the thread that serves the network.
"""

from collections.abc import Generator, Sequence
from queue import Empty, SimpleQueue
from threading import Event, Thread

import torch

from cm3.engine.engine import Engine
from cm3.engine.request import Request

STOPPED = "the engine has been stopped"
NewIds = list[tuple[int, int]]  # (index of the request, id)


def reserve_threads() -> int:
    """Let this thread, and those that start later, use one of torch's threads each.

    Call it before the model is loaded.

    Returns:
        How many there were, for EngineThread.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    return threads


class Subscription:
    """The requests of one caller, and the queue through which their ids arrive.

    Attributes:
        numbers: of the requests, once they are submitted.
        updates: new ids and whether they are the last, or an error.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = list(requests)
        self.numbers: list[int] = []
        self.updates: SimpleQueue[tuple[NewIds, bool] | BaseException] = SimpleQueue()


class EngineThread:
    """A context manager in which a thread of its own serves the engine's `stream` and `generate`.

        with EngineThread(model.engine):
            ...

    Leaving it raises a RuntimeError in the threads that still wait.

    Args:
        engine: the engine.
        threads: number of torch's threads for the steps; None for torch's default. All other threads should have one
            (reserve_threads). Otherwise there are more threads than cores, OpenMP's go to sleep after every operation,
            and generating one image takes twice as long.
    """

    def __init__(self, engine: Engine, threads: int | None = None) -> None:
        self.engine, self.threads = engine, threads
        # A subscription that comes a second time is to be cancelled. None stops the thread.
        self.inbox: SimpleQueue[Subscription | None] = SimpleQueue()
        self.subscriptions: list[Subscription] = []
        self.stopped, self.started = False, Event()
        self.thread = Thread(target=self._work, name="cm3-engine", daemon=True)

    def __enter__(self) -> "EngineThread":
        if self.engine.thread is not None:
            raise RuntimeError("the engine has a thread already")
        self.engine.thread = self
        others = torch.get_num_threads()
        self.thread.start()
        self.started.wait()
        torch.set_num_threads(others)  # for this thread and those to come; the engine's keeps its own
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.thread = None
        self.stopped = True  # before the inbox is emptied, so that a later caller sees it
        self.inbox.put(None)
        self.thread.join()
        self._remove(self.subscriptions + self._left_in_inbox(), RuntimeError(STOPPED))

    def stream(self, requests: Sequence[Request]) -> Generator[tuple[int, int]]:
        """As Engine.stream."""
        subscription, last = Subscription(requests), not requests
        try:
            if not last:
                self.inbox.put(subscription)
                if self.stopped and not self.thread.is_alive():
                    raise RuntimeError(STOPPED)
            while not last:
                update = subscription.updates.get()
                if isinstance(update, BaseException):
                    last = True
                    raise update
                new, last = update
                yield from new
        finally:
            if not last:
                self.inbox.put(subscription)

    def _work(self) -> None:
        engine = self.engine
        if self.threads is not None:
            torch.get_num_threads()  # the first call in a thread takes over the process's number
            torch.set_num_threads(self.threads)
        self.started.set()
        while True:
            try:
                subscription = self.inbox.get(block=not self.subscriptions)
            except Empty:
                with engine.lock:
                    if not any(self._deliver(one) for one in list(self.subscriptions)):
                        engine.advance()
                continue
            if subscription is None:
                break
            with engine.lock:
                self._receive(subscription)

    def _left_in_inbox(self) -> list[Subscription]:
        """Subscriptions that came after the stop."""
        left: list[Subscription] = []
        while not self.inbox.empty():
            if (subscription := self.inbox.get()) is not None:
                left.append(subscription)
        return left

    def _receive(self, subscription: Subscription) -> None:
        """Submit a new subscription, or cancel one that comes a second time."""
        if subscription.numbers:
            self._remove([subscription])
            return
        try:
            for request in subscription.requests:
                subscription.numbers.append(self.engine.submit(request))
            self.subscriptions.append(subscription)
        except Exception as error:
            self._remove([subscription], error)

    def _remove(self, subscriptions: Sequence[Subscription], error: Exception | None = None) -> None:
        for subscription in subscriptions:
            for number in subscription.numbers:
                self.engine.cancel(number)
            if error is not None:
                subscription.updates.put(error)
        self.subscriptions = [subscription for subscription in self.subscriptions if subscription not in subscriptions]

    def _deliver(self, subscription: Subscription) -> bool:
        """Send the new ids to the caller. Returns whether there were any."""
        try:
            new = self.engine.fetch(subscription.numbers)
        except BaseException as error:
            self._remove([subscription])
            subscription.updates.put(error)
            return True
        last = not any(number in self.engine.active for number in subscription.numbers)
        if last:
            self.subscriptions.remove(subscription)
        if new or last:
            first = subscription.numbers[0]
            subscription.updates.put(([(number - first, id) for number, id in new], last))
        return bool(new) or last
