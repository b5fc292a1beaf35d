"""The tab "Look inside": the codes of an image, and the probability of each token of text and image."""

import html
import math
from typing import Any

import gradio as gr
from PIL import Image

from cm3.pipeline import CM3
from cm3.tokens.document import Document, Text
from demo import parts
from demo.words import Say


def coloured(label: str, log_prob: float, way: str = "td") -> str:
    """A table cell or span with a token, coloured by its probability: white for 1, dark for small ones."""
    darkness = min(1.0, -log_prob / 12)
    style = f"background: rgb({255 - int(200 * darkness)}, {255 - int(150 * darkness)}, 255); color: black"
    title = f"{math.exp(log_prob):.2%} ({log_prob:.2f} nats)"
    return f'<{way} style="{style}" title="{title}">{html.escape(label)}</{way}>'


def looker(model: CM3, say: Say) -> Any:
    def look(image: Image.Image | None, words: str = "") -> tuple[Any, str, str]:
        """The image as the model sees it, its codes, and the probability of each token of text and image.

        Args:
            image: the image.
            words: a text before the image, or "".
        """
        shown = parts.chosen(say, image)
        words = parts.checked_text(say, words)
        vocab = model.vocab
        with parts.friendly(say):
            encoded = model.processor.encode(shown)
            score = model.score(Document((*([Text(words)] if words.strip() else []), encoded)))
        text, codes = [], []
        for id, log_prob in zip(score.ids.tolist(), score.log_probs.tolist(), strict=True):
            if vocab.is_text(id):
                text.append(coloured(model.text_tokenizer.decode([id - vocab.first_text]), log_prob, "span"))
            elif vocab.is_code(id):
                codes.append((id - vocab.first_code, log_prob))
        columns = encoded.grid[1]
        rows = [codes[i : i + columns] for i in range(0, len(codes), columns)]
        table = "".join(f"<tr>{''.join(coloured(str(code), log_prob) for code, log_prob in row)}</tr>" for row in rows)
        seen = model.image_tokenizer.decode(encoded.codes)
        return seen, f'<p class="tokens">{"".join(text)}</p>', f'<table class="codes" dir="ltr">{table}</table>'

    return look


def build(model: CM3, say: Say) -> parts.Tab:
    with gr.Row():
        with gr.Column(min_width=260):
            source = parts.image_input(say("source"))
            words = parts.words_input(say("words"), say("look"), "look")
        with gr.Column(min_width=260):
            seen = parts.image_output(say("seen"))
        with gr.Column(min_width=340):
            gr.Markdown(say("score"))
            tokens = gr.HTML()
            gr.Markdown(say("codes"))
            codes = gr.HTML(elem_classes="code-grid")
    parts.connect(say, words.submit, looker(model, say), [source, words], [seen, tokens, codes], "look")
    return parts.Tab(source)
