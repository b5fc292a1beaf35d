"""Calibrate a model's captions and answers: measure how probable it is that a text is right, from its log-probability.

    python -m train.calibrate MODEL SOURCE [--most 1000] [--threshold 0.5]

MODEL: a model folder, into which calibration.json is written. SOURCE: held-out images with captions, in any layout that
train/documents/sources.py reads. A caption counts as right if it is the same as the image's, apart from case and the
mark at its end. cm3/tasks/confidence.py says what the file means.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from cm3.hf.model_folder import CHECKSUMS, write_checksums
from cm3.pipeline import CM3
from tokenizer_image.pixels import open_image
from train.documents.sources import open_source
from train.evaluation.calibration import LEAST, fit, rated


def same(text: str, truth: str) -> bool:
    """Whether two captions are the same, apart from case and the mark at the end."""
    first, second = (" ".join(one.casefold().split()).rstrip(".!。") for one in (text, truth))
    return first == second


def pairs(source: Path) -> Iterator[tuple[Image.Image, str]]:
    """The images of a source with their captions; images that cannot be read, or have none, are left out."""
    chunks = open_source(source)
    for number in range(len(chunks)):
        for sample in chunks.read(number):
            pieces = getattr(sample, "pieces", ())
            if len(pieces) != 2 or not isinstance(pieces[0], str):
                continue
            try:
                yield open_image(pieces[1].read()), pieces[0]
            except (ValueError, OSError):
                continue


def calibrate(folder: Path, source: Path, most: int = 1000, threshold: float = 0.5) -> dict[str, float]:
    """Calibrate a model folder.

    Returns:
        The calibration; the share of right captions; among those that the model is sure of, and among the others; and
        the share that it is sure of.

    Raises:
        ValueError: MODEL is no folder, or SOURCE has too few captions.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no model folder: give one that you may write to")
    model = CM3.from_pretrained(folder)
    found = list(islice(pairs(source), most))
    texts = rated(model, [image for image, _ in found])
    right = [same(text, truth) for text, (_, truth) in zip(texts, found, strict=True)]
    calibration = fit([text.log_prob for text in texts], right, threshold)
    calibration.save(folder)
    if (folder / CHECKSUMS).exists():
        write_checksums(folder)
    sure = [calibration.probability(text.log_prob) >= threshold for text in texts]
    kept = [held for held, is_sure in zip(right, sure, strict=True) if is_sure]
    left = [held for held, is_sure in zip(right, sure, strict=True) if not is_sure]
    return {
        "slope": calibration.slope,
        "offset": calibration.offset,
        "captions": len(texts),
        "right": share(right),
        "sure": share(sure),
        "right where sure": share(kept),
        "right where not sure": share(left),
    }


def share(held: Sequence[bool]) -> float:
    return round(sum(held) / max(1, len(held)), 4)


def main(
    folder: Annotated[Path, typer.Argument(metavar="MODEL", help="a model folder")],
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="held-out images with captions")],
    most: Annotated[int, typer.Option(help="images", min=2 * LEAST)] = 1000,
    threshold: Annotated[float, typer.Option(help="mark texts of a lower probability as not sure", min=0, max=1)] = 0.5,
) -> None:
    try:
        print(json.dumps(calibrate(folder, source, most, threshold)))
    except (ValueError, OSError) as error:
        raise SystemExit(f"calibrate: {error}") from None


if __name__ == "__main__":
    typer.run(main)
