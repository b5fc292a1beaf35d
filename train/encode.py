"""Encode a folder of images, or of webdataset tars, to shards of codes.

    python -m train.encode FOLDER --out data/codes [--image-tokenizer emoji] [--size fit | keep | 256 | 256x384]

train/images/codes.py describes the files in OUT. Images that cannot be read are skipped, and listed at the end. To
resume an interrupted run, run the same command again.
"""

import re
from pathlib import Path
from typing import Annotated

import torch
import typer

from tokenizer_image import ImageTokenizer
from tokenizer_image.tokenizer import Size
from train.images.codes import write_codes


def parse_size(text: str) -> Size:
    """Parse "fit", "keep", "256" (square) or "256x384" (height x width).

    Raises:
        ValueError: it is anything else.
    """
    if text == "fit" or text == "keep":
        return text
    if not re.fullmatch(r"\d+(x\d+)?", text):
        raise ValueError(f"size {text!r}: want fit, keep, a side such as 256, or height x width such as 256x384")
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def main(
    folder: Annotated[Path, typer.Argument(help="images, or tars of images")],
    out: Annotated[Path, typer.Option(help="folder of the code shards")] = Path("data/codes"),
    image_tokenizer: Annotated[str, typer.Option(help="folder or name")] = "emoji",
    size: Annotated[str, typer.Option(help="fit, keep, a side, or height x width, in pixels")] = "fit",
    batch: Annotated[int, typer.Option(min=1, help="images in a batch")] = 16,
    workers: Annotated[int, typer.Option(min=1, help="threads that read and decode files")] = 2,
    per_shard: Annotated[int, typer.Option(min=1, help="files in a shard")] = 2048,
    bf16: Annotated[bool, typer.Option(help="faster where the device computes it; changes some codes")] = False,
) -> None:
    try:
        tokenizer = ImageTokenizer.from_pretrained(image_tokenizer)
        tokenizer.to("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if bf16 else torch.float32
        facts = write_codes(folder, out, tokenizer, parse_size(size), batch, workers, per_shard, dtype)
    except (OSError, ValueError) as error:
        raise SystemExit(f"encode: {error}") from None
    for name, reason in facts["skipped"].items():
        print(f"skipped {name}: {reason}")
    speed = f", {facts['images_per_second']} images/s" if facts["images_per_second"] else ""
    print(f"{facts['images']} images, {len(facts['skipped'])} skipped{speed}")


if __name__ == "__main__":
    typer.run(main)
