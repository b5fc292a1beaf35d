"""Sources of samples, and what is read of them."""

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from train.documents.sample import Sample, Skip
from train.documents.sources import Source


def png(value: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 6), (value, 50, 200)).save(out, "PNG")
    return out.getvalue()


def read(source: Source) -> list[Sample | Skip]:
    return [*source.skipped, *(record for number in range(len(source)) for record in source.read(number))]


def good(source: Source) -> dict[str, tuple]:
    """Name -> pieces, images as their bytes."""
    return {
        found.name: tuple(piece if isinstance(piece, str) else piece.read() for piece in found.pieces)
        for found in read(source)
        if isinstance(found, Sample)
    }


def bad(source: Source) -> dict[str, str]:
    return {found.name: found.reason for found in read(source) if isinstance(found, Skip)}


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
