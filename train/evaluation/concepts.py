"""Which concepts are judged, and how their drawings are asked for."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from cm3.engine.options import GenerateOptions
from cm3.pipeline import CM3
from train.emoji.dataset import read_split
from train.emoji.phrases import STYLED, Facts
from train.evaluation.judge import Judge, Reference
from train.images.views import PLAIN, place

JUDGED = 250  # concepts among which a judge chooses
SPLIT_FOLDERS = {
    "train": "train",
    "held_out_pairs": "unseen_cell",
    "held_out_concepts": "unseen_concept",
}  # of the data


def settings(options: GenerateOptions) -> dict[str, float]:
    """What evaluations note of how they drew."""
    return {"guidance": options.guidance, "temperature": options.temperature, "top_p": options.top_p}


@dataclass(frozen=True)
class SplitImage:
    """One image of a split, as it is shown to the model."""

    image: Image.Image
    facts: Facts


def load_split(folder: Path, size: int, concepts: set[str] | None) -> list[SplitImage]:
    """The split's images of the given concepts (None = all), placed plainly on white."""
    return [
        SplitImage(Image.fromarray(place(drawing, PLAIN, size)), facts)
        for _, drawing, facts in read_split(folder)
        if concepts is None or facts["code"] in concepts
    ]


def plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s-]", "", text.lower()).split())


def judged_concepts(train: list[SplitImage], first: Collection[str] = ()) -> dict[str, list[SplitImage]]:
    """`JUDGED` concepts that three styles or more have drawn, each with its real images; those of `first` come before
    others."""
    by_concept: dict[str, list[SplitImage]] = defaultdict(list)
    for sample in train:
        by_concept[sample.facts["code"]].append(sample)
    many = sorted(code for code, members in by_concept.items() if len({m.facts["style"] for m in members}) >= 3)
    order = np.random.default_rng(0).permutation(len(many))
    order = sorted(order, key=lambda i: many[i] not in first)[:JUDGED]
    return {many[i]: by_concept[many[i]] for i in sorted(order)}


def reference_of(real: list[SplitImage], judge: Judge) -> Reference:
    """What the judge compares drawings with."""
    return Reference(
        judge.features([one.image for one in real]),
        [one.facts["code"] for one in real],
        [one.facts["style"] for one in real],
    )


class JudgedPrompts(NamedTuple):
    """What is drawn: words of each prompt, and the name in it; what each should show, and in which style."""

    prompts: list[str]
    names: list[str]
    concepts: list[str]
    styles: list[str]


def asked_of(train: list[SplitImage], language: str, count: int) -> tuple[JudgedPrompts, list[SplitImage]]:
    """The concepts that the suite "concepts" judges, with its prompts; and the real images to compare with."""
    by_concept = judged_concepts(train)
    chosen = list(by_concept)
    some = [by_concept[code][i % len(by_concept[code])].facts for i, code in enumerate(chosen)][:count]
    names, styles = [facts["name"][language] for facts in some], [facts["style"] for facts in some]
    prompts = [STYLED[language][0].format(name, style) for name, style in zip(names, styles, strict=True)]
    return JudgedPrompts(prompts, names, chosen[:count], styles), [
        sample for code in chosen for sample in by_concept[code]
    ]


def identity(model: CM3, *facts: Any) -> str:
    """Changes with the model's weights and the facts."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for _, tensor in sorted(model.model.state_dict().items()):
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def shares(rank: Tensor) -> dict[str, float]:
    """Top-1 and top-5 of ranks [...], and the place of the right concept: their geometric mean, from 1."""
    found = {f"top{k}": (rank < k).float().mean().item() for k in (1, 5)}
    return found | {"place": (rank + 1).float().log().mean().exp().item()}
