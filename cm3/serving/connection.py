"""Time limits for connections.

uvicorn limits the time between two requests only. It waits without limit for a client that sends half a request or does
not read its response. Here both have a limit; after that the connection is aborted, and unsent data is discarded.
"""

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from cm3.serving.admission import CONNECTION, Limits


class Timer:
    """Calls a function after some seconds, unless it is stopped before."""

    def __init__(self, seconds: float, callback: Callable[[], object]) -> None:
        self.seconds, self.callback = seconds, callback
        self.handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start to count, unless it counts already."""
        if self.handle is None:
            self.handle = asyncio.get_running_loop().call_later(self.seconds, self.callback)

    def stop(self) -> None:
        if self.handle is not None:
            self.handle.cancel()
            self.handle = None


def connection_class(limits: Limits) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol with time limits.

    Args:
        limits: `arrival` for a request to arrive, `seconds` for a response to be read.
    """

    class Connection(AutoHTTPProtocol):
        """One client's connection.

        Until ConnectionLimits enters `serving`, the head of a request is awaited, with a limit. BodyLimit limits the
        time for the body.
        """

        def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None) -> None:
            make = cast(Callable[..., None], super().__init__)
            make(config, server_state, {**app_state, CONNECTION: self}, _loop)
            self.requests = 0  # in progress
            self.arrival = Timer(limits.arrival, self.abort)
            self.reading = Timer(limits.seconds, self.abort)

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport_to_abort = cast(asyncio.Transport, transport)
            self.transport_to_abort.set_write_buffer_limits(0)  # pause_writing is called for every unsent byte
            self.arrival.start()
            super().connection_made(transport)

        def data_received(self, data: bytes) -> None:
            if not self.requests:
                self.arrival.start()
            super().data_received(data)

        def pause_writing(self) -> None:
            self.reading.start()
            super().pause_writing()

        def resume_writing(self) -> None:
            self.reading.stop()
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            self.arrival.stop()
            self.reading.stop()
            super().connection_lost(exc)

        @contextmanager
        def serving(self) -> Generator[None]:
            """While a request is in progress."""
            self.requests += 1
            self.arrival.stop()
            try:
                yield
            finally:
                self.requests -= 1

        def abort(self) -> None:
            self.transport_to_abort.abort()

    return Connection


class ConnectionLimits:
    """Tells a connection when a request is in progress."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        with scope["state"][CONNECTION].serving():
            await self.app(scope, receive, send)


def settings(app: ASGIApp, limits: Limits) -> dict[str, Any]:
    """Arguments of uvicorn.run and uvicorn.Config: the application, with time limits for connections."""
    return {
        "app": ConnectionLimits(app),
        "http": connection_class(limits),
        "ws": "none",  # no route uses websockets, and these limits do not cover them
        "timeout_graceful_shutdown": round(limits.seconds),
    }
