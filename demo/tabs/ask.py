"""The tab "Ask": questions about an image. The page shows the conversation, and the model reads the end of it."""

from typing import Any

import gradio as gr
from PIL import Image

from cm3.pipeline import CM3
from demo import parts
from demo.words import QUESTIONS, Say

MAX_TURNS = 50


def text_of(turn: dict[str, Any]) -> str:
    """The text of a message, which gradio gives as a string or in parts."""
    content = turn.get("content")
    found = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in found]
    return " ".join(text for text in texts if isinstance(text, str))[: parts.MAX_TEXT].strip()


def asker(model: CM3, say: Say) -> Any:
    def ask(
        image: Image.Image | None, question: str, chat: list[dict[str, Any]] | None = None
    ) -> tuple[str, list[dict[str, Any]]]:
        """Ask a question about an image.

        Args:
            image: the image.
            question: in English or Arabic.
            chat: earlier questions and answers.
        """
        shown = parts.chosen(say, image)
        parts.checked_text(say, question, "no_question")
        texts = [text_of(turn) for turn in (chat or [])[-2 * MAX_TURNS :]]
        before = [turn for turn in zip(texts[::2], texts[1::2], strict=False) if all(turn)]
        with parts.friendly(say):
            answer = model.answer(shown, question, history=before)
        turn = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return "", [*(chat or []), *turn][-2 * MAX_TURNS :]

    return ask


def build(model: CM3, say: Say) -> parts.Tab:
    with gr.Row():
        with gr.Column(min_width=260):
            source = parts.image_input(say("source"))
        with gr.Column(scale=2, min_width=300):
            chat = gr.Chatbot(label=say("chat"), height=parts.HEIGHT, render_markdown=False, elem_classes="chat")
            question = parts.words_input(say("question"), say("ask"), "ask", QUESTIONS[say.language][0])
            parts.examples(say, QUESTIONS[say.language], question)
    parts.connect(say, question.submit, asker(model, say), [source, question, chat], [question, chat], "ask")
    source.change(lambda: [], None, chat, api_visibility="private")  # a new image begins a new conversation
    return parts.Tab(source)
