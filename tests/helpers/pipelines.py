"""What the tests of the pipeline share."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image as PIL_Image

from cm3 import CM3
from cm3.engine.options import GenerateOptions
from cm3.tokens.document import Image

CODES = Image(torch.arange(16).view(4, 4))
BOXES = [("a cat", (0.1, 0.2, 0.5, 0.9)), ("a dog", (0.6, 0.2, 0.9, 0.9))]


def bytes_of(images: Sequence) -> list[bytes]:
    return [image.tobytes() for image in images]


def mask_of(box: tuple[int, int, int, int], size: tuple[int, int] = (32, 24)) -> PIL_Image.Image:
    """Black, white in the box (left, top, right, bottom)."""
    mask = PIL_Image.new("L", size)
    mask.paste(255, box)
    return mask


HOLE_MASK = mask_of((9, 7, 14, 11))


def drawn(tiny: CM3, prompt: str, **options: Any) -> list[torch.Tensor]:
    return tiny.draw_codes(tiny.jobs.generate(prompt, GenerateOptions(**options)).requests)


def prompts_of(tiny: CM3, requests: list) -> list[str]:
    return [tiny.processor.text([id for id in one.prompt if tiny.vocab.is_text(id)]) for one in requests]
