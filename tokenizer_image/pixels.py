"""Images of any kind to RGB and to tensors [3, H, W] in [-1, 1], and back.

The result is 8-bit RGB, upright, on a white background, whatever the mode of the file. The size is checked before any
pixels are decoded, so a small file that claims a huge image takes no memory.

Pillow decodes only JPEG at a reduced size; WebP, AVIF, TIFF and HEIC are decoded whole. Memory per pixel of the file,
with Pillow 12.3: JPEG 4 bytes whole, 0.1 to 0.3 at an eighth to a quarter (progressive: 7 to 10, and 3 to 6), TIFF 4 to
8, HEIC 7, AVIF 9, WebP 16.
"""

import os
import stat
import warnings
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

MAX_PIXELS = 16_000_000  # largest number that is decoded
# Without formats that run programs (EPS), or decode when they are opened (ICO).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")  # ISO/IEC 23008-12, B.4: images coded with HEVC
# Factor of max_pixels for files of which a smaller image is enough: JPEG is decoded at a reduced size, and phones write
# HEIC of 24 million pixels.
SHRINKING = {"JPEG": 4, "MPO": 4, "HEIF": 2}
LARGE = 1_000_000  # pixels; larger images are reduced if a smaller one is enough

ImageLike = (
    Image.Image | np.ndarray[Any, Any] | Tensor | str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]
)


def open_image(
    source: ImageLike, max_pixels: int = MAX_PIXELS, ground: str | None = "white", least: int = 0
) -> Image.Image:
    """Open an image of any kind as 8-bit RGB.

    EXIF orientation is applied, 16 bits are scaled to 8, and only the first frame of an animation is read.

    Args:
        source: a path, the bytes of a file, an open file, a PIL image, a numpy array [H, W], [H, W, 1], [H, W, 3] or
            [H, W, 4], or a tensor [1, H, W], [3, H, W] or [4, H, W]; values are uint8, or floats in [0, 1].
        max_pixels: larger images are rejected before they are decoded.
        ground: background of transparent images; None = keep transparency and return RGBA.
        least: the image may be reduced as long as its shorter side has at least this many pixels: a JPEG to a half, a
            quarter or an eighth while it is decoded, a large image by a whole factor. A JPEG may then have four times
            max_pixels, and HEIC twice. 0 = all pixels are needed.

    Raises:
        ValueError: the image is missing, empty, damaged or too large, or is no image; or an array has a wrong type or
            shape.
        TypeError: the source is none of these.
    """
    if isinstance(source, Image.Image):
        _check_size("the image", source.size, max_pixels)
        return _decode(source, "the image", ground, least)
    if isinstance(source, np.ndarray | Tensor):
        return _decode(_from_numbers(source, max_pixels), "the image", ground, least)
    if isinstance(source, str | os.PathLike):
        if reason := no_file(Path(source)):
            raise ValueError(f"{source}: cannot be read ({reason})")
        try:
            with Path(source).open("rb") as file:
                return _decode(_open(file, str(source), max_pixels, least), str(source), ground, least)
        except OSError as error:
            raise ValueError(f"{source}: cannot be read ({error.strerror})") from error
    name = "the image"
    if not isinstance(source, bytes | bytearray | memoryview):
        if not callable(getattr(source, "read", None)):
            raise TypeError(
                "an image is a path, a file's bytes, an open file, a PIL image, an array or a tensor, not "
                f"{source!r:.60}"
            )
        name, source = str(getattr(source, "name", name)), source.read()
        if not isinstance(source, bytes):  # pyright: ignore[reportUnnecessaryIsInstance]  # a file open for text
            raise TypeError(f"{name}: the file gives {type(source).__name__}, not bytes: open it with 'rb'")
    return _decode(_open(BytesIO(source), name, max_pixels, least), name, ground, least)


def no_file(path: Path) -> str:
    """Return why a path is not a regular file; "" if it is. Opening a pipe would block."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        return "a link that leads nowhere" if path.is_symlink() else getattr(error, "strerror", None) or str(error)
    if stat.S_ISREG(mode):
        return ""
    return "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"


def to_tensor(image: Image.Image, size: tuple[int, int]) -> Tensor:  # [3, H, W]
    """Crop the centre of an RGB image and scale it to (H, W) pixels, with values in [-1, 1].

    This uses numpy, since torch would start its own threads in every thread that decodes.
    """
    height, width = size
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    pixels = np.asarray(image).astype(np.float32) / 127.5 - 1  # [H, W, 3]
    return torch.from_numpy(pixels).permute(2, 0, 1)  # pyright: ignore[reportUnknownMemberType]


def crop_to_multiple(image: Image.Image, multiple: int) -> Image.Image:
    """Crop the centre of an image to sides that are multiples of `multiple`, in pixels.

    Raises:
        ValueError: a side is shorter.
    """
    width, height = (side // multiple * multiple for side in image.size)
    if not width or not height:
        raise ValueError(
            f"an image of {image.height} x {image.width} pixels (height x width) is smaller than one code, "
            f"{multiple} x {multiple}: scale it up, or give a size to bring it to"
        )
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def to_pil(pixels: Tensor) -> Image.Image:
    """Convert pixels [3, H, W], clamped to [-1, 1], to an RGB image."""
    values = ((pixels.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def _open(file: BinaryIO, name: str, max_pixels: int, least: int) -> Image.Image:
    """Open an image without decoding its pixels."""
    if not (head := file.read(64)):
        raise ValueError(f"{name}: the file is empty (0 bytes)")
    heic = _is_heic(head)
    if heic and not knows_heic():
        raise ValueError(f"{name}: HEIC needs a package: pip install pillow-heif, or save the image as JPEG")
    if claimed := _webp_size(head):  # PIL allocates two whole images when it opens a WebP
        _check_size(name, claimed, max_pixels)
    file.seek(0)
    try:
        with warnings.catch_warnings():  # PIL warns above its own limit; ours is checked next
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=("HEIF",) if heic else FORMATS)
    except Image.UnidentifiedImageError as error:
        if heic:
            raise ValueError(_damaged(name, error)) from error
        raise ValueError(f"{name}: not an image; give one of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(_too_large(name, "over 178 million pixels", max_pixels)) from error
    except Exception as error:  # PIL raises many kinds of errors for broken files
        raise ValueError(_damaged(name, error)) from error
    if not least or image.format not in SHRINKING:
        _check_size(name, image.size, max_pixels)
        return image
    _check_size(name, image.size, max_pixels, SHRINKING[image.format], image.format)
    if image.draft("RGB", (least, least)):
        _check_size(name, image.size, max_pixels)  # of what is decoded
    return image


def knows_heic() -> bool:
    """Return whether HEIC can be read: by Pillow with pillow-heif, the extra "heic"."""
    try:
        import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


def _is_heic(head: bytes) -> bool:
    """Return whether the first bytes of a file are those of a HEVC image (ISO/IEC 14496-12, 4.3: "ftyp")."""
    size = int.from_bytes(head[:4], "big")
    brands = [head[at : at + 4] for at in (8, *range(16, min(size, len(head)), 4))]
    return head[4:8] == b"ftyp" and any(brand in HEIC_BRANDS for brand in brands)


def _webp_size(head: bytes) -> tuple[int, int] | None:
    """Return width and height from the first 30 bytes of a WebP file (RFC 9649, 2.5 to 2.7); None for other files."""
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(head) < 30:
        return None
    kind, number = head[12:16], int.from_bytes
    if kind == b"VP8X":
        return number(head[24:27], "little") + 1, number(head[27:30], "little") + 1
    if kind == b"VP8L":
        bits = number(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return number(head[26:28], "little") & 0x3FFF, number(head[28:30], "little") & 0x3FFF


def _from_numbers(values: np.ndarray[Any, Any] | Tensor, max_pixels: int) -> Image.Image:
    """Convert an array [H, W], [H, W, C] or a tensor [C, H, W] to an image; C = 1, 3 or 4."""
    channels_at = -1
    if isinstance(values, Tensor):
        channels_at = 0
        values = values.detach().cpu().float().numpy() if values.is_floating_point() else values.detach().cpu().numpy()
    shape = tuple(values.shape)
    if values.ndim == 3:
        values = np.moveaxis(values, channels_at, -1)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)):
        raise ValueError(
            f"the image: an array of shape {shape}, but want [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], or a tensor "
            "[1, H, W], [3, H, W] or [4, H, W]"
        )
    _check_size("the image", (values.shape[1], values.shape[0]), max_pixels)
    if values.dtype.kind == "f":
        if not ((values >= 0) & (values <= 1)).all():  # nor nan
            raise ValueError("the image: floats must be in [0, 1]; for 0 to 255 give uint8")
        values = (values * 255).round().astype(np.uint8)
    elif values.dtype == np.bool_:
        values = values * np.uint8(255)
    elif values.dtype != np.uint8:
        raise ValueError(f"the image: numbers of type {values.dtype}, but want uint8, or floats in [0, 1]")
    return Image.fromarray(np.ascontiguousarray(values))


def _check_size(name: str, size: tuple[int, int], max_pixels: int, times: int = 1, format: str = "") -> None:
    """Check the number of pixels.

    Args:
        name: of the image, for messages.
        size: width and height.
        max_pixels: the limit.
        times: factor of the limit for this format.
        format: of the file.

    Raises:
        ValueError: there are too many, or none.
    """
    width, height = size
    if width * height > times * max_pixels:
        raise ValueError(_too_large(name, f"{width} x {height} pixels", max_pixels, times, format))
    if width * height == 0:
        raise ValueError(f"{name}: it has no pixels: {width} x {height}")


def _decode(image: Image.Image, name: str, ground: str | None, least: int) -> Image.Image:
    try:
        image = _to_rgb(ImageOps.exif_transpose(image), ground)
    except Exception as error:  # as above
        raise ValueError(_damaged(name, error)) from error
    factor = min(image.size) // least if least and image.width * image.height > LARGE else 1
    return image.reduce(factor) if factor > 1 and image.mode == "RGB" else image


def _damaged(name: str, error: Exception) -> str:
    return f"{name}: damaged or cut off ({error}); save the image anew"


def _too_large(name: str, size: str, max_pixels: int, times: int = 1, format: str = "") -> str:
    limit = f"{max_pixels:,}" if times == 1 else f"{times * max_pixels:,} for {format}"
    return f"{name}: too large: {size}, the limit is {limit}; scale it down first, or raise max_pixels"


def _to_rgb(image: Image.Image, ground: str | None) -> Image.Image:
    if image.mode[0] in "IF":  # I;16, I, F: PIL would clip where it should scale
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if ground is None:
            return rgba
        return Image.alpha_composite(Image.new("RGBA", rgba.size, ground), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey values of 16 bits (0..65535), or floats (0..1, or 0..255 if any is above 1), to 8 bits."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))  # [H, W]
    white = 65535 if image.mode[0] == "I" else (1 if values.max() <= 1 else 255)
    return Image.fromarray((values / white * 255).clip(0, 255).round().astype(np.uint8))
