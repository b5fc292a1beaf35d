"""Calibration of captions: fit the probability that a text is right to its log-probability."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch.nn.functional import binary_cross_entropy_with_logits

from cm3.engine.options import CaptionOptions
from cm3.pipeline import CM3
from cm3.tasks.confidence import Calibration, Rater
from cm3.tasks.rated_text import RatedText

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
