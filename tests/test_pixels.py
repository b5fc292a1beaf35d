"""Every kind of picture that a person may hand in, and every broken one."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from tokenizer_image.pixels import open_image, to_pil, to_tensor

RED, WHITE = (255, 0, 0), (255, 255, 255)


def stored(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of 69 bytes whose header promises width x height pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0")), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def half_clear(mode: str) -> Image.Image:
    """4 x 4: left half solid, right half fully transparent black."""
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    image.paste((*RED, 255), (0, 0, 2, 4))
    return image.convert(mode)


def corners(image: Image.Image) -> tuple:
    return image.getpixel((0, 0)), image.getpixel((image.width - 1, image.height - 1))


def test_rgba_is_laid_on_white():
    assert corners(open_image(stored(half_clear("RGBA")))) == (RED, WHITE)


def test_palette_with_transparency_is_laid_on_white():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([*RED, 0, 0, 0])
    image.paste(0, (0, 0, 2, 4))
    assert corners(open_image(stored(image, transparency=1))) == (RED, WHITE)


def test_rgb_with_a_transparent_colour_is_laid_on_white():
    image = Image.new("RGB", (4, 4))
    image.paste(RED, (0, 0, 2, 4))
    assert corners(open_image(stored(image, transparency=(0, 0, 0)))) == (RED, WHITE)


def test_grey_with_alpha_is_laid_on_white():
    image = Image.new("LA", (4, 4), (0, 0))
    image.paste((90, 255), (0, 0, 2, 4))
    assert corners(open_image(stored(image))) == ((90, 90, 90), WHITE)


def test_grey_and_bilevel_become_rgb():
    assert corners(open_image(stored(Image.new("L", (4, 4), 90)))) == ((90, 90, 90),) * 2
    assert corners(open_image(stored(Image.new("1", (4, 4), 1)))) == (WHITE,) * 2


def test_cmyk_jpeg_becomes_rgb():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red, green, blue = np.asarray(open_image(stored(image, "JPEG")))[8, 8]
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(format: str):
    grey = Image.fromarray(np.array([[0, 32768], [65535, 300]], dtype=np.uint16))
    assert np.asarray(open_image(stored(grey, format)))[..., 0].tolist() == [[0, 128], [255, 1]]


@pytest.mark.parametrize("white", [1.0, 255.0])
def test_floats_are_scaled(white: float):
    grey = Image.fromarray(np.array([[0, white], [white / 2, np.nan]], dtype=np.float32))
    assert np.asarray(open_image(stored(grey, "TIFF")))[..., 0].tolist() == [[0, 255], [128, 0]]


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (20, 10), "white")
    image.paste(RED, (0, 0, 4, 10))  # red on the left; orientation 6 turns it to the top
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = open_image(stored(image, exif=exif))
    assert upright.size == (10, 20)
    assert corners(upright) == (RED, WHITE)


@pytest.mark.parametrize("format", ["GIF", "WEBP"])
def test_animation_gives_its_first_frame(format: str):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, "blue", "green")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = stored(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert open_image(data).getpixel((4, 4)) == RED


def test_paths_bytes_and_pil_images_are_alike(tmp_path):
    image = Image.effect_noise((12, 9), 80).convert("RGB")
    path = tmp_path / "صورة.png"
    image.save(path)
    assert len({open_image(source).tobytes() for source in (path, str(path), stored(image), image)}) == 1


def test_the_callers_image_is_left_alone():
    image = half_clear("RGBA")
    before = image.tobytes()
    open_image(image).paste(RED, (0, 0, 4, 4))
    assert image.tobytes() == before


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_file_is_one_clear_error(tmp_path, format: str, share: float):
    data = stored(Image.effect_noise((64, 64), 80).convert("RGB"), format)
    path = tmp_path / "cut"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="cut: (damaged|not a picture)"):
        open_image(path)


def test_empty_file(tmp_path):
    path = tmp_path / "empty.png"
    path.touch()
    with pytest.raises(ValueError, match=r"empty.png: the file is empty \(0 bytes\)"):
        open_image(path)


NO_PICTURES = [b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>", b"\x89PNG\r\n\x1a\n", bytes(1000)]


@pytest.mark.parametrize("data", NO_PICTURES)
def test_not_a_picture(data: bytes):
    with pytest.raises(ValueError, match="the picture: (not a picture|damaged)"):
        open_image(data)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ValueError, match=r"none.png: cannot be read \(No such file"):
        open_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match="cannot be read"):
        open_image(tmp_path)


@pytest.mark.parametrize("side", [8_001, 10_000, 30_000])
def test_huge_picture_is_refused_before_it_is_decoded(side: int, recwarn):
    with pytest.raises(ValueError, match="the picture: too large: .*limit is 64,000,000"):
        open_image(png_that_claims(side, side))
    assert not recwarn


def test_limit_and_empty_size_hold_for_pil_images_too():
    with pytest.raises(ValueError, match="20 x 10 pixels, the limit is 100"):
        open_image(Image.new("RGB", (20, 10)), max_pixels=100)
    with pytest.raises(ValueError, match="no pixels: 0 x 5"):
        open_image(Image.new("RGB", (0, 5)))


def test_pixels_come_back_as_they_went():
    image = Image.fromarray(torch.arange(16 * 16 * 3).reshape(16, 16, 3).byte().numpy())
    pixels = to_tensor(image, (16, 16))
    assert pixels.shape == (3, 16, 16)
    assert pixels.min() == -1
    assert pixels.max() == 1
    assert to_pil(pixels).tobytes() == image.tobytes()


def test_values_outside_the_range_are_clamped():
    assert to_pil(torch.tensor([-3.0, 0.0, 3.0]).reshape(3, 1, 1)).getpixel((0, 0)) == (0, 128, 255)


@pytest.mark.parametrize("size", [(40, 16), (16, 40), (1, 3000), (3, 3)])
def test_any_shape_is_scaled_and_cropped_to_the_middle(size: tuple[int, int]):
    pixels = to_tensor(Image.new("RGB", size, RED), (8, 16))
    assert pixels.shape == (3, 8, 16)
    assert to_pil(pixels).getpixel((8, 4)) == RED
