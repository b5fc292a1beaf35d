"""The page: what it holds, what its buttons do, and that it is served to this machine."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from cm3 import CM3
from demo.app import build, clicked


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


def test_the_page_has_three_tabs(page: gr.Blocks):
    assert [block.label for block in page.blocks.values() if isinstance(block, gr.Tab)] == ["Draw", "Describe", "Ask"]


def test_buttons_do_what_the_pipeline_does(handlers: dict[str, Callable], tiny: CM3, picture: str):
    drawn = handlers["draw"]("a red apple", 2, 3, 1, 0.95, 7)
    expected = tiny.generate("a red apple", 2, 3, 1, 0.95, seed=7)
    assert [image.tobytes() for image in drawn] == [image.tobytes() for image in expected]
    assert handlers["describe"](picture, "ar") == tiny.caption(picture, "ar")
    assert handlers["ask"](picture, "What is this?") == tiny.answer(picture, "What is this?")


def test_a_clicked_drawing_goes_to_the_other_tabs():
    assert clicked(SimpleNamespace(value={"image": {"path": "a.png"}})) == ("a.png", "a.png")  # pyright: ignore


@pytest.mark.parametrize(
    ("button", "values", "message"),
    [
        ("draw", (" ", 1, 3, 1, 0.95, 0), "prompt is empty"),
        ("draw", ("apple " * 500, 1, 3, 1, 0.95, 0), "leaves no room"),
        ("describe", (None, "en"), "Choose a picture first"),
        ("describe", ("notes.txt", "en"), "notes.txt: cannot be read"),
        ("ask", (None, "What?"), "Choose a picture first"),
        ("ask", ("red.png", ""), "question is empty"),
    ],
)
def test_a_mistake_is_a_message_on_the_page(handlers, picture, monkeypatch, button: str, values: tuple, message: str):
    monkeypatch.chdir(Path(picture).parent)
    with pytest.raises(gr.Error) as error:
        handlers[button](*values)
    assert message in error.value.message


def test_it_answers_on_this_machine(page: gr.Blocks, tiny: CM3, picture: str):
    _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    try:
        client = Client(url, verbose=False)
        assert client.predict(handle_file(picture), "en", api_name="/describe") == tiny.caption(picture)
        drawn = client.predict("a red apple", 2, 3, 1, 0.95, 7, api_name="/draw")
        assert [Image.open(item["image"]).size for item in drawn] == [(16, 16)] * 2
    finally:
        page.close()
