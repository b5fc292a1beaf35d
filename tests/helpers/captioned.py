"""A folder of captioned images, and what was made of it."""

import io
from pathlib import Path

import numpy as np
from PIL import Image as PIL_Image

from cm3.tokens.document import Document
from cm3.tokens.encoding import from_ids
from train.documents.shards import Shards


def noise(seed: int, size: tuple[int, int] = (20, 12)) -> bytes:
    pixels = np.random.default_rng(seed).integers(256, size=(*size, 3), dtype=np.uint8)
    out = io.BytesIO()
    PIL_Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


CAPTIONS = ("a red field", "a <image> of a cat", "تفاحة حمراء", "five", "six\nlines", "seven", "eight", "nine", "ten")


def documents(out: Path, split: str = "train") -> list[Document]:
    shards = Shards(out, split)
    text = shards.text_tokenizer()
    return [from_ids(shards.document(i).ids, shards.vocab(), text, (4, 4)) for i in range(len(shards))]
