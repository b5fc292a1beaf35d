"""What the embedded model can do, on exact truth and by judges: one suite a call, a table and a JSON file.

    python -m train.recipes.emoji.evaluate ceiling --image-tokenizer runs/decoder/model --out runs/evaluation
    python -m train.recipes.emoji.evaluate drawings --model runs/lm/model --out runs/evaluation --count 200

ceiling     real drawings through the image tokenizer, at both sizes: PSNR and what the judges recognise
drawings    single drawings by plan (name and style), by bare name in English and Arabic, of held-out pairs, on
            backgrounds, and in held-out colours
scenes      scenes drawn from plans and from requests: every tile compared with the codes of the thing asked for
edits       scenes and single drawings changed by instructions, and with both plans given: the whole result compared
plans       requests in every form and language, and instructions, to plans, as text
readings    plans, captions and answers of held-out scenes and drawings
confidence  captions' probability of being right: its calibration, and what the model is not sure of
sweep       single drawings with other temperatures, top-p and guidance scales, and plans with other temperatures

A judge compares with real drawings of other styles (train/evaluation/judge.py). A tile is right where the nearest
drawing by codes, among all drawings of all styles, is one of the thing that was asked for. Combinations in scenes,
edits and questions are held out; so are the pairs of concept and style in `readings`.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from cm3.pipeline import CM3
from tokenizer_image import ImageTokenizer
from train.recipes.emoji.suites import drawings, readings, scenes, sweep

Suite = Callable[[CM3, Path, Path, int], dict[str, Any]]
SUITES: dict[str, Suite] = {
    "drawings": drawings.drawings,
    "scenes": scenes.scenes,
    "edits": scenes.edits,
    "plans": readings.plans,
    "readings": readings.readings,
    "confidence": readings.confidence,
    "sweep": sweep.sweep,
}


def main(
    suite: Annotated[str, typer.Argument(help=f"ceiling, {', '.join(SUITES)}")],
    model: Annotated[str, typer.Option(help="folder or name")] = "runs/lm/model",
    image_tokenizer: Annotated[str, typer.Option(help="for the ceiling: folder or name")] = "",
    data: Annotated[Path, typer.Option(help="of train.recipes.emoji.build_dataset")] = Path("data/emoji"),
    out: Annotated[Path, typer.Option(help="folder for tables and sheets")] = Path("runs/evaluation"),
    count: Annotated[int, typer.Option(help="of each kind")] = 100,
) -> None:
    if suite != "ceiling" and suite not in SUITES:
        raise SystemExit(f"evaluate: no suite {suite!r}; choose ceiling, {', '.join(SUITES)}")
    out.mkdir(parents=True, exist_ok=True)
    clock = time.perf_counter()
    if suite == "ceiling":
        figures = drawings.ceiling(ImageTokenizer.from_pretrained(image_tokenizer), data, out)
    else:
        figures = SUITES[suite](CM3.from_pretrained(model), data, out, count)
    figures["seconds"] = round(time.perf_counter() - clock, 1)
    (out / f"{suite}.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(figures, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    typer.run(main)
