"""The log of a run as an image."""

import json
from pathlib import Path

from PIL import Image

from train.runtime.curves import draw_curves


def test_every_figure_of_a_log_has_a_plot(tmp_path: Path):
    rows = [{"step": i, "loss": 1 / i, "seconds": i, **({"late": 2.0} if i > 3 else {})} for i in range(1, 6)]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw_curves(log, tmp_path / "two.png")
    with log.open("a") as file:
        file.write(json.dumps({"step": 5, "split": "unseen", "psnr": 20.0}) + "\n")
        file.write(json.dumps({"skipped": {"a.png": "empty"}}) + "\n")
        for name in ("a", "b"):
            file.write(json.dumps({"step": 6, name: 1.0}) + "\n")
    draw_curves(log, tmp_path / "five.png")
    with Image.open(tmp_path / "two.png") as two, Image.open(tmp_path / "five.png") as five:
        assert five.height == 2 * two.height  # a second row of plots
        assert len(set(two.convert("L").tobytes())) > 10  # something is drawn
