"""Calibrate a model's captions and answers: measure how probable it is that a text is right, from its log-probability.

    python -m train.calibrate MODEL SOURCE [--most 1000] [--threshold 0.5]

MODEL: a model folder, into which calibration.json is written. SOURCE: held-out images with captions, in any layout that
train/documents/sources.py reads. A caption counts as right if it is the same as the image's, apart from case and the
mark at its end. cm3/tasks/confidence.py says what the file means.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from torch.nn.functional import binary_cross_entropy_with_logits

from cm3.engine.options import CaptionOptions
from cm3.hf.model_folder import CHECKSUMS, write_checksums
from cm3.pipeline import CM3
from cm3.tasks.confidence import Calibration, Rater
from cm3.tasks.rated_text import RatedText
from tokenizer_image.pixels import open_image
from train.documents.sources import open_source

BATCH = 16  # images
LEAST = 20  # right ones, and wrong ones


def fit(log_probs: Sequence[float], right: Sequence[bool], threshold: float = 0.5) -> Calibration:
    """Fit the probability of being right by logistic regression.

    The targets are Platt's (1999): with them a finite fit exists even where the log-probability tells all right texts
    from all wrong ones.

    Args:
        log_probs: mean log-probability of each text, in nats.
        right: whether each text is right.
        threshold: of the calibration.

    Raises:
        ValueError: fewer than LEAST right or wrong texts.
    """
    good = sum(right)
    bad = len(right) - good
    if min(good, bad) < LEAST:
        raise ValueError(f"{good} captions are right and {bad} wrong: calibration needs at least {LEAST} of each")
    x = torch.tensor(log_probs, dtype=torch.float64)
    y = torch.where(torch.tensor(right), (good + 1) / (good + 2), 1 / (bad + 2)).double()
    weights = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)  # slope, offset
    optimizer = torch.optim.LBFGS([weights], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = binary_cross_entropy_with_logits(weights[0] * x + weights[1], y)
        value.backward()
        return value

    optimizer.step(loss)  # pyright: ignore[reportArgumentType]  # torch's annotation wants floats
    slope, offset = weights.tolist()
    return Calibration(slope, offset, threshold)


def rated(model: CM3, images: Sequence[Image.Image], options: CaptionOptions = CaptionOptions()) -> list[RatedText]:
    """Captions with their mean log-probabilities, whether or not the model is calibrated yet."""
    jobs = replace(model.jobs, rater=Rater(model.mean_log_prob, Calibration(1.0, 0.0, threshold=0.0)))
    texts: list[RatedText] = []
    for i in range(0, len(images), BATCH):
        told = model.run(jobs.caption(images[i : i + BATCH], replace(options, threshold=0.0)))
        texts += [text for text in told if isinstance(text, RatedText)]
    return texts


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
