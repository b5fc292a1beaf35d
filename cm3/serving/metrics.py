"""Prometheus metrics of the server, and the middleware that counts requests."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cm3.serving.admission import Admission
from cm3.serving.errors import CLIENT_CLOSED_REQUEST


class Metrics:
    """What `/metrics` shows.

    Args:
        admission: its queue is shown.
        sequences_running: gives the number of sequences in the engine's batch.
    """

    def __init__(self, admission: Admission, sequences_running: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("cm3_requests", "Requests", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "cm3_request_seconds", "Seconds to the end of the response", ["route"], registry=self.registry
        )
        self.images = Counter("cm3_images", "Images generated", registry=self.registry)
        self.texts = Counter("cm3_texts", "Texts generated", registry=self.registry)
        self.refusals = Counter(
            "cm3_refusals", "Requests that a safety filter refused", ["category"], registry=self.registry
        )
        queue = Gauge("cm3_queue_size", "Images and texts in progress or waiting", registry=self.registry)
        queue.set_function(lambda: admission.admitted)
        sequences = Gauge("cm3_sequences_running", "Sequences in the engine's batch", registry=self.registry)
        sequences.set_function(sequences_running)


class MetricsMiddleware:
    """Counts requests by route and status, and measures the seconds to the end of each response."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.monotonic(), CLIENT_CLOSED_REQUEST

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, note_status)
        finally:
            path = getattr(scope.get("route"), "path", "none")
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.monotonic() - began)
