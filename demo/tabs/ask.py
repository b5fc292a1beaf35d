"""Ask: questions about a picture; what was asked before stays in sight."""

from typing import Any

import gradio as gr
from PIL import Image

from cm3.pipeline import CM3
from demo import parts
from demo.words import QUESTIONS, Say

MAX_TURNS = 50


def asker(model: CM3, say: Say) -> Any:
    def ask(
        picture: Image.Image | None, question: str, chat: list[dict[str, Any]] | None = None
    ) -> tuple[str, list[dict[str, Any]]]:
        """Ask a question about a picture.

        Args:
            picture: what is asked about.
            question: in English or Arabic.
            chat: earlier questions and answers.
        """
        shown = parts.chosen(say, picture)
        parts.checked_text(say, question, "no_question")
        with parts.friendly(say):
            answer = model.answer(shown, question)
        turn = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return "", [*(chat or []), *turn][-2 * MAX_TURNS :]

    return ask


def build(model: CM3, say: Say) -> parts.Tab:
    with gr.Row():
        with gr.Column(min_width=260):
            source = parts.picture_input(say("source"))
        with gr.Column(scale=2, min_width=300):
            chat = gr.Chatbot(label=say("chat"), height=parts.HEIGHT, render_markdown=False, elem_classes="chat")
            question = parts.words_input(say("question"), say("ask"), "ask", QUESTIONS[say.language][0])
            parts.examples(say, QUESTIONS[say.language], question)
    parts.connect(say, question.submit, asker(model, say), [source, question, chat], [question, chat], "ask")
    source.change(lambda: [], None, chat, api_visibility="private")  # another picture, another conversation
    return parts.Tab(source)
