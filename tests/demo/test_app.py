"""The page: what it holds, what its buttons do, and that it is served to this machine."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio.components.image_editor import AcceptBlobs
from gradio.utils import get_upload_folder
from gradio_client import Client, handle_file
from PIL import Image

from checkout import ROOT
from cm3 import CM3
from demo.app import build, clicked, handed_over, serve
from demo.uploads import PaintedImage
from tests.tokenizer_image.test_pixels import png_that_claims

CHECKOUT = ROOT
BLANK = Image.new("RGBA", (20, 20))


@pytest.fixture(scope="module")
def page(tiny: CM3) -> gr.Blocks:
    return build(tiny)


@pytest.fixture
def handlers(page: gr.Blocks) -> dict[str, Callable]:
    return {str(function.name): function.fn for function in page.fns.values() if function.fn is not None}


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.new("RGBA", (20, 20), "red").save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


@pytest.fixture
def painting() -> dict[str, Any]:
    """What the editor gives: a picture, and a layer of paint on nothing."""
    layer = Image.new("RGBA", (20, 20))
    layer.paste((255, 45, 149, 255), (4, 4, 8, 8))
    return {"background": Image.new("RGBA", (20, 20), "red"), "layers": [layer], "composite": layer}


@pytest.fixture
def uploads() -> Path:
    folder = Path(get_upload_folder()) / "tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def last(results: Iterator[Any]) -> Any:
    return list(results)[-1]


def test_the_page_has_five_tabs(page: gr.Blocks):
    tabs = [block.label for block in page.blocks.values() if isinstance(block, gr.Tab)]
    assert tabs == ["Draw", "Edit", "Fill in", "Describe", "Ask"]


def test_buttons_do_what_the_pipeline_does(handlers: dict[str, Callable], tiny: CM3, picture: str, painting: dict):
    drawn = list(handlers["draw"]("a red apple", 2, 1, 3, 1, 0.95, 7))
    expected = tiny.generate("a red apple", 2, 3, 1, 0.95, seed=7)
    assert [len(images) for images in drawn] == [2] * 4  # row by row
    assert [image.tobytes() for image in drawn[-1]] == [image.tobytes() for image in expected]
    edited = tiny.edit(picture, "make it blue", 2, 4, 1, seed=7)
    assert last(handlers["edit"](picture, "make it blue", 2, 4, 1, 7)).tobytes() == edited.tobytes()
    mask = Image.new("L", (20, 20))
    mask.paste(255, (4, 4, 8, 8))
    for words in ("", "a cat"):
        filled = tiny.infill(picture, mask, words, 1, 2, 1, seed=7)[0]
        assert last(handlers["fill"](painting, words, 2, 1, 7)).tobytes() == filled.tobytes()
    assert handlers["describe"](picture, "ar", True) == tiny.caption(picture, "ar", long=True)
    assert handlers["ask"](picture, "What is this?") == tiny.answer(picture, "What is this?")


def test_the_best_of_several_is_drawn(tiny: CM3):
    draw = next(function.fn for function in build(tiny).fns.values() if function.name == "draw")
    assert draw is not None
    expected = tiny.generate("a red apple", 2, 3, 1, 0.95, seed=7, best_of=3)
    assert [one.tobytes() for one in last(draw("a red apple", 2, 3, 3, 1, 0.95, 7))] == [
        one.tobytes() for one in expected
    ]


def test_a_clicked_drawing_goes_to_the_other_tabs(uploads: Path):
    path = str(uploads / "a.png")
    Image.new("RGB", (4, 4)).save(path)
    assert clicked(SimpleNamespace(value={"image": {"path": path}})) == (path,) * 4  # pyright: ignore
    assert handed_over("a.png") == ("a.png", None)
    assert handed_over(None) == gr.skip()


@pytest.mark.parametrize("value", [{"image": {"path": "/etc/hostname"}}, {"image": {"path": None}}, {}, None, "a.png"])
def test_what_was_clicked_is_not_taken_from_the_disk(value: Any):
    with pytest.raises(gr.Error, match="not uploaded here"):
        clicked(SimpleNamespace(value=value))  # pyright: ignore


def test_what_the_model_sees_is_shown(handlers: dict[str, Callable], tiny: CM3):
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (50, 0, 250, 100))
    middle = Image.new("RGB", (100, 100), "blue")
    assert handlers["look"](wide).size == (16, 16)
    assert handlers["look"](wide).tobytes() == handlers["look"](middle).tobytes()
    assert handlers["look"](wide).tobytes() != handlers["look"](Image.new("RGB", (9, 9), "red")).tobytes()
    assert handlers["look"](None) is None


@pytest.mark.parametrize(
    ("button", "values", "message"),
    [
        ("draw", (" ", 1, 1, 3, 1, 0.95, 0), "prompt is empty"),
        ("draw", ("apple " * 500, 1, 1, 3, 1, 0.95, 0), "leaves no room"),
        ("edit", (None, "make it blue", 2, 3, 1, 0), "Choose a picture first"),
        ("edit", ("red.png", " ", 2, 3, 1, 0), "instruction is empty"),
        ("fill", (None, "", 3, 1, 0), "Choose a picture first"),
        ("fill", ({"background": None, "layers": []}, "", 3, 1, 0), "Choose a picture first"),
        ("fill", ({"background": BLANK, "layers": []}, "", 3, 1, 0), "Paint over what is to be redrawn first"),
        ("fill", ({"background": BLANK, "layers": [BLANK]}, "", 3, 1, 0), "Paint over what is to be redrawn first"),
        ("describe", (None, "en", False), "Choose a picture first"),
        ("ask", (None, "What?"), "Choose a picture first"),
        ("ask", ("red.png", ""), "question is empty"),
    ],
)
def test_a_mistake_is_a_message_on_the_page(handlers, picture, monkeypatch, button: str, values: tuple, message: str):
    monkeypatch.chdir(Path(picture).parent)
    with pytest.raises(gr.Error) as error:
        list(handlers[button](*values))
    assert message in error.value.message


@pytest.fixture(scope="module")
def url(page: gr.Blocks) -> Iterator[str]:
    _, url, _ = serve(page, prevent_thread_lock=True, quiet=True)
    yield url
    page.close()


def test_it_answers_on_this_machine(url: str, tiny: CM3, picture: str):
    client = Client(url, verbose=False)
    assert client.predict(handle_file(picture), "en", False, api_name="/describe") == tiny.caption(picture)
    drawn = client.submit("a red apple", 2, 1, 3, 1, 0.95, 7, api_name="/draw")
    drawn.result()
    drawn = drawn.outputs()[-1]
    assert [Image.open(item["image"]).size for item in drawn] == [(16, 16)] * 2


def test_a_painting_is_filled_over_the_wire(url: str, tiny: CM3, painting: dict, tmp_path: Path):
    files = []
    for i, part in enumerate((painting["background"], *painting["layers"])):
        part.save(tmp_path / f"{i}.png")
        files.append(handle_file(str(tmp_path / f"{i}.png")))
    sent = {"background": files[0], "layers": files[1:], "composite": None}
    filled = Client(url, verbose=False).predict(sent, "a cat", 2, 1, 7, api_name="/fill")
    mask = painting["layers"][0].getchannel("A")
    expected = tiny.infill(painting["background"], mask, "a cat", 1, 2, 1, seed=7)[0]
    assert Image.open(filled).convert("RGBA").tobytes() == expected.tobytes()


def ask(url: str, name: str, data: list, **headers: str) -> str:
    """All that the server says to a call without gradio's client."""
    call = f"{url}gradio_api/call/{name}"
    sent = httpx.post(call, json={"data": data}, headers=headers)
    if sent.status_code != 200:
        return sent.text
    return httpx.get(f"{call}/{sent.json()['event_id']}", headers=headers, timeout=60).text


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
    for shape in shapes(secret, uploads):
        for name, data in (
            ("describe", [shape, "en", False]),
            ("ask", [shape, "What is this?"]),
            ("edit", [shape, "make it blue", 2, 3, 1, 0]),
            ("look", [shape]),
            ("fill", [{"background": shape, "layers": [shape], "composite": shape}, "", 3, 1, 0]),
            ("fill", [{"background": None, "layers": [], "composite": None, "id": secret}, "", 3, 1, 0]),
        ):
            said = ask(url, name, data)
            assert "event: error" in said or '"detail"' in said or "Choose a picture" in said, (name, shape, said)
            assert caption not in said
            assert str(CHECKOUT) not in said
            assert "Traceback" not in said


def test_nothing_is_fetched_for_a_visitor(url: str):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.png"
        for meta in ({}, {"meta": {"_type": "gradio.FileData"}}):
            assert "event: error" in ask(url, "describe", [{"path": address, "url": address, **meta}, "en", False])
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1"])
def test_other_names_are_refused(url: str, host: str):
    assert httpx.get(url, headers={"Host": host}).status_code == 400


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://localhost.evil.example", "http://127.0.0.1:1"]
)
def test_pages_from_elsewhere_are_refused(url: str, origin: str):
    assert "refused" in ask(url, "ask", [None, "What?"], Origin=origin)
    own = url.removesuffix("/")
    assert "refused" not in ask(url, "ask", [None, "What?"], Origin=own)


def upload(url: str, data: bytes) -> dict:
    answer = httpx.post(f"{url}gradio_api/upload", files={"files": ("a.png", data, "image/png")})
    return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}


def test_a_huge_picture_is_refused_before_it_is_decoded_in_every_tab(url: str):
    bomb = upload(url, png_that_claims(13_000, 13_000))
    painted = {"background": bomb, "layers": [bomb], "composite": bomb}
    started = time.process_time()
    for name, data in (
        ("describe", [bomb, "en", False]),
        ("ask", [bomb, "What is this?"]),
        ("edit", [bomb, "make it blue", 2, 3, 1, 0]),
        ("fill", [painted, "", 3, 1, 0]),
    ):
        assert "too large: 13000 x 13000 pixels" in ask(url, name, data)
    assert time.process_time() - started < 2


def test_layers_are_counted(url: str):
    buffer = BytesIO()
    BLANK.save(buffer, "PNG")
    blank = upload(url, buffer.getvalue())
    said = ask(url, "fill", [{"background": blank, "layers": [blank] * 9, "composite": None}, "", 3, 1, 0])
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
        (["--port", "1x"], "argument --port: invalid int value: '1x'"),
    ],
)
def test_a_bad_model_or_port_is_one_line(options: list[str], message: str, tiny_folder: Path):
    model = [] if "--model" in options else ["--model", str(tiny_folder)]
    command = [sys.executable, "-m", "demo.app", *model, *options]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if not line.startswith("usage")]) == 1
