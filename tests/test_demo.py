"""The page: what it holds, what its buttons do, and that it is served to this machine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from cm3 import CM3
from demo.app import build, clicked, handed_over

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


def test_a_clicked_drawing_goes_to_the_other_tabs():
    assert clicked(SimpleNamespace(value={"image": {"path": "a.png"}})) == ("a.png",) * 4  # pyright: ignore
    assert handed_over("a.png") == ("a.png", None)
    assert handed_over(None) == gr.skip()


@pytest.mark.parametrize(
    ("button", "values", "message"),
    [
        ("draw", (" ", 1, 1, 3, 1, 0.95, 0), "prompt is empty"),
        ("draw", ("apple " * 500, 1, 1, 3, 1, 0.95, 0), "leaves no room"),
        ("edit", (None, "make it blue", 2, 3, 1, 0), "Choose a picture first"),
        ("edit", ("red.png", " ", 2, 3, 1, 0), "instruction is empty"),
        ("edit", ("notes.txt", "make it blue", 2, 3, 1, 0), "notes.txt: cannot be read"),
        ("fill", (None, "", 3, 1, 0), "Choose a picture first"),
        ("fill", ({"background": None, "layers": []}, "", 3, 1, 0), "Choose a picture first"),
        ("fill", ({"background": BLANK, "layers": []}, "", 3, 1, 0), "Paint over what is to be redrawn first"),
        ("fill", ({"background": BLANK, "layers": [BLANK]}, "", 3, 1, 0), "Paint over what is to be redrawn first"),
        ("describe", (None, "en", False), "Choose a picture first"),
        ("describe", ("notes.txt", "en", False), "notes.txt: cannot be read"),
        ("ask", (None, "What?"), "Choose a picture first"),
        ("ask", ("red.png", ""), "question is empty"),
    ],
)
def test_a_mistake_is_a_message_on_the_page(handlers, picture, monkeypatch, button: str, values: tuple, message: str):
    monkeypatch.chdir(Path(picture).parent)
    with pytest.raises(gr.Error) as error:
        list(handlers[button](*values))
    assert message in error.value.message


def test_it_answers_on_this_machine(page: gr.Blocks, tiny: CM3, picture: str):
    _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    try:
        client = Client(url, verbose=False)
        assert client.predict(handle_file(picture), "en", False, api_name="/describe") == tiny.caption(picture)
        drawn = client.submit("a red apple", 2, 1, 3, 1, 0.95, 7, api_name="/draw")
        drawn.result()
        drawn = drawn.outputs()[-1]
        assert [Image.open(item["image"]).size for item in drawn] == [(16, 16)] * 2
    finally:
        page.close()
