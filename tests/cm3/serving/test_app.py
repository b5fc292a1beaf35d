"""The server: OpenAI's client, limits, refusals, and clients that go."""

import base64
import io
import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from cm3 import CM3
from cm3.cli import main as cli
from cm3.engine.engine import Engine
from cm3.serving.admission import Limits
from cm3.serving.app import make_app
from cm3.serving.safety import BlockList, Safety
from cm3.tasks import reranking as ranking
from cm3.tasks.known_words import KnownWords
from serving import KEY, LOCAL, Live, asking, data_url, image_bytes, until

SAFETY = Safety([BlockList({"weapons": ["gun"]})])


@pytest.fixture
def fresh(tiny_folder: Path) -> CM3:
    """A model of its own: tests slow it down."""
    return CM3.from_pretrained(tiny_folder, device="cpu")


def client_of(model: CM3, **options: Any) -> TestClient:
    return TestClient(make_app(model, "tiny", **options), LOCAL, raise_server_exceptions=False)


@pytest.fixture
def http(tiny: CM3) -> TestClient:
    return client_of(tiny)


def opened(b64: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64)))


@pytest.fixture
def live(fresh: CM3) -> Iterator[tuple[Live, CM3]]:
    server = Live(make_app(fresh, "tiny", Limits(queue=4, seconds=20), SAFETY, [KEY]))
    yield server, fresh
    server.stop()


# OpenAI's client


def test_the_openai_client_draws_edits_and_asks(live: tuple[Live, CM3]):
    server, model = live
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)
    assert [one.id for one in client.models.list()] == ["tiny"]

    drawn = client.images.generate(prompt="a red apple", model="tiny", n=2, extra_body={"seed": 5})
    wanted = model.generate("a red apple", n=2, seed=5)
    assert drawn.data is not None
    assert [opened(one.b64_json or "").tobytes() for one in drawn.data] == [one.tobytes() for one in wanted]
    large = client.images.generate(prompt="a cat", size="256x256", n=1)
    assert large.data is not None and opened(large.data[0].b64_json or "").size == (256, 256)

    source = image_bytes("blue", (24, 16))
    edited = client.images.edit(image=source, prompt="make it red", extra_body={"seed": "3"})
    assert edited.data is not None
    assert opened(edited.data[0].b64_json or "").tobytes() == model.edit(source, "make it red", seed=3).tobytes()
    mask = Image.new("RGBA", (24, 16), "white")
    mask.paste((0, 0, 0, 0), (4, 4, 12, 12))
    file = io.BytesIO()
    mask.save(file, "PNG")
    filled = client.images.edit(image=source, mask=file.getvalue(), prompt="a dog", n=2, extra_body={"seed": "3"})
    white = Image.new("L", (24, 16))
    white.paste(255, (4, 4, 12, 12))
    assert filled.data is not None
    assert [opened(one.b64_json or "").tobytes() for one in filled.data] == [
        one.tobytes() for one in model.infill(source, white, "a dog", n=2, seed=3)
    ]

    answer = client.chat.completions.create(model="tiny", **asking("What is it?", data_url(source)))
    assert answer.choices[0].message.content == model.answer(source, "What is it?")
    said = answer.choices[0].message.content or "-"
    messages = [*asking("What is it?", data_url(source))["messages"], {"role": "assistant", "content": said}]
    again = client.chat.completions.create(model="tiny", messages=[*messages, *asking("Why?")["messages"]])
    assert again.choices[0].message.content == model.answer(source, "Why?", history=[("What is it?", said)])
    other = client.chat.completions.create(
        model="tiny", messages=[*messages, *asking("Why?", data_url(image_bytes("red", (9, 9))))["messages"]]
    )
    assert other.choices[0].message.content == model.answer(image_bytes("red", (9, 9)), "Why?")
    parts = client.chat.completions.create(model="tiny", stream=True, **asking("What is it?", data_url(source)))
    said = "".join(part.choices[0].delta.content or "" for part in parts)
    assert said.strip() == answer.choices[0].message.content
    drawing = client.chat.completions.create(
        model="tiny", seed=7, extra_body={"modalities": ["text", "image"]}, **asking("a red apple")
    )
    [image] = drawing.choices[0].message.model_extra["images"]  # pyright: ignore[reportOptionalSubscript]
    url = image["image_url"]["url"]
    assert opened(url.partition(",")[2]).tobytes() == model.generate("a red apple", seed=7)[0].tobytes()
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0).models.list()


def test_words_are_put_as_the_model_reads_them_and_checked_so(tiny: CM3):
    known = KnownWords(["mouse"], ["a mouse"])
    model = CM3(tiny.model, tiny.text_tokenizer, tiny.image_tokenizer, known_words=known)
    http = client_of(model)
    source, hole, white = image_bytes(), io.BytesIO(), Image.new("L", (20, 20), "white")
    Image.new("RGBA", (20, 20)).save(hole, "PNG")

    def bodies(path: str, **body: Any) -> Any:
        answer = http.post(path, json=body).json()
        if "data" in answer:
            return opened(answer["data"][0]["b64_json"]).tobytes()
        return opened(answer["choices"][0]["message"]["images"][0]["image_url"]["url"].partition(",")[2]).tobytes()

    def drawn(words: str, **options: Any) -> bytes:
        return tiny.generate(words, seed=3, **options)[0].tobytes()

    images, chat = "/v1/images/generations", "/v1/chat/completions"
    assert bodies(images, prompt="MICE!", seed=3) == drawn("a mouse")
    assert bodies(images, prompt="MICE!", seed=3, normalise=False) == drawn("MICE!", normalise=False)
    asked = {"modalities": ["image"], "seed": 3}
    assert bodies(chat, **asking("MICE!", **asked)) == drawn("a mouse")
    assert bodies(chat, **asking("MICE!", normalise=False, **asked)) == drawn("MICE!", normalise=False)
    for normalise, words in (("true", "a mouse"), ("false", "MICE!")):
        form = {"prompt": "MICE!", "seed": "3", "normalise": normalise}
        answer = http.post("/v1/images/edits", data=form, files={"image": source}).json()
        assert opened(answer["data"][0]["b64_json"]).tobytes() == tiny.edit(source, words, seed=3).tobytes()
        answer = http.post("/v1/images/edits", data=form, files={"image": source, "mask": hole.getvalue()}).json()
        [filled] = tiny.infill(source, white, words, seed=3)
        assert opened(answer["data"][0]["b64_json"]).tobytes() == filled.tobytes()
    refusing = client_of(model, safety=Safety([BlockList({"rodents": ["mouse"]})]))
    assert refusing.post(images, json={"prompt": "mice"}).status_code == 400


def test_a_drawing_is_streamed(http: TestClient, tiny: CM3):
    body = {"prompt": "a cat", "n": 2, "seed": 4, "stream": True, "partial_images": 1}
    with http.stream("POST", "/v1/images/generations", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    kinds = [one["type"].partition(".")[2] for one in events]
    assert kinds == ["partial_image"] * 2 + ["completed"] * 2
    images = [opened(one["b64_json"]).tobytes() for one in events[2:]]
    assert images == [one.tobytes() for one in tiny.generate("a cat", n=2, seed=4)]


def test_the_best_of_several_is_drawn_and_streamed(http: TestClient, tiny: CM3, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ranking, "caption_log_probs", lambda *about: torch.stack([*about[-1]]).float().sum((1, 2)))
    body = {"prompt": "a cat", "n": 2, "seed": 4, "best_of": 3}
    best = [one.tobytes() for one in tiny.generate("a cat", n=2, seed=4, best_of=3)]
    assert best != [one.tobytes() for one in tiny.generate("a cat", n=2, seed=4)]
    whole = http.post("/v1/images/generations", json=body).json()["data"]
    assert [opened(one["b64_json"]).tobytes() for one in whole] == best
    with http.stream("POST", "/v1/images/generations", json=body | {"stream": True, "partial_images": 3}) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    kinds = [one["type"].partition(".")[2] for one in events]
    assert kinds == ["partial_image"] * 6 + ["completed"] * 2
    assert [opened(one["b64_json"]).tobytes() for one in events[6:]] == best
    refused = http.post("/v1/images/generations", json=body | {"best_of": 5})
    assert refused.status_code == 422 and "at most 8 images at once" in refused.json()["error"]["message"]


def test_health_metrics_and_what_no_key_opens(tiny: CM3):
    http = client_of(tiny, api_keys=["another-key-of-the-test", KEY])
    assert http.get("/health").json() == {"status": "ok"}
    for path in ("/v1/models", "/v1/images/generations", "/v1/chat/completions"):
        method = "GET" if path == "/v1/models" else "POST"
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
            answer = http.request(method, path, headers=headers, json={})
            assert answer.status_code == 401 and answer.json()["error"]["type"] == "authentication_error"
    headers = {"Authorization": f"Bearer {KEY}"}
    assert http.get("/v1/models", headers=headers).status_code == 200
    assert http.post("/v1/images/generations", headers=headers, json={"prompt": "a"}).status_code == 200
    page = http.get("/metrics", headers=headers).text
    assert 'cm3_requests_total{route="/v1/images/generations",status="200"} 1.0' in page
    assert "cm3_images_total 1.0" in page and "cm3_queue_size 0.0" in page and KEY not in page


# what is refused


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("images/generations", {}, 422, "prompt: Field required"),
        ("images/generations", {"prompt": ""}, 422, "prompt: String should have at least 1 character"),
        ("images/generations", {"prompt": "  "}, 422, "the prompt is empty"),
        ("images/generations", {"prompt": "secret " * 400}, 422, "prompt: String should have at most 2000"),
        ("images/generations", {"prompt": "secret " * 250}, 422, "leaves no room"),
        ("images/generations", {"prompt": "a", "n": 9}, 422, "n: at most 8 images at once"),
        ("images/generations", {"prompt": "a", "n": 0}, 422, "n: Input should be greater"),
        ("images/generations", {"prompt": "a", "size": "2000x10"}, 422, "a side has at most 1024 pixels"),
        ("images/generations", {"prompt": "a", "size": "big"}, 422, "size: String should match"),
        ("images/generations", {"prompt": "a", "response_format": "url"}, 422, "response_format"),
        ("images/generations", {"prompt": "a", "seed": -1}, 422, "seed: Input should be greater"),
        ("images/generations", {"prompt": "a", "model": "gpt"}, 404, "the model here is tiny"),
        ("images/generations", {"prompt": "secret G U N"}, 400, "the prompt is refused: weapons"),
        ("chat/completions", {"messages": []}, 422, "messages: List should have at least 1 item"),
        ("chat/completions", {"messages": [{"role": "assistant", "content": "a"}]}, 422, "the last must be the user's"),
        ("chat/completions", asking("secret"), 422, "send an image"),
        ("chat/completions", asking("secret", "http://10.0.0.1/a.png"), 422, "nothing is fetched"),
        ("chat/completions", asking("secret", "file:///etc/passwd"), 422, "nothing is fetched"),
        ("chat/completions", asking("secret", "data:image/png;base64,!!"), 422, "not valid base64"),
        ("chat/completions", asking("secret", "data:image/png;base64,AAAA"), 422, "no image can be read"),
        ("chat/completions", asking(" ", data_url(image_bytes())), 422, "the last one has no text"),
        ("chat/completions", asking("a gun", modalities=["image"]), 400, "weapons"),
        ("chat/completions", asking("a gun", modalities=["image"], stream=True), 400, "weapons"),
        ("chat/completions", asking("a", modalities=["sound"]), 422, "modalities"),
        ("nothing", {}, 404, "Not Found"),
    ],
    ids=str,
)
def test_a_mistake_is_told_in_openais_shape_and_repeats_nothing(
    tiny: CM3, path: str, body: dict[str, Any], status: int, message: str
):
    answer = client_of(tiny, safety=SAFETY).post(f"/v1/{path}", json=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert message in error["message"]
    assert "secret" not in answer.text and str(Path(__file__).parents[3]) not in answer.text


def test_images_that_are_none_or_too_large_are_refused(tiny: CM3):
    http = client_of(tiny, limits=Limits(pixels=500))
    for content, message in (
        (b"no image", "no image can be read"),
        (image_bytes("red", (30, 30)), "more than 500"),
    ):
        answer = http.post("/v1/images/edits", files={"image": content}, data={"prompt": "a"})
        assert answer.status_code == 422 and message in answer.json()["error"]["message"]
    assert http.post("/v1/images/edits", data={"prompt": "a"}).status_code == 422


@pytest.mark.parametrize("apart", [False, True])
def test_images_of_a_conversation_are_counted_before_any_is_decoded(tiny: CM3, apart: bool):
    broken = [data_url(b"no image")] * 9
    talk = [asking("What?", url)["messages"][0] for url in broken] if apart else asking("What?", *broken)["messages"]
    for messages, limits in ((talk, Limits()), (asking("What?", *broken[:3])["messages"], Limits(images=2))):
        answer = client_of(tiny, limits=limits).post("/v1/chat/completions", json={"messages": messages})
        count = len(broken) if messages is talk else 3
        assert answer.status_code == 422
        assert f"{count} images, but at most {limits.images} are accepted" in answer.json()["error"]["message"]


def test_only_the_image_that_is_asked_about_is_decoded(http: TestClient, tiny: CM3):
    broken, sound = [data_url(b"no image")] * 7, image_bytes("blue")
    answer = http.post("/v1/chat/completions", json=asking("What?", *broken, data_url(sound)))
    assert answer.json()["choices"][0]["message"]["content"] == tiny.answer(sound, "What?")
    assert http.post("/v1/chat/completions", json=asking("What?", data_url(sound), *broken)).status_code == 422


def test_what_is_wrong_with_a_part_is_said_of_the_part(http: TestClient):
    for parts, message in (
        ([{"type": "text", "text": "a"}] * 65, "messages.0.content.parts: List should have at most 64 items"),
        ([{"type": "sound"}], "messages.0.content.parts.0: Input tag 'sound'"),
        (5, "messages.0.content.text: Input should be a valid string"),
    ):
        answer = http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": parts}]})
        assert answer.status_code == 422 and answer.json()["error"]["message"].startswith(message)


def test_json_with_more_values_than_any_request_needs_is_refused_unread(http: TestClient):
    for values in (b"{}," * 100_000, b"0," * 100_000, b"[" * 100_001):
        answer = http.post("/v1/images/generations", content=b'{"prompt":"a cat","x":[' + values + b"0]}")
        assert answer.status_code == 413 and "100,000 values" in answer.json()["error"]["message"]
    image = image_bytes(size=(20, 20)) + b"," * 200_000  # no JSON
    assert http.post("/v1/images/edits", files={"image": image}, data={"prompt": "a"}).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_before_it_is_read(live: tuple[Live, CM3], chunked: bool):
    server, _ = live
    content: Any = (b" " * 1_000_000 for _ in range(400)) if chunked else b" " * 21_000_000
    began = time.monotonic()
    try:
        answer = httpx.post(f"{server.url}/v1/images/generations", content=content, headers={"Authorization": KEY})
        assert answer.status_code == 413
        assert "20,000,000 bytes" in answer.json()["error"]["message"]
    except httpx.TransportError:  # closed while it still sends
        assert chunked
    assert time.monotonic() - began < 5


def test_an_image_filter_sees_what_comes_in_and_what_goes_out(tiny: CM3):
    class All:
        def refuses(self, image: Image.Image) -> str | None:
            return "everything"

    http = client_of(tiny, safety=Safety(images=[All()]))
    for answer in (
        http.post("/v1/images/generations", json={"prompt": "a"}),
        http.post("/v1/images/edits", files={"image": image_bytes()}, data={"prompt": "a"}),
        http.post("/v1/chat/completions", json=asking("What?", data_url(image_bytes()))),
    ):
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "content_policy_violation"
    streamed = http.post("/v1/images/generations", json={"prompt": "a", "stream": True, "partial_images": 2})
    assert "b64_json" not in streamed.text and "the image is refused: everything" in streamed.text
    assert 'cm3_refusals_total{category="everything"} 4.0' in http.get("/metrics").text


def test_what_turns_out_wrong_in_a_stream_is_told_in_it(http: TestClient):
    long = "secret " * 250
    drawn = http.post("/v1/images/generations", json={"prompt": long, "stream": True})
    asked = http.post("/v1/chat/completions", json=asking(long, data_url(image_bytes()), stream=True))
    for answer in (drawn, asked):
        assert "leaves no room" in answer.text and "secret" not in answer.text
    assert "cm3_queue_size 0.0" in http.get("/metrics").text


def test_what_breaks_inside_says_nothing(fresh: CM3, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("/home/somebody/secret")

    monkeypatch.setattr(fresh, "jobs", SimpleNamespace(generate=broken))
    answer = client_of(fresh).post("/v1/images/generations", json={"prompt": "a cat"})
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "internal error"
    assert "secret" not in answer.text
    assert not any("secret" in record.getMessage() for record in caplog.records if record.name == "cm3.serving.app")


# time, and many at once


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine with 0.2 s for each step."""
    advance = Engine.advance

    def slowly(self: Engine) -> None:
        time.sleep(0.2)
        advance(self)

    monkeypatch.setattr(Engine, "advance", slowly)


@pytest.mark.usefixtures("slow")
def test_time_that_is_over_frees_the_batch(fresh: CM3):
    http = client_of(fresh, limits=Limits(seconds=0.7))
    answer = http.post("/v1/images/generations", json={"prompt": "a cat", "n": 2})
    assert answer.status_code == 504 and answer.json()["error"]["type"] == "timeout_error"
    assert not fresh.engine.active and fresh.engine.cache is None
    streamed = http.post("/v1/images/generations", json={"prompt": "a cat", "stream": True})
    assert "the request timed out" in streamed.text
    until(lambda: not fresh.engine.active)


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_the_batch(live: tuple[Live, CM3], stream: bool):
    server, model = live
    body = {"prompt": "a cat", "stream": stream}
    with pytest.raises(httpx.TimeoutException):
        httpx.post(
            f"{server.url}/v1/images/generations", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=1
        )
    until(lambda: not model.engine.active)
    page = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    assert "cm3_queue_size 0.0" in page


def test_under_overload_some_are_told_to_come_again_at_once_and_the_accepted_finish(
    fresh: CM3, monkeypatch: pytest.MonkeyPatch
):
    answered = threading.Event()  # every refusal, while the accepted requests stand
    advance = Engine.advance

    def waiting(self: Engine) -> None:
        assert answered.wait(300)
        advance(self)

    monkeypatch.setattr(Engine, "advance", waiting)
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
            answered.set()
            assert sorted(one.result() for one in asked) == [200] * 4 + [429] * 36
    finally:
        answered.set()
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


@pytest.mark.usefixtures("slow")
def test_a_shutdown_waits_for_what_is_accepted(fresh: CM3):
    server = Live(make_app(fresh, "tiny"))
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{server.url}/v1/images/generations", json={"prompt": "a"}, timeout=30)
        until(lambda: bool(fresh.engine.running))
        server.stop()
        assert answer.result().status_code == 200


# the command


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--host", "0.0.0.0"], "on 0.0.0.0 others could use it too: give --api-key-file"),
        (["--api-key-file", "none.txt"], "none.txt: there is no such file"),
        (["--block-list", "none.txt"], "none.txt: there is no such file"),
        (["--api-key-file", "empty.txt"], "empty.txt: there are no keys"),
        (["--no-nudity"], "--no-nudity needs nudenet: pip install 'cm3leon[nudenet]'"),
    ],
)
def test_the_command_refuses_what_is_not_safe(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n")
    monkeypatch.setitem(sys.modules, "nudenet", None)
    monkeypatch.setattr("sys.argv", ["cm3", "serve", *args])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
