"""Arguments of a wrong type, and names that no method has: one clear TypeError or ValueError."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image as PIL_Image

from cm3 import CM3
from cm3.engine.options import CompleteOptions, GenerateOptions, InfillOptions
from cm3.tokens.document import Document, Mask, Text

APPLE = "a red apple"


def ways_to_draw(tiny: CM3, image: PIL_Image.Image) -> dict[str, Callable[..., Any]]:
    mask = PIL_Image.new("L", image.size)
    mask.paste(255, (8, 8, 12, 12))
    return {
        "generate": lambda **options: tiny.generate(APPLE, **options),
        "generate nothing": lambda **options: tiny.generate([], **options),
        "infill": lambda **options: tiny.infill(image, mask, APPLE, **options),
        "edit": lambda **options: tiny.edit(image, "make it blue", **options),
        "edit nothing": lambda **options: tiny.edit([], "make it blue", **options),
        "caption": lambda **options: tiny.caption(image, **options),
        "answer": lambda **options: tiny.answer(image, "What?", **options),
        "complete": lambda **options: tiny.complete(Document((Text("a"),)), **options),
        "complete masks": lambda **options: tiny.complete(Document((Text("a"), Mask())), **options),
        "stream": lambda **options: tiny.stream(tiny.jobs.generate(APPLE, GenerateOptions(**options))),
        "stream infill": lambda **options: tiny.stream(tiny.jobs.infill(image, mask, options=InfillOptions(**options))),
        "stream complete": lambda **options: tiny.stream(
            tiny.jobs.complete(Document((Text("a"),)), CompleteOptions(**options))
        ),
    }


NO_NUMBERS = [None, "4", "x", True, [1], 1j, b"1"]
DRAWN = ("generate", "generate nothing", "infill", "stream", "stream infill")
EDITED = ("edit", "edit nothing")
TOLD = ("caption", "answer", "complete", "complete masks", "stream complete")
WHO_TAKES = {
    "n": DRAWN,
    "best_of": ("generate", "generate nothing"),
    "seed": (*DRAWN, *EDITED, *TOLD),
    "temperature": (*DRAWN, *EDITED, *TOLD),
    "top_p": (*DRAWN, *EDITED, "complete"),
    "top_k": (*DRAWN, *EDITED),
    "guidance": (*DRAWN, "complete", "complete masks"),
    "image_guidance": EDITED,
    "text_guidance": (*EDITED, "complete", "stream complete"),
}
WHOLE = ("n", "best_of", "seed", "top_k")


@pytest.mark.parametrize(("name", "tasks"), WHO_TAKES.items(), ids=WHO_TAKES)
def test_what_is_no_number_is_a_type_error(tiny: CM3, images: list[PIL_Image.Image], name: str, tasks: tuple[str, ...]):
    kind = "a whole number" if name in WHOLE else "a number"
    ways = ways_to_draw(tiny, images[0])
    for task in tasks:
        for value in (*NO_NUMBERS, *([1.5, 1.0] if name in WHOLE else ())):
            with pytest.raises(TypeError, match=rf"{name}.* must be {kind}, but is {re.escape(repr(value))}"):
                ways[task](**{name: value})


@pytest.mark.parametrize(("name", "tasks"), WHO_TAKES.items(), ids=WHO_TAKES)
def test_numbers_that_are_no_use_are_refused_by_every_task(
    tiny: CM3, images: list[PIL_Image.Image], name: str, tasks: tuple[str, ...]
):
    ways = ways_to_draw(tiny, images[0])
    wrong = [-1, 10**400] if name in WHOLE else [-0.5, float("nan"), float("inf"), 10**400]
    if name == "top_k":
        wrong = [-1]
    for task in tasks:
        for value in wrong:
            with pytest.raises(ValueError, match=name.partition("_")[0] if "guidance" in name else name):
                ways[task](**{name: value})


def test_numbers_of_numpy_are_numbers(tiny: CM3):
    numbers: dict[str, Any] = dict(n=np.int64(1), seed=np.uint32(7), temperature=np.float32(0.5), top_k=np.int8(9))
    [one] = tiny.generate(APPLE, guidance=np.float64(2), **numbers)
    assert one.tobytes() == tiny.generate(APPLE, seed=7, temperature=0.5, guidance=2, top_k=9)[0].tobytes()


@pytest.mark.parametrize("options", [{"temperature": 1e-300}, {"temperature": 1e-40}, {"top_k": 10**30}], ids=str)
def test_numbers_at_the_edge_draw(tiny: CM3, options: dict[str, Any]):
    limit: dict[str, Any] = {"temperature": 0} if "temperature" in options else {"top_k": 0}
    assert tiny.generate(APPLE, **options)[0].tobytes() == tiny.generate(APPLE, **limit)[0].tobytes()


@pytest.mark.parametrize("options", [{"guidance": 1e6}, {"temperature": 1e6}], ids=str)
def test_the_largest_numbers_draw_and_larger_ones_are_refused(tiny: CM3, options: dict[str, Any]):
    assert len(tiny.generate(APPLE, **options)) == 1
    with pytest.raises(ValueError, match="must be 0 to 1,000,000"):
        tiny.generate(APPLE, **{name: 2 * value for name, value in options.items()})


NO_TEXTS = [None, 5, 1.5, b"a red apple", True, {"a": 1}, Text(APPLE)]
NO_TEXTS_IN_LISTS = [[None], [APPLE, 5], [[APPLE]], ([APPLE],)]


@pytest.mark.parametrize(
    "text", [*NO_TEXTS, *NO_TEXTS_IN_LISTS, pytest.param((word for word in ["a"]), id="a generator"), {"a"}], ids=repr
)
def test_what_is_no_text_is_a_type_error(tiny: CM3, images: list[PIL_Image.Image], text: Any):
    for what, task in (
        ("prompt", lambda: tiny.generate(text)),
        ("prompt", lambda: tiny.stream(tiny.jobs.generate(text))),
        ("question", lambda: tiny.answer(images[:1], text)),
        ("instruction", lambda: tiny.edit(images[:1], text)),
    ):
        with pytest.raises(TypeError, match=f"the {what} must be a string or a list of strings, but (is|holds) "):
            task()
    if text is not None:
        with pytest.raises(TypeError, match="the prompt must be a string, but is"):
            tiny.infill(images[0], PIL_Image.new("L", (32, 24), 255), text)


WRONG_TYPES: list[Any] = [
    ({"boxes": "a cat"}, "boxes must be a list of names and boxes"),
    ({"boxes": {"a cat": (0, 0, 1, 1)}}, "boxes must be a list of names and boxes"),
    ({"boxes": 5}, "boxes must be a list of names and boxes"),
    ({"boxes": ["a cat"]}, "boxes must be a list of names and boxes"),
    ({"boxes": [("a cat",)]}, "boxes must be a list of names and boxes"),
    ({"boxes": [("a cat", 0.1, 0.2, 0.5, 0.6)]}, "boxes must be a list of names and boxes"),
    pytest.param(
        {"boxes": ((name, (0, 0, 1, 1)) for name in ["a cat"])},
        "boxes must be a list of names and boxes",
        id="boxes from a generator",
    ),
    ({"boxes": [(5, (0.1, 0.2, 0.5, 0.6))]}, "the name of a box must be a string, but is 5"),
    ({"boxes": [(None, (0.1, 0.2, 0.5, 0.6))]}, "the name of a box must be a string"),
    ({"contrast": 8}, r"contrast must be k and alpha, such as \(8, 0.5\), but is 8"),
    ({"contrast": (8,)}, "contrast must be k and alpha"),
    ({"contrast": "ab"}, "contrast must be k and alpha"),
    ({"contrast": (8.0, 0.5)}, "k of contrastive guidance must be a whole number, but is 8.0"),
    ({"contrast": (8, "0.5")}, "alpha of contrastive guidance must be a number, but is '0.5'"),
    ({"decoding": None}, "decoding must be a string, but is None"),
    ({"decoding": ["top-p"]}, "decoding must be a string"),
    ({"kind": ["edges"]}, "kind must be a string"),
    ({"steps": 50}, "got an unexpected keyword argument 'steps'"),
    ({"language": "en"}, "got an unexpected keyword argument 'language'"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_TYPES, ids=str)
def test_options_of_a_wrong_type_or_unknown(tiny: CM3, options: dict[str, Any], message: str):
    for task in (
        lambda: tiny.generate(APPLE, **options),
        lambda: tiny.stream(tiny.jobs.generate(APPLE, GenerateOptions(**options))),
    ):
        with pytest.raises(TypeError, match=message):
            task()


@pytest.mark.parametrize("box", [None, 5, "abcd", (0.1, 0.2, 0.5, "0.6"), (0, 0, True, 1), [[0, 0, 1, 1]], (0.1,) * 5])
def test_boxes_of_a_wrong_shape(tiny: CM3, box: Any):
    with pytest.raises(ValueError, match="box of 'a cat' is .*, but must be left, top, right, bottom as shares"):
        tiny.generate(APPLE, boxes=[("a cat", box)])


def test_the_box_may_be_an_array(tiny: CM3):
    box = (0.1, 0.2, 0.5, 0.75)
    drawn = [tiny.generate("", boxes=[("a cat", one)])[0] for one in (box, list(box), np.array(box))]  # pyright: ignore
    assert len({image.tobytes() for image in drawn}) == 1


def test_languages_of_a_wrong_type(tiny: CM3, images: list[PIL_Image.Image]):
    for language in (None, 5, ["en"], b"en"):
        with pytest.raises(TypeError, match="language must be a string, but is"):
            tiny.caption(images[0], language=language)  # pyright: ignore
    for long in ("no", None, 1):
        with pytest.raises(TypeError, match="long must be True or False, but is"):
            tiny.caption(images[0], long=long)  # pyright: ignore


def test_unknown_arguments_are_named(tiny: CM3, images: list[PIL_Image.Image]):
    takes = {
        "generate": "prompt, temperature, .*, n, best_of, guidance, .*, kind, .*, grid, size, plan, variety",
        "infill": "image, mask, prompt, temperature, .*, n, guidance",
        "edit": "image, instruction, temperature, .*, keep, plan",
        "caption": "image, temperature, .*, language, long, batch",
        "answer": "image, question, temperature, .*, history",
        "complete": "document, temperature, .*, guidance, text_guidance",
    }
    for task, names in takes.items():
        with pytest.raises(TypeError, match=f"{task}: got an unexpected keyword argument 'steps'; it takes {names}$"):
            getattr(tiny, task)(images[0], steps=50)
        with pytest.raises(TypeError, match=f"{task}: missing a required argument.*; it takes {names}$"):
            getattr(tiny, task)()
        with pytest.raises(TypeError, match=f"{task}: too many positional arguments; it takes {names}$"):
            getattr(tiny, task)(images[0], APPLE, APPLE, APPLE)
