"""Connections that end: uvicorn waits without limit for a client that sends half a request, or takes no answer.

It has a limit for the time between two requests only. Here a request has to arrive, and an answer has to be taken,
within a time; else the connection is cut, and what waits to be sent is thrown away.
"""

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from cm3.serving.admission import CONNECTION, Limits


class Timer:
    """Calls a function when its time is over, unless it was stopped before."""

    def __init__(self, seconds: float, late: Callable[[], object]) -> None:
        self.seconds, self.late = seconds, late
        self.handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """From now; nothing where it runs already."""
        if self.handle is None:
            self.handle = asyncio.get_running_loop().call_later(self.seconds, self.late)

    def stop(self) -> None:
        if self.handle is not None:
            self.handle.cancel()
            self.handle = None


def connection_class(limits: Limits) -> type[asyncio.Protocol]:
    """uvicorn's protocol of HTTP with the limits' times."""

    class Connection(AutoHTTPProtocol):
        """One client's. What serves its requests says when it has one (`serving`): until then the head of one is
        awaited. Of the body BodyLimit takes care."""

        def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None) -> None:
            make = cast(Callable[..., None], super().__init__)
            make(config, server_state, {**app_state, CONNECTION: self}, _loop)
            self.serves = 0  # requests
            self.coming, self.taking = Timer(limits.arrival, self.cut), Timer(limits.seconds, self.cut)

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.wire = cast(asyncio.Transport, transport)
            self.wire.set_write_buffer_limits(0)  # so that pause_writing tells of every byte that is not taken
            self.coming.start()
            super().connection_made(transport)

        def data_received(self, data: bytes) -> None:
            if not self.serves:
                self.coming.start()
            super().data_received(data)

        def pause_writing(self) -> None:
            self.taking.start()
            super().pause_writing()

        def resume_writing(self) -> None:
            self.taking.stop()
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            self.coming.stop()
            self.taking.stop()
            super().connection_lost(exc)

        @contextmanager
        def serving(self) -> Generator[None]:
            self.serves += 1
            self.coming.stop()
            try:
                yield
            finally:
                self.serves -= 1

        def cut(self) -> None:
            self.wire.abort()

    return Connection


class Connected:
    """Tells the connection that it has a request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        with scope["state"][CONNECTION].serving():
            await self.app(scope, receive, send)


def settings(app: ASGIApp, limits: Limits) -> dict[str, Any]:
    """For uvicorn.run and uvicorn.Config: the application, and connections that end."""
    return {
        "app": Connected(app),
        "http": connection_class(limits),
        "ws": "none",  # nothing here speaks it, and its connections would be beyond these limits
        "timeout_graceful_shutdown": round(limits.seconds),
    }
