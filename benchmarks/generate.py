"""How long the model takes to draw, caption and answer, warm, on this machine.

    python -m benchmarks.generate [--model emoji] [--repeats 5] [--out benchmarks/results/generate-NAME.json]

Prints a table, and one JSON line last.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.report import device_name, finish
from cm3 import CM3


def seconds(work: Callable[[], object], repeats: int) -> list[float]:
    """Times of `repeats` calls after one that warms up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return times


def main(
    model: Annotated[str, typer.Option(help="folder or name")] = "emoji",
    repeats: Annotated[int, typer.Option(help="timed calls")] = 5,
    out: Annotated[Path | None, typer.Option(help="JSON file")] = None,
) -> None:
    started = time.perf_counter()
    cm3 = CM3.from_pretrained(model)
    loading = time.perf_counter() - started
    pictures = cm3.generate("a red apple", n=4)
    jobs: dict[str, Callable[[], object]] = {
        "4 pictures, guidance 6": lambda: cm3.generate("a red apple", n=4, guidance=6.0),
        "4 pictures, no guidance": lambda: cm3.generate("a red apple", n=4, guidance=1.0),
        "1 picture, guidance 6": lambda: cm3.generate("a red apple", n=1, guidance=6.0),
        "16 pictures, guidance 6": lambda: cm3.generate("a red apple", n=16, guidance=6.0),
        "1 caption": lambda: cm3.caption(pictures[0]),
        "1 answer": lambda: cm3.answer(pictures[0], "What colour is it?"),
    }
    rows = {name: seconds(job, repeats) for name, job in jobs.items()}
    print(f"{device_name()}, torch {torch.__version__}, {cm3.model.num_parameters() / 1e6:.1f}M parameters")
    print(f"| job | median s | fastest s |\n|---|---|---|\n| load the model | {loading:.2f} | |")
    for name, times in rows.items():
        print(f"| {name} | {statistics.median(times):.2f} | {min(times):.2f} |")
    finish(
        "generate",
        out,
        model=model,
        load_seconds=round(loading, 3),
        seconds={name: [round(value, 4) for value in times] for name, times in rows.items()},
    )


if __name__ == "__main__":
    typer.run(main)
