"""How the page is served: to whom, and what a request can make it do."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio.components.image_editor import AcceptBlobs
from gradio_client import Client, handle_file
from PIL import Image, ImageFile

from checkout import ROOT
from cm3 import CM3
from demo.app import USER, main, serve
from demo.page import build
from demo.uploads import NOT_UPLOADED, UNREADABLE, PaintedImage
from tests.tokenizer_image.test_pixels import png_that_claims

CHECKOUT = ROOT
BLANK = Image.new("RGBA", (20, 20))


@pytest.fixture
def image(tmp_path: Path) -> str:
    Image.new("RGBA", (20, 20), "red").save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


@pytest.fixture(scope="module")
def url(page: gr.Blocks) -> Iterator[str]:
    _, url, _ = serve(page, prevent_thread_lock=True, quiet=True)
    yield url
    page.close()


def test_it_answers_on_this_machine(url: str, tiny: CM3, image: str):
    client = Client(url, verbose=False)
    _, table = client.predict(handle_file(image), None, "en", False, api_name="/describe")
    assert table["data"] == [["1", tiny.caption(image)]]
    drawn = client.submit(prompt="a red apple", n=2, dice=False, seed=7, api_name="/draw")
    drawn.result()
    drawn = drawn.outputs()[-1]
    assert [Image.open(item["image"]).size for item in drawn[1]["value"]] == [(16, 16)] * 2


def test_a_painting_is_filled_over_the_wire(url: str, tiny: CM3, painting: dict, tmp_path: Path):
    files = []
    for i, part in enumerate((painting["background"], *painting["layers"])):
        part.save(tmp_path / f"{i}.png")
        files.append(handle_file(str(tmp_path / f"{i}.png")))
    sent = {"background": files[0], "layers": files[1:], "composite": None}
    filled = Client(url, verbose=False).predict(sent, "a cat", 2, 1, False, 7, api_name="/fill")[1]
    mask = painting["layers"][0].getchannel("A")
    expected = tiny.infill(painting["background"], mask, "a cat", n=1, guidance=2, temperature=1, seed=7)[0]
    assert Image.open(filled).convert("RGBA").tobytes() == expected.tobytes()


def ask(url: str, name: str, data: list, **headers: str) -> str:
    """All that the server says to a call without gradio's client."""
    call = f"{url}gradio_api/call/{name}"
    sent = httpx.post(call, json={"data": data}, headers=headers)
    if sent.status_code != 200:
        return sent.text
    return httpx.get(f"{call}/{sent.json()['event_id']}", headers=headers, timeout=600).text


@pytest.fixture
def secret(tmp_path: Path) -> str:
    Image.effect_noise((20, 20), 90).convert("RGB").save(tmp_path / "secret.png")
    return str(tmp_path / "secret.png")


def shapes(path: str, uploads: Path) -> list[Any]:
    """Ways to name a file of the disk in a request."""
    link = uploads / "link.png"
    link.unlink(missing_ok=True)
    link.symlink_to(path)
    meta = {"_type": "gradio.FileData"}
    up = "../" * 12
    paths = [path, f"{uploads}/{up}{path}", str(link), f"file://{path}"]
    return [
        *({"path": one, **more} for one in paths for more in ({}, {"meta": meta}, {"url": path}, {"is_stream": True})),
        {"path": None, "url": f"file://{path}"},
        {"path": "a\0b"},
        {"path": "a" * 10_000},
        path,
        [path],
    ]


def test_no_file_of_the_disk_is_read(url: str, tiny: CM3, secret: str, uploads: Path):
    caption = tiny.caption(secret)
    for i, shape in enumerate(shapes(secret, uploads)):
        asked = [("describe", [shape, None, "en", False]), ("describe", [None, [shape], "en", False])]
        painted = {"background": shape, "layers": [shape], "composite": shape}
        others = [
            ("ask", [shape, "What is this?", []]),
            ("edit", [shape, "make it blue", 2, 3, 1, False, 0]),
            ("look", [shape, ""]),
            ("write", ["a cat", shape, 1, False, 0]),
            ("draw", ["a cat", 1, "", 1, 3, False, 1, 0.95, False, 0, "", shape, "edges", []]),
            ("fill", [painted, "", 3, 1, False, 0]),
            ("fill", [{"background": None, "layers": [], "composite": None, "id": secret}, "", 3, 1, False, 0]),
        ]
        # All shapes at one door; at the others, which are of the same classes, one shape each.
        for name, data in (*asked, others[i % len(others)]):
            said = ask(url, name, data)
            assert "event: error" in said or '"detail"' in said or "Choose an image" in said, (name, shape, said)
            assert caption not in said
            assert str(CHECKOUT) not in said
            assert "Traceback" not in said


def test_nothing_is_fetched_for_a_visitor(url: str):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.png"
        for meta in ({}, {"meta": {"_type": "gradio.FileData"}}):
            assert "event: error" in ask(
                url, "describe", [{"path": address, "url": address, **meta}, None, "en", False]
            )
            file = {"path": address, "url": address, **meta}
            assert "event: error" in ask(url, "describe", [None, [file], "en", False])
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1"])
def test_other_names_are_refused(url: str, host: str):
    assert httpx.get(url, headers={"Host": host}).status_code == 403


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://localhost.evil.example", "http://127.0.0.1:1", "http://[::1"]
)
def test_pages_from_elsewhere_are_refused(url: str, origin: str):
    assert "refused" in ask(url, "ask", [None, "What?", []], Origin=origin)
    own = url.removesuffix("/")
    assert "refused" not in ask(url, "ask", [None, "What?", []], Origin=own)


@pytest.mark.parametrize("any_host", [False, True])
def test_an_origin_without_a_host_is_refused(tiny: CM3, any_host: bool):
    """HTTP/1.0 has none."""
    page = build(tiny)
    others = {"host": "0.0.0.0", "auth": (USER, "long enough")} if any_host else {}
    _, url, _ = serve(page, prevent_thread_lock=True, quiet=True, **others)
    try:
        for begin in ("GET / HTTP/1.0\r\n", "OPTIONS / HTTP/1.0\r\nAccess-Control-Request-Method: POST\r\n"):
            with socket.create_connection(("127.0.0.1", httpx.URL(url).port or 80), timeout=60) as client:
                client.sendall(f"{begin}Origin: http://127.0.0.1\r\n\r\n".encode())
                assert b"".join(iter(lambda: client.recv(4096), b"")).split(b" ")[1] == b"403"
    finally:
        page.close()


def test_a_request_that_cannot_be_read_is_told_so_and_the_log_repeats_nothing(
    url: str, secret: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    forged = {"path": secret, "meta": {"_type": "gradio.FileData"}}
    sent = [("describe", [one, None, "en", False]) for one in (forged, {"path": secret}, secret, [secret])]
    sent += [("look", [{"path": "a\0b", "meta": {"_type": "gradio.FileData"}}, secret]), ("draw", [secret])]
    sent += [("draw", [secret, secret, "", 1, 3, False, 1, 0.95, False, 0, "", None, "edges", []])]
    sent += [("draw", ["a cat", 1, "", 1, 3, False, 1, 0.95, False, 0, "", None, secret, []])]
    for name, data in sent:
        said = ask(url, name, data)
        assert "event: error" in said and '"error": null' not in said and "Traceback" not in said, (data, said)
    assert any(one in said for one in (NOT_UPLOADED, UNREADABLE, "choices"))
    told = capfd.readouterr()
    for log in (told.out, told.err, caplog.text):
        assert "Traceback" not in log and secret not in log


def upload(url: str, data: bytes) -> dict:
    answer = httpx.post(f"{url}gradio_api/upload", files={"files": ("a.png", data, "image/png")})
    return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}


def test_a_huge_image_is_refused_before_it_is_decoded_in_every_tab(url: str, monkeypatch: pytest.MonkeyPatch):
    bomb = upload(url, png_that_claims(13_000, 13_000))
    painted = {"background": bomb, "layers": [bomb], "composite": bomb}
    load, decoded = ImageFile.ImageFile.load, list[tuple[int, int]]()
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image.size) or load(image))
    for name, data in (
        ("describe", [bomb, None, "en", False]),
        ("describe", [None, [bomb], "en", False]),
        ("look", [bomb, ""]),
        ("ask", [bomb, "What is this?", []]),
        ("edit", [bomb, "make it blue", 2, 3, 1, False, 0]),
        ("fill", [painted, "", 3, 1, False, 0]),
    ):
        assert "too large: 13000 x 13000 pixels" in ask(url, name, data)
    assert (13_000, 13_000) not in decoded


def test_layers_are_counted(url: str):
    buffer = BytesIO()
    BLANK.save(buffer, "PNG")
    blank = upload(url, buffer.getvalue())
    said = ask(url, "fill", [{"background": blank, "layers": [blank] * 9, "composite": None}, "", 3, 1, False, 0])
    assert "9 layers of paint: at most 8" in said


def test_parts_of_paintings_do_not_fill_the_memory(page: gr.Blocks):
    painted = next(block for block in page.blocks.values() if isinstance(block, PaintedImage))

    def send(id: str, index: str, size: int = 10) -> None:
        data: Any = {"type": "layer", "index": index, "id": id}
        painted.accept_blobs(AcceptBlobs.model_construct(data=data, files=[("file", bytes(size))]))

    for index in ("8", "1000000000", "-1", "x"):
        with pytest.raises(gr.Error, match="at most 8 layers"):
            send("a", index)
    with pytest.raises(gr.Error, match="20,000,000 bytes"):
        send("a", "0", 20_000_001)
    for i in range(100):
        send(f"{i}", "7")
    assert len(painted.blob_storage) == 32
    assert len(painted.blob_storage["99"].layers) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "nothing"], "demo: there is no model 'nothing'"),
        (["--port", "99999"], "demo: "),
        (["--host", "0.0.0.0"], "give --password, at least 8 characters"),
        (["--share", "--password", "short"], "give --password, at least 8 characters"),
    ],
)
def test_what_cannot_be_served_is_one_line(options: list[str], message: str, tiny_folder: Path, monkeypatch):
    model = [] if "--model" in options else ["--model", str(tiny_folder)]
    monkeypatch.setattr(sys, "argv", ["demo.app", *model, *options])
    with pytest.raises(SystemExit) as end:
        main()
    assert message in str(end.value)
    assert "\n" not in str(end.value)


def test_the_command_tells_a_mistake_in_one_line():
    command = [sys.executable, "-m", "demo.app", "--port", "1x"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    *usage, line = done.stderr.splitlines()
    assert "argument --port: invalid int value: '1x'" in line
    assert all(one.startswith(("usage", " ")) for one in usage)


def test_others_need_the_password(tiny: CM3):
    page = build(tiny)
    _, url, _ = serve(page, prevent_thread_lock=True, quiet=True, auth=(USER, "long enough"))
    try:
        assert httpx.get(f"{url}gradio_api/info").status_code == 401
        with httpx.Client(base_url=url) as visitor:
            assert visitor.post("/login", data={"username": USER, "password": "wrong one"}).status_code == 400
            assert visitor.post("/login", data={"username": USER, "password": "long enough"}).status_code == 200
            assert visitor.get("/gradio_api/info").status_code == 200
    finally:
        page.close()


def test_the_work_is_served_as_mcp_tools(tiny: CM3):
    page = build(tiny)
    _, url, _ = serve(page, prevent_thread_lock=True, quiet=True, mcp_server=True)
    try:
        headers = {"Accept": "application/json, text/event-stream"}
        asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
        said = httpx.post(f"{url}gradio_api/mcp/", json=asked, headers=headers, timeout=600).text
        tools = json.loads(said.partition("data: ")[2] or said)["result"]["tools"]
        assert {tool["name"] for tool in tools} == {"draw", "edit", "fill", "describe", "ask", "write", "look"}
        assert all(tool["description"].strip() for tool in tools)
        draw = next(tool for tool in tools if tool["name"] == "draw")
        assert "1 to 16" in draw["inputSchema"]["properties"]["n"]["description"]
    finally:
        page.close()
