"""Texts: plans of requests and instructions; plans, captions and answers of images."""

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PIL_Image

from cm3.engine.options import Query
from cm3.pipeline import CM3
from cm3.tasks.job import Job
from cm3.tasks.plan_words import caption
from cm3.tasks.planning import parsed
from cm3.tokens.plan import Plan
from train.evaluation.calibration import fit, rated
from train.recipes.emoji.art import CANVAS, single
from train.recipes.emoji.documents import Builder, DocumentsConfig
from train.recipes.emoji.packages import LANGUAGES
from train.recipes.emoji.questions import Shown, ask
from train.recipes.emoji.requests import FORMS, Planner
from train.recipes.emoji.shelf import Codes, Shelf
from train.recipes.emoji.suites.truth import Asked, Truth, decode, percent
from train.recipes.emoji.world import World, held_out


def plans(model: CM3, data: Path, out: Path, count: int) -> dict[str, Any]:
    """Requests to plans: every thing, count, paint and background that was asked for, and nothing else."""
    asked, world = Asked(model), World.read(data)
    shelf = Shelf.read(data, "train")
    figures: dict[str, Any] = {}
    for novel in (False, True):
        planner = Planner(world, shelf.styles, novel=novel)
        for form in FORMS:
            rng = np.random.default_rng(11)
            wanted = [planner.request(rng, form) for _ in range(count)]
            got = asked.plan([one.words for one in wanted])
            same = [content(a) == content(b.plan) for a, b in zip(got, wanted, strict=True)]
            figures[f"{form}{', held-out combinations' if novel else ''}"] = percent(same)
    drawn = [world.concepts[code] for code in shelf.styles if code in world.concepts]
    for language in LANGUAGES:
        some = [one for one in drawn if language in one.names]
        some = [one for one in some if language in ("en", "ar") or held_out(language, one.a)][: 4 * count]
        got = asked.plan([one.names[language].split(", ")[0] for one in some])
        names = [[thing.name for thing in plan.things] if plan else [] for plan in got]
        figures[f"bare name, {language}"] = percent([found == [one.a] for found, one in zip(names, some, strict=True)])
    editor = Builder(world, shelf, None, DocumentsConfig(), novel=True)
    rng, before, edits = np.random.default_rng(12), [], []
    for _ in range(count * 4):
        plan = editor.scene(rng)
        if edit := editor.editor.edit(plan, "en", rng):
            before.append(str(plan))
            edits.append(edit)
    got = model.run(Job(asked.planning.edited(before, [one.words for one in edits])))
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for plan, edit in zip(got, edits, strict=True):
        # Where something is to be added may be left open.
        same = content(plan) == content(edit.plan) if edit.kind == "add" else plan == edit.plan
        by_kind[edit.kind].append(same)
    return figures | {f"edit {kind}": percent(found) for kind, found in by_kind.items()}


def content(plan: Plan | None) -> Any:
    """What a plan shows, without what a request leaves open."""
    return plan and (sorted((thing.name, thing.paint) for thing in plan.things), plan.ground)


def readings(model: CM3, data: Path, out: Path, count: int) -> dict[str, Any]:
    """Held-out scenes: the plan, and answers. Held-out pairs of concept and style: captions in every language."""
    asked, truth = Asked(model), Truth(data, Codes(model.image_tokenizer))
    builder, rng, figures = truth.builder, np.random.default_rng(13), dict[str, Any]()
    scenes = [builder.scene(rng, plain=False) for _ in range(count)]
    images = decode(model.image_tokenizer, [builder.scene_codes(plan, {}) for plan in scenes])
    told = asked.tell([(image, Query(long=True)) for image in images])
    figures["plan of a scene"] = percent([text == str(plan) for text, plan in zip(told, scenes, strict=True)])
    figures["things of a scene"] = percent(
        [content(parsed(text)) == content(plan) for text, plan in zip(told, scenes, strict=True)]
    )
    pairs: list[tuple[PIL_Image.Image, Query]] = []
    truths: list[tuple[str, str]] = []
    for plan, image in zip(scenes, images, strict=True):
        named = [truth.world.by_a.get(thing.name) for thing in plan.things]
        for language in ("en", "ar"):
            for one in ask(Shown(plan, named, [None] * len(named), truth.world, language, rng), 6):
                pairs.append((image, Query(one.words)))
                truths.append((f"{one.task}, {language}", one.answer))
    by_task: dict[str, list[bool]] = defaultdict(list)
    for text, (task, answer) in zip(asked.tell(pairs), truths, strict=True):
        by_task[task].append(text == answer)
    figures["answers"] = {task: percent(held) for task, held in sorted(by_task.items())}
    figures["captions of held-out pairs"] = captions(asked, truth, data, count)
    return figures


def captions(asked: Asked, truth: Truth, data: Path, count: int) -> dict[str, float]:
    """Exact captions of drawings whose pair of concept and style is held out, by language."""
    ones = [one for one in Shelf.read(data, "held_out_pairs").drawings.values() if one.code in truth.world.concepts]
    order = np.random.default_rng(14).permutation(len(ones))[: 2 * count]
    shown = [(truth.world.concepts[ones[i].code], single(ones[i], CANVAS)) for i in order]
    figures: dict[str, float] = {}
    for language in LANGUAGES:
        some = [(one, image) for one, image in shown if language in one.names]
        told = asked.tell([(image, Query(language=language)) for _, image in some])
        names = [{one.a: one.names[language].split(", ")[0]} for one, _ in some]
        wanted = [caption(Plan.parse(one.a), language, own) for (one, _), own in zip(some, names, strict=True)]
        figures[language] = percent([a == b for a, b in zip(told, wanted, strict=True)])
    return figures


def confidence(model: CM3, data: Path, out: Path, count: int) -> dict[str, Any]:
    """Calibrate captions on every second held-out drawing, and try the calibration on the others: pairs of a known
    concept with a new style, and concepts that training never showed. Writes calibration.json."""
    world = World.read(data)
    known = [one for one in Shelf.read(data, "held_out_pairs").drawings.values() if one.code in world.concepts]
    unknown = [one for one in Shelf.read(data, "held_out_concepts").drawings.values() if one.code in world.held_out]
    order = np.random.default_rng(16)
    ones = [pool[i] for pool in (known, unknown) for i in order.permutation(len(pool))[: 2 * count]]
    texts = rated(model, [single(one, CANVAS) for one in ones])
    right = [
        one.code in world.concepts and text == world.concepts[one.code].a for text, one in zip(texts, ones, strict=True)
    ]
    half = range(0, len(ones), 2)
    calibration = fit([texts[i].log_prob for i in half], [right[i] for i in half])
    calibration.save(out)
    figures: dict[str, Any] = {"calibration": asdict(calibration)}
    rest = range(1, len(ones), 2)
    for name, pool in (("known concepts", world.concepts), ("unknown concepts", world.held_out)):
        sure = [
            calibration.probability(texts[i].log_prob) >= calibration.threshold for i in rest if ones[i].code in pool
        ]
        figures[f"not sure, {name}"] = percent([not one for one in sure])
    for what in (True, False):
        chosen = [i for i in rest if (calibration.probability(texts[i].log_prob) >= calibration.threshold) == what]
        figures[f"right where {'sure' if what else 'not sure'}"] = percent([right[i] for i in chosen])
    return figures
