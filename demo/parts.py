"""Parts that several tabs use: inputs, outputs, sliders, seeds, stop buttons, and messages for mistakes."""

import html
import random
import time
from base64 import b64encode
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from io import BytesIO
from typing import Any, NoReturn, get_args

import gradio as gr
from PIL import Image

from cm3.engine.options import Options, about
from cm3.pipeline import CM3
from cm3.serving.admission import Ticket, TimedOut
from cm3.tasks.job import Piece
from demo.uploads import UploadedImage
from demo.words import Say

HEIGHT = 340  # of an image, in pixels
MAX_TEXT = 500  # characters
MAX_SECONDS = 60.0  # of one request
MAX_SEED = 2**31


def mistake(say: Say, key: str, **values: object) -> NoReturn:
    """Show the page's message for a mistake."""
    raise gr.Error(say(key, **values), print_exception=False)


@contextmanager
def friendly(say: Say) -> Iterator[None]:
    """Turn the errors of the pipeline into messages on the page."""
    try:
        yield
    except TimedOut:
        mistake(say, "too_slow", n=int(MAX_SECONDS))
    except (ValueError, TypeError) as error:
        raise gr.Error(say("failed", error=error), print_exception=False) from error


def timed(pieces: Generator[Piece]) -> Generator[Piece]:
    """Yield the pieces for at most MAX_SECONDS. Closing the generator stops the model."""
    return Ticket(MAX_SECONDS).watch(pieces)


def checked_text(say: Say, text: str | None, empty: str = "") -> str:
    """Check a text and return it.

    Args:
        say: the texts of the page.
        text: the text.
        empty: key of the message if it is empty; "" allows that.

    Raises:
        gr.Error: the text is empty or too long.
    """
    if len(text or "") > MAX_TEXT:
        mistake(say, "too_long", n=MAX_TEXT)
    if empty and not (text or "").strip():
        mistake(say, empty)
    return text or ""


def chosen(say: Say, image: Image.Image | None) -> Image.Image:
    """The image, or a message if there is none."""
    if image is None:
        mistake(say, "no_image")
    return image


def seed_of(dice: bool, seed: float | None) -> int:
    """A random seed with `dice`, the given seed without."""
    return random.randrange(MAX_SEED) if dice else int(seed or 0)


@dataclass(frozen=True)
class Tab:
    """The parts of a tab that the other tabs use.

    Attributes:
        source: the input that takes an image.
        result: the image that the tab makes.
        use: the button that takes the result to the other tabs.
        galleries: galleries whose images can be taken.
    """

    source: Any = None
    result: gr.Image | None = None
    use: gr.Button | None = None
    galleries: tuple[gr.Gallery, ...] = ()


class Clock:
    """Measures seconds."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start


def tag(image: Image.Image) -> str:
    """An <img> with the image inside, so that a partial image is never a file."""
    data = BytesIO()
    image.save(data, "PNG", compress_level=1)
    return f'<img alt="" src="data:image/png;base64,{b64encode(data.getvalue()).decode()}">'


def sheet(images: Iterable[Image.Image]) -> str:
    """Images in a grid, as HTML."""
    return f'<div class="sheet">{"".join(map(tag, images))}</div>'


def paragraphs(items: Iterable[str | Image.Image]) -> str:
    """Texts and images in their order, as HTML."""
    parts = (tag(item) if isinstance(item, Image.Image) else f"<p>{html.escape(item)}</p>" for item in items)
    return f'<div class="document">{"".join(parts)}</div>'


def image_input(label: str, visible: bool = True) -> UploadedImage:
    """An input for an image. The pipeline crops and scales it."""
    return UploadedImage(
        label=label,
        type="pil",
        image_mode=None,
        sources=["upload", "clipboard"],
        height=HEIGHT,
        visible=visible,
        elem_classes="whole-image",
    )


def image_output(label: str) -> gr.Image:
    return gr.Image(label=label, type="pil", format="png", interactive=False, height=HEIGHT, elem_classes="whole-image")


def words_input(label: str, button: str, name: str, value: str = "", **more: Any) -> gr.Textbox:
    """A text field with the button that sends it. `name` is part of its CSS class."""
    return gr.Textbox(value, label=label, submit_btn=button, max_length=MAX_TEXT, elem_classes=f"{name}-words", **more)


def gallery(label: str, **options: Any) -> gr.Gallery:
    settings: dict[str, Any] = {"format": "png", "interactive": False, "object_fit": "contain", **options}
    return gr.Gallery(label=label, **settings)


def preview() -> gr.HTML:
    return gr.HTML(visible=False, elem_classes="preview")


def slider(say: Say, options: type[Options], name: str, value: float | None = None) -> gr.Slider:
    """A slider with the default and the range of an option.

    Args:
        say: the texts of the page. They have the option's name, and may have `name_info`.
        options: the options class.
        name: of its field.
        value: replaces the option's default.
    """
    low, high, step = about(options, name).slider or (0, 1, 0.05)
    info = say(f"{name}_info") if say.has(f"{name}_info") else None
    return gr.Slider(
        low, high, getattr(options, name) if value is None else value, step=step, label=say(name), info=info
    )


def choice(say: Say, options: type[Options], name: str, **more: Any) -> gr.Radio:
    """A choice with the default and the values of an option. Arguments as for `slider`; the page has a text for each
    value."""
    [values] = [get_args(one.type) for one in fields(options) if one.name == name]
    info = say(f"{name}_info") if say.has(f"{name}_info") else None
    return gr.Radio(
        [(say(one), one) for one in values], value=getattr(options, name), label=say(name), info=info, **more
    )


def plans(model: CM3) -> bool:
    """Whether the model writes a plan before it draws."""
    return model.jobs.planning is not None


def plan_input(model: CM3, say: Say, name: str) -> gr.Textbox | None:
    """A field that shows the plan of an image, with a button that uses the plan in it; None where the model does not
    plan. `name`: "draw" or "edit"."""
    if not plans(model):
        return None
    more = {"placeholder": say("plan_info"), "min_width": 280}  # so wide that it is below the prompt on a phone
    return words_input(say("plan"), say(f"{name}_plan"), f"{name}-plan", **more)


def with_plans(images: Iterable[Image.Image]) -> list[Any]:
    """Images for a gallery, each with its plan as the caption where it has one."""
    return [(image, image.info["plan"]) if "plan" in image.info else image for image in images]


def selected_plan(event: gr.SelectData) -> Any:
    """The plan of the image that was clicked in a gallery. Without one, the field keeps its content."""
    plan = event.value.get("caption") if isinstance(event.value, dict) else None
    return plan if isinstance(plan, str) else gr.skip()


def seed_inputs(say: Say) -> tuple[gr.Checkbox, gr.Number]:
    """A checkbox for a random seed, and the seed that is used without it."""
    dice = gr.Checkbox(True, label=say("dice"))
    return dice, gr.Number(0, precision=0, minimum=0, maximum=MAX_SEED, label=say("seed"), info=say("seed_info"))


def examples(say: Say, texts: Sequence[str], box: gr.Textbox) -> None:
    gr.Examples([[text] for text in texts], box, label=say("examples"))


def stop_button(say: Say) -> gr.Button:
    return gr.Button("■ " + say("stop"), variant="stop", size="sm", scale=0, min_width=120)


def connect(
    say: Say,
    trigger: Callable[..., Any],
    work: Callable[..., Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    name: str,
    stop: gr.Button | None = None,
    status: Any = None,
    plan: gr.Textbox | None = None,
) -> None:
    """Run a function when an event occurs.

    Args:
        say: the texts of the page.
        trigger: the event.
        work: the function.
        inputs: its inputs.
        outputs: what it returns.
        name: of the API endpoint, which the English page has.
        stop: a button that cancels it.
        status: shows that it was cancelled.
        plan: the last input and output, if there is one. Its own button passes on what is in it, and the trigger
            nothing. The API has it.
    """

    def added(start: Callable[..., Any], given: list[Any], public: bool) -> Any:
        return start(
            work,
            [*inputs, *given],
            [*outputs, *([] if plan is None else [plan])],
            api_name=name,
            show_progress_on=outputs[0],
            api_visibility="public" if public and say.language == "en" else "private",
        )

    if plan is None:
        events = [added(trigger, [], True)]
    else:
        events = [added(plan.submit, [plan], True), added(trigger, [gr.State("")], False)]
    if stop is not None:
        stop.click(lambda: say("stopped"), None, status, cancels=events, queue=False, api_visibility="private")
