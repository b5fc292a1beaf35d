"""Every kind of image that a person may hand in, and every broken one."""

import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
from io import BytesIO, StringIO

import numpy as np
import pytest
import torch
from PIL import Image

from checkout import ROOT
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
    with pytest.raises(ValueError, match="cut: (damaged|not an image)"):
        open_image(path)


def test_empty_file(tmp_path):
    path = tmp_path / "empty.png"
    path.touch()
    with pytest.raises(ValueError, match=r"empty.png: the file is empty \(0 bytes\)"):
        open_image(path)


NOT_IMAGES = [b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>", b"\x89PNG\r\n\x1a\n", bytes(1000)]


@pytest.mark.parametrize("data", NOT_IMAGES)
def test_not_an_image(data: bytes):
    with pytest.raises(ValueError, match="the image: (not an image|damaged)"):
        open_image(data)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ValueError, match=r"none.png: cannot be read \(No such file"):
        open_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match="cannot be read"):
        open_image(tmp_path)


@pytest.mark.parametrize("side", [4_001, 10_000, 30_000])
def test_huge_image_is_refused_before_it_is_decoded(side: int, recwarn):
    with pytest.raises(ValueError, match="the image: too large: .*limit is 16,000,000"):
        open_image(png_that_claims(side, side))
    assert not recwarn


def test_a_webp_that_claims_to_be_huge_costs_nothing():
    """PIL makes room for two images of the claimed size when it opens one: 1.2 GB for these bytes."""
    sides = (16383 - 1) | (16383 - 1) << 14
    bodies = {
        b"VP8L": b"\x2f" + sides.to_bytes(4, "little") + bytes(8),
        b"VP8X": bytes(4) + (16383 - 1).to_bytes(3, "little") * 2 + bytes(4),
        b"VP8 ": bytes(3) + b"\x9d\x01\x2a" + (16383).to_bytes(2, "little") * 2 + bytes(4),
    }
    for kind, body in bodies.items():
        chunk = kind + len(body).to_bytes(4, "little") + body
        data = b"RIFF" + (len(chunk) + 4).to_bytes(4, "little") + b"WEBP" + chunk
        tracemalloc.start()
        with pytest.raises(ValueError, match="too large: 16383 x 16383 pixels, the limit is 16,000,000"):
            open_image(data)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 50}, {"quality": 50, "exif": b"Exif\0\0"}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_size_in_a_webp_header_is_that_of_the_image(mode: str, options: dict):
    data = stored(Image.new(mode, (123, 45)), "WEBP", **options)
    with pytest.raises(ValueError, match="too large: 123 x 45 pixels"):
        open_image(data, max_pixels=123 * 45 - 1)
    assert open_image(data, max_pixels=123 * 45).size == (123, 45)


def test_a_format_that_decodes_when_it_is_opened_is_refused():
    with pytest.raises(ValueError, match="not an image; give one of PNG"):
        open_image(stored(Image.new("RGB", (16, 16)), "ICO"))


def test_a_jpeg_is_shrunk_while_it_is_decoded_where_less_is_enough():
    photograph = Image.radial_gradient("L").resize((5_000, 4_000)).convert("RGB")
    data = stored(photograph, "JPEG")
    with pytest.raises(ValueError, match="too large: 5000 x 4000 pixels"):
        open_image(data)
    shrunk = open_image(data, least=128)
    assert shrunk.size == (625, 500)
    difference = np.asarray(shrunk).astype(int) - np.asarray(photograph.resize((625, 500), Image.Resampling.BOX))
    assert abs(difference).max() < 8
    assert open_image(data, max_pixels=20_000_000).size == (5_000, 4_000)
    assert open_image(stored(photograph, "JPEG", progressive=True), least=128).size == (625, 500)


def jpeg_that_claims(width: int, height: int) -> bytes:
    """A JPEG whose header promises width x height pixels."""
    data = stored(Image.new("RGB", (16, 16)), "JPEG")
    at = data.index(b"\xff\xc0") + 5  # start of frame: marker, length, precision, height, width
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def test_a_photograph_of_24_million_pixels_is_read_by_default_where_less_is_enough():
    photograph = stored(Image.radial_gradient("L").resize((6_000, 4_000)), "JPEG")
    assert open_image(photograph, least=256).size == (750, 500)
    with pytest.raises(ValueError, match="too large: 6000 x 4000 pixels, the limit is 16,000,000; scale it down"):
        open_image(photograph)


def test_where_less_is_enough_a_jpeg_may_have_64_million_pixels_by_default_and_others_16():
    assert open_image(jpeg_that_claims(8_000, 8_000), least=256).size == (1_000, 1_000)
    with pytest.raises(ValueError, match="too large: 8000 x 8001 pixels, the limit is 64,000,000 for JPEG"):
        open_image(jpeg_that_claims(8_000, 8_001), least=256)
    with pytest.raises(ValueError, match="the limit is 16,000,000 for JPEG"):
        open_image(jpeg_that_claims(4_000, 4_001), max_pixels=4_000_000, least=256)
    with pytest.raises(ValueError, match="too large: 8000 x 8000 pixels, the limit is 16,000,000;"):
        open_image(jpeg_that_claims(8_000, 8_000), least=4_001)  # no half of it is enough
    with pytest.raises(ValueError, match="too large: 4001 x 4001 pixels, the limit is 16,000,000;"):
        open_image(png_that_claims(4_001, 4_001), least=256)


PEAK = """
import resource, sys
from tokenizer_image.pixels import open_image
open_image(sys.argv[1], least=256)  # what libraries take the first time
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
open_image(sys.argv[2], least=256)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_a_jpeg_of_64_million_pixels_takes_little_memory_where_less_is_enough(tmp_path):
    Image.new("RGB", (300, 300)).save(tmp_path / "small.jpg")
    Image.new("L", (8_000, 8_000)).save(tmp_path / "large.jpg")
    command = [sys.executable, "-c", PEAK, str(tmp_path / "small.jpg"), str(tmp_path / "large.jpg")]
    megabytes = float(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    assert megabytes < 40  # whole it would be 256


def test_of_a_large_image_of_any_format_no_more_is_kept_than_is_enough():
    image = Image.radial_gradient("L").resize((1_500, 1_200)).convert("RGB")
    kept = open_image(stored(image), least=256)
    assert kept.size == image.reduce(4).size == (375, 300)
    assert kept.tobytes() == open_image(image, least=256).tobytes() == image.reduce(4).tobytes()
    assert open_image(stored(image)).size == (1_500, 1_200)
    assert open_image(stored(image.crop((0, 0, 1_000, 1_000))), least=256).size == (1_000, 1_000)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "none.png")
    with pytest.raises(ValueError, match=r"pipe.png: cannot be read \(a pipe"):
        open_image(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"link.png: cannot be read \(a link that leads nowhere\)"):
        open_image(tmp_path / "link.png")


HEIC = b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(100)  # "heic" among the compatible brands


@pytest.mark.parametrize("data", [HEIC, b"\0\0\0\x14ftypheic\0\0\0\0heic" + bytes(100)])
def test_heic_without_its_package_says_which_to_install(data: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # to import it is an error
    with pytest.raises(ValueError, match="the image: HEIC needs a package: pip install pillow-heif"):
        open_image(data)


def test_avif_is_not_taken_for_heic(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert open_image(stored(Image.new("RGB", (16, 16), RED), "AVIF")).size == (16, 16)


def test_heic_is_read_upright_and_within_limits():
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    image = Image.new("RGB", (64, 32), RED)
    image.paste((0, 0, 255), (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    data = stored(image, "HEIF", exif=exif.tobytes())
    upright = open_image(data)
    assert upright.size == (32, 64)
    top, bottom = corners(upright)
    assert top[2] > 200 > 50 > top[0] and bottom[0] > 200 > 50 > bottom[2]
    with pytest.raises(ValueError, match="too large: .*the limit is 1,000;"):
        open_image(data, max_pixels=1_000)
    assert open_image(data, max_pixels=1_024, least=8).size == (32, 64)  # twice that
    with pytest.raises(ValueError, match="the limit is 2,046 for HEIF"):
        open_image(data, max_pixels=1_023, least=8)
    with pytest.raises(ValueError, match="damaged or cut off"):
        open_image(data[: len(data) // 2])


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_numbers_are_images_too(mode: str):
    rng = np.random.default_rng(0)
    channels = len(mode) if mode != "L" else 1
    values = rng.integers(0, 256, (5, 7, channels), dtype=np.uint8)  # [H, W, C]
    expected = open_image(Image.fromarray(values[..., 0] if mode == "L" else values), ground=None)
    tensor = torch.from_numpy(values).permute(2, 0, 1)
    same = [values, values / 255, (values / 255).astype(np.float32), tensor, tensor / 255, (tensor / 255).double()]
    if mode == "L":
        same.append(values[..., 0])
    for source in same:
        assert open_image(source, ground=None).tobytes() == expected.tobytes()
    half = np.asarray(open_image((tensor / 255).bfloat16(), ground=None)).astype(int)
    assert abs(half - np.asarray(expected)).max() <= 1


def test_files_and_buffers_are_images_too(tmp_path):
    data = stored(half_clear("RGBA"))
    (tmp_path / "a.png").write_bytes(data)
    with (tmp_path / "a.png").open("rb") as file:
        sources = [file, BytesIO(data), bytearray(data), memoryview(data), str(tmp_path / "a.png")]
        assert len({open_image(source).tobytes() for source in sources}) == 1


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (None, TypeError, "an image is a path, a file's bytes"),
        (3, TypeError, "an image is a path, a file's bytes"),
        (StringIO("text"), TypeError, "open it with 'rb'"),
        (np.zeros((2, 3, 5), np.uint8), ValueError, r"an array of shape \(2, 3, 5\)"),
        (torch.zeros(5, 2, 3), ValueError, r"an array of shape \(5, 2, 3\)"),
        (np.zeros(4, np.uint8), ValueError, r"an array of shape \(4,\)"),
        (np.full((2, 2, 3), 1.5), ValueError, r"floats must be in \[0, 1\]"),
        (np.full((2, 2, 3), np.nan), ValueError, r"floats must be in \[0, 1\]"),
        (torch.full((3, 2, 2), -0.1), ValueError, r"floats must be in \[0, 1\]"),
        (np.zeros((2, 2, 3), np.int64), ValueError, "numbers of type int64"),
        (np.zeros((5_000, 5_000), np.uint8), ValueError, "too large: 5000 x 5000"),
        (np.zeros((0, 5), np.uint8), ValueError, "no pixels: 5 x 0"),
    ],
)
def test_what_is_no_image_is_one_clear_error(source, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        open_image(source)


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
