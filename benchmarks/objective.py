"""The effect of the CM3 objective at small scale: generation, captioning and infilling after the same training.

    python -m benchmarks.objective --data data/emoji-known --out runs/objective

Model (4 layers of width 128), tokens, seed and initial weights are the same; only the forms of the documents differ
(RUNS). train/evaluation/suites/objective.py defines the measurements. Every run is a `python -m train.lm`; finished
runs are kept, and interrupted ones resumed.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.compute_to_loss import MODEL, toml
from benchmarks.report import finish

RUNS: dict[str, dict[str, float]] = {
    "left to right": {"text_masked": 0.0, "cm3_spans": 0.0, "inpainting": 0.0, "answers_masked": 0.0},
    "CM3": {"text_masked": 0.0, "cm3_spans": 1.0, "inpainting": 0.0},
    "mixed": {"text_masked": 0.15, "cm3_spans": 0.2, "inpainting": 0.0},
    "mixed and holes": {"text_masked": 0.15, "cm3_spans": 0.2, "inpainting": 0.3},
}
SHARED = {
    "preset": "emoji",
    **MODEL,
    "model.intermediate_size": 352,
    "data.seq_len": 256,
    "batch_tokens": 2048,
    "optim.matrix_optimizer": "muon",
    "optim.muon_lr": 0.01,
    "optim.lr": 4e-3,
    "optim.betas": (0.9, 0.98),
    "optim.decay_fraction": 0.6,
    "samples.every": 0,
    "checkpoint.every": 200,
    "samples.prompts": (),
    "image_tokenizer": "emoji",
}


def trained(name: str, data: Path, out: Path, steps: int, seed: int) -> Path:
    """The folder of a finished run of train.lm."""
    folder = out / f"{name.replace(' ', '-')}-{steps}-{seed}"
    shares = {f"objective.{key}": value for key, value in RUNS[name].items()}
    settings = (
        SHARED | shares | {"data.folder": str(data), "steps": steps, "optim.warmup_steps": steps // 20, "seed": seed}
    )
    overrides = [f"{key}={toml(value)}" for key, value in settings.items()]
    if not (folder / "model" / "config.json").exists():
        subprocess.run([sys.executable, "-m", "train.lm", "--out", str(folder), *overrides], check=True)
    return folder


def table(figures: dict[str, dict[str, float]]) -> str:
    """The results as a Markdown table, with a column for each run."""
    lines = ["| | " + " | ".join(figures) + " |", "|---|" + "---|" * len(figures)]
    for key in dict.fromkeys(key for run in figures.values() for key in sorted(run)):
        form = "{:.1%}" if key.endswith(("exact", "top-5")) else "{:.3f}" if key != "documents" else "{:,}"
        cells = [form.format(run[key]) if key in run else "" for run in figures.values()]
        lines.append(f"| {' | '.join([key, *cells])} |")
    return "\n".join(lines)


def main(
    data: Annotated[Path, typer.Option(help="token shards")] = Path("data/emoji-known"),
    out: Annotated[Path, typer.Option(help="folder of the runs")] = Path("runs/objective"),
    steps: Annotated[int, typer.Option(help="of each run")] = 800,
    seed: Annotated[int, typer.Option(help="of weights and of the documents' order")] = 0,
    things: Annotated[int, typer.Option(help="a held-out view of each is measured")] = 120,
    result: Annotated[Path | None, typer.Option(help="JSON file to keep the figures in")] = None,
) -> None:
    folders = {name: trained(name, data, out, steps, seed) for name in RUNS}
    subprocess.run(
        [
            sys.executable,
            "-m",
            "train.evaluate",
            "objective",
            *map(str, folders.values()),
            "--out",
            str(out / "figures.json"),
            "--things",
            str(things),
        ],
        check=True,
    )
    found = json.loads((out / "figures.json").read_text())
    figures = {name: found[str(folder)] for name, folder in folders.items()}
    print(table(figures))
    finish(
        "objective",
        result,
        steps=steps,
        seed=seed,
        tokens=steps * SHARED["batch_tokens"],
        things=things,
        shares=RUNS,
        runs=figures,
    )


if __name__ == "__main__":
    typer.run(main)
