"""Suites of the emoji recipe: what is right counts as right, what is not does not, and each suite gives its figures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cm3 import CM3
from cm3.model.config import CM3Config
from cm3.model.transformer import CM3ForCausalLM
from cm3.tasks import planning
from cm3.tokens.plan import Plan
from cm3.tokens.text_tokenizer import TextTokenizer
from train.evaluation import calibration
from train.recipes.emoji import sheet
from train.recipes.emoji.requests import FORMS
from train.recipes.emoji.shelf import Codes
from train.recipes.emoji.suites import readings, scenes, sweep
from train.recipes.emoji.suites.truth import Asked, Truth
from worlds import small_tokenizer, small_world


@pytest.fixture(scope="module")
def data(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_world(sample, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def truth(data: Path) -> Truth:
    return Truth(data, Codes(small_tokenizer()))


@pytest.fixture(scope="module")
def model() -> CM3:
    """Of random weights: what it writes is no plan."""
    tokenizer = small_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CM3Config.preset(
            "tiny",
            max_position_embeddings=1280,
            image_vocab_size=tokenizer.num_codes,
            image_grid=tokenizer.grid,
            image_grids=[(8, 8)],
            document_form="plan",
        )
        return CM3(CM3ForCausalLM(config), TextTokenizer.train(["a cat"], 300), tokenizer)


def test_true_scenes_are_right_and_others_are_not(truth: Truth):
    tiles, rng = scenes.Tiles(truth), np.random.default_rng(0)
    plans = [truth.builder.scene(rng) for _ in range(4)]
    plans = [plan for plan in plans if '"' not in str(plan)]
    drawn = [torch.from_numpy(truth.builder.scene_codes(plan, {})) for plan in plans]
    figures = tiles.figures(plans, drawn)
    assert (figures["whole"], figures["things"], figures["style"], figures["blank"]) == (100, 100, 100, 0)
    empty = torch.from_numpy(truth.builder.scene_codes(Plan(()), {}))
    figures = tiles.figures(plans, [empty] * len(plans))
    assert (figures["whole"], figures["things"], figures["blank"]) == (0, 0, 100)


def test_an_edit_is_right_where_each_quarter_has_the_true_codes(truth: Truth):
    true = torch.arange(256).view(16, 16)
    assert scenes.right(true, true)
    one_quarter = true.clone()
    one_quarter.view(4, 64)[2, :16] = -1  # a quarter of one tile
    assert not scenes.right(one_quarter, true)


def test_cases_of_edits_have_their_truth(truth: Truth):
    some = scenes.cases(truth, 1)
    assert [one.kind for one in some] == [f"scene {kind}" for kind in scenes.SCENE_EDITS] + [
        f"single {kind}" for kind in scenes.SINGLE_EDITS
    ]
    for one in some:
        assert one.before != one.after and not torch.equal(one.source, one.result)
        assert one.words and one.source.shape == (16, 16)


@pytest.mark.parametrize(
    ("suite", "figures"),
    [
        (scenes.scenes, {"from plans", "whole from a request, en", "whole from a request, ar"}),
        (scenes.edits, {"with both plans", "plan of the source right", "plan of the result right", "by instruction"}),
        (readings.plans, {*FORMS, "bare name, en", "bare name, sw", "edit remove"}),
        (readings.readings, {"plan of a scene", "things of a scene", "answers", "captions of held-out pairs"}),
        (sweep.sweep, {"guidance 3", "variety 1"}),
        (readings.confidence, {"calibration", "not sure, known concepts", "right where not sure"}),
    ],
)
def test_a_suite_gives_its_figures(
    model: CM3,
    data: Path,
    tmp_path: Path,
    suite: Callable[..., dict[str, Any]],
    figures: set[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(planning, "TRIES", 1)  # the model would write nonsense several times, in many languages
    monkeypatch.setattr(planning, "MAX_PLAN", 8)
    monkeypatch.setattr(readings, "LANGUAGES", ("en", "ar", "sw"))
    monkeypatch.setattr(calibration, "LEAST", 0)
    monkeypatch.setattr(sweep, "DRAWN", {"guidance": sweep.DRAWN["guidance"][-1:]})
    monkeypatch.setattr(sweep, "VARIETY", (1.0,))
    assert figures <= suite(model, data, tmp_path, 1).keys()


def test_a_model_that_does_not_plan_is_refused(tiny: CM3):
    with pytest.raises(ValueError, match="a model that plans"):
        Asked(tiny)


def test_the_sheet_has_an_image_for_each_prompt(planning: CM3):
    drawn = np.asarray(sheet.sheet(planning, ("a cat", "a dog")))
    assert drawn.shape == (sheet.SIDE + sheet.LINE + 8, 5 * (sheet.SIDE + 8), 3)
    first, second, third = (drawn[4 : 4 + sheet.SIDE, i * (sheet.SIDE + 8) :][:, 4 : 4 + sheet.SIDE] for i in range(3))
    assert first.std() > 0 and second.std() > 0 and (third == 255).all()
