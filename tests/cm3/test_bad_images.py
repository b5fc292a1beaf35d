"""Images and masks that are none, too large or broken: one clear error."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PIL_Image

from cm3 import CM3

APPLE = "a red apple"


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
