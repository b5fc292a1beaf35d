"""One thread that takes all steps of an engine, for a server: who asks only waits for what is written.

Where every asking thread takes steps itself, each has torch's helpers of its own, and all of them contend for the
interpreter's lock with the thread that answers the network.
"""

from collections.abc import Generator, Sequence
from queue import Empty, SimpleQueue
from threading import Thread

from cm3.engine import Engine
from cm3.request import Request

New = list[tuple[int, int]]  # (place of the request, id)


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
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.inbox: SimpleQueue[Listener | None] = (
            SimpleQueue()
        )  # an order that comes again is taken back; None = the end
        self.orders: list[Listener] = []
        self.thread = Thread(target=self._work, name="cm3-engine", daemon=True)

    def __enter__(self) -> "EngineThread":
        if self.engine.thread is not None:
            raise RuntimeError("the engine has a thread already")
        self.engine.thread = self
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """What is under way ends with a RuntimeError for those who wait for it."""
        self.engine.thread = None
        self.inbox.put(None)
        self.thread.join()

    def stream(self, requests: Sequence[Request]) -> Generator[tuple[int, int]]:
        """As Engine.stream."""
        order, last = Listener(requests), not requests
        try:
            if not last:
                self.inbox.put(order)
            while not last:
                said = order.box.get()
                if isinstance(said, BaseException):
                    last = True
                    raise said
                new, last = said
                yield from new
        finally:
            if not last:
                self.inbox.put(order)

    def _work(self) -> None:
        engine = self.engine
        while True:
            try:
                order = self.inbox.get(block=not self.orders)
            except Empty:
                with engine.lock:
                    if not any(self._deliver(one) for one in list(self.orders)):
                        engine.advance()
                continue
            if order is None:
                break
            with engine.lock:
                self._take(order)
        with engine.lock:
            self._take_back(self.orders + self._unread(), RuntimeError("the engine has been stopped"))

    def _unread(self) -> list[Listener]:
        """Orders that came behind the end."""
        left: list[Listener] = []
        while not self.inbox.empty():
            if (order := self.inbox.get()) is not None:
                left.append(order)
        return left

    def _take(self, order: Listener) -> None:
        """A new order, or one that is taken back."""
        if order.numbers:
            self._take_back([order])
            return
        try:
            for request in order.requests:
                order.numbers.append(self.engine.submit(request))
            self.orders.append(order)
        except Exception as error:
            self._take_back([order], error)

    def _take_back(self, orders: Sequence[Listener], error: Exception | None = None) -> None:
        for order in orders:
            for number in order.numbers:
                self.engine.cancel(number)
            if error is not None:
                order.box.put(error)
        self.orders = [order for order in self.orders if order not in orders]

    def _deliver(self, order: Listener) -> bool:
        """Give the caller what is new; whether there was anything."""
        try:
            new = self.engine.fetch(order.numbers)
        except BaseException as error:
            self._take_back([order])
            order.box.put(error)
            return True
        last = not any(number in self.engine.rows for number in order.numbers)
        if last:
            self.orders.remove(order)
        if new or last:
            first = order.numbers[0]
            order.box.put(([(number - first, id) for number, id in new], last))
        return bool(new) or last
