"""Packaging the canvas model: weights in halves that load again, cards with the figures, nothing written too early."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cm3 import CM3
from cm3.tasks.confidence import Calibration
from cm3.tasks.lexicon import LEXICON
from train.recipes.emoji import package as module
from train.recipes.emoji.evaluate import SUITES
from train.recipes.emoji.package import Sources, embedded, halve, hours, package
from worlds import small_world

LOG = {"step": 30, "images_per_second": 30 * 4 / 1800, "tokens_per_second": 30 * 36 / 7200}


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
        package("x", Sources(*[tmp_path] * 6), "CPU", "", root=tmp_path / "root")
    assert not (tmp_path / "root").exists()


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def sources(planning: CM3, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    """Folders of runs, as far as packaging reads them."""
    monkeypatch.setattr(module, "REQUESTS", 100)
    at = Sources(*(tmp_path / name for name in ("lm", "image_tokenizer", "decoder", "evaluation", "documents", "data")))
    for run, size in (
        (at.lm, {"batch_tokens": 36}),
        (at.image_tokenizer, {"batch_size": 4}),
        (at.decoder, {"batch_size": 4}),
    ):
        write_json(run / "config.json", {"steps": 30, "seed": 7, **size})
        write_json(run / "log.jsonl", LOG)
    planning.image_tokenizer.save_pretrained(at.decoder / "model")
    planning.save_pretrained(at.lm / "model")
    for suite in ("ceiling", *SUITES):
        figures = {"psnr 256 held_out_pairs": 20.5, "by plan, 256 px": {"memorised": 12.5}}
        write_json(at.evaluation / f"{suite}.json", figures)
    Calibration(2.0, 1.0, 0.5).save(at.evaluation)
    write_json(
        at.documents / "meta.json",
        {"documents": 5, "tokens": 70, "config": {"documents": {"draw large": 3, "read": 2}}},
    )
    small_world(sample, at.data)
    write_json(at.data / "data.json", {"counts": {"train": 6}, "styles": {"noto": 4, "blob": 2}})
    row = {"package": "p", "licence": "MIT", "author": "a"}
    rows = [{**row, "style": split, "split": split} for split in ("train", "extra", "held_out_pairs")]
    (at.data / "manifest.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    (at.data / LEXICON).write_text("kat\ta cat\n", encoding="utf-8")
    return at


def test_both_folders_load_again_with_their_cards(sources: Sources, planning: CM3, tmp_path: Path):
    root = tmp_path / "root"
    assert package("small", sources, "a toaster", "It was a test.", root=root) == embedded(root) > 0
    tokenizer, folder = (root / name / "pretrained" / "small" for name in ("tokenizer_image", "cm3"))
    card = (folder / "README.md").read_text(encoding="utf-8")
    for words in (
        "Language model: 2.0 hours, 30 steps of 36\ntokens, seed 7",
        "Image tokenizer: 0.5 hours, 30 steps of 4 images",
        "20.5 dB",
        "12.5 % of the drawings",
        "a toaster",
        "It was a test.",
    ):
        assert words in card
    assert (
        "new decoder alone, on canvases of 16 pixels, 30 steps,\n0.5 hours. Device: a toaster"
        in (tokenizer / "README.md").read_text()
    )
    credits = (folder / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert "extra: 1 images" in credits and "held_out" not in credits
    config = json.loads((folder / "config.json").read_text())
    assert config["image_tokenizer_fingerprint"] == planning.image_tokenizer.fingerprint()
    model = CM3.from_pretrained(folder, image_tokenizer=str(tokenizer))
    assert model.jobs.planning is not None
    assert not model.unknown_words("please draw A CAT FACE on a blue background") and model.unknown_words("a zorblax")
    weight = planning.model.lm_head.weight
    assert torch.equal(model.model.lm_head.weight, weight.half().float()) and not torch.equal(weight, weight.half())
    assert json.loads((folder / "evaluation.json").read_text()).keys() == {"ceiling", *SUITES}


def test_all_embedded_weights_together_have_a_limit(sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    size = package("one", sources, "CPU", "", root=tmp_path / "root")
    monkeypatch.setattr(module, "LIMIT", size)
    with pytest.raises(ValueError, match=f"the weights take {2 * size:,} bytes; at most {size:,} are embedded"):
        package("two", sources, "CPU", "", root=tmp_path / "root")
