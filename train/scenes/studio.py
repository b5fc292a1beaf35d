"""Things with their images, scenes of them, and their codes."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cm3.tokens.templates import LANGUAGES
from tokenizer_image import ImageTokenizer
from train.emoji.dataset import EVERYDAY, read_samples
from train.images.loader import to_pixels
from train.scenes.scene import Scene, Stage, Thing, render, touched_cells
from train.scenes.signs import sign_words
from train.scenes.tasks import TASKS, SceneView, TaskDocument


def read_things(data: Path, split: str, subgroups: Sequence[str] = EVERYDAY) -> list[Thing]:
    """The drawings of a split, of the given Unicode subgroups."""
    out = []
    for key, png, facts in read_samples(data / split):
        if facts["subgroup"] in subgroups:
            drawing = Image.open(io.BytesIO(png)).convert("RGBA").convert("RGBa").convert("RGBA")  # as in read_split
            out.append(Thing(key, facts["name"], facts["code"], facts["style"], facts["colour"], drawing))
    return out


@dataclass(frozen=True)
class Studio:
    """All that documents are made with: a stage for scenes, one for single things, and words for signs."""

    scenes: Stage
    solo: Stage
    words: dict[str, list[str]]

    @classmethod
    def of(
        cls,
        things: list[Thing],
        names: Sequence[str],
        size: int,
        novel: bool = False,
        aligned: float = 0.0,
        cells: int = 8,
        white: float = 0.6,
        quarters: float = 0.0,
    ) -> "Studio":
        """Stages of train.scenes.scene for the things called `names`, and for all of them. Where scenes are aligned, a
        thing alone fills the image, as known images do."""
        some = [thing for thing in things if thing.name["en"] in names]
        words = {language: sign_words(things, language, novel) for language in LANGUAGES}
        # A thing alone has no combination but its paint: only painted ones can be novel.
        solo = Stage(
            things,
            size,
            white=white,
            paints=1.0 if novel else 0.15,
            novel=novel,
            alone=(1.0 if aligned else 0.75, 1.0),
            most=1,
            aligned=aligned,
            cells=cells,
        )
        scenes = Stage(some, size, white=white, novel=novel, aligned=aligned, cells=cells, quarters=quarters)
        return cls(scenes, solo, words)

    def make(self, task: str, language: str, rng: np.random.Generator) -> tuple[TaskDocument, Scene]:
        """One document of a task, and its scene."""
        while True:
            stage = self.solo if rng.random() < TASKS[task].solo else self.scenes
            scene = stage.scene(rng)
            view = SceneView(scene, render(scene, stage.size), stage, rng, language, self.words[language])
            if made := TASKS[task].make(view):
                return made, scene


def encode(made: Sequence[TaskDocument], tokenizer: ImageTokenizer) -> list[list[np.ndarray]]:
    """Codes [h, w] of every image of every document."""
    images = [image for one in made for image in one.images]
    codes = tokenizer.encode_pixels(to_pixels(images)).numpy()
    out, at = [], 0
    for one in made:
        mine = list(codes[at : at + len(one.images)])
        at += len(mine)
        if one.kept:
            # An encoder may see beyond a cell; what the eye finds unchanged keeps its code.
            touched = touched_cells(one.images[-2], one.images[-1], tokenizer.grid)
            mine[-1] = np.where(touched, mine[-1], mine[-2])
        out.append(mine)
    return out
