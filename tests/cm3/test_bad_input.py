"""What a user may get wrong: each gives one clear ValueError, or the obvious right thing."""

import json
import re
import shutil
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PIL_Image

from cm3 import CM3
from cm3.engine.options import CompleteOptions, GenerateOptions, InfillOptions
from cm3.hf.model_folder import find_model
from cm3.tokens.document import HOLE, Document, Image, Mask, Text
from cm3.tokens.text_tokenizer import TextTokenizer
from tokenizer_image import PRESETS, ImageTokenizer, VQModel

APPLE = "a red apple"


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t"])
def test_empty_prompt(tiny: CM3, prompt: str):
    with pytest.raises(ValueError, match="prompt is empty: say what to draw"):
        tiny.generate(prompt)


@pytest.mark.parametrize("words", [60, 200, 100_000])
def test_prompt_longer_than_the_context(tiny: CM3, images: list[PIL_Image.Image], words: int):
    with pytest.raises(ValueError, match=r"leaves no room.* the limit is 128 tokens"):
        tiny.generate("apple " * words)
    with pytest.raises(ValueError, match="leaves no room"):
        tiny.answer(images[0], "apple " * words)
    with pytest.raises(ValueError, match="too long"):
        tiny.score(Document((Text("apple " * words),)))


def all_that_take_text(tiny: CM3, image: PIL_Image.Image) -> dict[str, Callable[[str], Any]]:
    mask = PIL_Image.new("L", image.size)
    mask.paste(255, (8, 8, 12, 12))
    return {
        "generate": tiny.generate,
        "generate a list": lambda text: tiny.generate([APPLE, text]),
        "best of": lambda text: tiny.generate(text, best_of=4),
        "structure": lambda text: tiny.generate(text, structure=image),
        "boxes": lambda text: tiny.generate("", boxes=[(text, (0.1, 0.2, 0.5, 0.9))]),
        "infill": lambda text: tiny.infill(image, mask, text),
        "edit": lambda text: tiny.edit(image, text),
        "answer": lambda text: tiny.answer(image, text),
        "complete": lambda text: tiny.complete(Document((Text(text),))),
        "complete, masks": lambda text: tiny.complete(Document((Mask(), Text(text)))),
        "complete, holes": lambda text: tiny.complete(Document((Text(text), Image([[HOLE] * 4] * 4)))),  # pyright: ignore
        "complete, many": lambda text: tiny.complete(Document((Text(text[:999]),) * (len(text) // 999))),
        "score": lambda text: tiny.score(Document((Text(text),))),
        "stream": lambda text: list(tiny.stream(tiny.jobs.generate(text))),
    }


def test_megabytes_of_text_are_refused_before_they_are_tokenised(
    tiny: CM3, images: list[PIL_Image.Image], monkeypatch: pytest.MonkeyPatch
):
    encode, text = TextTokenizer.encode, "apple " * 1_700_000  # 10 MB: 5 s and 1.3 GB to tokenise

    def short_only(self: TextTokenizer, text: str) -> list[int]:
        assert len(text) < 10_000
        return encode(self, text)

    monkeypatch.setattr(TextTokenizer, "encode", short_only)
    for name, ask in all_that_take_text(tiny, images[0]).items():
        tracemalloc.start()
        before = time.process_time()
        with pytest.raises(ValueError, match="is too long and leaves no room: the limit is 128 tokens"):
            ask(text)
        taken, (_, most) = time.process_time() - before, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert taken < 0.5 and most < 100e6, name


SPELLED = ["<break>", "<image>", "</image>", "<eos>", "<pad>", "<mask:0>", "<infill:0>", "code 5"]


@pytest.mark.parametrize("word", SPELLED)
def test_words_that_spell_special_tokens_are_plain_text(tiny: CM3, images: list[PIL_Image.Image], word: str):
    ids = tiny.score(Document((Text(word),))).ids.tolist()
    assert ids.pop() == tiny.vocab.eos
    assert all(tiny.vocab.is_text(id) for id in ids)
    assert tiny.generate(f"a {word} b")[0].size == (16, 16)
    assert isinstance(tiny.answer(images[0], f"{word}?"), str)


STRANGE = ["\ud800", "a \udfff apple", "\udc80\ud800", "تفاحة", "\u202eelppa\u202c", "\0", "🍎"]


@pytest.mark.parametrize("prompt", STRANGE)
def test_lone_surrogates_and_right_to_left_text_draw(tiny: CM3, images: list[PIL_Image.Image], prompt: str):
    assert len(tiny.generate(prompt, n=2)) == 2
    assert isinstance(tiny.answer(images[0], prompt), str)


@pytest.mark.parametrize("n", [0, -1, 65, 10_000])
def test_number_of_images(tiny: CM3, n: int):
    with pytest.raises(ValueError, match=f"n is {n}, but must be 1 to 64"):
        tiny.generate(APPLE, n=n)


WRONG_NUMBERS = [
    ("temperature", -0.1),
    ("temperature", float("nan")),
    ("temperature", float("inf")),
    ("top_p", 0.0),
    ("top_p", 1.5),
    ("top_p", float("nan")),
    ("top_k", -1),
    ("guidance", -1.0),
    ("guidance", float("nan")),
    ("guidance", float("inf")),
    ("seed", -1),
    ("seed", 2**70),
]


@pytest.mark.parametrize(("name", "value"), WRONG_NUMBERS)
def test_numbers_out_of_range_are_named(tiny: CM3, name: str, value: Any):
    with pytest.raises(ValueError, match=f"{name}.*{str(value)[:6]}"):
        tiny.generate(APPLE, **{name: value})


def test_numbers_of_infills_and_edits_out_of_range(tiny: CM3, images: list[PIL_Image.Image]):
    white = PIL_Image.new("L", (32, 24))
    white.paste(255, (8, 8, 12, 12))
    for name, value, named in [
        ("n", 0, "n is 0, but must be 1 to 64"),
        ("n", 65, "n is 65"),
        ("guidance", -1.0, "guidance .* -1.0"),
        ("guidance", float("nan"), "guidance .* nan"),
        ("temperature", -1, "temperature .* -1"),
        ("top_p", 0, "top_p .* 0"),
        ("top_k", -1, "top_k .* -1"),
        ("seed", -1, "seed is -1"),
    ]:
        for words in (None, APPLE):
            with pytest.raises(ValueError, match=named):
                tiny.infill(images[0], white, words, **{name: value})
        if name not in ("n", "guidance"):
            with pytest.raises(ValueError, match=named):
                tiny.edit(images[0], "make it blue", **{name: value})
    for keep in (-0.5, 101, float("nan")):
        with pytest.raises(ValueError, match=f"keep is {keep}, but must be 0 to 100"):
            tiny.edit(images[0], "make it blue", keep=keep)
    for scales in ((-0.5, 1.0), (1.0, -0.5)):
        with pytest.raises(ValueError, match="guidance is -0.5, but must be 0 to 1,000,000"):
            tiny.edit(images[0], "make it blue", image_guidance=scales[0], text_guidance=scales[1])
        with pytest.raises(ValueError, match="guidance is -0.5, but must be 0 to 1,000,000"):
            tiny.complete(Document((Text("a"),)), guidance=scales[0], text_guidance=scales[1])


WRONG_DRAWINGS: list[tuple[dict, str]] = [
    ({"boxes": []}, "list of boxes is empty"),
    ({"boxes": [("a cat", (0.1, 0.2, 1.5, 0.9))]}, r"box of 'a cat' is \(0.1, 0.2, 1.5, 0.9\), but must be .* 0 to 1"),
    ({"boxes": [("a cat", (-0.1, 0.2, 0.5, 0.9))]}, "box of 'a cat'"),
    ({"boxes": [("a cat", (10, 20, 50, 90))]}, "shares of the image's sides"),
    ({"boxes": [("a cat", (0.5, 0.2, 0.1, 0.9))]}, "left before right"),
    ({"boxes": [("a cat", (0.1, 0.9, 0.5, 0.9))]}, "top before bottom"),
    ({"boxes": [("a cat", (0.1, float("nan"), 0.5, 0.9))]}, "box of 'a cat'"),
    ({"boxes": [("a cat", (0.1, 0.2, 0.5))]}, "must be left, top, right, bottom"),
    ({"boxes": [(" ", (0.1, 0.2, 0.5, 0.9))]}, "has no name"),
    ({"kind": "depth"}, "kind is 'depth', but must be one of edges, segments"),
    ({"structure": "none.png"}, "none.png: cannot be read"),
    ({"decoding": "beam"}, "decoding is 'beam', but must be one of top-p, cd-k, both"),
    ({"decoding": "cd-k", "contrast": (417, 0.5)}, "k of contrastive guidance is 417, but there are 416 ids"),
    ({"decoding": "both", "contrast": (0, 0.5)}, "k of contrastive guidance must be at least 1, but is 0"),
    ({"decoding": "cd-k", "contrast": (4, 1.5)}, "alpha .* at most 1, but is 1.5"),
    ({"decoding": "cd-k", "guidance": -1.0}, "guidance .* -1.0"),
    ({"best_of": 0}, "best_of is 0, but must be 1 to 64"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_DRAWINGS, ids=str)
def test_drawings_that_cannot_be(tiny: CM3, options: dict, message: str):
    wanted: dict[str, Any] = {"n": 2, "seed": 1, **options}
    with pytest.raises(ValueError, match=message):
        tiny.generate(APPLE, **wanted)


def test_more_candidates_than_can_be_drawn(tiny: CM3):
    with pytest.raises(ValueError, match="n x best_of is 128, but must be 1 to 64"):
        tiny.generate(APPLE, n=16, best_of=8)


def test_masks_of_images(tiny: CM3, images: list[PIL_Image.Image], tmp_path: Path):
    black, whole = PIL_Image.new("L", (32, 24)), PIL_Image.new("L", (32, 24), 255)
    for mask, message in [
        (black, "black everywhere: paint white"),
        (PIL_Image.new("RGBA", (32, 24), (255, 255, 255, 0)), "black everywhere"),
        (PIL_Image.new("L", (24, 32), 255), "mask has 24 x 32 pixels, but the image 32 x 24"),
        (whole, "mask reaches over 32 pixels, but the model sees a square of 24"),
        (tmp_path / "none.png", "none.png: cannot be read"),
    ]:
        with pytest.raises(ValueError, match=message):
            tiny.infill(images[0], mask)


def test_edits_without_words_or_images(tiny: CM3, images: list[PIL_Image.Image]):
    with pytest.raises(ValueError, match="3 images and 2 instructions"):
        tiny.edit(images, ["a", "b"])
    with pytest.raises(ValueError, match="instruction is empty"):
        tiny.edit(images[0], " ")
    with pytest.raises(ValueError, match="leaves no room"):
        tiny.edit(images[0], "apple " * 200)


# What is of a wrong type, or not known.


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


@pytest.mark.parametrize("text", [*NO_TEXTS, *NO_TEXTS_IN_LISTS, (word for word in ["a"]), {"a"}], ids=repr)
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


def test_images_that_are_none(tiny: CM3, images: list[PIL_Image.Image]):
    white = PIL_Image.new("L", (32, 24), 255)
    several = (image for image in images)  # which caption alone takes
    wrongs: list[Any] = [None, 5, {"a": 1}, several, [None], [images], [images[0], [1]]]
    for wrong in wrongs:
        for task in (
            tiny.caption if wrong is not several else lambda image: tiny.caption([image]),
            lambda image: tiny.answer(image, "What?"),
            lambda image: tiny.edit(image, "make it blue"),
            lambda image: tiny.infill(image, white),
            lambda image: tiny.stream(tiny.jobs.caption(image)),
        ):
            with pytest.raises((TypeError, ValueError)):
                task(wrong)
    lists: list[Any] = [[], images]
    for many in lists:  # a list where one image is wanted
        with pytest.raises(TypeError, match=r"the image must be one image, but is \["):
            tiny.infill(many, white)
        with pytest.raises(TypeError, match=r"the structure must be one image, but is \["):
            tiny.generate(APPLE, structure=many)
        with pytest.raises(TypeError, match=r"image.* must be one image, but is \["):
            tiny.caption([many])
    for mask in (None, [], [white]):
        with pytest.raises(TypeError, match="the mask must be one image, but is"):
            tiny.infill(images[0], mask)  # pyright: ignore[reportArgumentType]


WRONG_TYPES: list[tuple[dict[str, Any], str]] = [
    ({"boxes": "a cat"}, "boxes must be a list of names and boxes"),
    ({"boxes": {"a cat": (0, 0, 1, 1)}}, "boxes must be a list of names and boxes"),
    ({"boxes": 5}, "boxes must be a list of names and boxes"),
    ({"boxes": ["a cat"]}, "boxes must be a list of names and boxes"),
    ({"boxes": [("a cat",)]}, "boxes must be a list of names and boxes"),
    ({"boxes": [("a cat", 0.1, 0.2, 0.5, 0.6)]}, "boxes must be a list of names and boxes"),
    ({"boxes": ((name, (0, 0, 1, 1)) for name in ["a cat"])}, "boxes must be a list of names and boxes"),
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


@pytest.mark.parametrize("device", ["tpu9", "", "cuda:99", "meta", "hpu", "mps:7", "xla", "CPU", "a\0b"])
def test_devices_that_are_not_there(tiny: CM3, tiny_folder: Path, device: str):
    for task in (tiny.to, lambda device: CM3.from_pretrained(tiny_folder, device=device)):
        with pytest.raises(ValueError, match=f"device is {re.escape(repr(device))}, which cannot be used"):
            task(device)
    assert tiny.generate(APPLE)  # nothing has moved


@pytest.mark.parametrize("device", [None, 0, True, ["cpu"]])
def test_devices_of_a_wrong_type(tiny: CM3, tiny_folder: Path, device: Any):
    for task in (tiny.to, lambda device: CM3.from_pretrained(tiny_folder, device=device)):
        with pytest.raises(TypeError, match="device must be a string or a torch.device, but is"):
            task(device)


def test_negative_temperature_of_text(tiny: CM3, images: list[PIL_Image.Image]):
    with pytest.raises(ValueError, match="temperature"):
        tiny.caption(images[0], temperature=-1)


def test_images_and_questions(tiny: CM3, images: list[PIL_Image.Image]):
    with pytest.raises(ValueError, match="3 images and 2 questions"):
        tiny.answer(images, ["a?", "b?"])
    with pytest.raises(ValueError, match="question is empty"):
        tiny.answer(images[0], " ")
    with pytest.raises(ValueError, match="language is 'xx', but must be one of en, ar"):
        tiny.caption(images[0], language="xx")  # pyright: ignore


def test_arrays_tensors_and_files_are_one_image_each(tiny: CM3, tmp_path: Path):
    values = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    image = PIL_Image.fromarray(values)
    image.save(tmp_path / "a.png")
    caption = tiny.caption(image)
    tensor = torch.from_numpy(values).permute(2, 0, 1)
    data = (tmp_path / "a.png").read_bytes()
    for same in (values, values / 255, tensor, tensor / 255, data, BytesIO(data), tmp_path / "a.png"):
        assert tiny.caption(same) == caption
    assert tiny.caption([values, tensor]) == [caption] * 2
    assert tiny.edit(values, "make it red").tobytes() == tiny.edit(image, "make it red").tobytes()
    mask = np.zeros((20, 20), np.uint8)
    mask[4:8, 4:8] = 255
    filled = tiny.infill(tensor, mask, "a cat")
    assert filled[0].tobytes() == tiny.infill(image, PIL_Image.fromarray(mask), "a cat")[0].tobytes()


def test_the_limit_on_pixels_is_the_callers(tiny_folder: Path):
    model = CM3.from_pretrained(tiny_folder, max_pixels=399)
    image = PIL_Image.new("RGB", (20, 20))
    for refused in (
        lambda: model.caption(image),
        lambda: model.edit(image, "make it red"),
        lambda: model.infill(image, image),
        lambda: model.generate("a", structure=image),
    ):
        with pytest.raises(ValueError, match="20 x 20 pixels, the limit is 399"):
            refused()


def test_more_pixels_are_taken_where_the_caller_says_so(tiny_folder: Path):
    model = CM3.from_pretrained(tiny_folder, max_pixels=17_000_000)
    image = PIL_Image.new("RGB", (4_100, 4_100), "red")
    mask = PIL_Image.new("L", image.size, 255)
    assert model.infill(image, mask)[0].size == image.size


def test_broken_images_are_named(tiny: CM3, tmp_path: Path):
    (tmp_path / "notes.png").write_text("no image")
    for task in (tiny.caption, lambda path: tiny.answer(path, "What?")):
        with pytest.raises(ValueError, match=r"notes\.png: not an image"):
            task(tmp_path / "notes.png")


def test_documents_that_do_not_fit(tiny: CM3):
    with pytest.raises(ValueError, match="2 x 2 .* 4 x 4"):
        tiny.score(Document((Image([[1, 2], [3, 4]]),)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="Mask"):
        tiny.score(Document((Mask(),)))
    for items in (([[1, 2], [3, 4]],), ([[1, HOLE], [3, 4]],)):
        for more in ((), (Mask(),)):
            with pytest.raises(ValueError, match="an image of 2 x 2 codes: the model's images have 4 x 4"):
                tiny.complete(Document((Text("a cat"), *map(Image, items), *more)))  # pyright: ignore
    with pytest.raises(ValueError, match="image code 99 is out of range"):
        tiny.complete(Document((Image([[99] * 4] * 4),)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="holes in an image is not finished"):
        tiny.score(Document((Image([[HOLE] * 4] * 4),)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="image code -2 is out of range"):
        tiny.complete(Document((Image([[-2] * 4] * 4),)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="has masks, fill them without"):
        tiny.complete(Document((Text("a"), Mask())), guidance=2.0)
    with pytest.raises(ValueError, match="leaves no room"):
        tiny.complete(Document((Text("apple " * 60), Mask(), Image([[1] * 4] * 4))))  # pyright: ignore


NO_DOCUMENTS = [None, "a red apple", 5, [Text(APPLE)], Text(APPLE), [{"text": APPLE}]]


@pytest.mark.parametrize("document", NO_DOCUMENTS, ids=repr)
def test_what_is_no_document(tiny: CM3, document: Any):
    for task in (tiny.complete, tiny.score, lambda document: tiny.stream(tiny.jobs.complete(document))):
        with pytest.raises(TypeError, match="a document is wanted, such as Document.* but got"):
            task(document)


@pytest.mark.parametrize("items", [5, None, Text(APPLE), Mask()], ids=repr)
def test_a_document_of_no_items(items: Any):
    with pytest.raises(TypeError, match="a document holds a tuple of Text, Image and Mask, but got"):
        Document(items)


@pytest.mark.parametrize("item", ["a", None, 5, b"a", PIL_Image.new("L", (1, 1))], ids=repr)
def test_a_document_of_wrong_items(item: Any):
    with pytest.raises(ValueError, match="a document holds Text, Image and Mask, but got"):
        Document((Text("a"), item))


@pytest.mark.parametrize("text", [None, 5, b"a red apple", ["a"]], ids=repr)
def test_the_text_of_a_document_is_a_string(text: Any):
    with pytest.raises(TypeError, match="the text of a document must be a string, but is"):
        Text(text)


@pytest.mark.parametrize(
    "codes",
    [None, "codes", [[1.5]], [[True]], [["a"]], [[1], [1, 2]], [[None]], [[10**30]], PIL_Image.new("L", (1, 1))],
)
def test_codes_of_a_document_are_whole_numbers(codes: Any):
    with pytest.raises(ValueError, match="image codes must be"):
        Image(codes)


@pytest.mark.parametrize("name", ["nothing", "no/such/folder", "../..nothing", "", "someone/nothing", "a\0b"])
def test_unknown_model(name: str):
    with pytest.raises(ValueError, match="there is no model"):
        CM3.from_pretrained(name)


def test_a_folder_that_is_no_model(tmp_path: Path):
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        CM3.from_pretrained(tmp_path)


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


FILES = [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "image_tokenizer/config.json",
    "image_tokenizer/model.safetensors",
]


def test_missing_image_tokenizer_is_named(folder: Path):
    shutil.rmtree(folder / "image_tokenizer")
    (folder / "checksums.json").unlink()
    with pytest.raises(ValueError, match="image_tokenizer"):
        CM3.from_pretrained(folder)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("checked", [True, False])
def test_missing_file_is_named(folder: Path, file: str, checked: bool):
    (folder / file).unlink()
    if not checked:
        (folder / "checksums.json").unlink()
    with pytest.raises(ValueError, match=Path(file).name):
        CM3.from_pretrained(folder)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", [flip_a_bit, cut, empty])
def test_tampered_file_is_named(folder: Path, file: str, harm: Callable[[Path], None]):
    harm(folder / file)
    with pytest.raises(ValueError, match=f"{file} was changed or damaged"):
        CM3.from_pretrained(folder)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", [cut, empty])
def test_damaged_file_is_refused_without_checksums_too(folder: Path, file: str, harm: Callable[[Path], None]):
    (folder / "checksums.json").unlink()
    harm(folder / file)
    with pytest.raises(ValueError, match=str(folder)):
        CM3.from_pretrained(folder)


@pytest.mark.parametrize("text", ["{", "[1]", "7", ""])
def test_damaged_checksums(folder: Path, text: str):
    (folder / "checksums.json").write_text(text)
    with pytest.raises(ValueError, match=r"checksums\.json is damaged"):
        CM3.from_pretrained(folder)


def edit_config(folder: Path, **changes: object) -> None:
    (folder / "checksums.json").unlink()
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


WRONG_CONFIGS = [
    {"num_hidden_layers": 3},
    {"hidden_size": 64},
    {"image_vocab_size": 16, "vocab_size": None},
    {"text_vocab_size": 9},
    {"image_grid": [2, 2]},
    {"hidden_size": "wide"},
    {"activation": "magic"},
]


@pytest.mark.parametrize("changes", WRONG_CONFIGS)
def test_config_and_weights_that_do_not_belong_together(folder: Path, changes: dict):
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match="."):
        CM3.from_pretrained(folder)


def test_image_tokenizer_of_another_model(tiny: CM3):
    larger = VQModel(replace(PRESETS["tiny"], n_embed=64))
    with pytest.raises(ValueError, match="codes are 64, but the model knows 32"):
        CM3(tiny.model, tiny.text_tokenizer, ImageTokenizer(larger))
    wider = VQModel(replace(PRESETS["tiny"], resolution=32))
    with pytest.raises(ValueError, match=r"grid is \(8, 8\), but the model's \(4, 4\)"):
        CM3(tiny.model, tiny.text_tokenizer, ImageTokenizer(wider))


def test_a_local_folder_is_found_by_its_path(folder: Path):
    assert find_model(str(folder)) == folder


def test_another_image_tokenizer_than_the_model_was_trained_with(folder: Path):
    (folder / "checksums.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    right = ImageTokenizer.from_pretrained(folder / "image_tokenizer").fingerprint()
    (folder / "config.json").write_text(json.dumps(config | {"image_tokenizer_fingerprint": right}))
    CM3.from_pretrained(folder, device="cpu")
    ImageTokenizer(VQModel(PRESETS["tiny"])).save_pretrained(folder / "image_tokenizer")
    with pytest.raises(ValueError, match="not the one"):
        CM3.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("history", ["ab", [("a", "b", "c")], [("a", 1)], ["ab"], 3, {"a": "b"}])
def test_a_history_of_a_wrong_type(tiny: CM3, images: list[PIL_Image.Image], history: Any):
    with pytest.raises(TypeError, match="history must be a list of questions and answers"):
        tiny.answer(images[0], "What is this?", history=history)


def test_histories_without_words_or_of_several_images(tiny: CM3, images: list[PIL_Image.Image]):
    with pytest.raises(ValueError, match="an empty question or answer"):
        tiny.answer(images[0], "What is this?", history=[("a", " ")])
    with pytest.raises(ValueError, match="belongs to one image, but there are 2"):
        tiny.answer(images[:2], "What is this?", history=[("a", "b")])  # pyright: ignore[reportArgumentType]
