"""The tab "Fill in": inpainting of what is painted over."""

from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image, ImageChops

from cm3.engine.options import InfillOptions
from cm3.pipeline import CM3
from demo import parts
from demo.uploads import PaintedImage
from demo.words import Say


def image_and_mask(say: Say, painting: dict[str, Any] | None) -> tuple[Image.Image, Image.Image]:
    """The image below the paint, and a mask: white where there is paint."""
    if not painting or painting["background"] is None:
        parts.mistake(say, "no_image")
    image = painting["background"]
    mask = Image.new("L", image.size)
    for layer in painting["layers"]:
        mask = ImageChops.lighter(mask, layer.getchannel("A"))
    if not mask.getbbox():
        parts.mistake(say, "no_paint")
    return image, mask


def filler(model: CM3, say: Say) -> Any:
    def fill(
        painting: dict[str, Any] | None,
        words: str = "",
        guidance: float = InfillOptions.guidance,
        temperature: float = InfillOptions.temperature,
        dice: bool = True,
        seed: float = 0,
    ) -> Iterator[list[Any]]:
        """Inpaint the part that is painted over.

        Args:
            painting: the image as background, and layers of paint.
            words: what the image shows, or "".
            guidance: guidance scale; 1 = off.
            temperature: 0 = always the likeliest token.
            dice: whether to use a random seed.
            seed: the seed without `dice`.
        """
        image, mask = image_and_mask(say, painting)
        words = parts.checked_text(say, words)
        seed, clock, filled = parts.seed_of(dice, seed), parts.Clock(), None
        with parts.friendly(say):
            options = InfillOptions(guidance=guidance, temperature=temperature, seed=seed)
            for piece in parts.timed(model.stream(model.jobs.infill(image, mask, words, options))):
                filled = piece.content
                yield [gr.update(value=parts.sheet([filled]), visible=True), gr.skip(), gr.skip(), seed]  # pyright: ignore
        yield [gr.update(visible=False), filled, say("done", seconds=clock.seconds, seed=seed), seed]

    return fill


def build(model: CM3, say: Say) -> parts.Tab:
    with gr.Row():
        with gr.Column(min_width=300):
            painting = PaintedImage(
                label=say("painting"),
                type="pil",
                format="png",
                height=parts.HEIGHT + 100,
                sources=["upload", "clipboard"],
                brush=gr.Brush(default_size=6, colors=["#ff2d95"], color_mode="fixed"),
            )
        with gr.Column(min_width=260):
            preview = parts.preview()
            result = parts.image_output(say("filled"))
    words = parts.words_input(say("shows"), say("fill"), "fill")
    with gr.Row():
        stop = parts.stop_button(say)
        use = gr.Button(say("use_result"), size="sm", elem_classes="use-result")
        status = gr.Markdown(elem_classes="status")
    with gr.Accordion(say("more"), open=False), gr.Row():
        guidance = parts.slider(say, InfillOptions, "guidance")
        temperature = parts.slider(say, InfillOptions, "temperature")
        dice, seed = parts.seed_inputs(say)
    parts.connect(
        say,
        words.submit,
        filler(model, say),
        [painting, words, guidance, temperature, dice, seed],
        [preview, result, status, seed],
        "fill",
        stop,
        status,
    )
    return parts.Tab(painting, result, use)
