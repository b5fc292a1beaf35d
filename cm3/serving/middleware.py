"""The server's outermost layer: limits on request bodies, access control, and streams that end in time."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from fastapi.responses import JSONResponse, StreamingResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cm3.serving.access import Keys, cross_site_reason
from cm3.serving.admission import CONNECTION, Admission, QueueFull, Ticket
from cm3.serving.errors import ERRORS, error_response

PUBLIC_PATHS = ("/health", "/openapi.json")  # need no key
BEFORE_VALUES = (b",", b"[", b"{")  # each value of a JSON text follows one of these
MAX_VALUES = 100_000  # of a JSON body: as Python objects, values take up to 30 times the memory of their text
STREAM_GRACE = 1.0  # seconds after the deadline in which a stream may still send its error event
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


class BodyLimit:
    """Rejects request bodies that are too large, that hold more JSON values than any request needs, or that arrive too
    slowly. It checks what arrives, whether a request gives its length or not, before anything is parsed.

    Args:
        max_bytes: of a body.
        seconds: from the request's head to the end of its body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float) -> None:
        self.app, self.max_bytes, self.seconds = app, max_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        length = Headers(scope=scope).get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or int(length) > self.max_bytes:
            return await self.too_large()(scope, receive, send)
        body = LimitedBody(self, scope, receive, send)
        await self.app(scope, body.receive, body.send)

    def too_large(self) -> JSONResponse:
        return error_response(413, "invalid_request_error", f"a request may have {self.max_bytes:,} bytes")

    def too_slow(self) -> JSONResponse:
        return error_response(408, "timeout_error", f"a request has to arrive within {self.seconds:g} seconds")

    def too_many_values(self) -> JSONResponse:
        return error_response(413, "invalid_request_error", f"a JSON body may have {MAX_VALUES:,} values")


class LimitedBody:
    """The body of one request as it arrives. Once it is over a limit, the application sees a disconnected client."""

    def __init__(self, limit: BodyLimit, scope: Scope, receive: Receive, send: Send) -> None:
        self.limit, self.scope, self._receive, self._send = limit, scope, receive, send
        self.is_form = Headers(scope=scope).get("content-type", "").startswith(FORMS)
        self.deadline = time.monotonic() + limit.seconds
        self.bytes_read = self.values = 0
        self.complete = self.response_started = self.rejected = False

    async def receive(self) -> Message:
        if self.rejected:
            return {"type": "http.disconnect"}
        try:
            async with asyncio.timeout(None if self.complete else max(0.0, self.deadline - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            return await self._reject(self.limit.too_slow())
        part: bytes = message.get("body", b"")
        self.complete = not message.get("more_body", False)
        self.bytes_read += len(part)
        if self.bytes_read > self.limit.max_bytes:
            return await self._reject(self.limit.too_large())
        self.values += 0 if self.is_form else sum(map(part.count, BEFORE_VALUES))
        if self.values > MAX_VALUES:
            return await self._reject(self.limit.too_many_values())
        return message

    async def send(self, message: Message) -> None:
        if not self.rejected:
            self.response_started = True
            await self._send(message)

    async def _reject(self, response: JSONResponse) -> Message:
        self.rejected = True
        if not self.response_started:
            response.headers["Connection"] = "close"  # the rest of the body is not read
            await response(self.scope, self._receive, self._send)
        return {"type": "http.disconnect"}


class AccessControl:
    """Rejects requests before they are parsed: those without a key, those of other sites where there are no keys, and
    work while the queue is full.

    A stranger's JSON is not parsed, and a rejection is cheap when the server is overloaded. The body is received first,
    because a client can lose the response when the connection closes while it still sends.

    Args:
        admission: its queue.
        keys: the API keys; with none, the server answers this machine's programs only.
    """

    def __init__(self, app: ASGIApp, admission: Admission, keys: Keys) -> None:
        self.app, self.admission, self.keys = app, admission, keys

    def rejection(self, scope: Scope) -> JSONResponse | None:
        """The response to a request that is rejected, or None."""
        if scope["type"] != "http":
            return None
        if not self.keys and (reason := cross_site_reason(scope)):
            return error_response(403, "invalid_request_error", reason)
        if scope["path"].removeprefix(scope.get("root_path", "")) in PUBLIC_PATHS:
            return None
        if self.keys and not self.keys.accepts(Headers(scope=scope).get("authorization", "")):
            return error_response(401, "authentication_error", "the API key is missing or wrong")
        full = scope["method"] == "POST" and not self.admission.has_room()
        return error_response(*ERRORS[QueueFull]) if full else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        rejection = self.rejection(scope)
        if rejection is None:
            return await self.app(scope, receive, send)
        while (await receive()).get("more_body"):
            pass
        await rejection(scope, receive, send)


class EventStream(StreamingResponse):
    """Server-sent events until the ticket's deadline. The connection of a client that does not read them is closed.

    Args:
        events: the events.
        ticket: of the request.
        close: called at the end, however the stream ends.
    """

    def __init__(self, events: AsyncIterator[str], ticket: Ticket, close: Callable[[], object]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self.ticket, self.close = ticket, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self.ticket.seconds_left() + STREAM_GRACE):
                await send(message)

        connection = scope.get("state", {}).get(CONNECTION)
        try:
            await super().__call__(scope, receive, send_in_time)
        except TimeoutError:
            if connection is None:
                raise  # this server cannot close the connection otherwise
            connection.abort()
        finally:
            self.close()
        while connection is not None and (await receive())["type"] != "http.disconnect":
            pass
