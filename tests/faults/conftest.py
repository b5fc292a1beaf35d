"""A tiny run to torment, and an account of what it went through: FAULTS_RESULT=path writes it there as JSON."""

import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from attempts import answer, write_data
from train.language.config import LMConfig
from train.language.objective import Objective
from train.runtime.config import override


@pytest.fixture(scope="session")
def account() -> Iterator[dict[str, Any]]:
    """What each test found out."""
    found: dict[str, Any] = {}
    started = time.perf_counter()
    yield found
    cpus = len(os.sched_getaffinity(0))
    row = {
        "benchmark": "faults",
        "device": f"{platform.processor() or platform.machine()}, {cpus} cores",
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - started),
        **found,
    }
    print("\n" + json.dumps(row, indent=1))
    if path := os.environ.get("FAULTS_RESULT"):
        Path(path).write_text(json.dumps(row) + "\n")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with vq/ and tokens/: ten shards of six documents."""
    folder = tmp_path_factory.mktemp("data")
    answer(folder, write_data, folder)
    return folder


@pytest.fixture(scope="session")
def config(data: Path) -> LMConfig:
    """14 steps of two rows, 256 tokens, which pass the end of an epoch; a save after every step."""
    return override(
        LMConfig(),
        {
            "data.folder": str(data / "tokens"),
            "image_tokenizer": str(data / "vq"),
            "preset": "tiny",
            "model": {"max_position_embeddings": 128},
            "objective": Objective(first_codes=4),
            "steps": 14,
            "data.seq_len": 128,
            "batch_tokens": 256,
            "data.packing_window": 16,
            "optim.warmup_steps": 1,
            "precision": "fp32",
            "log.every": 1,
            "checkpoint.every": 1,
            "checkpoint.keep": 2,
            "samples.every": 0,
            "eval.every": 5,
            "eval.sequences": 2,
            "samples.prompts": (),
        },
    )
