"""What a run of the language model leaves."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from train.language.config import LMConfig
from train.language.objective import Objective
from train.runtime.config import override


def lm_config(token_shards: Path, vq_folder: Path) -> LMConfig:
    """The defaults, scaled down to six steps of a tiny model."""
    return override(
        LMConfig(),
        {
            "data.folder": str(token_shards),
            "image_tokenizer": str(vq_folder),
            "preset": "tiny",
            "model": {"max_position_embeddings": 256},
            "objective": Objective(first_codes=4),
            "steps": 6,
            "data.seq_len": 128,
            "batch_tokens": 512,
            "data.packing_window": 64,
            "optim.warmup_steps": 1,
            "precision": "fp32",
            "log.every": 1,
            "checkpoint.every": 2,
            "samples.every": 0,
            "samples.prompts": ("a red apple",),
        },
    )


def logged(out: Path, key: str = "loss") -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if key in row]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def equal(one: Path, two: Path) -> bool:
    a, b = weights(one), weights(two)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
