"""Captions per second: one image at a time, in batches, and with transformers' pipeline on the same weights.

    python -m benchmarks.captions [--images 64] [--repeats 3] [--out benchmarks/results/captions-NAME.json]

The images are those of data/sample, repeated if there are too few. The ways take turns; all decode greedily, and their
captions are compared. Prints a table, and one JSON line at the end.
"""

import statistics
import tarfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import transformers
import typer
from PIL import Image
from transformers import pipeline
from transformers.utils import logging

from benchmarks.report import device_name, finish
from cm3 import CM3
from cm3.tokens.templates import prompt
from tokenizer_image.pixels import open_image

SAMPLE = Path(__file__).parent.parent / "data" / "sample" / "train" / "shard-00000.tar"

Way = Callable[[list[Image.Image]], list[str]]


def read(shard: Path) -> list[Image.Image]:
    """The images of a tar file."""
    with tarfile.open(shard) as tar:
        members = [member for member in tar if member.name.endswith(".png")]
        return [open_image(tar.extractfile(member).read()) for member in members]  # pyright: ignore


def ours(model: CM3, batch: int) -> Way:
    """This package, with a batch size."""
    return lambda images: [text for i in range(0, len(images), batch) for text in model.caption(images[i : i + batch])]


def theirs(pipe: Any, batch: int) -> Way:
    """transformers' image-text-to-text pipeline, with the prompt that the model was trained on."""
    words = {"type": "text", "text": prompt("caption", "")}

    def way(images: list[Image.Image]) -> list[str]:
        chats = [[{"role": "user", "content": [words, {"type": "image", "image": image}]}] for image in images]
        texts = pipe(text=chats, batch_size=batch, return_full_text=False, generate_kwargs={"generation_mode": "text"})
        return [str(one[0]["generated_text"]).strip() for one in texts]

    return way


def main(
    images: Annotated[int, typer.Option(min=1)] = 64,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    out: Annotated[Path | None, typer.Option(help="JSON file")] = None,
) -> None:
    logging.set_verbosity_error()
    model = CM3.from_pretrained("emoji", device="cpu")
    chosen = list(islice(cycle(read(SAMPLE)), images))
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        pipe = pipeline("image-text-to-text", model=folder, trust_remote_code=True, device="cpu")
        ways: dict[str, Way] = {
            "one by one": ours(model, 1),
            "batches of 8": ours(model, 8),
            "batches of 32": ours(model, 32),
            "transformers' pipeline, one by one": theirs(pipe, 1),
            "transformers' pipeline, batches of 8": theirs(pipe, 8),
            "transformers' pipeline, batches of 32": theirs(pipe, 32),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        found: dict[str, list[str]] = {}
        for way in ways.values():
            way(chosen[:2])  # warm
        for _ in range(repeats):
            for name, way in ways.items():
                began = time.perf_counter()
                found[name] = way(chosen)
                times[name].append(time.perf_counter() - began)
    speeds = {name: images / statistics.median(some) for name, some in times.items()}
    same = {name: sum(a == b for a, b in zip(texts, found["one by one"], strict=True)) for name, texts in found.items()}
    print(f"{device_name()}, {images} images, transformers {transformers.__version__}")
    print("| way | images/s | times as fast as one by one | same captions |\n|---|---|---|---|")
    for name, speed in speeds.items():
        print(f"| {name} | {speed:.1f} | {speed / speeds['one by one']:.2f} | {same[name]} |")
    figures = [{"way": name, "images_per_second": round(speeds[name], 2), "same": same[name]} for name in ways]
    finish("captions", out, transformers=transformers.__version__, images=images, ways=figures)


if __name__ == "__main__":
    typer.run(main)
