"""The server's outermost layer: errors in OpenAI's shape, bodies of bounded size, what is counted, streams that end."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cm3.serving.access import Keys, foreign
from cm3.serving.admission import CONNECTION, Busy, Desk, Gone, Ticket, TooLate

OPEN = ("/health", "/openapi.json")  # without a key
BEFORE_VALUES = (b",", b"[", b"{")  # in JSON; as objects of Python, values take up to 30 times the room of the text
MAX_VALUES = 100_000  # of a body
LAST_WORDS = 1.0  # seconds for a stream to say that its time is over
CLOSED = 499  # nginx's, for a client that has gone
TROUBLES: dict[type[Exception], tuple[int, str, str]] = {
    Busy: (429, "rate_limit_error", "all places are taken: come again in a moment"),
    TooLate: (504, "timeout_error", "it took longer than is allowed"),
    Gone: (CLOSED, "cancelled", "the client has gone"),
}


def trouble(status: int, kind: str, message: str, code: str | None = None) -> JSONResponse:
    """An error in OpenAI's shape."""
    headers = {"Retry-After": "1"} if status == 429 else {}
    headers |= {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    error = {"message": message, "type": kind, "code": code, "param": None}
    return JSONResponse({"error": error}, status, headers)


class BodyLimit:
    """Refuses bodies before they are read that are too large, whether they say their length or not, hold more values
    than any request needs, or take too long to arrive.

    Args:
        most: bytes.
        seconds: from the head to the end of the body.
    """

    def __init__(self, app: ASGIApp, most: int, seconds: float) -> None:
        self.app, self.most, self.seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        large = trouble(413, "invalid_request_error", f"a request may have {self.most:,} bytes")
        said = headers.get("content-length", "0")
        if not (said.isascii() and said.isdigit()) or int(said) > self.most:
            return await large(scope, receive, send)
        form = headers.get("content-type", "").startswith(("multipart/form-data", "application/x-www-form-urlencoded"))
        end, read, values = time.monotonic() + self.seconds, 0, 0
        arrived, answered, refused = False, False, False

        async def refuse(refusal: JSONResponse) -> Message:
            nonlocal refused
            refused = True
            if not answered:
                refusal.headers["Connection"] = "close"  # the rest is not awaited
                await refusal(scope, receive, send)
            return {"type": "http.disconnect"}

        async def counted() -> Message:
            nonlocal read, values, arrived
            if refused:
                return {"type": "http.disconnect"}
            try:
                async with asyncio.timeout(None if arrived else max(0.0, end - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                late = f"a request has to arrive within {self.seconds:g} seconds"
                return await refuse(trouble(408, "timeout_error", late))
            part: bytes = message.get("body", b"")
            arrived = not message.get("more_body", False)
            read += len(part)
            if read > self.most:
                return await refuse(large)
            values += 0 if form else sum(map(part.count, BEFORE_VALUES))
            if values > MAX_VALUES:
                return await refuse(trouble(413, "invalid_request_error", f"JSON may have {MAX_VALUES:,} values here"))
            return message

        async def sent(message: Message) -> None:
            nonlocal answered
            if not refused:
                answered = True
                await send(message)

        await self.app(scope, counted, sent)


class Door:
    """Sends away who has none of the keys (without any: what a browser sends for a page from elsewhere), and work while
    all places are taken, before anything of it is understood: a stranger's JSON is not parsed, and under overload a
    refusal has to be cheap. OPEN needs no key. The body is taken in, as a connection that is closed before can lose the
    answer."""

    def __init__(self, app: ASGIApp, desk: Desk, keys: Keys) -> None:
        self.app, self.desk, self.keys = app, desk, keys

    def refusal(self, scope: Scope) -> JSONResponse | None:
        if scope["type"] != "http":
            return None
        if not self.keys and (reason := foreign(scope)):
            return trouble(403, "invalid_request_error", reason)
        if scope["path"].removeprefix(scope.get("root_path", "")) in OPEN:
            return None
        if self.keys and not self.keys.open(Headers(scope=scope).get("authorization", "")):
            return trouble(401, "authentication_error", "an API key is needed, and this is none")
        return trouble(*TROUBLES[Busy]) if scope["method"] == "POST" and not self.desk.has_room() else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self.refusal(scope)
        if refusal is None:
            return await self.app(scope, receive, send)
        while (await receive()).get("more_body"):
            pass
        await refusal(scope, receive, send)


class Measured:
    """Counts requests by their route and status, and how long their whole answers took."""

    def __init__(self, app: ASGIApp, meters: "Meters") -> None:
        self.app, self.meters = app, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.monotonic(), CLOSED

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, sent)
        finally:
            path = getattr(scope.get("route"), "path", "none")
            self.meters.requests.labels(path, status).inc()
            self.meters.seconds.labels(path).observe(time.monotonic() - began)


class Meters:
    """What /metrics shows."""

    def __init__(self, desk: Desk, rows_running: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("cm3_requests", "Requests", ["route", "status"], registry=self.registry)
        self.seconds = Histogram("cm3_request_seconds", "Time to the whole answer", ["route"], registry=self.registry)
        self.images = Counter("cm3_images", "Images drawn", registry=self.registry)
        self.texts = Counter("cm3_texts", "Texts written", registry=self.registry)
        self.refusals = Counter("cm3_refusals", "Refused by a filter", ["category"], registry=self.registry)
        taken = Gauge("cm3_places_taken", "Images and answers under way or waiting", registry=self.registry)
        taken.set_function(lambda: desk.taken)
        rows = Gauge("cm3_rows_running", "Rows of the engine's batch", registry=self.registry)
        rows.set_function(rows_running)


class Streamed(StreamingResponse):
    """Server-sent events, as long as the ticket lasts: a client that takes none of them loses its connection then.
    close: called when it is over, however it ends."""

    def __init__(self, events: AsyncIterator[str], ticket: Ticket, close: Callable[[], object]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self.ticket, self.close = ticket, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def in_time(message: Message) -> None:
            async with asyncio.timeout(self.ticket.left() + LAST_WORDS):
                await send(message)

        connection = scope.get("state", {}).get(CONNECTION)
        try:
            await super().__call__(scope, receive, in_time)
        except TimeoutError:
            if connection is None:
                raise  # this server knows no other way
            connection.cut()
        finally:
            self.close()
        while connection is not None and (await receive())["type"] != "http.disconnect":
            pass
