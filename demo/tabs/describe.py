"""The tab "Describe": captions of one image or several, in one language or both."""

from typing import Any, cast

import gradio as gr
from PIL import Image

from cm3.engine.options import CaptionOptions, Language
from cm3.pipeline import CM3
from demo import parts
from demo.uploads import UploadedFiles, opened, uploaded
from demo.words import LANGUAGES, Say

MAX_FILES = 32


def describer(model: CM3, say: Say) -> Any:
    def describe(
        image: Image.Image | None, files: list[str] | None = None, languages: str = "en", long: bool = False
    ) -> tuple[Any, list[list[str]]]:
        """Caption one image or several.

        Args:
            image: an image.
            files: more images.
            languages: "en", "ar" or "both".
            long: whether captions say where things are and name the background.
        """
        if len(files or []) > MAX_FILES:
            parts.mistake(say, "too_many", n=MAX_FILES)
        images = [] if image is None else [image]
        images += [opened(uploaded(file)) for file in files or []]
        if not images:
            parts.mistake(say, "no_image")
        chosen = LANGUAGES if languages == "both" else (cast(Language, languages),)
        with parts.friendly(say):
            captions = [
                model.run(model.jobs.caption(images, CaptionOptions(language=language, long=bool(long))))
                for language in chosen
            ]
        return parts.sheet(images), [[str(i + 1), *texts] for i, texts in enumerate(zip(*captions, strict=True))]

    return describe


def build(model: CM3, say: Say) -> parts.Tab:
    with gr.Row():
        with gr.Column(min_width=260):
            source = parts.image_input(say("source"))
            files = UploadedFiles(
                label=say("files"), file_count="multiple", file_types=["image"], height=120, elem_classes="files"
            )
        with gr.Column(min_width=300):
            choices = [("English", "en"), ("العربية", "ar"), (say("both"), "both")]
            languages = gr.Radio(choices, value=say.language, label=say("language"))
            long = gr.Checkbox(label=say("long"), info=say("long_info"))
            button = gr.Button(say("describe"), variant="primary", elem_classes="describe-button")
            shown = gr.HTML(elem_classes="described")
            table = gr.Dataframe(
                label=say("description"),
                headers=["", say("description"), say("description")],
                wrap=True,
                interactive=False,
                column_count=3,
                elem_classes="descriptions",
            )
    parts.connect(
        say, button.click, describer(model, say), [source, files, languages, long], [shown, table], "describe"
    )
    return parts.Tab(source)
