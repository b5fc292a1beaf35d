"""Speed of linear layers on a CPU for few rows, with weights that are not in its caches: torch's linear() and ours.

    python -m benchmarks.linear [--repeats 200] [--out benchmarks/results/linear-NAME.json]

Prints a table, and one JSON line at the end.
"""

import statistics
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from benchmarks.report import device_name, finish
from cm3.model import linear
from cm3.model.linear import project

SHAPES = ((256, 256), (704, 256), (256, 704), (1408, 512), (512, 1408), (2048, 768), (768, 2048))  # out, in
ROWS = (1, 2, 4, 8, 16)
BYTES = 60_000_000  # of all weights, more than the caches hold


def microseconds(multiply: Callable[[Tensor, Tensor], Tensor], x: Tensor, weights: list[Tensor], repeats: int) -> float:
    """Median time of one product."""
    times: list[float] = []
    for _, weight in zip(range(repeats + 10), cycle(weights), strict=False):
        started = time.perf_counter()
        multiply(x, weight)
        times.append(time.perf_counter() - started)
    return 1e6 * statistics.median(times[10:])


@torch.inference_mode()
def main(
    repeats: Annotated[int, typer.Option(help="timed products")] = 200,
    out: Annotated[Path | None, typer.Option(help="JSON file")] = None,
) -> None:
    print(f"{device_name()}, torch {torch.__version__}, fp32")
    print("| out x in | rows | linear() us | ours us | times as fast | ours GB/s |\n|---|---|---|---|---|---|")
    figures: list[dict[str, float]] = []
    linear.TRANSPOSED_ROWS = 8  # on every processor
    for outputs, inputs in SHAPES:
        size = 4 * outputs * inputs
        weights = [torch.randn(outputs, inputs) for _ in range(max(2, BYTES // size))]
        for rows in ROWS:
            x = torch.randn(rows, inputs)
            theirs = microseconds(F.linear, x, weights, repeats)
            ours = microseconds(project, x, weights, repeats)
            print(
                f"| {outputs} x {inputs} | {rows} | {theirs:.0f} | {ours:.0f} | {theirs / ours:.2f} | "
                f"{size / ours / 1e3:.0f} |",
                flush=True,
            )
            figures.append(
                {
                    "outputs": outputs,
                    "inputs": inputs,
                    "rows": rows,
                    "linear_us": round(theirs, 1),
                    "ours_us": round(ours, 1),
                }
            )
    finish("linear", out, products=figures)


if __name__ == "__main__":
    typer.run(main)
