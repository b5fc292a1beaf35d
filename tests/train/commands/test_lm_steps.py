"""Training the language model: single steps, bad ones and averages, and a model to start from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cm3 import CM3
from cm3.model.scorer import Scorer, ScorerConfig
from cm3.tasks.known_words import KnownWords
from lm_runs import equal, logged, weights
from train.documents.shards import Shards
from train.language import run as lm
from train.language.config import LMConfig
from train.language.held_out import held_out_loss
from train.language.lora import Lora
from train.language.loss import LMLearner
from train.language.objective import Objective
from train.language.packing import PackedSequences
from train.runtime.config import override
from train.runtime.optim import StepSkipper


def test_parts_of_a_batch_give_the_gradients_of_the_whole(config: LMConfig, run: Path, tmp_path: Path):
    lm.train(override(config, {"micro_batch_size": 1, "samples.prompts": ()}), tmp_path)
    parts, wholes = logged(tmp_path), logged(run)
    assert parts[0]["loss"] == pytest.approx(wholes[0]["loss"], abs=2e-5)
    for part, whole in zip(parts, wholes, strict=True):  # where Muon computes in bf16, differences grow with each step
        assert part["loss"] == pytest.approx(whole["loss"], abs=2e-3)
        assert part["grad_norm"] == pytest.approx(whole["grad_norm"], rel=5e-3)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_no_byte_and_is_counted(
    config: LMConfig, tmp_path: Path, monkeypatch, poison: float
):
    """The step with the bad batch moves neither weights nor optimiser: all is as if the run had ended before it."""
    config = override(
        config,
        {
            "samples.prompts": (),
            "steps": 3,
            "checkpoint.every": 1,
            "checkpoint.keep": 9,
            "optim.schedule": "wsd",
            "optim.decay_fraction": 0.0,
        },
    )
    forward = LMLearner.forward
    calls = []

    def poisoned(self: LMLearner, batch):
        losses = forward(self, batch)
        calls.append(1)
        return losses._replace(total=losses.total * poison) if len(calls) == 3 else losses

    monkeypatch.setattr(LMLearner, "forward", poisoned)
    lm.train(config, tmp_path / "poisoned")
    monkeypatch.undo()
    lm.train(replace(config, steps=2), tmp_path / "short")
    assert equal(tmp_path / "poisoned", tmp_path / "short")
    files = [tmp_path / "poisoned" / "checkpoints" / f"step-0000000{step}" for step in (2, 3)]
    tensors = [(folder / "__0_0.distcp").read_bytes() for folder in files]
    assert tensors[0] == tensors[1]
    [row] = logged(tmp_path / "poisoned", "skipped")
    assert row["step"] == 3 and row["skipped"] == "not finite"
    assert logged(tmp_path / "poisoned")[-1]["skipped_steps"] == 1


def test_too_many_bad_steps_in_a_row_stop_the_run(config: LMConfig, tmp_path: Path):
    with pytest.raises(
        ValueError,
        match=r"more than optim.max_skipped_steps = 2 steps in a row .* step 5 .*lower optim.muon_lr and optim.lr",
    ):
        lm.train(override(config, {"optim.lr": 1e30, "optim.max_skipped_steps": 2}), tmp_path)


def test_a_spike_is_skipped(config: LMConfig, tmp_path: Path, monkeypatch):
    config = override(config, {"samples.prompts": (), "steps": 8})
    forward = LMLearner.forward
    calls = []

    def spiky(self: LMLearner, batch):
        losses = forward(self, batch)
        calls.append(1)
        return losses._replace(total=losses.total * 1e3) if len(calls) == 7 else losses

    monkeypatch.setattr(LMLearner, "forward", spiky)
    monkeypatch.setattr(lm, "StepSkipper", lambda sigmas: StepSkipper(sigmas, 8))

    lm.train(config, tmp_path)
    assert [(row["step"], row["skipped"]) for row in logged(tmp_path, "skipped")] == [(7, "spike")]


def test_the_last_steps_are_over_all_ids(config: LMConfig, tmp_path: Path, monkeypatch):
    config = override(config, {"samples.prompts": (), "steps": 12, "loss.softmax": "modality", "loss.negatives": 8})
    monkeypatch.setattr(lm, "StepSkipper", lambda sigmas: StepSkipper(sigmas, 8))
    lm.train(config, tmp_path / "modality")
    lm.train(override(config, {"loss.full_softmax_fraction": 0.25}), tmp_path / "calibrated")
    apart, together = (logged(tmp_path / name) for name in ("modality", "calibrated"))
    assert [row["loss"] for row in apart[:9]] == [row["loss"] for row in together[:9]]
    more = [
        row["loss"]["first codes"] - other["loss"]["first codes"] for row, other in zip(together, apart, strict=True)
    ]
    assert min(more[9:]) > 0.1 and more[:9] == [0.0] * 9
    assert not logged(tmp_path / "calibrated", "skipped")


@pytest.mark.parametrize("bridged", [False, True])
@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_held_out_documents_are_evaluated_with_the_weights_that_are_saved(
    config: LMConfig, tmp_path: Path, ema: float, bridged: bool
):
    config = override(
        config,
        {
            "samples.prompts": (),
            "optim.ema_decay": ema,
            "head_bridge": bridged,
            "optim.matrix_optimizer": "muon",
            "eval.every": 3,
            "eval.sequences": 4,
        },
    )
    folder = lm.train(config, tmp_path)
    rows = logged(tmp_path, "held_out_loss")
    assert [row["step"] for row in rows] == [3, 6]
    model = CM3.from_pretrained(folder, device="cpu")
    held = PackedSequences(
        Shards(config.data.folder, "held_out"), model.vocab, Objective(first_codes=4).plain(), 128, 0, 10**6
    )
    again = held_out_loss(LMLearner(model.model), held, 4, 4, "fp32", torch.device("cpu"))
    assert again == pytest.approx(rows[-1]["held_out_loss"], abs=1e-4)


def test_a_model_is_trained_on_with_adapters(config: LMConfig, run: Path, tmp_path: Path):
    config = override(
        config,
        {
            "start": str(run / "model"),
            "image_tokenizer": "",
            "preset": "emoji",
            "model": {},
            "samples.prompts": (),
            "lora": Lora(rank=2),
            "optim.matrix_optimizer": "auto",
            "steps": 4,
            "optim.lr": 1e-2,
        },
    )
    folder = lm.train(config, tmp_path)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    before, after = weights(run), weights(tmp_path)
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {key for key in before if key.startswith("model.layers.") and key.endswith("_proj.weight")}
    assert CM3.from_pretrained(folder, device="cpu").generate("a cat", seed=1)


def test_a_model_knows_the_words_of_its_data_and_keeps_those_of_its_start_and_its_scorer(
    config: LMConfig, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    first = CM3.from_pretrained(run / "model", device="cpu")
    assert first.unknown_words("a red apple, a zzzz") == ["zzzz"]
    start = tmp_path / "start"
    sizes = (len(first.text_tokenizer), first.image_tokenizer.num_codes, first.grid)
    prints = (first.text_tokenizer.fingerprint(), first.image_tokenizer.fingerprint())
    scorer = Scorer(ScorerConfig(*sizes, text_tokenizer=prints[0], image_tokenizer=prints[1]))
    known = KnownWords(["Zzzz"], ["a gnu", "an apple"])
    CM3(first.model, first.text_tokenizer, first.image_tokenizer, scorer, known_words=known).save_pretrained(start)
    config = override(
        config, {"start": str(start), "image_tokenizer": "", "model": {}, "samples.prompts": (), "steps": 1}
    )
    again = CM3.from_pretrained(lm.train(config, tmp_path / "run"), device="cpu")
    assert again.unknown_words("a red apple, a zzzz, a yyyy") == ["yyyy"]
    assert again.normal_prompt("ZZZZ, Zzzz, GNUS") == "zzzz, Zzzz, a gnu"
    assert again.scorer is not None and again.scorer.config.trained_for == str(start)
    assert f"the scorer stays that of {start}" in " ".join(capsys.readouterr().out.split())
    bare = KnownWords()
    CM3(first.model, first.text_tokenizer, first.image_tokenizer, known_words=bare).save_pretrained(tmp_path / "bare")
    config = replace(config, start=str(tmp_path / "bare"))
    assert CM3.from_pretrained(lm.train(config, tmp_path / "more"), device="cpu").unknown_words("yyyy") == []


def test_a_model_is_trained_on_whole(config: LMConfig, run: Path, tmp_path: Path):
    config = override(
        config, {"start": str(run / "model"), "image_tokenizer": "", "model": {}, "samples.prompts": (), "steps": 2}
    )
    lm.train(config, tmp_path)
    first, last = logged(tmp_path)[0]["loss"]["other codes"], logged(run)[0]["loss"]["other codes"]
    assert first < last  # it goes on from where that run came to
