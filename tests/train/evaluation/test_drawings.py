"""Figures of drawings: how they are asked for, what a near copy is, and whose style the judge leaves out."""

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from cm3 import CM3
from cm3.engine.options import GenerateOptions
from cm3.tasks.planning import Drawn
from cm3.tasks.reranking import best_of_each
from train.evaluation import concepts
from train.evaluation.concepts import SplitImage, judged_concepts
from train.evaluation.drawings import Asked, Gallery, asked, nearest
from train.evaluation.judge import Judge

STYLES = ("noto", "blob", "twemoji")
SHADES = {"apple": 0, "cat": 90, "dog": 180}


def shade_of(image: Image.Image) -> int:
    return int(np.asarray(image)[0, 0, 0])


def image(shade: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (shade, shade, shade))


def real(name: str, style: str) -> SplitImage:
    facts = {"code": name, "style": style, "name": {"en": name, "ar": name[::-1]}}
    return SplitImage(image(SHADES[name] + STYLES.index(style)), facts)


TRAIN = [real(name, style) for name in SHADES for style in STYLES]


class Shades:
    """A judge that sees how light an image is."""

    def features(self, images: list[Image.Image]) -> torch.Tensor:
        angles = torch.tensor([shade_of(one) / 2 for one in images]).deg2rad()
        return torch.stack([angles.cos(), angles.sin()], -1)


class Painter:
    """Draws what `shades` says of each prompt, 90 lighter with each further candidate; an image's codes are its
    pixels."""

    def __init__(self, shades: dict[str, int]):
        self.shades = shades
        self.jobs = SimpleNamespace(draw=self.draw)
        self.run = lambda codes: codes
        self.image_tokenizer = SimpleNamespace(
            encode=lambda some: torch.stack([torch.full((2, 2), shade_of(one)) for one in some]),
            decode=lambda codes: [image(int(one[0, 0])) for one in codes],
        )

    def draw(self, prompts: list[str], options: GenerateOptions) -> list[Drawn]:
        drawn = itertools.product(prompts, range(options.n), range(options.best_of))
        wanted = [prompt for prompt in prompts for _ in range(options.n)]
        codes = [torch.full((2, 2), self.shades[prompt] + 90 * j) for prompt, _, j in drawn]
        return [Drawn(one, None) for one in best_of_each(wanted, codes, self.best)]

    def best(self, words: str, codes: Sequence[torch.Tensor]) -> int:
        return int((torch.stack([*codes])[:, 0, 0] - SHADES[words.split()[0]]).abs().argmin())


def gallery(shades: dict[str, int], unseen: list[SplitImage] | None = None) -> Gallery:
    judges = {"shades": cast(Judge, Shades())}
    return Gallery(cast(CM3, Painter(shades)), TRAIN, unseen or [], judges)


def test_the_nearest_training_image_is_the_one_with_most_codes_in_common():
    known = torch.tensor([[1, 2, 3, 4], [1, 2, 9, 9], [7, 7, 7, 7]])
    share, index = nearest(torch.tensor([[1, 2, 3, 4], [1, 2, 9, 8], [0, 0, 0, 7]]), known)
    assert share.tolist() == [1.0, 0.75, 0.25] and index.tolist() == [0, 1, 2]


def test_prompts_name_the_style_or_not_in_either_language():
    one = real("cat", "noto")
    assert asked([one]) == Asked(["cat in the noto style"], [one], True)
    assert asked([one], styled=False).prompts == ["cat"]
    assert asked([one], "ar", styled=False).prompts == ["tac"]


def test_right_drawings_are_found_and_copies_are_counted():
    wanted = [real("cat", "noto"), real("dog", "noto")]
    shades = {"cat in the noto style": 90, "dog in the noto style": 184}  # one is a copy, one is not
    figures, shown = gallery(shades).drawn(asked(wanted), GenerateOptions(n=3))
    assert len(shown) == figures["images"] == 2 * 3
    assert figures["shades"] == {"top1": 1.0, "top5": 1.0, "place": 1.0} and figures["memorisation rate"] == 0.5


def test_a_drawing_of_another_thing_is_not_found(monkeypatch: pytest.MonkeyPatch):
    figures, _ = gallery({"cat in the noto style": 0}).drawn(asked([real("cat", "noto")]), GenerateOptions())
    assert figures["shades"]["top1"] == 0


def test_each_drawing_is_the_best_of_its_candidates():
    cats, options = asked([real("cat", "noto")]), GenerateOptions(n=2, best_of=3)
    figures, shown = gallery({"cat in the noto style": 0}).drawn(cats, options)
    assert [shade_of(one) for one in shown] == [90, 90] and figures["shades"]["top1"] == 1


def test_a_copy_does_not_stand_for_itself_where_no_style_is_asked_for():
    """The dog in the first style is drawn as a cat of that style: other styles' cats are nearer than no dog at all."""
    odd: Any = SplitImage(image(181), {"code": "cat", "style": "noto", "name": {"en": "cat", "ar": "tac"}})
    judges = {"shades": cast(Judge, Shades())}
    some = Gallery(cast(CM3, Painter({"cat": 181})), [odd, *TRAIN], [], judges)
    figures, _ = some.drawn(asked([real("cat", "noto")], styled=False), GenerateOptions())
    assert figures["memorisation rate"] == 1.0 and figures["shades"]["top1"] == 0  # cats of other styles are far away


def test_concepts_of_held_out_pairs_come_before_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(concepts, "JUDGED", 2)
    for name in SHADES:
        assert name in judged_concepts(TRAIN, {name}) and len(judged_concepts(TRAIN, {name})) == 2
    some = gallery({}, [real("dog", "noto")])
    assert "dog" in set(some.references[True]["shades"].concepts)
    assert [one.facts["code"] for one in some.unseen] == ["dog"]
