"""Scenes and edits: every tile compared with the codes of what was asked for."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from cm3.engine.options import EditOptions
from cm3.pipeline import CM3
from cm3.tasks.job import Job
from cm3.tokens.document import Image
from cm3.tokens.plan import PLACES, Plan, Thing
from train.images.sheet import contact_sheet
from train.recipes.emoji.art import CANVAS, Drawing
from train.recipes.emoji.requests import Planner
from train.recipes.emoji.shelf import Codes
from train.recipes.emoji.suites.truth import BATCH, DRAWING, Asked, Truth, decode, percent

T = TypeVar("T")

RIGHT = 0.8  # share of an image's codes that agree with the true ones where it is right
SCENE_EDITS = ("add", "remove", "replace", "move", "recolour", "ground", "style")
SINGLE_EDITS = ("recolour", "ground")


def scenes(model: CM3, data: Path, out: Path, count: int) -> dict[str, Any]:
    """Scenes of held-out combinations from plans, and from requests in English and Arabic."""
    asked, truth = Asked(model), Truth(data, Codes(model.image_tokenizer))
    tiles = Tiles(truth)
    rng = np.random.default_rng(7)
    plans = [truth.builder.scene(rng) for _ in range(count)]
    plans = [plan for plan in plans if not any('"' in thing.name for thing in plan.things)]
    drawn = asked.draw(plans)
    figures: dict[str, Any] = {"from plans": tiles.figures(plans, drawn)}
    images = decode(model.image_tokenizer, drawn[:12])
    contact_sheet([str(plan)[:60] for plan in plans[:12]], [[image] for image in images]).save(out / "scenes.png")
    planner = Planner(truth.world, truth.shelf.styles, novel=True)
    for language in ("en", "ar"):
        rng, requests = np.random.default_rng(8), []
        while len(requests) < count:
            one = planner.request(rng, "plain" if language == "en" else "")
            plain = one.plan == one.plan.plain and len(one.plan.things) > 1
            if one.language == language and plain and '"' not in one.words:
                requests.append(one)
        written = asked.plan([one.words for one in requests])
        made = [plan or Plan((Thing("nothing"),)) for plan in written]
        right = [tiles.shows(codes) for codes in asked.draw(made)]
        wanted = [sorted(thing.name for thing in one.plan.things) for one in requests]
        found = [sorted(name for name in names if name) for names in right]
        figures[f"whole from a request, {language}"] = percent([a == b for a, b in zip(found, wanted, strict=True)])
    return figures


class Tiles:
    """Names what tiles show.

    Args:
        truth: with all drawings.
    """

    def __init__(self, truth: Truth):
        self.truth = truth
        self.known, self.ones = truth.tiles()

    def nearest(self, codes: torch.Tensor) -> list[Drawing | None]:  # [16, 16], as it is laid
        """The drawing that each tile is most like; None for an empty one."""
        if codes.numel() != len(PLACES) * self.known.shape[1]:
            return [None]
        return [self.ones[int((self.known == tile).float().mean(1).argmax())] for tile in codes.reshape(4, -1)]

    def shows(self, codes: torch.Tensor) -> list[str]:
        """The name at each place, "" where there is nothing."""
        return [self.truth.builder.named(one).a if one else "" for one in self.nearest(codes)]

    def figures(self, plans: Sequence[Plan], drawn: Sequence[torch.Tensor]) -> dict[str, Any]:
        """Shares of things, styles and whole scenes that are right, and of things that are missing."""
        right, whole, style, blank = [], [], [], []
        for plan, codes in zip(plans, drawn, strict=True):
            wanted = {thing.place: thing.name for thing in plan.things}
            found = self.nearest(codes)
            names = self.shows(codes)
            whole.append(names == [wanted.get(place, "") for place in PLACES])
            for place, name, one in zip(PLACES, names, found, strict=True):
                if place in wanted:
                    right.append(name == wanted[place])
                    blank.append(one is None)
                    style.append(bool(one and one.style == plan.style))
        shares = {"things": right, "whole": whole, "style": style, "blank": blank}
        return {**{name: percent(holds) for name, holds in shares.items()}, "count": len(plans)}


class Case(NamedTuple):
    """An edit with its truth.

    Attributes:
        kind: "scene" or "single", and the kind of the edit.
        words: the instruction.
        before, after: plans.
        source, result: codes [16, 16].
    """

    kind: str
    words: str
    before: Plan
    after: Plan
    source: torch.Tensor
    result: torch.Tensor


def cases(truth: Truth, count: int, seed: int = 12) -> list[Case]:
    """`count` edits of each kind, of held-out combinations, in English."""
    rng, builder, out = np.random.default_rng(seed), truth.builder, list[Case]()
    for of, kinds in (("scene", SCENE_EDITS), ("single", SINGLE_EDITS)):
        for kind in kinds:
            made = 0
            while made < count:
                single = of == "single"
                one = builder.everything[rng.integers(len(builder.everything))]
                before = builder.plan_of(one) if single else builder.scene(rng)
                edit = builder.editor.edit(before, "en", rng, kind)
                if edit is None or not builder.shows(edit.plan) or any('"' in one.name for one in before.things):
                    continue
                side, boards = CANVAS if single else 0, dict[str, int]()
                codes = [torch.from_numpy(builder.codes_of(plan, side, boards)) for plan in (before, edit.plan)]
                out.append(Case(f"{of} {kind}", edit.words, before, edit.plan, *codes))
                made += 1
    return out


def edits(model: CM3, data: Path, out: Path, count: int) -> dict[str, Any]:
    """Edits with both plans given, and by the instruction alone."""
    truth = Truth(data, Codes(model.image_tokenizer))
    some = cases(truth, count)
    figures: dict[str, Any] = {}
    drawn = changed(model, some, [str(one.before) for one in some], [one.after for one in some])
    figures["with both plans"] = _shares(some, drawn)
    planning = Asked(model).planning
    before = [
        plan for part in _parts(some) for plan in model.run(Job(planning.read([Image(one.source) for one in part])))
    ]
    figures["plan of the source right"] = _by_kind(
        some, [text == str(one.before) for text, one in zip(before, some, strict=True)]
    )
    after = model.run(Job(planning.edited(before, [one.words for one in some])))
    figures["plan of the result right"] = _by_kind(
        some, [plan == one.after for plan, one in zip(after, some, strict=True)]
    )
    drawn = changed(model, some, before, after)
    figures["by instruction"] = _shares(some, drawn)
    shown = list(range(0, len(some), max(1, count // 2)))[:16]
    rows = [decode(model.image_tokenizer, [some[i].source, drawn[i], some[i].result]) for i in shown]
    contact_sheet([some[i].words[:60] for i in shown], rows).save(out / "edits.png")
    return figures


def changed(
    model: CM3, some: Sequence[Case], before: Sequence[str], after: Sequence[Plan | None]
) -> list[torch.Tensor]:
    """Codes of each source as the second plan has it; the source's own where there is none."""
    options = EditOptions(temperature=DRAWING.temperature, top_p=DRAWING.top_p)
    out = [one.source for one in some]
    planned = [(i, plan) for i, plan in enumerate(after) if plan is not None]
    for part in _parts(planned):
        requests = [
            model.prompts.changed(before[i], str(plan), Image(some[i].source), options, seed=i) for i, plan in part
        ]
        for (i, _), codes in zip(part, model.draw_codes(requests), strict=True):
            out[i] = codes
    return out


def _parts(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[i : i + BATCH] for i in range(0, len(items), BATCH)]


def _shares(some: Sequence[Case], drawn: Sequence[torch.Tensor]) -> dict[str, float]:
    return _by_kind(some, [right(codes, one.result) for one, codes in zip(some, drawn, strict=True)])


def right(codes: torch.Tensor, true: torch.Tensor) -> bool:
    """Whether the codes of each quarter agree with the true ones to RIGHT."""
    same = (codes == true).float().reshape(len(PLACES), -1).mean(1)  # as they are laid: tile by tile
    return bool((same >= RIGHT).all())


def _by_kind(some: Sequence[Case], holds: Sequence[bool]) -> dict[str, float]:
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for one, held in zip(some, holds, strict=True):
        by_kind[one.kind].append(held)
    return {kind: percent(held) for kind, held in by_kind.items()}
