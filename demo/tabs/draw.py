"""The tab "Draw": images from a prompt, row by row; with objects in boxes, or with the structure of another image. For
models that plan, with the plan, which can be changed and drawn again."""

from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

from cm3.engine.options import GenerateOptions, Size, Structure, about
from cm3.pipeline import CM3
from cm3.tokens.templates import Box
from demo import parts
from demo.boxes import Boxes
from demo.words import PROMPTS, Say

LIMITS = {name: int((about(GenerateOptions, name).slider or (1, 1, 1))[1]) for name in ("n", "best_of")}
DEFAULT_IMAGES = 4
MAX_HISTORY = 24  # images


def drawer(model: CM3, say: Say) -> Any:
    same_plan = [gr.skip()] if parts.plans(model) else []  # an output more

    def draw(
        prompt: str,
        n: float = DEFAULT_IMAGES,
        negative: str = "",
        best_of: float = GenerateOptions.best_of,
        guidance: float = GenerateOptions.guidance,
        falling: bool = False,
        temperature: float = GenerateOptions.temperature,
        top_p: float = GenerateOptions.top_p,
        dice: bool = True,
        seed: float = 0,
        boxes: list[tuple[str, Box]] | None = None,
        structure: Image.Image | None = None,
        kind: Structure = GenerateOptions.kind,
        history: list[Image.Image] | None = None,
        normalise: bool = GenerateOptions.normalise,
        size: Size = GenerateOptions.size,
        variety: float = GenerateOptions.variety,
        plan: str = "",
    ) -> Iterator[list[Any]]:
        """Generate images from a prompt.

        Args:
            prompt: in English or Arabic.
            n: how many images, 1 to 16.
            negative: the negative prompt.
            best_of: candidates for each image; the best is kept.
            guidance: guidance scale; 1 = off.
            falling: whether guidance falls from row to row.
            temperature: 0 = always the likeliest token.
            top_p: sample among the likeliest codes that together reach this probability.
            dice: whether to use a random seed.
            seed: the seed without `dice`.
            boxes: JSON, [{"name": "a cat", "box": [0.1, 0.2, 0.5, 0.6]}]: left, top, right, bottom as shares.
            structure: an image whose edges or areas are followed.
            kind: "edges" or "segments".
            history: earlier images.
            normalise: whether the prompt is normalised, "A CAT!" to "a cat".
            size: "usual", "small" or "large".
            variety: temperature of the plan that the model writes.
            plan: is drawn in place of the prompt and the boxes; "" = the model writes a plan.
        """
        plan = parts.checked_text(say, plan).strip()
        prompt = parts.checked_text(say, prompt, "" if boxes or plan else "no_prompt")
        negative = parts.checked_text(say, negative)
        n, best_of = int(n), int(best_of)
        if not 1 <= n <= LIMITS["n"] or not 1 <= best_of <= LIMITS["best_of"]:
            parts.mistake(say, "too_many", n=LIMITS["n"])
        seed, clock = parts.seed_of(dice, seed), parts.Clock()
        with parts.friendly(say):
            options = GenerateOptions(
                n=n,
                seed=seed,
                best_of=best_of,
                guidance=guidance,
                temperature=temperature,
                top_p=top_p,
                guidance_schedule="falling" if falling else "constant",
                boxes=None if plan else boxes or None,
                structure=structure,
                kind=kind,
                negative_prompt=negative.strip() or None,
                normalise=normalise,
                size=size,
                variety=variety,
                plan=plan or True,
            )
            job = model.jobs.generate(prompt, options)
            images: dict[int, Image.Image] = {}
            for index, content in parts.timed(model.stream(job)):
                if isinstance(content, str):
                    if index == 0:
                        yield [*[gr.skip()] * 5, seed, content]
                    continue
                images[index] = content
                rows = job.batch.shown.values() if job.batch else ()
                if index == max(rows, default=n - 1):  # every image that is being drawn has one more row
                    show = gr.update(value=parts.sheet(images.values()), visible=True)
                    yield [show, gr.update(visible=False), gr.skip(), gr.skip(), gr.skip(), seed, *same_plan]
            finished = job.result
        kept = [*finished, *(history or [])][:MAX_HISTORY]
        status = say("drawn", n=n, seconds=clock.seconds, seed=seed)
        if unknown := model.unknown_words(plan or prompt, normalise):
            status += " ⚠️ " + say("unknown", words=", ".join(unknown))
        shown = gr.update(value=parts.with_plans(finished), visible=True, selected_index=None)
        yield [gr.update(visible=False), shown, status, kept, parts.with_plans(kept), seed, *same_plan]

    return draw


def build(model: CM3, say: Say) -> parts.Tab:
    history = gr.State([])
    with gr.Row():
        prompt = parts.words_input(say("prompt"), say("draw"), "draw", PROMPTS[say.language][0])
        plan = parts.plan_input(model, say, "draw")
    parts.examples(say, PROMPTS[say.language], prompt)
    with gr.Row():
        with gr.Column(scale=4, min_width=300):
            preview = parts.preview()
            drawings = parts.gallery(say("images"), columns=2, elem_classes="drawings")
            with gr.Row():
                stop = parts.stop_button(say)
                status = gr.Markdown(elem_classes="status")
            earlier = parts.gallery(say("history"), columns=8, height=160, elem_classes="history")
        with gr.Column(scale=3, min_width=300):
            n = parts.slider(say, GenerateOptions, "n", DEFAULT_IMAGES)
            dice, seed = parts.seed_inputs(say)
            planning: list[Any] = []
            if plan is not None:
                size = parts.choice(say, GenerateOptions, "size")
                planning = [size, parts.slider(say, GenerateOptions, "variety")]
            with gr.Accordion(say("boxes"), open=False):
                boxes = Boxes(say)
            with gr.Accordion(say("more"), open=False):
                negative = gr.Textbox("", label=say("negative"), max_length=parts.MAX_TEXT)
                best_of = parts.slider(say, GenerateOptions, "best_of")
                guidance = parts.slider(say, GenerateOptions, "guidance")
                falling = gr.Checkbox(False, label=say("falling"))
                normalise = gr.Checkbox(GenerateOptions.normalise, label=say("normalise"))
                temperature = parts.slider(say, GenerateOptions, "temperature")
                top_p = parts.slider(say, GenerateOptions, "top_p")
                structure = parts.image_input(say("structure"), visible=plan is None)  # not of models that plan
                kind = parts.choice(say, GenerateOptions, "kind", visible=plan is None)
    if plan is not None:
        for one in (drawings, earlier):
            one.select(parts.selected_plan, None, plan, api_visibility="private", show_progress="hidden")
    parts.connect(
        say,
        prompt.submit,
        drawer(model, say),
        [
            *(prompt, n, negative, best_of, guidance, falling, temperature, top_p, dice, seed, boxes),
            *(structure, kind, history, normalise, *planning),
        ],
        [preview, drawings, status, history, earlier, seed],
        "draw",
        stop,
        status,
        plan,
    )
    return parts.Tab(galleries=(drawings, earlier))
