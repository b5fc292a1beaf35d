"""Training speed of the language model: the whole loop against bare passes on the same batches; padding, waiting, MFU.

    python -m benchmarks.train --data data/emoji-tokens --result benchmarks/results/train-cpu-2-cores.json
    python -m benchmarks.train --data data/emoji-tokens --preset cm3leon-350m --seq-len 4096 --batch-tokens 131072 \
        --micro 4

The bare passes are those of `python -m train.lm --dry-run`: forward and backward passes of the same model on the run's
first batches, and the optimizers' step. The loop's overhead is the time that it takes beyond those.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.report import finish


def lm(*arguments: str) -> str:
    """The output of train.lm."""
    """The output of train.lm."""
    """The output of train.lm."""
    command = [sys.executable, "-m", "train.lm", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def bare(overrides: list[str]) -> dict[str, Any]:
    """The results of a dry run."""
    return json.loads(lm("--dry-run", *overrides).splitlines()[-1])


def loop(overrides: list[str], steps: int) -> dict[str, float]:
    """Medians over a run's log lines without the first, which is the warm-up."""
    every = max(1, steps // 6)
    with tempfile.TemporaryDirectory() as folder:
        lm(
            "--out",
            folder,
            *overrides,
            f"steps={steps}",
            f"log.every={every}",
            "checkpoint.every=1000000",
            "samples.every=0",
            "samples.prompts=[]",
        )
        rows = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()][1:]
    keys = ("tokens_per_second", "padding_fraction", "data_wait", "mfu")
    return {key: statistics.median(row[key] for row in rows) for key in keys if key in rows[0]}


def main(
    data: Annotated[Path, typer.Option(help="token shards")] = Path("data/emoji-tokens"),
    preset: Annotated[str, typer.Option(help="of the model")] = "emoji",
    seq_len: Annotated[int, typer.Option(help="sequence length in tokens")] = 256,
    batch_tokens: Annotated[int, typer.Option(help="tokens a step")] = 4096,
    micro: Annotated[int, typer.Option(help="micro-batch size in sequences; 0 = all")] = 0,
    steps: Annotated[int, typer.Option(min=12)] = 60,
    repeats: Annotated[int, typer.Option(min=1, help="pairs of measurements; medians are reported")] = 3,
    result: Annotated[Path | None, typer.Option(help="JSON file to keep the figures in")] = None,
) -> None:
    overrides = [
        f"data.folder={json.dumps(str(data))}",
        f"preset={preset}",
        f"data.seq_len={seq_len}",
        f"batch_tokens={batch_tokens}",
        f"micro_batch_size={micro}",
    ]
    pairs = []
    for _ in range(repeats):
        passes, whole = bare(overrides), loop(overrides, steps)
        seconds = batch_tokens / whole["tokens_per_second"]
        pairs.append(
            {
                "passes_tokens_per_second": passes["passes_per_second"],
                "with_optimizer_tokens_per_second": passes["tokens_per_second"],
                "overhead": seconds / passes["seconds_per_step"] - 1,
                "parameters": passes["parameters"],
                **whole,
            }
        )
    figures = {key: statistics.median(pair[key] for pair in pairs) for key in pairs[0]}
    for key, value in figures.items():
        print(f"{key.replace('_', ' '):36} {value:,.4g}")
    finish(
        "train",
        result,
        preset=preset,
        seq_len=seq_len,
        batch_tokens=batch_tokens,
        micro_batch_size=micro,
        steps=steps,
        **figures,
    )


if __name__ == "__main__":
    typer.run(main)
