"""The comparison of codes: what is held out, what counts as a caption, and a whole run on the data sample."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cm3 import CM3
from train import evaluate
from train.emoji.dataset import EVERYDAY
from train.evaluation.suites import codes as evaluate_codes
from train.evaluation.suites.codes import (
    CodesConfig,
    Drawings,
    codes_table,
    compare,
    designs_of,
    exact_match,
    held_out_designs,
    read,
)

TINY = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)


@pytest.fixture(scope="module")
def train(sample: Path) -> Drawings:
    return read(sample / "train")


def test_flat_and_3d_drawings_of_one_artist_are_one_design(train: Drawings):
    designs = {row["style"]: design for row, design in zip(train.rows, train.designs(), strict=True)}
    assert designs["fluent flat"] == designs["fluent 3d"] == "fluent"
    assert len(set(designs.values())) == len(designs) - 1


def test_one_design_of_each_concept_with_four_is_held_out_and_the_others_stay(train: Drawings):
    held, designs = held_out_designs(train), designs_of(train)
    assert held == held_out_designs(train)
    assert sorted(code for code, _ in held) == sorted(code for code, has in designs.items() if len(has) >= 4)
    assert all(design in designs[code] for code, design in held)
    assert len({design for _, design in held}) > 2  # not the same design each time


def test_a_caption_counts_when_it_is_the_name_but_for_case(train: Drawings):
    four = train.where([i < 4 for i in range(len(train.rows))])
    names = [row["name"]["en"] for row in four.rows]
    said = [names[0].upper(), f" {names[1]}", f"a {names[2]}", ""]
    model = SimpleNamespace(caption=lambda images: said, image_tokenizer=SimpleNamespace(size=(16, 16)))
    assert exact_match(cast(CM3, model), four) == 0.5


def small(data: Path, folder: Path, out: Path, **options: Any) -> list[dict[str, Any]]:
    return compare([str(folder)], data, out, CodesConfig(views=1, batch_tokens=2048, model=TINY, **options))


def test_a_comparison_measures_images_probes_and_captions_once(
    sample: Path, vq_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    [row] = small(sample, vq_folder, tmp_path, steps=2)
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == row
    assert row["reconstruction"]["images"] == 3 and 0 < row["reconstruction"]["codebook_usage"] <= 1
    probe = row["probe"]
    assert 0 < probe["concept"] <= 39 and probe["category"] <= len(EVERYDAY)
    for feature in ("bag of codes", "code vectors"):
        assert 0 <= probe[feature]["concept"]["top1"] <= probe[feature]["concept"]["top5"] <= 1
    captions = row["captions"]
    train = evaluate_codes.everyday(read(sample / "train"))
    assert captions["documents"] + captions["held-out design"]["images"] == len(train.rows)
    for split in ("held-out design", "held_out_pairs"):
        assert 0 <= captions[split]["exact"] <= 1 and captions[split]["loss"] > 0
    assert f"| {vq_folder} |" in codes_table([row])

    monkeypatch.setattr(evaluate_codes, "probes", lambda *_: pytest.fail("measured twice"))
    assert small(sample, vq_folder, tmp_path, steps=2) == [row]


def test_without_steps_no_language_model_is_trained(sample: Path, vq_folder: Path, tmp_path: Path):
    [row] = small(sample, vq_folder, tmp_path, steps=0)
    assert "captions" not in row and [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    assert codes_table([row]).endswith("|  |  |  |  |")


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("no-such-tokenizer", "sample", "no-such-tokenizer"),
        ("tiny", "empty", "no shards"),
    ],
)
def test_a_missing_tokenizer_or_data_set_ends_the_script_with_one_line(
    name: str, data: str, match: str, sample: Path, vq_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    named = str(vq_folder) if name == "tiny" else name
    folder = sample if data == "sample" else tmp_path
    options = ["--data", str(folder), "--out", str(tmp_path / "out"), "--steps", "0", "--views", "1"]
    monkeypatch.setattr(sys, "argv", ["evaluate", "codes", named, *options])
    with pytest.raises(SystemExit, match=f"evaluate codes: .*{match}") as error:
        evaluate.main()
    assert "\n" not in str(error.value.code)
