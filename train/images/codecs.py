"""WebP and JPEG as baselines for image tokenizers: the best reconstruction of an image in a number of bytes.

The codes of an image take some hundred bytes or less. Neither format is that small at full size, so images are also
scaled down, encoded at the best quality that fits, and scaled up again. Each image is taken at the scale with the
smallest error. Bytes that are the same in every file are not counted: the container of WebP (20 bytes), and everything
in a JPEG except its entropy-coded scan.
"""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image

SCALES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.1875, 0.125)
OPTIONS = {"WebP": dict(format="WEBP", method=6), "JPEG": dict(format="JPEG", subsampling="4:2:0")}
CONTAINER = 20  # bytes of the RIFF header and the chunk header


class Compressed(NamedTuple):
    """A compressed image.

    Attributes:
        image: the reconstruction, in the original size.
        size: bytes that count.
    """

    image: Image.Image
    size: int


def compress(image: Image.Image, codec: str, budget: float) -> Compressed:
    """Compress an image.

    Args:
        image: RGB.
        codec: "WebP" or "JPEG".
        budget: largest number of bytes. Where no file is so small, the smallest one is returned.
    """
    coded = [_at_scale(image, codec, budget, scale) for scale in SCALES]
    fitting = [one for one in coded if one.size <= budget]
    if not fitting:
        return min(coded, key=lambda one: one.size)
    return min(fitting, key=lambda one: _error(one.image, image))


def counted(data: bytes, codec: str) -> int:
    """Return the number of bytes of a file that count."""
    if codec == "WebP":
        return len(data) - CONTAINER
    scan = data.rindex(b"\xff\xda")  # start of scan: marker, a two-byte length that counts itself, then the codes
    return len(data) - scan - 2 - int.from_bytes(data[scan + 2 : scan + 4]) - 2  # 2 for the end marker


def _at_scale(image: Image.Image, codec: str, budget: float, scale: float) -> Compressed:
    """Compress a scaled image at the highest quality that fits, or else at the lowest."""
    small = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    low, high = 0, 100
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if counted(_encode(small, codec, middle), codec) <= budget else (low, middle - 1)
    data = _encode(small, codec, low)
    with Image.open(io.BytesIO(data)) as back:
        return Compressed(back.convert("RGB").resize(image.size, Image.Resampling.LANCZOS), counted(data, codec))


def _encode(image: Image.Image, codec: str, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, quality=quality, **OPTIONS[codec])
    return file.getvalue()


def _error(a: Image.Image, b: Image.Image) -> float:
    return float(np.square(np.asarray(a, np.float32) - np.asarray(b, np.float32)).mean())
