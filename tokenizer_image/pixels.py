"""Pictures in and out: any picture a person has <-> RGB <-> [3, H, W] in [-1, 1].

Whatever the file's mode, the result is 8-bit RGB, upright, on white ground. A file's size is looked at before
its pixels are decoded, so that a small file that claims a huge picture costs nothing.
"""

# torch types some of its functions in part only.
# pyright: reportUnknownMemberType=false

import warnings
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

MAX_PIXELS = 64_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "AVIF")  # none that runs programs (EPS)

Picture = Image.Image | str | Path | bytes


def open_image(source: Picture, max_pixels: int = MAX_PIXELS, ground: str | None = "white") -> Image.Image:
    """Any picture as 8-bit RGB: a path, a file's bytes, or a PIL image.

    EXIF orientation is applied, transparency laid on the ground (None: kept, the result is RGBA then), 16 bits scaled
    to 8; an animation gives its first frame. Errors: ValueError for what is missing, empty, broken, no picture, or
    larger than max_pixels.
    """
    if isinstance(source, Image.Image):
        return _decode(source, "the picture", max_pixels, ground)
    name = "the picture" if isinstance(source, bytes) else str(source)
    try:
        file = BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb")
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error.strerror})") from error
    with file:
        return _decode(_open(file, name, max_pixels), name, max_pixels, ground)


def to_tensor(image: Image.Image, size: tuple[int, int]) -> Tensor:  # [3, H, W]
    """The middle of an RGB picture, scaled to fill size = (H, W) pixels, with values in [-1, 1].

    numpy does the sums: torch would start a team of threads in every thread that decodes pictures.
    """
    height, width = size
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    pixels = np.asarray(image).astype(np.float32) / 127.5 - 1  # [H, W, 3]
    return torch.from_numpy(pixels).permute(2, 0, 1)


def crop_to_multiple(image: Image.Image, multiple: int) -> Image.Image:
    """The middle of a picture, unscaled, with sides that are multiples of `multiple`, in pixels.

    Raises ValueError for a picture with a shorter side.
    """
    width, height = (side // multiple * multiple for side in image.size)
    if not width or not height:
        raise ValueError(
            f"a picture of {image.height} x {image.width} pixels (height x width) is smaller than one code, "
            f"{multiple} x {multiple}: scale it up, or give a size to bring it to"
        )
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def to_pil(pixels: Tensor) -> Image.Image:
    """[3, H, W] in [-1, 1], clamped, to an RGB picture."""
    values = ((pixels.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def _open(file: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    """The picture with its size known and its pixels not yet decoded."""
    if not file.read(1):
        raise ValueError(f"{name}: the file is empty (0 bytes)")
    try:
        with warnings.catch_warnings():  # PIL warns above its own limit; ours is checked next
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(file, formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{name}: not a picture; give one of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(_too_large(name, "over 178 million pixels", max_pixels)) from error
    except Exception as error:  # broken bytes make PIL's decoders raise almost anything
        raise ValueError(_damaged(name, error)) from error


def _decode(image: Image.Image, name: str, max_pixels: int, ground: str | None) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(_too_large(name, f"{width} x {height} pixels", max_pixels))
    if width * height == 0:
        raise ValueError(f"{name}: it has no pixels: {width} x {height}")
    try:
        return _to_rgb(ImageOps.exif_transpose(image), ground)
    except Exception as error:  # as above
        raise ValueError(_damaged(name, error)) from error


def _damaged(name: str, error: Exception) -> str:
    return f"{name}: damaged or cut off ({error}); save the picture anew"


def _too_large(name: str, size: str, max_pixels: int) -> str:
    return f"{name}: too large: {size}, the limit is {max_pixels:,}; scale it down first"


def _to_rgb(image: Image.Image, ground: str | None) -> Image.Image:
    if image.mode[0] in "IF":  # I;16, I, F: PIL would clip where it should scale
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if ground is None:
            return rgba
        return Image.alpha_composite(Image.new("RGBA", rgba.size, ground), rgba).convert("RGB")
    return image.convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits (0..65535), or of floats (0..1, or 0..255 if any is above 1)."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))  # [H, W]
    white = 65535 if image.mode[0] == "I" else (1 if values.max() <= 1 else 255)
    return Image.fromarray((values / white * 255).clip(0, 255).round().astype(np.uint8))
