"""The server under load: time limits, clients that hang up, overload, shutdown."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice

import httpx
import pytest
from fastapi.testclient import TestClient

from cm3 import CM3
from cm3.engine.engine import Engine
from cm3.serving.admission import Limits
from cm3.serving.app import make_app
from serving import KEY, SAFETY, Live, client_of, until


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The engine waits for it before each step."""
    opened, advance = threading.Event(), Engine.advance

    def waiting(self: Engine) -> None:
        assert opened.wait(300)
        advance(self)

    monkeypatch.setattr(Engine, "advance", waiting)
    yield opened
    opened.set()


def test_time_that_is_over_frees_the_batch(fresh: CM3, monkeypatch: pytest.MonkeyPatch):
    advance = Engine.advance

    def slowly(self: Engine) -> None:
        time.sleep(0.05)
        advance(self)

    monkeypatch.setattr(Engine, "advance", slowly)
    http = client_of(fresh, limits=Limits(seconds=0.2))
    answer = http.post("/v1/images/generations", json={"prompt": "a cat", "n": 2})
    assert answer.status_code == 504 and answer.json()["error"]["type"] == "timeout_error"
    assert not fresh.engine.active and fresh.engine.cache is None
    streamed = http.post("/v1/images/generations", json={"prompt": "a cat", "stream": True})
    assert "the request timed out" in streamed.text
    until(lambda: not fresh.engine.active)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_the_batch(live: tuple[Live, CM3], gate: threading.Event, stream: bool):
    server, model = live
    body = {"prompt": "a cat", "stream": stream}
    with pytest.raises(httpx.TimeoutException):
        httpx.post(
            f"{server.url}/v1/images/generations", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=1
        )
    gate.set()
    until(lambda: not model.engine.active)
    page = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    assert "cm3_queue_size 0.0" in page


def test_under_overload_some_are_told_to_come_again_at_once_and_the_accepted_finish(fresh: CM3, gate: threading.Event):
    server = Live(make_app(fresh, "tiny", Limits(queue=4, seconds=600), SAFETY, [KEY]))
    client = httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=600)

    def post(i: int) -> int:
        return client.post("/v1/images/generations", json={"prompt": "a cat", "seed": i}).status_code

    try:
        with client, ThreadPoolExecutor(40) as pool:
            asked = [pool.submit(post, i) for i in range(40)]
            refused = [one.result() for one in islice(as_completed(asked, timeout=300), 36)]
            assert set(refused) == {429}
            assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200
            gate.set()  # every refusal is answered, while the accepted requests stand
            assert sorted(one.result() for one in asked) == [200] * 4 + [429] * 36
    finally:
        gate.set()
        server.stop()


def test_a_strangers_body_is_not_parsed_and_only_health_and_the_interface_are_open(fresh: CM3):
    client = TestClient(make_app(fresh, "tiny", api_keys=[KEY]))
    for path, method in (("images/generations", "POST"), ("chat/completions", "POST"), ("models", "GET"), ("x", "GET")):
        for header in ({}, {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}, {"Authorization": "Bearer "}):
            answer = client.request(method, f"/v1/{path}", content=b"{no json", headers=header)
            assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
    for path in ("/v1/models", "/metrics"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"Authorization": f"bearer {KEY}"}).status_code == 200
    assert {client.get(path).status_code for path in ("/health", "/openapi.json")} == {200}
    behind = TestClient(make_app(fresh, "tiny", api_keys=[KEY]), root_path="/api")  # of a proxy
    assert behind.get("/api/v1/models").status_code == 401 and behind.get("/api/health").status_code == 200


def test_a_full_server_sends_work_away_unread_and_answers_the_rest(fresh: CM3):
    app = make_app(fresh, "tiny", Limits(queue=2, body=2_000_000), SAFETY, [KEY])
    server = Live(app)
    keyed = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.url) as client:
        with app.state.server.admission.admit(2):
            for content in (b"no json", bytes(1_500_000), b'{"prompt": "a cat"}'):
                answer = client.post("/v1/images/generations", content=content, headers=keyed)
                assert answer.status_code == 429 and answer.headers["Retry-After"] == "1"
                assert answer.json()["error"]["type"] == "rate_limit_error"
            assert client.post("/v1/images/edits", content=bytes(2_000_001)).status_code == 413
            assert client.post("/v1/images/generations", json={"prompt": "a cat"}).status_code == 401
            assert client.get("/health").status_code == client.get("/v1/models", headers=keyed).status_code == 200
        assert client.post("/v1/images/generations", content=b"no json", headers=keyed).status_code == 422
    assert 'route="none",status="429"} 3.0' in httpx.get(f"{server.url}/metrics", headers=keyed).text
    server.stop()


def test_a_shutdown_waits_for_what_is_accepted(fresh: CM3, gate: threading.Event):
    server = Live(make_app(fresh, "tiny"))

    def closed() -> bool:
        try:
            socket.create_connection(("127.0.0.1", server.port)).close()
        except OSError:
            return True
        return False

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{server.url}/v1/images/generations", json={"prompt": "a"}, timeout=60)
        until(lambda: bool(fresh.engine.active))
        server.server.should_exit = True
        until(closed)
        gate.set()
        server.stop()
        assert answer.result().status_code == 200
