"""Trials for a tuned model: documents of the tasks of instruction tuning that training has not seen, with their truth,
and the mistakes that an edit is told apart from. All of it is drawn from fixed seeds.
"""

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cm3.tokens.masking import sample_holes
from cm3.tokens.templates import LANGUAGES
from tokenizer_image import ImageTokenizer
from train.documents.shards import Target
from train.images.loader import to_pixels
from train.images.views import GROUNDS, Augmentation, place
from train.scenes import tasks
from train.scenes.scene import PAINTS, Placed, Scene, Stage, Thing, render, with_placed
from train.scenes.signs import sign_words
from train.scenes.studio import Studio, encode
from train.scenes.tasks import TASKS, SceneView, TaskDocument

SPLITS = ("compositional", "held-out pair", "familiar")
ASKED: dict[str, Callable[[SceneView], Target | None]] = {
    "count": tasks.count,
    "count all": tasks.count_all,
    "where": tasks.where,
    "side": tasks.side,
    "presence": tasks.present,
    "relation": tasks.relation_holds,
    "largest": tasks.largest,
    "colour of": tasks.colour_of,
    "ground": tasks.ground,
    "caption": tasks.caption,
    "long caption": tasks.long_caption,
}
WRONG = 9  # wrong targets that an edit is told apart from, beside its source
MAJORITY_SCENES = 200  # training scenes in each language, from which the majority answers come
OFTEN = 20  # drawings of the unseen cells are taken so many times as often as others
ALONE = 100  # drawings of other things that stand alone


class EditCase(NamedTuple):
    """One document: what was made, its scene, the scene that an edit leads to, and codes [h * w] of each image."""

    made: TaskDocument
    view: SceneView
    led: Scene | None
    codes: list[np.ndarray]


class RecordingView(SceneView):
    """A view that remembers the scene that an edit leads to."""

    led: Scene | None = None

    def render(self, scene: Scene) -> np.ndarray:
        self.led = scene
        return super().render(scene)


class StageWith(Stage):
    """Scenes with at least one of the drawings `keys`."""

    def __init__(self, keys: set[str], things: Sequence[Thing], size: int, **options: Any):
        super().__init__(things, size, **options)
        self.keys = keys

    def scene(self, rng: np.random.Generator, count: int = 0) -> Scene:
        while True:
            scene = super().scene(rng, count)
            if any(one.thing.key in self.keys for one in scene.placed):
                return scene


def studio_of(
    split: str,
    seen: Sequence[Thing],
    unseen: Sequence[Thing],
    size: int,
    names: Sequence[str],
    aligned: float = 0.0,
    cells: int = 8,
    quarters: float = 0.0,
) -> Studio:
    """What a split's documents are made with, of drawings that training has `seen` and not; scenes of the things called
    `names`; `aligned`, `cells` and `quarters` as a Stage takes them.

    Raises ValueError where none of the unseen is of one."""
    others = [thing for thing in seen if thing.name["en"] not in names]
    some = [others[i] for i in np.random.default_rng(1005).permutation(len(others))[:ALONE]]
    some += [thing for thing in seen if thing.name["en"] in names]
    novel = split == "compositional"
    words = {language: sign_words(seen, language, novel) for language in LANGUAGES}
    studio = replace(Studio.of(some, names, size, novel, aligned, cells, quarters=quarters), words=words)
    if split != "held-out pair":
        return studio
    if not any(thing.name["en"] in names for thing in unseen):
        raise ValueError("the unseen_cell split has no drawing of the things that scenes are made of")
    keys, every = {thing.key for thing in unseen}, [*some, *list(unseen) * OFTEN]
    of_scenes = [thing for thing in every if thing.name["en"] in names]
    scenes = StageWith(keys, of_scenes, size, aligned=aligned, cells=cells, quarters=quarters)
    alone = studio.solo.shares[1]
    solo = StageWith(keys, every, size, alone=alone, most=1, aligned=aligned, cells=cells)
    return Studio(scenes, solo, words)


def examples(image_tokenizer: ImageTokenizer, studio: Studio, task: str, count: int) -> list[EditCase]:
    """Documents of a task, in each language in turn."""
    rng = np.random.default_rng((1000, zlib.crc32(task.encode())))
    found: list[tuple[TaskDocument, RecordingView]] = []
    while len(found) < count:
        language = LANGUAGES[len(found) % 2]
        stage = studio.solo if rng.random() < TASKS[task].solo else studio.scenes
        scene = stage.scene(rng)
        view = RecordingView(scene, render(scene, stage.size), stage, rng, language, studio.words[language])
        if made := TASKS[task].make(view):
            found.append((made, view))
    codes = encode([made for made, _ in found], image_tokenizer)
    return [EditCase(made, view, view.led, rows) for (made, view), rows in zip(found, codes, strict=True)]


# Questions.


def views(studio: Studio, language: str, count: int, seed: int) -> list[SceneView]:
    rng = np.random.default_rng((seed, language == "en"))
    scenes = [studio.scenes.scene(rng) for _ in range(count)]
    return [
        SceneView(scene, render(scene, studio.scenes.size), studio.scenes, rng, language, studio.words[language])
        for scene in scenes
    ]


def pooled(prompt: str, names: Sequence[str]) -> str:
    """The prompt with X in place of the names: to someone who sees no image they are one question."""
    words = sorted({form for name in names for form in (name, tasks.plural(name))}, key=len, reverse=True)
    return re.sub(rf"\b(?:(?:the|an?) )?(?:{'|'.join(map(re.escape, words))})\b", "X", prompt.strip())


def majority_scene_answers(studio: Studio, names: Sequence[str]) -> dict[str, str]:
    """Pooled prompt -> its most frequent answer in training scenes."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for language in LANGUAGES:
        for view in views(studio, language, MAJORITY_SCENES, 2000):
            for target in (*(ask(view) for ask in ASKED.values()), *read_sign(view)):
                if target:
                    seen[pooled(target.prompt, names)][target.answer] += 1
    return {prompt: counts.most_common(1)[0][0] for prompt, counts in seen.items()}


def read_sign(view: SceneView) -> tuple[Target, ...]:
    made = tasks.read_sign(view) if view.words else None
    return made.asked if made else ()


class ImageQuestion(NamedTuple):
    """A question on an image, [S, S, 3]."""

    task: str
    language: str
    target: Target
    image: np.ndarray


def questions(studio: Studio, count: int) -> list[ImageQuestion]:
    """`count` questions of each kind, half in each language; fewer where scenes seldom let them be asked."""
    out: list[ImageQuestion] = []
    for language in LANGUAGES:
        done: Counter[str] = Counter()
        for view in views(studio, language, 2 * count, 1000):
            for task, ask in ASKED.items():
                if done[task] < (count + 1) // 2 and (target := ask(view)):
                    done[task] += 1
                    out.append(ImageQuestion(task, language, target, view.shown.image))
    return out


def sign_questions(studio: Studio, count: int) -> list[ImageQuestion]:
    rng, out = np.random.default_rng(1001), []
    scene = studio.scenes.scene(rng)
    shown = render(scene, studio.scenes.size)
    for i in range(count):
        language = LANGUAGES[i % 2]
        made = tasks.read_sign(SceneView(scene, shown, studio.scenes, rng, language, studio.words[language]))
        assert made
        out.append(ImageQuestion("read sign", language, made.asked[0], made.images[0]))
    return out


# Edits.


def ninths(one: Placed, size: int) -> list[tuple[int, int]]:
    """Left and top for each other ninth of the image in which its middle can lie."""
    own, out = tasks.place(one, size), []
    for row in range(3):
        for column in range(3):
            left, top = (
                min(max(round((at + 0.5) * size / 3 - one.side / 2), 0), size - one.side) for at in (column, row)
            )
            if tasks.place(Placed(one.thing, one.side, left, top), size) != own:
                out.append((left, top))
    return out


def wrong_scenes(task: str, old: Scene, new: Scene, stage: Stage, rng: np.random.Generator) -> list[Scene]:
    """Where the words do not lead: the same edit with another thing, paint or place, likeliest mistakes first."""
    gone = [i for i, one in enumerate(old.placed) if not any(one is other for other in new.placed)]
    come = [i for i, one in enumerate(new.placed) if not any(one is other for other in old.placed)]
    rest = [i for i in range(len(old.placed)) if i not in gone]
    base, i = (new, come[0]) if come else (old, gone[0] if gone else 0)
    names = {one.thing.name["en"] for scene in (old, new) for one in scene.placed}
    pool = [thing for thing in stage.by_style[old.placed[0].thing.style] if thing.name["en"] not in names]
    pool = list({thing.name["en"]: thing for thing in pool}.values())
    others = [pool[j] for j in rng.permutation(len(pool))[: WRONG + 3]]
    swapped = [with_placed(base, i, thing=thing) for thing in others]
    one = base.placed[i]
    moved = [with_placed(base, i, left=left, top=top) for left, top in ninths(one, stage.size)] if come else []

    def without(scene: Scene, i: int) -> Scene:
        return Scene(tuple(one for j, one in enumerate(scene.placed) if j != i), scene.ground)

    if task == "add":
        return [*swapped[:5], *moved[:4], *swapped[5:]]
    if task == "remove":
        return [*(without(old, k) for k in rest), *swapped]
    if task == "replace":
        return [without(old, i), *(with_placed(old, k, thing=one.thing, paint="") for k in rest), *swapped]
    if task == "recolour":
        paints = [paint for paint in PAINTS if paint not in (one.paint, old.placed[i].colour)]
        return [
            *(with_placed(old, k, paint=one.paint) for k in rest),
            *(with_placed(old, i, paint=paint) for paint in paints),
            *swapped,
        ]
    if task == "move":
        return [
            without(old, i),
            Scene((*old.placed, one), old.ground),
            *moved,
            *(with_placed(old, k, left=one.left, top=one.top) for k in rest),
            *swapped,
        ]
    grounds = [Scene(old.placed, ground) for ground in GROUNDS if ground not in (old.ground, new.ground)]
    return [*grounds, *(with_placed(new, 0, thing=thing) for thing in others)]


# Holes.


class HoleCase(NamedTuple):
    """An image of one thing, what it is, its words, its codes [h, w] and where they are missing."""

    image: np.ndarray
    thing: Thing
    words: str
    codes: Tensor
    holes: Tensor


def holed(image_tokenizer: ImageTokenizer, things: Sequence[Thing], count: int) -> list[HoleCase]:
    """Things in new views, each with a hole."""
    rng, generator = np.random.default_rng(1003), torch.Generator().manual_seed(1003)
    size, found = image_tokenizer.size[0], []
    for i, j in enumerate(rng.permutation(len(things))[:count]):
        view, language = Augmentation().sample(rng, size), LANGUAGES[i % 2]
        english, arabic, _ = GROUNDS[view.ground]
        end = f" on a {english} background" if language == "en" else f" على خلفية {arabic}"
        words = things[j].name[language] + ("" if view.ground == "white" else end)
        found.append((place(things[j].drawing.convert("RGBa"), view, size), things[j], words))
    codes = image_tokenizer.encode_pixels(to_pixels([image for image, *_ in found])).cpu()
    return [
        HoleCase(image, thing, words, row, sample_holes(image_tokenizer.grid, generator))
        for (image, thing, words), row in zip(found, codes, strict=True)
    ]
