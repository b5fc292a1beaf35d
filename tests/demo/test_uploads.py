"""What a visitor sends, and what the page says of it."""

from io import BytesIO

import gradio as gr
import pytest
from PIL import Image

from demo.uploads import opened


def test_a_visitor_is_not_told_to_raise_what_only_the_host_can():
    file = BytesIO()
    Image.new("1", (4_001, 4_000)).save(file, "PNG")
    with pytest.raises(gr.Error) as error:
        opened(file.getvalue())
    said = "the image: too large: 4001 x 4000 pixels, the limit is 16,000,000; scale it down first"
    assert error.value.message == said
