"""Calibration: the fit, and the command."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cm3 import CM3
from cm3.tasks.confidence import Calibration
from cm3.tasks.rated_text import RatedText
from planner import CAT, DOG, images
from train.calibrate import calibrate, main, same
from train.evaluation.calibration import fit, rated


def test_the_fit_finds_the_probability_that_the_data_have():
    rng = np.random.default_rng(0)
    log_probs = -rng.exponential(1.0, 20_000)
    right = rng.random(20_000) < 1 / (1 + np.exp(-(3 * log_probs + 2)))
    found = fit(log_probs.tolist(), right.tolist())
    assert found.slope == pytest.approx(3, rel=0.1) and found.offset == pytest.approx(2, rel=0.1)


def test_the_fit_is_finite_where_the_texts_can_be_told_apart():
    found = fit([-0.1] * 30 + [-2.0] * 30, [True] * 30 + [False] * 30)
    assert math.isfinite(found.slope) and found.probability(-0.1) > 0.9 and found.probability(-2.0) < 0.1


def test_too_few_right_or_wrong_texts_are_refused():
    with pytest.raises(ValueError, match="30 captions are right and 3 wrong: calibration needs at least 20 of each"):
        fit([-1.0] * 33, [True] * 30 + [False] * 3)


def test_captions_are_compared_apart_from_case_and_the_final_mark():
    assert same("A cat.", "a  cat") and not same("a cat", "a cat and a dog")


@pytest.fixture
def source(planning: CM3, tmp_path: Path) -> Path:
    """Images that the model knows, and noise, with captions."""
    folder = tmp_path / "images"
    folder.mkdir()
    drawn, rng = images(planning.image_tokenizer), np.random.default_rng(0)
    for i in range(24):
        plan, name = ((CAT, "a cat"), (DOG, "a dog"))[i % 2]
        planning.processor.decode(drawn[plan]).save(folder / f"known{i}.png")
        (folder / f"known{i}.txt").write_text(name)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"noise{i}.png")
        (folder / f"noise{i}.txt").write_text("noise")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "broken.txt").write_text("a cat")
    return folder


def test_a_calibrated_model_is_as_sure_as_it_is_right(planning_folder: Path, source: Path, tmp_path: Path):
    shutil.copytree(planning_folder, tmp_path / "model")
    figures = calibrate(tmp_path / "model", source)
    assert figures["captions"] == 48 and figures["right"] == 0.5
    sure = figures["sure"]
    assert sure * figures["right where sure"] + (1 - sure) * figures["right where not sure"] == pytest.approx(
        0.5, abs=1e-3
    )
    assert figures["right where sure"] >= figures["right where not sure"]
    model = CM3.from_pretrained(tmp_path / "model")  # its checksums are right
    calibration = model.calibration
    assert calibration is not None
    shown = [Image.open(path) for path in sorted(source.glob("*[0-9].png"))]
    texts = rated(model, shown)
    assert np.mean([calibration.probability(text.log_prob) for text in texts]) == pytest.approx(0.5, abs=0.01)
    [text] = model.caption(shown[:1], threshold=0.0)
    assert isinstance(text, RatedText) and text.log_prob == pytest.approx(texts[0].log_prob, abs=1e-4)


def test_the_command_prints_figures_and_tells_mistakes_in_a_line(
    planning_folder: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(planning_folder, tmp_path / "model")
    main(tmp_path / "model", source, most=48, threshold=0.7)
    assert json.loads(capsys.readouterr().out)["captions"] == 48
    calibration = Calibration.load(tmp_path / "model")
    assert calibration is not None and calibration.threshold == 0.7
    with pytest.raises(SystemExit, match="calibrate: .*nowhere is no model folder"):
        main(tmp_path / "nowhere", source, most=48, threshold=0.5)
