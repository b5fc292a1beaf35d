"""A server on a port of its own, and what is sent to it."""

import base64
import io
import threading
import time
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI
from PIL import Image

from cm3.serving.admission import Admission
from cm3.serving.connection import settings

KEY = "a-key-of-the-test"
LOCAL = "http://localhost"  # without keys, the server answers under names of this machine only


class Live:
    """uvicorn with the application, in a thread."""

    def __init__(self, app: FastAPI) -> None:
        self.admission: Admission = app.state.server.admission
        options = settings(app, self.admission.limits)
        self.server = uvicorn.Server(uvicorn.Config(**options, port=0, log_level="error"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        until(lambda: self.server.started)
        self.port: int = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self.server.server_state.connections)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def image_bytes(colour: str = "red", size: tuple[int, int] = (20, 20), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "PNG")
    return file.getvalue()


def data_url(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def asking(text: str, *urls: str, **more: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    parts += [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"messages": [{"role": "user", "content": parts}], **more}
