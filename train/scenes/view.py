"""What a task of instruction tuning is made from, a View of a scene, and what it makes; and words that tasks share."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cm3.tokens.templates import prompt
from train.documents.shards import Target
from train.emoji.english import with_article
from train.emoji.phrases import COLOURS_AR
from train.scenes.scene import Placed, Rendered, Scene, Stage, render

PLACES = {
    "top left": "أعلى اليسار",
    "top": "الأعلى",
    "top right": "أعلى اليمين",
    "left": "اليسار",
    "middle": "الوسط",
    "right": "اليمين",
    "bottom left": "أسفل اليسار",
    "bottom": "الأسفل",
    "bottom right": "أسفل اليمين",
}
NUMBERS = {2: "two", 3: "three"}
PLURALS = {"fish": "fish", "rhinoceros": "rhinoceroses"}


class TaskDocument(NamedTuple):
    """A document to be stored: words, what is asked, and images.

    Attributes:
        words: the text before the images; "" where something is asked.
        asked: prompts and answers, in place of words.
        images: [S, S, 3] uint8 each; the last is what the document is about, the others come before it.
        kept: whether codes of cells in which the last two images are alike are taken over from the one before.
    """

    words: str
    asked: tuple[Target, ...]
    images: tuple[np.ndarray, ...]
    kept: bool = False


class SceneView(NamedTuple):
    """What a task is made from.

    Attributes:
        scene: that is shown.
        shown: the scene's image and outlines.
        stage: that it came from.
        rng: chooses.
        language: of all text.
        words: that stand on signs, in this language.
    """

    scene: Scene
    shown: Rendered
    stage: Stage
    rng: np.random.Generator
    language: str
    words: Sequence[str]

    def name(self, i: int) -> str:
        return self.scene.placed[i].thing.name[self.language]

    def the(self, i: int) -> str:
        """ "the cat"; in Arabic the bare name."""
        return f"the {self.name(i)}" if self.language == "en" else self.name(i)

    def a(self, i: int) -> str:
        return with_article(self.name(i)) if self.language == "en" else self.name(i)

    def one(self, *choices: str) -> str:
        return choices[self.rng.integers(len(choices))]

    def any(self) -> int:
        """One of the things."""
        return int(self.rng.integers(len(self.scene.placed)))

    def single(self) -> int | None:
        """One of the things that stand there once, or None."""
        names = [one.thing.name["en"] for one in self.scene.placed]
        once = [i for i, name in enumerate(names) if names.count(name) == 1]
        return once[self.rng.integers(len(once))] if once else None

    def render(self, scene: Scene) -> np.ndarray:
        return render(scene, self.stage.size).image

    def colour(self, name: str) -> str:
        return name if self.language == "en" else COLOURS_AR[name]

    def answer(self, task: str, english: str, arabic: str, answer: str) -> Target:
        question = english if self.language == "en" else arabic
        return Target(task, prompt("answer", question), answer)


def plural(name: str) -> str:
    if name in PLURALS:
        return PLURALS[name]
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + ("es" if name.endswith(("s", "x", "ch", "sh", "o")) else "s")


def place(one: Placed, size: int) -> str:
    """Key of PLACES: in which ninth of the image its middle lies."""
    x, y = (int(min(2, 3 * c // size)) for c in one.centre)
    return [*PLACES][3 * y + x]


def listing(view: SceneView) -> str:
    """ "two cats and a dog"."""
    names = [one.thing.name["en"] for one in view.scene.placed]
    parts = []
    for i in sorted({name: names.index(name) for name in names}.values()):
        count = names.count(names[i])
        if count == 1:
            parts.append(view.a(i))
        else:
            parts.append(
                f"{NUMBERS[count]} {plural(names[i])}" if view.language == "en" else f"{view.name(i)} × {count}"
            )
    return (" and " if view.language == "en" else " و").join(parts)
