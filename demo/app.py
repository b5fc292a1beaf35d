"""A page to draw, edit, fill in, describe and ask, on this machine only.

python -m demo.app [--model emoji] [--port 7860]
"""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr
from PIL import Image, ImageChops

from cm3.options import EDIT, GENERATE, INFILL
from cm3.pipeline import CM3
from demo.doors import DOORS
from demo.uploads import MAX_BYTES, NOT_UPLOADED, PaintedImage, UploadedImage, uploaded

TITLE = "CM3leon"
ABOUT = (
    "# CM3leon\nOne small transformer draws pictures, changes them, describes them and answers questions about them, "
    "in English and Arabic. It has seen emoji art only. Click a drawing to take it to the other tabs."
)
PROMPTS = ["a red apple", "a yellow taxi", "a sunflower on a blue background", "broccoli, noto style", "قطة"]
INSTRUCTIONS = ["make it blue", "make the background yellow", "add a cat at the top left", "اجعل الخلفية زرقاء"]
QUESTIONS = ["What is this?", "What colour is it?", "What kind of thing is it?", "What style is it?", "ما هذا؟"]
CSS = ".picture img { width: 100%; height: 100%; object-fit: contain; }"  # small pictures are shown large
LANGUAGES = [("English", "en"), ("العربية", "ar")]
SEEN = "What the model sees"
HEIGHT = 420  # of a picture that is worked on, in pixels


@contextmanager
def friendly() -> Iterator[None]:
    """A user's mistake becomes a message on the page."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error


def build(model: CM3) -> gr.Blocks:
    """The page; nothing is served yet."""

    def draw(
        prompt: str, n: int, best_of: int, guidance: float, temperature: float, top_p: float, seed: int
    ) -> Iterator[list[Any]]:
        n, settings = int(n), (guidance, temperature, top_p)
        with friendly():
            if best_of > 1:
                yield list(model.generate(prompt, n, *settings, seed=int(seed or 0), best_of=int(best_of)))
                return
            pictures = {}
            for index, picture in model.stream("generate", prompt, n, *settings, seed=int(seed or 0)):
                pictures[index] = picture
                if index == n - 1:  # all have one more row
                    yield list(pictures.values())

    def edit(
        picture: Image.Image | None,
        instruction: str,
        image_guidance: float,
        text_guidance: float,
        temperature: float,
        seed: int,
    ) -> Iterator[Any]:
        settings = (image_guidance, text_guidance, temperature)
        with friendly():
            for piece in model.stream("edit", chosen(picture), instruction, *settings, seed=int(seed or 0)):
                yield piece.content

    def fill(
        painting: dict[str, Any] | None, prompt: str, guidance: float, temperature: float, seed: int
    ) -> Iterator[Any]:
        with friendly():
            picture, mask = taken_apart(painting)
            for piece in model.stream("infill", picture, mask, prompt, 1, guidance, temperature, seed=int(seed or 0)):
                yield piece.content

    @friendly()
    def describe(picture: Image.Image | None, language: str, long: bool) -> str:
        return model.caption(chosen(picture), language, long=long)

    @friendly()
    def ask(picture: Image.Image | None, question: str) -> str:
        return model.answer(chosen(picture), question)

    def look(picture: Image.Image | None) -> Any:
        """What the model sees of a picture: its middle, as its codes have it."""
        return None if picture is None else model.image_tokenizer.decode(model.image_tokenizer.encode(picture))

    with gr.Blocks(title=TITLE) as page:
        drawing = gr.State()  # that was clicked and is not yet in the editor
        gr.Markdown(ABOUT)
        with gr.Tab("Draw"), gr.Row():
            with gr.Column():
                prompt = gr.Textbox(label="What to draw", value=PROMPTS[0], submit_btn="Draw")
                gr.Examples([[text] for text in PROMPTS], prompt, label="Examples")
                n = gr.Slider(1, 16, 4, step=1, label="Pictures")
                best_of = gr.Slider(
                    1,
                    4,
                    1,
                    step=1,
                    label="Best of",
                    info="Draw so many for each picture, keep what fits the words best",
                )
                with gr.Accordion("More", open=False):
                    guidance = gr.Slider(
                        1, 10, GENERATE.guidance, step=0.5, label="Guidance", info="How much the text counts"
                    )
                    temperature = temperature_input()
                    top_p = gr.Slider(0.05, 1, GENERATE.top_p, step=0.05, label="Top-p")
                    seed = seed_input()
            gallery = gr.Gallery(label="Pictures", columns=2, height=560, format="png", interactive=False)
        with gr.Tab("Edit"):
            with gr.Row():
                source = picture_input()
                source_seen = picture_output(SEEN)
                edited = picture_output("Edited")
            instruction = gr.Textbox(label="What to change", value=INSTRUCTIONS[0], submit_btn="Edit")
            gr.Examples([[text] for text in INSTRUCTIONS], instruction, label="Examples")
            with gr.Row():
                image_guidance = gr.Slider(
                    0,
                    5,
                    EDIT.image_guidance,
                    step=0.25,
                    label="Guidance by the picture",
                    info="How much stays as it is",
                )
                text_guidance = gr.Slider(
                    0,
                    10,
                    EDIT.text_guidance,
                    step=0.5,
                    label="Guidance by the words",
                    info="How much the instruction counts",
                )
            with gr.Accordion("More", open=False), gr.Row():
                edit_temperature, edit_seed = temperature_input(), seed_input()
        with gr.Tab("Fill in") as fill_tab:
            with gr.Row():
                painting = PaintedImage(
                    label="Picture: paint over what is to be redrawn",
                    type="pil",
                    format="png",
                    height=HEIGHT + 100,
                    sources=["upload", "clipboard"],
                    brush=gr.Brush(default_size=6, colors=["#ff2d95"], color_mode="fixed"),
                )
                filled = picture_output("Filled in")
            words = gr.Textbox(label="What the picture shows (may be empty)", submit_btn="Fill in")
            with gr.Accordion("More", open=False), gr.Row():
                fill_guidance = gr.Slider(
                    0, 10, INFILL.guidance, step=0.5, label="Guidance", info="How much the text counts"
                )
                fill_temperature, fill_seed = temperature_input(), seed_input()
        with gr.Tab("Describe"), gr.Row():
            described = picture_input()
            described_seen = picture_output(SEEN)
            with gr.Column():
                language = gr.Radio(LANGUAGES, value="en", label="Language")
                long = gr.Checkbox(label="At length", info="Say also where, and on what")
                describe_button = gr.Button("Describe", variant="primary")
                caption = gr.Textbox(label="Description", interactive=False)
        with gr.Tab("Ask"), gr.Row():
            asked = picture_input()
            asked_seen = picture_output(SEEN)
            with gr.Column():
                question = gr.Textbox(label="Question", value=QUESTIONS[0], submit_btn="Ask")
                gr.Examples([[text] for text in QUESTIONS], question, label="Examples")
                answer = gr.Textbox(label="Answer", interactive=False)

        prompt.submit(draw, [prompt, n, best_of, guidance, temperature, top_p, seed], gallery)
        gallery.select(clicked, None, [source, described, asked, drawing])
        fill_tab.select(handed_over, drawing, [painting, drawing])  # the editor takes a picture only while it is seen
        for picture, shown in ((source, source_seen), (described, described_seen), (asked, asked_seen)):
            picture.change(look, picture, shown, show_progress="hidden")
        scales = [image_guidance, text_guidance]
        instruction.submit(edit, [source, instruction, *scales, edit_temperature, edit_seed], edited)
        words.submit(fill, [painting, words, fill_guidance, fill_temperature, fill_seed], filled)
        describe_button.click(describe, [described, language, long], caption)
        question.submit(ask, [asked, question], answer)
    return page


def picture_input() -> UploadedImage:
    """The picture as it is: the pipeline crops and scales it."""
    return UploadedImage(
        label="Picture",
        type="pil",
        image_mode=None,
        sources=["upload", "clipboard"],
        height=HEIGHT,
        elem_classes="picture",
    )


def picture_output(label: str) -> gr.Image:
    return gr.Image(label=label, type="pil", format="png", interactive=False, height=HEIGHT, elem_classes="picture")


def temperature_input() -> gr.Slider:
    return gr.Slider(0, 2, GENERATE.temperature, step=0.05, label="Temperature", info="0 = the likeliest")


def seed_input() -> gr.Number:
    return gr.Number(0, precision=0, minimum=0, label="Seed", info="The same seed, the same picture")


def chosen(picture: Image.Image | None) -> Image.Image:
    if picture is None:
        raise ValueError("Choose a picture first: upload one, or click a drawing.")
    return picture


def taken_apart(painting: dict[str, Any] | None) -> tuple[Image.Image, Image.Image]:
    """The picture below the paint, and a mask: white where there is paint."""
    if not painting or painting["background"] is None:
        raise ValueError("Choose a picture first: upload one, or click a drawing.")
    picture = painting["background"]
    mask = Image.new("L", picture.size)
    for layer in painting["layers"]:
        mask = ImageChops.lighter(mask, layer.getchannel("A"))
    if not mask.getbbox():
        raise ValueError("Paint over what is to be redrawn first.")
    return picture, mask


def clicked(event: gr.SelectData) -> tuple[str, ...]:
    """A drawing that was clicked goes to all other tabs. What was clicked is what the request says: it is looked at."""
    try:
        path = event.value["image"]["path"]
    except (KeyError, TypeError):
        raise gr.Error(NOT_UPLOADED, print_exception=False) from None
    return (str(uploaded(path)),) * 4


def handed_over(path: str | None) -> Any:
    """A clicked drawing goes to the editor once, and what was painted there stays else."""
    return gr.skip() if path is None else (path, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="an embedded model, a model folder, or a hub id")
    parser.add_argument("--port", type=int, help="the first free one from 7860 on if not given")
    options = parser.parse_args()
    try:
        page = build(CM3.from_pretrained(options.model))
        serve(page, options.port)
    except (OSError, ValueError, OverflowError) as error:
        raise SystemExit(f"demo: {' '.join(str(error).split())}") from None


def serve(page: gr.Blocks, port: int | None = None, **options: Any) -> tuple[Any, str, str]:
    """Serve the page to this machine; as gr.Blocks.launch. What goes wrong inside is told to no visitor."""
    return page.launch(
        server_name="127.0.0.1",
        server_port=port,
        show_error=False,
        css=CSS,
        max_file_size=MAX_BYTES,
        app_kwargs={"middleware": DOORS},
        **options,
    )


if __name__ == "__main__":
    main()
