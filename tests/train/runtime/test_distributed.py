"""Two processes train what one does. Slow: each process loads PyTorch anew."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from checkout import ROOT

pytestmark = pytest.mark.slow


def launch(processes: int, out: Path, *settings: str) -> str:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(processes),
        "-m",
        "train.image_tokenizer",
        "--out",
        str(out),
        *settings,
    ]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    root = ROOT
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for i in range(40):
        Image.linear_gradient("L").resize((20 + i, 30)).rotate(9 * i).convert("RGB").save(folder / f"{i:02}.png")
    return folder


def test_two_processes_train_what_one_does_with_twice_the_batch(images: Path, tmp_path: Path):
    shared = [
        f"data.folder={images}",
        "preset=tiny",
        "steps=6",
        "optim.warmup_steps=2",
        "log.every=1",
        "eval.every=3",
        "checkpoint.every=3",
        "codebook.restart_every=2",
        "precision=fp32",
    ]
    launch(1, tmp_path / "one", *shared, "batch_size=4")
    launch(2, tmp_path / "two", *shared, "batch_size=2")
    one, two = (load_file(tmp_path / out / "model" / "model.safetensors") for out in ("one", "two"))
    for key, value in one.items():
        assert_close(two[key].float(), value.float(), rtol=2e-2, atol=2e-3, msg=lambda text, key=key: f"{key}: {text}")
    rows = [json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]  # one process writes


def test_two_processes_train_with_every_loss_and_resume(images: Path, tmp_path: Path):
    settings = [
        f"data.folder={images}",
        "preset=tiny",
        "optim.warmup_steps=2",
        "log.every=1",
        "eval.every=2",
        "checkpoint.every=2",
        "batch_size=2",
        "precision=fp32",
        "loss.perceptual=0.1",
        "align.weight=0.3",
        "jepa.weight=0.3",
        "gan.weight=0.3",
        "gan.start_step=1",
        "gan.warmup_steps=1",
        "gan.channels=8",
        "gan.layers=1",
        "loss.balance_every=2",
    ]
    launch(2, tmp_path, *settings, "steps=2")
    launch(2, tmp_path, *settings, "steps=4")
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert "discriminator" in rows[-2] and "jepa" in rows[-2]
