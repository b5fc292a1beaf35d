"""WebP and JPEG as baselines: they keep to the bytes, more bytes never look worse, and headers are counted right."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from train.images.codecs import OPTIONS, compress, counted


@pytest.fixture(scope="module")
def drawing() -> Image.Image:
    image = Image.new("RGB", (64, 48), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((8, 6, 50, 40), "orange", "brown", 2)
    draw.rectangle((30, 20, 60, 44), "teal")
    return image


def encoded(image: Image.Image, codec: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, **{**OPTIONS[codec], **options})
    return file.getvalue()


def error(a: Image.Image, b: Image.Image) -> float:
    return float(np.square(np.asarray(a, float) - np.asarray(b, float)).mean())


@pytest.mark.parametrize("codec", ["WebP", "JPEG"])
def test_the_budget_is_kept_and_more_bytes_never_look_worse(codec: str, drawing: Image.Image):
    errors = []
    for budget in (60, 120, 400, 4000):
        back = compress(drawing, codec, budget)
        assert back.size <= budget and back.image.size == drawing.size and back.image.mode == "RGB"
        errors.append(error(back.image, drawing))
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 20


@pytest.mark.parametrize("codec", ["WebP", "JPEG"])
def test_a_budget_out_of_reach_takes_the_fewest_bytes_and_says_how_many(codec: str, drawing: Image.Image):
    least = compress(drawing, codec, 1)
    assert 1 < least.size <= compress(drawing, codec, 60).size


def test_scaling_down_beats_the_lowest_quality_at_full_size(drawing: Image.Image):
    data = encoded(drawing, "WebP", quality=0)
    lowest = Image.open(io.BytesIO(data)).convert("RGB")
    assert error(compress(drawing, "WebP", counted(data, "WebP")).image, drawing) <= error(lowest, drawing)


def test_a_webp_is_counted_without_its_container(drawing: Image.Image):
    data = encoded(drawing, "WebP", quality=50)
    assert data[:4] == b"RIFF" and data[20 + 3 : 20 + 6] == b"\x9d\x01\x2a"  # the start code of a VP8 frame
    assert counted(data, "WebP") == len(data[20:])


def test_a_jpeg_is_counted_without_its_tables(drawing: Image.Image):
    data, plain = (encoded(image, "JPEG", quality=50) for image in (drawing, Image.new("RGB", drawing.size)))
    assert counted(data, "JPEG") - counted(plain, "JPEG") == len(data) - len(plain)  # all the rest is equal
    assert counted(plain, "JPEG") == 50 and data[-2:] == b"\xff\xd9"  # 12 blocks of 16 x 16 pixels
