"""The server's outermost layer: errors in OpenAI's shape, bodies of bounded size, what is counted, streams that end."""

import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence

from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cm3.server_work import Busy, Desk, Gone, TooLate

OPEN = ("/health", "/metrics", "/openapi.json")  # to everybody
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
    """Refuses bodies that are too large before they are read, whether they say their length or not."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        refusal = trouble(413, "invalid_request_error", f"a request may have {self.most:,} bytes")
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if not said.isdigit() or int(said) > self.most:
            return await refusal(scope, receive, send)
        read, answered, refused = 0, False, False

        async def counted() -> Message:
            nonlocal read, refused
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.most:
                refused = True
                if not answered:
                    await refusal(scope, receive, send)
                return {"type": "http.disconnect"}
            return message

        async def sent(message: Message) -> None:
            nonlocal answered
            if not refused:
                answered = True
                await send(message)

        await self.app(scope, counted, sent)


class Door:
    """Sends away who has none of the keys (none = everybody may come), and work while all places are taken, before
    anything of it is understood: a stranger's JSON is not parsed, and under overload a refusal has to be cheap. OPEN is
    open to all. The body is taken in, as a connection that is closed before can lose the answer."""

    def __init__(self, app: ASGIApp, desk: Desk, keys: Sequence[str]) -> None:
        self.app, self.desk, self.keys = app, desk, [key.encode() for key in keys]

    def refusal(self, scope: Scope) -> JSONResponse | None:
        if scope["type"] != "http" or scope["path"].removeprefix(scope.get("root_path", "")) in OPEN:
            return None
        scheme, _, said = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        right = [secrets.compare_digest(said.strip(), key) for key in self.keys]  # all, in equal time
        if self.keys and not (scheme.lower() == b"bearer" and any(right)):
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
        self.pictures = Counter("cm3_pictures", "Pictures drawn", registry=self.registry)
        self.texts = Counter("cm3_texts", "Texts written", registry=self.registry)
        self.refusals = Counter("cm3_refusals", "Refused by a filter", ["category"], registry=self.registry)
        taken = Gauge("cm3_places_taken", "Pictures and answers under way or waiting", registry=self.registry)
        taken.set_function(lambda: desk.taken)
        rows = Gauge("cm3_rows_running", "Rows of the engine's batch", registry=self.registry)
        rows.set_function(rows_running)


class Streamed(StreamingResponse):
    """Server-sent events. close: called when it is over, however it ends."""

    def __init__(self, events: AsyncIterator[str], close: Callable[[], object]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self.close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.close()
