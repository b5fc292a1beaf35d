"""Packaging: weights in halves that load again, a card with the figures, nothing written when something is missing."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from train.package_model import Runs, halve, hours, package


def test_halved_weights_are_the_same_numbers_in_half_the_room(tmp_path: Path):
    weights = {"a": torch.randn(100, 30), "steps": torch.tensor(3)}
    save_file(weights, tmp_path / "full.safetensors")
    assert halve(tmp_path / "full.safetensors", tmp_path / "out" / "half.safetensors") == 3001
    half = load_file(tmp_path / "out" / "half.safetensors")
    assert half["a"].dtype == torch.float16 and torch.allclose(half["a"].float(), weights["a"], atol=2e-3)
    assert half["steps"] == 3
    assert (tmp_path / "out" / "half.safetensors").stat().st_size < (tmp_path / "full.safetensors").stat().st_size * 0.6


def test_weights_that_16_bits_cannot_hold_are_refused(tmp_path: Path):
    save_file({"a": torch.tensor([1e9])}, tmp_path / "full.safetensors")
    with pytest.raises(ValueError, match="a does not fit"):
        halve(tmp_path / "full.safetensors", tmp_path / "half.safetensors")


def test_hours_add_up_the_speeds_of_the_log(tmp_path: Path):
    rows = [{"step": 10, "speed": 20.0}, {"step": 10, "split": "x"}, {"step": 30, "speed": 40.0}]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert hours(tmp_path / "log.jsonl", batch=4, speed="speed") == pytest.approx((10 * 4 / 20 + 20 * 4 / 40) / 3600)


def test_nothing_is_written_when_a_run_is_missing(tmp_path: Path):
    with pytest.raises(OSError, match="config.json"):
        package("x", Runs(*[tmp_path] * 6), "CPU", "", root=tmp_path / "root")
    assert not (tmp_path / "root").exists()
