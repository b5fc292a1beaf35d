"""Error responses in OpenAI's form. They repeat neither what was sent nor the paths of files."""

from typing import Any

from fastapi.responses import JSONResponse

from cm3.serving.admission import Disconnected, QueueFull, TimedOut
from cm3.serving.schemas import Error
from cm3.tasks.planning import NoPlan

CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that has disconnected
ERRORS: dict[type[Exception], tuple[int, str, str]] = {  # status, type and message
    QueueFull: (429, "rate_limit_error", "the queue is full: retry in a moment"),
    TimedOut: (504, "timeout_error", "the request timed out"),
    NoPlan: (422, "invalid_request_error", "the model wrote no valid plan for this: say it otherwise, or give a plan"),
    Disconnected: (CLIENT_CLOSED_REQUEST, "cancelled", "the client has disconnected"),
}
ERROR_STATUSES = (400, 401, 403, 404, 408, 413, 422, 429, 500, 504)
DOCUMENTED_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": Error} for status in ERROR_STATUSES}


def error_response(status: int, kind: str, message: str, code: str | None = None) -> JSONResponse:
    """An error as OpenAI's clients expect it.

    Args:
        status: HTTP status. 429 brings `Retry-After`, 401 `WWW-Authenticate`.
        kind: OpenAI's type of the error.
        message: for people.
        code: OpenAI's code, where there is one.
    """
    headers = {"Retry-After": "1"} if status == 429 else {}
    headers |= {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    error = {"message": message, "type": kind, "code": code, "param": None}
    return JSONResponse({"error": error}, status, headers)


def message_of(error: Exception) -> str:
    """The message of an error for the client, in one line of at most 300 characters."""
    return ERRORS[type(error)][2] if type(error) in ERRORS else " ".join(str(error).split())[:300]
