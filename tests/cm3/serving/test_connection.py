"""Clients that stop half-way, over sockets: they lose their connections, and the others are served."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from cm3 import CM3
from cm3.serving.admission import Limits
from cm3.serving.app import make_app
from cm3.serving.routes import images as routes
from serving import Live, until

DRAW = {"prompt": "a cat", "n": 8, "stream": True, "partial_images": 3, "seed": 1}


@contextmanager
def live(folder: Path, **limits: Any) -> Iterator[Live]:
    one = Live(make_app(CM3.from_pretrained(folder, device="cpu"), "tiny", Limits(queue=8, **limits)))
    try:
        yield one
    finally:
        one.stop()


def connected(live: Live) -> socket.socket:
    """A client that takes little at once."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(20)
    client.connect(("127.0.0.1", live.port))
    return client


def all_of(client: socket.socket) -> bytes:
    """What comes until the server closes. Errors: TimeoutError where it does not."""
    told = b""
    with suppress(ConnectionResetError):
        while part := client.recv(65536):
            told += part
    return told


def request(path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST /v1/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


@pytest.fixture
def heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image is more than the system's buffers of a connection hold."""
    monkeypatch.setattr(routes, "encode_png", lambda *_: "A" * 2_000_000)


@pytest.mark.usefixtures("heavy")
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_does_not_read_loses_its_places_and_its_connection(tiny_folder: Path, stream: bool):
    with live(tiny_folder, seconds=1.5) as one:
        with connected(one) as client:
            client.sendall(request("images/generations", DRAW | {"stream": stream}))
            until(lambda: one.admission.admitted == 8)
            other = httpx.post(f"{one.url}/v1/images/generations", json={"prompt": "a"}, timeout=30)
            timed_out = one.admission.admitted == 0  # on a busy machine
            assert other.status_code == 429 or timed_out
            until(lambda: one.admission.admitted == 0)
            until(lambda: one.connections == 0)
            answer = httpx.post(f"{one.url}/v1/images/generations", json={"prompt": "a cat"}, timeout=30)
            assert answer.status_code == 200


def taking(seconds: float) -> Callable[..., str]:
    """An encoder of images that is done so long after its first call."""
    calls: list[float] = []

    def encode(*_: Any) -> str:
        calls.append(time.monotonic())
        return str(until(lambda: time.monotonic() > calls[0] + seconds))

    return encode


def test_a_stream_whose_time_is_over_says_so_to_who_reads(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    with live(tiny_folder, seconds=0.5) as one:
        monkeypatch.setattr(routes, "encode_png", taking(0.6))
        answer = httpx.post(f"{one.url}/v1/images/generations", json=DRAW, timeout=30)
    assert "the request timed out" in answer.text


def nothing(_: socket.socket) -> None:
    """Connected, and no more."""


def half_a_head(client: socket.socket) -> None:
    client.sendall(request("images/generations", DRAW)[:40])


def half_a_body(client: socket.socket) -> None:
    client.sendall(request("images/generations", DRAW)[:-9])


def half_a_second_head(client: socket.socket) -> None:
    client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert client.recv(4096).startswith(b"HTTP/1.1 200")
    half_a_head(client)


def a_rest_after_the_refusal(client: socket.socket) -> None:
    client.sendall(b"POST /v1/images/edits HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n")
    assert client.recv(4096).startswith(b"HTTP/1.1 413")
    client.sendall(b"a")


@pytest.mark.parametrize(
    "begin", [nothing, half_a_head, half_a_body, half_a_second_head, a_rest_after_the_refusal], ids=lambda f: f.__name__
)
def test_a_request_that_does_not_arrive_is_closed(tiny_folder: Path, begin: Callable[[socket.socket], None]):
    with live(tiny_folder, arrival=0.5) as one:
        clients = [connected(one) for _ in range(30)]
        for client in clients:
            begin(client)
        for client in clients:
            all_of(client)
            client.close()
        assert httpx.get(f"{one.url}/health").status_code == 200


def test_a_body_that_does_not_arrive_is_told_so(tiny_folder: Path):
    with live(tiny_folder, arrival=0.3) as one, connected(one) as client:
        half_a_body(client)
        told = all_of(client)
    head, _, body = told.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408") and b"connection: close" in head.lower()
    assert "within 0.3 seconds" in json.loads(body)["error"]["message"]


def test_a_request_that_comes_in_drops_is_closed(tiny_folder: Path):
    with live(tiny_folder, arrival=0.5) as one, connected(one) as client:
        drops = iter(request("images/generations", DRAW | {"prompt": "a" * 10_000}))

        def cut() -> bool:
            try:
                client.sendall(bytes([next(drops)]))
            except OSError:
                return True
            return False

        until(cut)
        until(lambda: one.connections == 0)


def test_an_answer_may_take_longer_than_its_request(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    with live(tiny_folder, arrival=1) as one:
        monkeypatch.setattr(routes, "encode_png", taking(1.2))
        with connected(one) as client:
            client.sendall(request("images/generations", {"prompt": "a cat"}))
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
