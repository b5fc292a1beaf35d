"""The tab "Document": text and images. The model fills in the gaps, or continues without gaps."""

import re
from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

from cm3.engine.options import CompleteOptions
from cm3.pipeline import CM3
from cm3.tokens.document import Document, Item, Mask, Text
from demo import parts
from demo.words import STARTS, Say

GAP = re.compile(r"_{3,}")


def document_of(model: CM3, text: str, image: Image.Image | None) -> Document:
    """The document of a text with gaps and an image after it."""
    items: list[Item] = []
    for i, words in enumerate(GAP.split(text)):
        items += [*([Mask()] if i else []), *([Text(words)] if words else [])]
    return Document((*items, *([] if image is None else [model.processor.encode(image)])))


def writer(model: CM3, say: Say) -> Any:
    def write(
        text: str,
        image: Image.Image | None = None,
        temperature: float = CompleteOptions.temperature,
        dice: bool = True,
        seed: float = 0,
    ) -> Iterator[tuple[str, str, int]]:
        """Fill in or continue a document of text and images.

        Args:
            text: its beginning, with ___ where text is to be filled in.
            image: an image after the text, or none.
            temperature: 0 = always the likeliest token.
            dice: whether to use a random seed.
            seed: the seed without `dice`.
        """
        text = parts.checked_text(say, text)
        if not text.strip() and image is None:
            parts.mistake(say, "no_start")
        seed, clock = parts.seed_of(dice, seed), parts.Clock()
        before: list[str | Image.Image] = [*([text] if text.strip() else []), *([image] if image else [])]
        written: dict[int, str | Image.Image] = {}
        with parts.friendly(say):
            document = document_of(model, text, image)
            options = CompleteOptions(temperature=temperature, seed=seed)
            for index, content in parts.timed(model.stream(model.jobs.complete(document, options))):
                so_far = written.get(index, "")
                written[index] = so_far + content if isinstance(content, str) and isinstance(so_far, str) else content
                yield parts.paragraphs([*before, *written.values()]), "", seed
        yield parts.paragraphs([*before, *written.values()]), say("done", seconds=clock.seconds, seed=seed), seed

    return write


def build(model: CM3, say: Say) -> parts.Tab:
    with gr.Row():
        with gr.Column(min_width=260):
            text = parts.words_input(
                say("start"), say("go_on"), "write", STARTS[say.language][0], info=say("start_info")
            )
            parts.examples(say, STARTS[say.language], text)
            source = parts.image_input(say("then_image"))
            temperature = parts.slider(say, CompleteOptions, "temperature")
            dice, seed = parts.seed_inputs(say)
        with gr.Column(min_width=260):
            stop = parts.stop_button(say)
            written = gr.HTML(elem_classes="written")
            status = gr.Markdown(elem_classes="status")
    parts.connect(
        say,
        text.submit,
        writer(model, say),
        [text, source, temperature, dice, seed],
        [written, status, seed],
        "write",
        stop,
        status,
    )
    return parts.Tab(source)
