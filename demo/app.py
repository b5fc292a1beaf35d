"""A page to draw, describe and ask, on this machine only.

    python -m demo.app [--model emoji] [--port 7860]
"""

import argparse
import os
from collections.abc import Callable
from functools import wraps
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported

import gradio as gr

from cm3.pipeline import CM3

TITLE = "CM3leon"
ABOUT = (
    "# CM3leon\nOne small transformer draws pictures, describes them and answers questions about them, in English and "
    "Arabic. It has seen emoji art only. Click a drawing to describe it or ask about it."
)
PROMPTS = ["a red apple", "a yellow taxi", "a sunflower on a blue background", "broccoli, noto style", "قطة"]
QUESTIONS = ["What is this?", "What colour is it?", "What kind of thing is it?", "What style is it?", "ما هذا؟"]
CSS = ".picture img { width: 100%; height: 100%; object-fit: contain; }"  # small pictures are shown large
LANGUAGES = [("English", "en"), ("العربية", "ar")]


def friendly(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A user's mistake becomes a message on the page."""

    @wraps(handler)
    def call(*args: Any) -> Any:
        try:
            return handler(*args)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return call


def build(model: CM3) -> gr.Blocks:
    """The page; nothing is served yet."""

    @friendly
    def draw(prompt: str, n: int, guidance: float, temperature: float, top_p: float, seed: int) -> list[Any]:
        return list(model.generate(prompt, int(n), guidance, temperature, top_p, seed=int(seed or 0)))

    @friendly
    def describe(path: str | None, language: str) -> str:
        return model.caption(chosen(path), language)

    @friendly
    def ask(path: str | None, question: str) -> str:
        return model.answer(chosen(path), question)

    with gr.Blocks(title=TITLE) as page:
        gr.Markdown(ABOUT)
        with gr.Tab("Draw"), gr.Row():
            with gr.Column():
                prompt = gr.Textbox(label="What to draw", value=PROMPTS[0], submit_btn="Draw")
                gr.Examples([[text] for text in PROMPTS], prompt, label="Examples")
                n = gr.Slider(1, 16, 4, step=1, label="Pictures")
                with gr.Accordion("More", open=False):
                    guidance = gr.Slider(1, 10, 6, step=0.5, label="Guidance", info="How much the text counts")
                    temperature = gr.Slider(0, 2, 0.8, step=0.05, label="Temperature", info="0 = the likeliest")
                    top_p = gr.Slider(0.05, 1, 0.9, step=0.05, label="Top-p")
                    seed = gr.Number(0, precision=0, minimum=0, label="Seed", info="The same seed, the same pictures")
            gallery = gr.Gallery(label="Pictures", columns=2, height=560, format="png", interactive=False)
        with gr.Tab("Describe"), gr.Row():
            seen = picture_input()
            with gr.Column():
                language = gr.Radio(LANGUAGES, value="en", label="Language")
                describe_button = gr.Button("Describe", variant="primary")
                caption = gr.Textbox(label="Description", interactive=False)
        with gr.Tab("Ask"), gr.Row():
            asked = picture_input()
            with gr.Column():
                question = gr.Textbox(label="Question", value=QUESTIONS[0], submit_btn="Ask")
                gr.Examples([[text] for text in QUESTIONS], question, label="Examples")
                answer = gr.Textbox(label="Answer", interactive=False)

        prompt.submit(draw, [prompt, n, guidance, temperature, top_p, seed], gallery)
        gallery.select(clicked, None, [seen, asked])
        describe_button.click(describe, [seen, language], caption)
        question.submit(ask, [asked, question], answer)
    return page


def picture_input() -> gr.Image:
    """The file as it was uploaded: the pipeline reads it."""
    return gr.Image(
        label="Picture", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=360,
        elem_classes="picture",
    )  # fmt: skip


def chosen(path: str | None) -> str:
    if path is None:
        raise ValueError("Choose a picture first: upload one, or click a drawing.")
    return path


def clicked(event: gr.SelectData) -> tuple[str, str]:
    """A drawing that was clicked goes to both other tabs."""
    path = event.value["image"]["path"]
    return path, path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="an embedded model, a model folder, or a hub id")
    parser.add_argument("--port", type=int, help="the first free one from 7860 on if not given")
    options = parser.parse_args()
    page = build(CM3.from_pretrained(options.model))
    page.launch(server_name="127.0.0.1", server_port=options.port, show_error=True, css=CSS)


if __name__ == "__main__":
    main()
