"""The model as a web service with OpenAI's interface: images, edits, chat with images.

    cm3 serve --port 8000 --api-key-file key.txt

`make_app` returns the FastAPI application. The routes are in `routes/`, what they share is in `state.py`. All requests
share one engine and its batch. Requests over a limit are rejected at once.
"""

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from cm3 import __version__
from cm3.engine.thread import EngineThread
from cm3.pipeline import CM3
from cm3.serving.access import Keys
from cm3.serving.admission import Limits
from cm3.serving.errors import ERRORS, error_response
from cm3.serving.metrics import MetricsMiddleware
from cm3.serving.middleware import AccessControl, BodyLimit
from cm3.serving.routes import chat, images, info
from cm3.serving.safety import Refusal, Safety
from cm3.serving.state import State

log = logging.getLogger("cm3.serving.app")


def make_app(
    model: CM3,
    name: str = "emoji",
    limits: Limits | None = None,
    safety: Safety | None = None,
    api_keys: Sequence[str] = (),
    threads: int | None = None,
) -> FastAPI:
    """Make the application.

    Args:
        model: generates images and texts.
        name: the model's name for clients.
        limits: see Limits.
        safety: filters of prompts and images; none by default.
        api_keys: keys of at least 16 characters. Every request except /health and /openapi.json must bring one of them.
            Without keys, the server answers the programs of this machine, under 127.0.0.1 or localhost.
        threads: see EngineThread.

    Raises:
        ValueError: a key is too short, or has characters that a header cannot carry.
    """
    keys = Keys(api_keys)
    state = State(model, name, limits or Limits(), safety or Safety())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        with EngineThread(model.engine, threads):
            yield
            state.admission.stop()

    app = FastAPI(title="cm3", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.server = state
    # The last that is added comes first: MetricsMiddleware, BodyLimit, AccessControl, then the routes.
    app.add_middleware(AccessControl, admission=state.admission, keys=keys)
    app.add_middleware(BodyLimit, max_bytes=state.limits.body, seconds=state.limits.arrival)
    app.add_middleware(MetricsMiddleware, metrics=state.metrics)
    add_error_handlers(app, state)
    for routes in (images, chat, info):
        app.include_router(routes.router)
    return app


def add_error_handlers(app: FastAPI, state: State) -> None:
    """Give every error a response in OpenAI's form."""

    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part != "body")
        return error_response(422, "invalid_request_error", f"{field}: {first['msg']}"[:300])

    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return error_response(error.status_code, "invalid_request_error", error.detail)

    async def refused(_: Request, error: Refusal) -> JSONResponse:
        return error_response(400, "invalid_request_error", state.message(error), "content_policy_violation")

    async def mistake(_: Request, error: Exception) -> JSONResponse:
        return error_response(422, "invalid_request_error", state.message(error))

    async def ended(_: Request, error: Exception) -> JSONResponse:
        return error_response(*ERRORS[type(error)])

    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        log.error("%s in a request", type(error).__name__)  # not its text, which may repeat the request
        return error_response(500, "server_error", "internal error")

    app.exception_handler(RequestValidationError)(invalid)
    app.exception_handler(HTTPException)(http_error)
    app.exception_handler(Refusal)(refused)
    app.exception_handler(ValueError)(mistake)
    for kind in ERRORS:
        app.exception_handler(kind)(ended)
    app.exception_handler(Exception)(unexpected)
