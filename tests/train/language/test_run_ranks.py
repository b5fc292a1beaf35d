"""Two processes train the language model as one does. Slow: each process loads PyTorch anew."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from checkout import ROOT
from documents import write_shards

pytestmark = pytest.mark.slow

STEPS = 6


@pytest.fixture(scope="module")
def folder(vq_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lengths = [30 + 7 * i % 40 for i in range(120)]
    return write_shards(tmp_path_factory.mktemp("tokens"), vq_folder, lengths, [60, 61, 62, 63, 64])  # 5 rows held out


def command(processes: int, out: Path, folder: Path, *settings: str) -> list[str]:
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    return [
        sys.executable,
        "-m",
        *(launcher if processes > 1 else []),
        "train.lm",
        "--out",
        str(out),
        f"data.folder={folder}",
        "preset=tiny",
        "data.seq_len=96",
        "batch_tokens=768",
        "optim.warmup_steps=2",
        "log.every=1",
        "precision=fp32",
        "samples.prompts=[]",
        "data.verify_hashes=false",
        "optim.decay_fraction=0.0",
        f"steps={STEPS}",
        f"distributed.processes={processes}",
        *settings,
    ]


ENVIRONMENT = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def launch(processes: int, out: Path, folder: Path, *settings: str) -> str:
    done = subprocess.run(
        command(processes, out, folder, *settings),
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def rows(out: Path, key: str = "loss") -> list[dict[str, Any]]:
    every = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [row for row in every if key in row]


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(out / "model" / "model.safetensors")


def assert_same_run(out: Path, want: Path, muon: bool = False) -> None:
    """The same samples, losses and weights; as far as bf16 goes, in which Muon computes (it makes full-sized steps of
    directions whose gradients are next to nothing)."""
    close, far = (2e-4, 0.06) if muon else (2e-5, 1e-3)
    one, two = rows(want), rows(out)
    assert [row["step"] for row in two] == [row["step"] for row in one] == list(range(1, STEPS + 1))
    assert [row["digest"] for row in two] == [row["digest"] for row in one]
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=close, abs=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=5 * close)
        assert (
            b["padding_fraction"] == pytest.approx(a["padding_fraction"], abs=1e-5) and b["documents"] == a["documents"]
        )
    found = weights(out)
    for key, value in weights(want).items():
        assert (found[key] - value).norm() < far * value.norm(), key


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One process's run with each optimiser."""
    out = {matrices: tmp_path_factory.mktemp(matrices) for matrices in ("adamw", "muon")}
    for matrices, place in out.items():
        launch(1, place, folder, f"optim.matrix_optimizer={matrices}")
    return out


@pytest.mark.parametrize(
    ("matrices", "parallel", "micro"),
    [
        ("adamw", "ddp", 0),
        ("adamw", "ddp", 1),
        ("muon", "ddp", 1),
        ("adamw", "fsdp", 1),
        ("muon", "fsdp", 1),
    ],
)
def test_two_processes_train_what_one_does(
    alone: dict[str, Path], folder: Path, tmp_path: Path, matrices: str, parallel: str, micro: int
):
    launch(
        2,
        tmp_path,
        folder,
        f"optim.matrix_optimizer={matrices}",
        f"distributed.strategy={parallel}",
        f"micro_batch_size={micro}",
    )
    assert_same_run(tmp_path, alone[matrices], matrices == "muon")


def test_a_bridge_is_learnt_and_folded_in_as_by_one_process(folder: Path, tmp_path: Path):
    settings = ["optim.matrix_optimizer=adamw", "head_bridge=true", "loss.softmax=modality"]
    launch(1, tmp_path / "one", folder, *settings)
    for parallel in ("ddp", "fsdp"):
        launch(2, tmp_path / parallel, folder, *settings, f"distributed.strategy={parallel}")
        assert_same_run(tmp_path / parallel, tmp_path / "one")


def test_parts_of_a_step_train_what_the_whole_does(alone: dict[str, Path], folder: Path, tmp_path: Path):
    launch(
        1,
        tmp_path,
        folder,
        "optim.matrix_optimizer=adamw",
        "micro_batch_size=3",
        "activation_checkpointing=true",
        "attention=sdpa",
    )
    assert_same_run(tmp_path, alone["adamw"])


@pytest.mark.parametrize(("matrices", "first", "then"), [("adamw", 2, 1), ("muon", 2, 1), ("adamw", 1, 2)])
def test_a_sharded_run_goes_on_with_another_number_of_processes(
    alone: dict[str, Path], folder: Path, tmp_path: Path, matrices: str, first: int, then: int
):
    settings = [f"optim.matrix_optimizer={matrices}", "distributed.strategy=fsdp"]
    launch(first, tmp_path, folder, *settings, "steps=3")
    assert (tmp_path / "checkpoints" / "step-00000003").is_dir() and weights(tmp_path)
    launch(then, tmp_path, folder, *settings)
    assert_same_run(tmp_path, alone[matrices], matrices == "muon")


def test_averaged_weights_and_adapters_of_a_sharded_run_are_those_of_one_process(folder: Path, tmp_path: Path):
    settings = ["optim.matrix_optimizer=adamw", "optim.ema_decay=0.8", "lora.rank=2", "eval.every=3"]
    launch(1, tmp_path / "one", folder, *settings)
    for parallel in ("ddp", "fsdp"):
        out = tmp_path / parallel
        launch(2, out, folder, *settings, f"distributed.strategy={parallel}")
        assert_same_run(out, tmp_path / "one")
        one, two = (load_file(place / "adapter" / "adapter_model.safetensors") for place in (tmp_path / "one", out))
        assert one.keys() == two.keys()
        for key, value in one.items():
            assert_close(two[key], value, rtol=1e-3, atol=2e-4)


def test_two_processes_evaluate_what_one_does(folder: Path, tmp_path: Path):
    settings = ["optim.matrix_optimizer=adamw", "eval.every=6", "eval.sequences=100"]
    for processes in (1, 2):
        launch(processes, tmp_path / str(processes), folder, *settings)
    one, two = (rows(tmp_path / str(processes), "held_out_loss")[-1]["held_out_loss"] for processes in (1, 2))
    assert two == pytest.approx(one, rel=2e-5)


def test_processes_that_train_apart_agree_at_the_end_and_resume_exactly(
    alone: dict[str, Path], folder: Path, tmp_path: Path
):
    settings = ["optim.matrix_optimizer=adamw", "distributed.local_sgd_steps=2", "checkpoint.every=2"]
    launch(2, tmp_path / "whole", folder, *settings)
    launch(2, tmp_path / "parts", folder, *settings, "steps=2")
    launch(2, tmp_path / "parts", folder, *settings)
    assert [row["loss"] for row in rows(tmp_path / "parts")] == [row["loss"] for row in rows(tmp_path / "whole")]
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(two[key], value) for key, value in one.items())
    together = weights(alone["adamw"])
    assert any((together[key] - value).abs().max() > 1e-3 for key, value in one.items())  # they were apart


def test_told_to_end_two_processes_save_and_go_on_to_the_same_weights(folder: Path, tmp_path: Path):
    settings = ["optim.matrix_optimizer=adamw", "steps=60", "checkpoint.async_save=true"]
    launch(2, tmp_path / "whole", folder, *settings)
    out = tmp_path / "parts"
    run = subprocess.Popen(
        command(2, out, folder, *settings),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = time.monotonic() + 200
    while time.monotonic() < end and run.poll() is None and not ((out / "log.jsonl").is_file() and len(rows(out)) > 2):
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    said = run.communicate(timeout=100)[0]
    last = rows(out)[-1]["step"]
    assert 2 < last < 60 and (out / "checkpoints" / f"step-{last:08}").is_dir(), said[-3000:]
    assert (out / "model" / "model.safetensors").is_file()
    launch(2, out, folder, *settings)
    one, two = weights(tmp_path / "whole"), weights(out)
    assert all(torch.equal(two[key], value) for key, value in one.items())
