"""What the tests of the page share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from gradio.utils import get_upload_folder
from PIL import Image

from cm3 import CM3
from demo.page import build
from demo.stubs import remove_generated_stubs


@pytest.fixture(scope="session", autouse=True)
def no_stubs() -> Iterator[None]:
    yield
    remove_generated_stubs()


@pytest.fixture(scope="module")
def page(tiny: CM3) -> gr.Blocks:
    return build(tiny)


@pytest.fixture
def painting() -> dict[str, Any]:
    """What the editor gives: an image, and a layer of paint on nothing."""
    layer = Image.new("RGBA", (20, 20))
    layer.paste((255, 45, 149, 255), (4, 4, 8, 8))
    return {"background": Image.new("RGBA", (20, 20), "red"), "layers": [layer], "composite": layer}


@pytest.fixture
def uploads() -> Path:
    folder = Path(get_upload_folder()) / "tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
