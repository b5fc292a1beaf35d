"""What the suites compare with, and how they ask a model."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PIL_Image

from cm3.engine.options import AnswerOptions, GenerateOptions, Query, SamplingConfig
from cm3.pipeline import CM3
from cm3.tasks.job import Job
from cm3.tokens.plan import Plan
from tokenizer_image import ImageTokenizer
from train.evaluation.judge import Judge, Reference
from train.recipes.emoji.art import TILE, Drawing, single
from train.recipes.emoji.documents import Builder, DocumentsConfig
from train.recipes.emoji.shelf import Codes, Shelf
from train.recipes.emoji.world import World

DRAWING = GenerateOptions(temperature=0.5, top_p=0.9)
SMALL = GenerateOptions(temperature=0.5, top_p=0.9, size="small")
PLANNING = SamplingConfig(temperature=DRAWING.variety)
COPY = 0.95  # share of codes that a memorised drawing has of a training image
BATCH = 64  # requests at once


class Asked:
    """A model that plans, asked for many things at once.

    Args:
        model: to be evaluated.
    """

    def __init__(self, model: CM3):
        if model.jobs.planning is None:
            raise ValueError("the suites need a model that plans (document_form 'plan')")
        self.model, self.planning = model, model.jobs.planning

    def draw(self, plans: Sequence[Plan], options: GenerateOptions = DRAWING) -> list[torch.Tensor]:
        """Codes [h, w] of each plan's image; image i has the seed i."""
        out: list[torch.Tensor] = []
        for i in range(0, len(plans), BATCH):
            some = plans[i : i + BATCH]
            out += self.model.run(Job(self.planning.images(some, range(i, i + len(some)), options)))
        return out

    def plan(self, prompts: Sequence[str], sampling: SamplingConfig = PLANNING) -> list[Plan | None]:
        """The plan of each prompt; prompt i has the seed i."""
        out: list[Plan | None] = []
        for i in range(0, len(prompts), BATCH):
            some = prompts[i : i + BATCH]
            out += self.model.run(Job(self.planning.plans(some, sampling, range(i, i + len(some)))))
        return out

    def tell(self, pairs: Sequence[tuple[PIL_Image.Image, Query]]) -> list[str]:
        """The answer to each query about its image."""
        out: list[str] = []
        for i in range(0, len(pairs), BATCH):
            out += self.model.run(self.model.jobs.tell(pairs[i : i + BATCH], AnswerOptions(threshold=0.0)))
        return out


class Truth:
    """Drawings to compare with, as images for judges and as codes for tiles.

    Args:
        data: the data set.
        codes: of the image tokenizer.
        count: concepts among which a judge chooses.
    """

    def __init__(self, data: Path, codes: Codes, count: int = 250):
        self.world, self.shelf, self.codes = World.read(data), Shelf.read(data, "train"), codes
        self.known = self.shelf.drawings | self.shelf.others
        styles = Counter(code for code, _ in self.known)
        able = [code for code in self.world.concepts if styles[code] >= 3 and code in self.shelf.styles]
        order = np.random.default_rng(0).permutation(len(able))
        self.concepts = sorted(able[i] for i in order[:count])
        self.builder = Builder(self.world, self.shelf, codes, DocumentsConfig(), novel=True)

    def drawings(self, seed: int = 0) -> list[Drawing]:
        """One drawing of each judged concept."""
        rng, styles = np.random.default_rng(seed), self.shelf.styles
        return [self.shelf.drawings[code, styles[code][rng.integers(len(styles[code]))]] for code in self.concepts]

    def reference(self, judge: Judge) -> Reference:
        """All real drawings of the judged concepts in all styles, on white."""
        ones = [one for (code, _), one in self.known.items() if code in set(self.concepts)]
        images = [single(one, TILE) for one in ones]
        return Reference(judge.features(images), [one.code for one in ones], [one.style for one in ones])

    def tiles(self) -> tuple[torch.Tensor, list[Drawing | None]]:
        """Codes [N, 64] of every drawing as a tile, and of the empty tile, with what each shows."""
        ones: list[Drawing | None] = [*self.shelf.drawings.values(), None]
        codes = [self.codes.single(one, TILE) for one in ones]
        return torch.from_numpy(np.stack(codes).reshape(len(ones), -1)), ones


def top(rank: torch.Tensor) -> dict[str, float]:
    """Shares in percent."""
    return {"top1": percent(rank < 1), "top5": percent(rank < 5)}


def percent(holds: Any) -> float:
    values = torch.as_tensor(holds).float()
    return round(100 * float(values.mean()), 1) if values.numel() else float("nan")


def psnr(a: PIL_Image.Image, b: PIL_Image.Image) -> float:
    error = np.square(np.asarray(a, float) - np.asarray(b, float)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def decode(tokenizer: ImageTokenizer, codes: Sequence[Any]) -> list[PIL_Image.Image]:
    return [tokenizer.decode(torch.as_tensor(one)) for one in codes]  # pyright: ignore[reportReturnType]
