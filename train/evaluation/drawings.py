"""Measure generated images: how well they show what was asked for, and how many copy a training image.

The judges are classifiers (train/evaluation/judge.py). A prompt names a concept with a style, or the concept alone; or
a held-out concept-style pair. The ceiling of each judge stands beside its figures: real images, and real images after
the image tokenizer.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from cm3.engine.options import GenerateOptions
from cm3.pipeline import CM3
from train.emoji.phrases import STYLED
from train.evaluation.concepts import SplitImage, judged_concepts, reference_of, settings, shares
from train.evaluation.judge import Judge, ranks
from train.images.codes import decode
from train.images.sheet import contact_sheet

COPY = 0.95  # share of codes that a copy has in common with a training image


class Asked(NamedTuple):
    """Prompts, and the image that each asks for; `styled`: whether the prompts name its style."""

    prompts: list[str]
    wanted: list[SplitImage]
    styled: bool


def asked(wanted: list[SplitImage], language: str = "en", styled: bool = True) -> Asked:
    names = [one.facts["name"][language] for one in wanted]
    spelled = [STYLED[language][0].format(name, one.facts["style"]) for name, one in zip(names, wanted, strict=True)]
    return Asked(spelled if styled else names, wanted, styled)


def nearest(codes: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """codes [N, L] and known [M, L] -> share of codes that the nearest has too, and which that is, [N]."""
    found = [(part[:, None] == known).float().mean(-1).max(-1) for part in codes.split(16)]
    return torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])


class Gallery:
    """Training images to compare with.

    Args:
        model: whose tokenizer spells them.
        train: all of them.
        unseen: images of held-out pairs; their concepts are among the judged.
        judges: name -> judge.
    """

    def __init__(self, model: CM3, train: list[SplitImage], unseen: list[SplitImage], judges: dict[str, Judge]):
        self.model, self.train, self.judges = model, train, judges
        self.codes = self.spelled([one.image for one in train])
        first = {one.facts["code"] for one in unseen}
        self.by_concept = judged_concepts(train)
        among = judged_concepts(train, first)
        self.unseen = [one for one in unseen if one.facts["code"] in among]
        known = [one for one in train if one.facts["code"] in self.by_concept or one.facts["code"] in among]
        seen = {name: reference_of(known, judge) for name, judge in judges.items()}
        self.references = {
            held: {name: seen[name].only(concepts) for name in judges}
            for held, concepts in ((False, self.by_concept), (True, among))
        }

    def spelled(self, images: list[Image.Image]) -> Tensor:
        """Codes, [N, L]."""
        codes = [self.model.image_tokenizer.encode(images[i : i + 64]) for i in range(0, len(images), 64)]
        return torch.cat([torch.as_tensor(part) for part in codes]).flatten(1).cpu()

    def judged(
        self, images: list[Image.Image], concepts: Sequence[str], styles: Sequence[str], unseen: bool = False
    ) -> dict[str, Any]:
        """`shares` of each judge, who compares with other styles than the image's own."""
        out: dict[str, Any] = {"images": len(images)}
        for name, judge in self.judges.items():
            rank = ranks(judge.features(images), concepts, styles, self.references[unseen][name])
            out[name] = shares(rank)
        return out

    def drawn(
        self, some: Asked, options: GenerateOptions, unseen: bool = False
    ) -> tuple[dict[str, Any], list[Image.Image]]:
        """options.n drawings of each prompt, each the best of options.best_of: what the judges say, the share of near
        copies, and the drawings. Where the prompt names no style, the style is that of the nearest training image."""
        drawn = self.model.run(self.model.jobs.draw(some.prompts, options))
        codes = torch.stack([one.codes for one in drawn]).cpu()  # [N, h, w]
        images = decode(self.model.image_tokenizer, codes)
        wanted = [one for one in some.wanted for _ in range(options.n)]
        share, index = nearest(codes.flatten(1), self.codes)
        styles = [
            one.facts["style"] if some.styled else self.train[i].facts["style"]
            for one, i in zip(wanted, index.tolist(), strict=True)
        ]
        figures = self.judged(images, [one.facts["code"] for one in wanted], styles, unseen)
        return figures | {"memorisation rate": (share >= COPY).float().mean().item()}, images


def drawings(
    model: CM3,
    train: list[SplitImage],
    unseen: list[SplitImage],
    judges: dict[str, Judge],
    options: GenerateOptions,
) -> tuple[dict[str, Any], Image.Image]:
    """The figures of each way to ask, and a contact sheet: the real image, then drawings by name and style, then by
    the bare name."""
    gallery = Gallery(model, train, unseen, judges)
    cells = [members[i % len(members)] for i, members in enumerate(gallery.by_concept.values())]
    facts = [cell.facts for cell in cells]
    concepts, styles = [one["code"] for one in facts], [one["style"] for one in facts]
    figures: dict[str, Any] = {"concepts": len(cells), "each": options.n, "best_of": options.best_of}
    figures |= settings(options)
    figures["real images (ceiling)"] = gallery.judged([cell.image for cell in cells], concepts, styles)
    place = {id(one): i for i, one in enumerate(train)}
    codes = gallery.codes[[place[id(cell)] for cell in cells]].view(-1, *model.grid)
    through = decode(model.image_tokenizer, codes)
    figures["real images through the image tokenizer"] = gallery.judged(through, concepts, styles)
    shown: dict[str, list[Image.Image]] = {}
    for name, some in {
        "generated by name and style": asked(cells),
        "generated by name": asked(cells, styled=False),
        "generated by name in Arabic": asked(cells, "ar", styled=False),
    }.items():
        figures[name], shown[name] = gallery.drawn(some, options)
    if gallery.unseen:
        figures["generated, held-out pairs"], _ = gallery.drawn(asked(gallery.unseen), options, unseen=True)
    picks = range(0, len(cells), max(1, len(cells) // 24))
    labels = [f"{facts[i]['name']['en']} ({styles[i]})" for i in picks]
    rows = [
        [
            cells[i].image,
            *(image for images in list(shown.values())[:2] for image in images[options.n * i :][: options.n]),
        ]
        for i in picks
    ]
    return figures, contact_sheet(labels, rows)
