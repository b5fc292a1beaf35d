"""Plots of a run's log."""

import json
from collections import defaultdict
from pathlib import Path


def draw_curves(log: Path, out: Path) -> None:
    """Plot each figure of a log.jsonl over the steps.

    Args:
        log: log.jsonl of a run.
        out: PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in log.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prefix = f"{row['split']}: " if "split" in row else ""
        for key, value in row.items():
            if key not in ("step", "seconds", "skipped_files") and isinstance(value, int | float):
                curves[prefix + key].append((row["step"], value))
    columns = 4
    rows = max(1, -(-len(curves) // columns))
    figure = Figure(figsize=(4 * columns, 2.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for i, (name, points) in enumerate(curves.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 3 else "", linewidth=1)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
    figure.savefig(out, dpi=80)
