"""Packaging: weights in halves that load again, a card with the figures, nothing written when something is missing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkout import ROOT
from cm3.tasks.known_words import KnownWords
from tokenizer_image import ImageTokenizer
from train import package_model
from train.emoji.dataset import EXTRA, attribution
from train.package_model import Runs, embedded, halve, hours, images_of, package, package_tokenizer


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
        package("x", Runs(*[tmp_path] * 10), "CPU", "", root=tmp_path / "root")
    assert not (tmp_path / "root").exists()


@pytest.fixture
def tokenizer_run(vq_folder: Path, tmp_path: Path) -> Path:
    """The folder of a run of train.image_tokenizer, as far as packaging reads it."""
    run = tmp_path / "run"
    ImageTokenizer.from_pretrained(vq_folder).save_pretrained(run / "model", torch.float16)
    (run / "config.json").write_text(json.dumps({"steps": 30, "batch_size": 4, "seed": 0}))
    rows = [
        {"step": 30, "images_per_second": 30 * 4 / 1800},
        {"step": 30, "split": "x", "psnr": 20.5, "code_use": 0.75, "seconds": 1800.0},
    ]
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return run


@pytest.mark.parametrize(("decoder", "merged"), [(False, False), (True, False), (False, True)])
def test_a_model_is_packaged_from_its_runs(
    decoder: bool,
    merged: bool,
    tiny_folder: Path,
    tokenizer_run: Path,
    token_shards: Path,
    sample: Path,
    tmp_path: Path,
):
    runs = Runs(*[tmp_path / name for name in Runs._fields])._replace(
        tokens=token_shards, data=sample, image_tokenizer=tokenizer_run
    )
    if decoder:
        shutil.copytree(tokenizer_run, runs.decoder)
        sizes = {"steps": 30, "batch_size": 4, "seed": 0, "decoder_only": True}
        (runs.decoder / "config.json").write_text(json.dumps(sizes))
        (tokenizer_run / "model" / "model.safetensors").unlink()  # the decoder's are taken
    for run in (runs.lm, runs.tuning):
        run.mkdir()
        (run / "config.json").write_text(json.dumps({"steps": 90, "batch_tokens": 36, "seed": 7}))
        (run / "log.jsonl").write_text(json.dumps({"step": 90, "tokens_per_second": 0.5}))
    shutil.copytree(tiny_folder, runs.merged if merged else runs.tuning / "model")
    shutil.copytree(token_shards, runs.tuning_tokens)
    meta = json.loads((token_shards / "meta.json").read_text())
    meta["config"]["things"], meta["tasks"] = ["cat", "dog"], {"draw": 5}
    (runs.tuning_tokens / "meta.json").write_text(json.dumps(meta))
    measured = ROOT / "cm3" / "pretrained" / "emoji"
    drawn = {"concepts": 250, "drawings by name": {"images": 9, "lite0": {"top1": 0.25, "top5": 0.5}}}
    for run, name, more in (
        (runs.evaluation, "evaluation", {"drawings": drawn}),
        (runs.task_evaluation, "task_evaluation", {}),
    ):
        run.mkdir()
        figures = json.loads((measured / f"{name}.json").read_text())
        (run / "evaluation.json").write_text(json.dumps(figures | more))
    root = tmp_path / "root"
    assert package("small", runs, "a toaster", "It was a test.", root=root) == embedded(root) > 0
    card = (root / "cm3" / "pretrained" / "small" / "README.md").read_text(encoding="utf-8")
    assert "16 x 16 pixels" in card and "2 objects" in card and "a toaster" in card and "It was a test." in card
    assert "1.80 hours, 90 steps of 36 tokens, seed 7" in card
    assert "Image tokenizer: 0.50 hours, 30 steps of 4 images" in card
    assert ("then its decoder alone, 0.50 hours, 30 steps" in card) == decoder
    folder = root / "tokenizer_image" / "pretrained" / "small"
    assert ImageTokenizer.from_pretrained(folder).num_codes == 32
    phases = (folder / "README.md").read_text()
    assert (
        "- all of it: 30 steps" in phases
        and ("- the decoder alone, on scenes and signs too: 30 steps" in phases) == decoder
    )
    known = KnownWords.load(root / "cm3" / "pretrained" / "small")
    assert known.words
    assert {"a cat face", "an airplane", "grapes"} <= set(known.names.names)
    assert known.normal("GRAPES, and Airplanes!") == "grapes, and an airplane"


def test_an_image_tokenizer_alone_is_packaged_with_card_and_credits(
    tokenizer_run: Path, vq_folder: Path, sample: Path, tmp_path: Path
):
    package_tokenizer("small", [tokenizer_run], sample, "a toaster", root=tmp_path)
    folder = tmp_path / "tokenizer_image" / "pretrained" / "small"
    loaded = ImageTokenizer.from_pretrained(folder)
    assert loaded.fingerprint() == ImageTokenizer.from_pretrained(vq_folder).fingerprint()
    card = (folder / "README.md").read_text()
    assert "20.50 dB,\n75.0%" in card and "0.50 hours" in card and "a toaster" in card
    assert "4 x 4 codes out of 32" in card
    assert "CC-BY-4.0" in (folder / "ATTRIBUTION.md").read_text(encoding="utf-8")


def test_all_embedded_weights_together_have_a_limit(
    tokenizer_run: Path, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    size = package_tokenizer("one", [tokenizer_run], sample, "CPU", root=tmp_path)
    assert package_tokenizer("two", [tokenizer_run], sample, "CPU", root=tmp_path) == 2 * size == embedded(tmp_path)
    monkeypatch.setattr(package_model, "LIMIT", 2 * size)
    with pytest.raises(ValueError, match=f"the weights take {3 * size:,} bytes; at most {2 * size:,} are embedded"):
        package_tokenizer("three", [tokenizer_run], sample, "CPU", root=tmp_path)


def test_credits_go_to_extra_styles_too(tmp_path: Path):
    splits = ("train", "extra", "unseen_cell")
    rows = [{"style": split, "package": "p", "licence": "MIT", "author": "a", "split": split} for split in splits]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = attribution(images_of(tmp_path, "train", EXTRA))
    assert [line.split(":")[0] for line in text.splitlines() if "1 images" in line] == ["- extra", "- train"]
