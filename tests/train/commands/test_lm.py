"""Training the language model: a few steps, an exact resume, and clear errors."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from checkout import ROOT
from cm3 import CM3
from lm_runs import equal, logged
from tokenizer_image import ImageTokenizer
from train import lm as command
from train.documents.shards import Shards
from train.language import run as lm
from train.language.config import LMConfig
from train.language.objective import KINDS, Objective
from train.language.setup import image_tokenizer_of, optimizers_of, starting_model
from train.runtime.config import override
from train.runtime.optim import SinglePrecisionMuon


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """killed_at(step, config, out): a run that dies in a step."""

    def kill(last: int, config: LMConfig, out: Path) -> None:
        def dies(step: int, *settings: Any) -> float:
            if step == last:
                raise KeyboardInterrupt
            return rate(step, *settings)

        rate = lm.lr_factor
        with monkeypatch.context() as patch:
            patch.setattr(lm, "lr_factor", dies)
            with pytest.raises(KeyboardInterrupt):
                lm.train(config, out)

    return kill


def trail(out: Path) -> list[tuple]:
    return [(row["step"], row["digest"], row["loss"]) for row in logged(out)]


def test_a_run_logs_each_kind_of_token_and_leaves_a_model_to_load(run: Path):
    assert {path.name for path in run.iterdir()} == {
        "config.json",
        "log.jsonl",
        "checkpoints",
        "model",
        "samples-000006.png",
    }
    rows = logged(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    kinds = {*KINDS} - {"source codes"}  # no document has two images side by side
    assert all(set(row["loss"]) == kinds and row["tokens_per_second"] > 0 for row in rows)
    assert all(0 <= row["padding_fraction"] < 1 and 0 <= row["data_wait"] < 1 for row in rows)
    assert [row["documents"] for row in rows] == sorted({row["documents"] for row in rows})
    model = CM3.from_pretrained(run / "model", device="cpu")
    assert model.grid == (4, 4) and model.context == 256
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]


def test_it_learns_a_few_documents_by_heart(config: LMConfig, token_shards: Path, tmp_path: Path):
    config = override(
        config,
        {
            "steps": 60,
            "data.packing_window": 8,
            "data.seq_len": 256,
            "batch_tokens": 1024,
            "optim.lr": 1e-2,
            "log.every": 5,
            "checkpoint.every": 60,
            "samples.prompts": (),
            "objective": Objective(text_masked=0.0, cm3_spans=0.0, prompt_weight=1.0, first_codes=4),
        },
    )
    lm.train(config, tmp_path)
    first, *_, last = (row["loss"] for row in logged(tmp_path))
    for kind in first:
        assert last[kind] < 0.75 * first[kind], (kind, first, last)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optim.matrix_optimizer": "muon", "optim.ema_decay": 0.5},
        {"data.workers": 2},
        {"checkpoint.async_save": False, "micro_batch_size": 1},
        {"optim.schedule": "cosine", "activation_checkpointing": True, "loss.z_loss": 1e-3},
    ],
    ids=["plain", "muon and ema", "workers", "parts", "recompute"],
)
def test_a_killed_run_goes_on_to_the_same_bits(config: LMConfig, tmp_path: Path, killed_at, settings: dict[str, Any]):
    config = override(config, {"samples.prompts": (), **settings})
    lm.train(config, tmp_path / "whole")
    killed_at(3, config, tmp_path / "cut")
    assert not (tmp_path / "cut" / "model").exists()
    lm.train(config, tmp_path / "cut")
    assert equal(tmp_path / "whole", tmp_path / "cut")
    assert trail(tmp_path / "whole") == trail(tmp_path / "cut")


def test_asked_to_end_a_run_saves_and_the_same_command_goes_on(config: LMConfig, tmp_path: Path, monkeypatch):
    config = override(config, {"samples.prompts": ()})
    lm.train(config, tmp_path / "whole")
    rate = lm.lr_factor

    def asked(step: int, *settings: Any) -> float:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return rate(step, *settings)

    with monkeypatch.context() as patch:
        patch.setattr(lm, "lr_factor", asked)
        lm.train(config, tmp_path / "cut")
    done = [row["step"] for row in logged(tmp_path / "cut")]
    assert done[-1] in (3, 4)
    lm.train(config, tmp_path / "cut")
    assert equal(tmp_path / "whole", tmp_path / "cut") and trail(tmp_path / "whole") == trail(tmp_path / "cut")


@pytest.mark.parametrize("killed_before_the_model", [False, True])
def test_a_finished_run_is_left_as_it_is_but_for_a_model_that_is_missing(
    config: LMConfig, run: Path, tmp_path: Path, killed_before_the_model: bool
):
    shutil.copytree(run, tmp_path / "run")
    if killed_before_the_model:
        shutil.rmtree(tmp_path / "run" / "model")
    lm.train(config, tmp_path / "run")
    assert equal(run, tmp_path / "run") and trail(run) == trail(tmp_path / "run")


def test_only_the_newest_position_of_the_same_data_is_gone_on_from(config: LMConfig, run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds a run on other data: data.seq_len was 128, now 64"):
        lm.train(override(config, {"data.seq_len": 64, "steps": 8}), tmp_path / "run")
    with pytest.raises(ValueError, match="another architecture|does not fit"):
        lm.train(replace(config, model={"max_position_embeddings": 256, "hidden_size": 48}, steps=8), tmp_path / "run")


def test_shards_of_another_image_tokenizer_are_refused(config: LMConfig, token_shards: Path, tmp_path: Path):
    shutil.copytree(token_shards, tmp_path / "few")
    meta = json.loads((token_shards / "meta.json").read_text())
    (tmp_path / "few" / "meta.json").write_text(json.dumps(meta | {"image_tokenizer": "0123456789ab"}))
    with pytest.raises(ValueError, match=r"few were made with another image tokenizer \(0123456789ab, this one is "):
        lm.train(override(config, {"data.folder": str(tmp_path / "few")}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["data.folder=nowhere"], "nowhere/meta.json is missing"),
        (["preset=huge"], "unknown preset 'huge'"),
        (["model.wide=3"], "unknown field wide"),
        (["objective.answers=3"], "unknown .*objective.answers"),
        (["lora.ranks=3"], "unknown .*lora.ranks"),
        (["stepz=3"], "unknown config keys: stepz"),
        (["loss.negatives=8"], "loss.negatives=8 needs loss.softmax=modality"),
        (["loss.full_softmax_fraction=0.1"], "loss.full_softmax_fraction=0.1 needs loss.softmax=modality"),
        (
            ["loss.softmax=modality", "loss.full_softmax_fraction=2"],
            "loss.full_softmax_fraction is 2.*, but must be a share",
        ),
        (["head_bridge=true", "lora.rank=4"], "head_bridge changes the output layer, which lora leaves"),
        (
            ["head_bridge=true", "model.tie_word_embeddings=true", "data.seq_len=128", "batch_tokens=128"],
            "head_bridge needs an output layer of its own",
        ),
        (["optim.schedule=linear"], "optim.schedule is 'linear': choose wsd, cosine"),
        (["distributed.strategy=pipeline"], "distributed.strategy is 'pipeline': choose ddp, fsdp"),
        (["data.seq_len=0"], "data.seq_len is 0, but must be at least 1"),
        (["data.seq_len=100000", "batch_tokens=100000"], "data.seq_len is 100000, but the model has 128 positions"),
        (
            ["batch_tokens=500"],
            "batch_tokens is 500, but must be a multiple of data.seq_len x processes = 256 x 1: take 256",
        ),
        (["distributed.local_sgd_steps=3", "checkpoint.every=4"], "distributed.local_sgd_steps=3 needs .* multiples"),
        (["distributed.processes=2"], "1 processes train together, not 2"),
        (["data.seq_len=8", "batch_tokens=8"], ".*none of the .* documents fits into a sequence of 8 tokens"),
    ],
)
def test_mistakes_end_the_script_with_one_line(config: LMConfig, tmp_path: Path, overrides: list[str], match: str):
    given = [f"data.folder='{config.data.folder}'", f"image_tokenizer='{config.image_tokenizer}'", "preset=tiny"]
    with pytest.raises(SystemExit, match=f"lm: {match}") as error:
        command.main(tmp_path, None, None, False, False, given + overrides)
    assert "\n" not in str(error.value.code)


def test_the_data_folder_of_the_command_line_counts(tmp_path: Path):
    with pytest.raises(SystemExit, match=r"it's here/meta\.json is missing"):
        command.main(tmp_path, None, "it's here", False, False, None)


def test_a_dry_run_says_what_it_will_take_and_writes_nothing(config: LMConfig, tmp_path: Path, capsys):
    given = [
        f"data.folder='{config.data.folder}'",
        f"image_tokenizer='{config.image_tokenizer}'",
        "preset=tiny",
        "data.seq_len=128",
        "batch_tokens=512",
        "precision=fp32",
    ]
    command.main(tmp_path / "out", None, None, True, False, given)
    said = capsys.readouterr().out
    assert all(word in said for word in ("parameters", "gradients gib", "tokens per second", "hours"))
    assert not (tmp_path / "out").exists()


def test_matrices_inside_the_blocks_have_the_optimiser_that_is_asked_for(config: LMConfig, monkeypatch):
    shards = Shards(config.data.folder)
    model = starting_model(config, shards.meta, image_tokenizer_of(config, shards))
    cpu = torch.device("cpu")
    for matrices, fast, kinds in (
        ("muon", False, [SinglePrecisionMuon, torch.optim.AdamW]),
        ("adamw", True, [torch.optim.AdamW]),
        ("auto", True, [torch.optim.Muon, torch.optim.AdamW]),
        ("auto", False, [SinglePrecisionMuon, torch.optim.AdamW]),
    ):
        monkeypatch.setattr("train.language.setup.bf16_is_fast", lambda device, fast=fast: fast)
        some = optimizers_of(model, override(config, {"optim.matrix_optimizer": matrices}), cpu)
        assert [type(one) for one in some] == kinds
        held = [p for one in some for group in one.param_groups for p in group["params"]]
        assert {id(p) for p in held} == {id(p) for p in model.parameters()} and len(held) == len({*map(id, held)})


def test_the_image_tokenizer_is_found_where_it_was_when_the_shards_were_made(config: LMConfig, vq_folder: Path):
    shards, unnamed = Shards(config.data.folder), replace(config, image_tokenizer="")
    shards.meta["image_tokenizer_name"] = str(vq_folder)
    found = image_tokenizer_of(unnamed, shards)
    assert found.fingerprint() == ImageTokenizer.from_pretrained(vq_folder).fingerprint()
    shards.meta["image_tokenizer_name"] = ""
    with pytest.raises(ValueError, match="does not say which image tokenizer made it"):
        image_tokenizer_of(unnamed, shards)


def test_the_command_prints_its_own_words_alone(config: LMConfig, tmp_path: Path):
    """No library's warning, progress bar or deprecation."""
    settings = (
        "preset=tiny",
        "steps=2",
        "data.seq_len=128",
        "batch_tokens=256",
        "optim.warmup_steps=1",
        "samples.prompts=['a cat']",
        "optim.ema_decay=0.5",
    )
    places = (
        f"data.folder={config.data.folder}",
        f"image_tokenizer={config.image_tokenizer}",
        "model.max_position_embeddings=256",
    )
    command = [sys.executable, "-m", "train.lm", "--out", str(tmp_path), *places, *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "lm" in done.stdout or "prompt" in done.stdout
    assert not {"warn", "deprecat", "writing", "loading"} & {*re.findall(r"[a-z]+", done.stdout.lower())}
