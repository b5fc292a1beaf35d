"""Numbers out of range, and drawings that cannot be: one clear ValueError that names them."""

from typing import Any

import pytest
from PIL import Image as PIL_Image

from cm3 import CM3
from cm3.tokens.document import Document, Text

APPLE = "a red apple"


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


def test_negative_temperature_of_text(tiny: CM3, images: list[PIL_Image.Image]):
    with pytest.raises(ValueError, match="temperature"):
        tiny.caption(images[0], temperature=-1)
