"""The tab "Edit": an image and an instruction; the source and the result under one slider. For models
that plan, with the plan of the result, which can be changed and used again."""

from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

from cm3.engine.options import EditOptions
from cm3.pipeline import CM3
from demo import parts
from demo.words import INSTRUCTIONS, Say


def editor(model: CM3, say: Say) -> Any:
    same_plan = [gr.skip()] if parts.plans(model) else []  # an output more

    def edit(
        image: Image.Image | None,
        instruction: str,
        image_guidance: float = EditOptions.image_guidance,
        text_guidance: float = EditOptions.text_guidance,
        temperature: float = EditOptions.temperature,
        dice: bool = True,
        seed: float = 0,
        plan: str = "",
    ) -> Iterator[list[Any]]:
        """Edit an image.

        Args:
            image: the image.
            instruction: what to change, in English or Arabic.
            image_guidance: how much of the image is kept.
            text_guidance: how much the instruction counts.
            temperature: 0 = always the likeliest token.
            dice: whether to use a random seed.
            seed: the seed without `dice`.
            plan: what the result shows, in place of what the instruction says; "" = the model plans.
        """
        source = parts.chosen(say, image)
        parts.checked_text(say, instruction, "no_instruction")
        plan = parts.checked_text(say, plan).strip()
        seed, clock = parts.seed_of(dice, seed), parts.Clock()
        with parts.friendly(say):
            options = EditOptions(
                image_guidance=image_guidance,
                text_guidance=text_guidance,
                temperature=temperature,
                seed=seed,
                plan=plan or None,
            )
            job = model.jobs.edit(source, instruction, options)
            for _, content in parts.timed(model.stream(job)):
                if isinstance(content, str):
                    yield [*[gr.skip()] * 4, seed, content]
                    continue
                show = gr.update(value=parts.sheet([content]), visible=True)
                yield [show, gr.skip(), gr.skip(), gr.skip(), seed, *same_plan]
            edited = job.result
        before = model.image_tokenizer.decode(model.image_tokenizer.encode(source)).resize(edited.size)  # pyright: ignore
        done = say("done", seconds=clock.seconds, seed=seed)
        yield [gr.update(visible=False), (before, edited), edited, done, seed, *same_plan]

    return edit


def build(model: CM3, say: Say) -> parts.Tab:
    with gr.Row():
        with gr.Column(min_width=260):
            source = parts.image_input(say("source"))
        with gr.Column(min_width=260):
            preview = parts.preview()
            slider = gr.ImageSlider(
                label=say("edited"),
                type="pil",
                format="png",
                interactive=False,
                height=parts.HEIGHT,
                elem_classes="whole-image",
            )
            result = gr.Image(visible="hidden", type="pil", format="png")  # for the other tabs
    with gr.Row():
        instruction = parts.words_input(say("instruction"), say("edit"), "edit", INSTRUCTIONS[say.language][0])
        plan = parts.plan_input(model, say, "edit")
    with gr.Row():
        stop = parts.stop_button(say)
        use = gr.Button(say("use_result"), size="sm", elem_classes="use-result")
        status = gr.Markdown(elem_classes="status")
    parts.examples(say, INSTRUCTIONS[say.language], instruction)
    with gr.Row():
        image_guidance = parts.slider(say, EditOptions, "image_guidance")
        text_guidance = parts.slider(say, EditOptions, "text_guidance")
    with gr.Accordion(say("more"), open=False), gr.Row():
        temperature = parts.slider(say, EditOptions, "temperature")
        dice, seed = parts.seed_inputs(say)
    parts.connect(
        say,
        instruction.submit,
        editor(model, say),
        [source, instruction, image_guidance, text_guidance, temperature, dice, seed],
        [preview, slider, result, status, seed],
        "edit",
        stop,
        status,
        plan,
    )
    return parts.Tab(source, result, use)
