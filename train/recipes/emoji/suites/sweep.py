"""How the options of drawing and planning change what is drawn: one option at a time."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cm3.engine.options import GenerateOptions, SamplingConfig
from cm3.pipeline import CM3
from cm3.tokens.plan import Plan, Thing
from train.evaluation.judge import Judge, ranks
from train.recipes.emoji.art import CANVAS
from train.recipes.emoji.shelf import Codes
from train.recipes.emoji.suites.readings import content
from train.recipes.emoji.suites.truth import COPY, DRAWING, Asked, Truth, decode, percent, top

DRAWN: dict[str, list[GenerateOptions]] = {
    "temperature": [replace(DRAWING, temperature=value) for value in (0.0, 0.25, 0.5, 0.75, 1.0)],
    "top_p": [replace(DRAWING, top_p=value) for value in (0.8, 1.0)],
    "guidance": [replace(DRAWING, guidance=value) for value in (1.5, 2.0, 3.0)],
}
VARIETY = (0.0, 0.3, 0.5, 0.7, 1.0)
PLANS = 4  # of each prompt


def sweep(model: CM3, data: Path, out: Path, count: int) -> dict[str, Any]:
    """Images of plans, judged, with other temperatures, top-p and guidance scales; plans of names with other
    temperatures: the share that has the right thing, and how many different ones a prompt gets."""
    asked, truth = Asked(model), Truth(data, Codes(model.image_tokenizer))
    ones = truth.drawings()[:: max(1, 250 // count)]
    judge = Judge("lite0")
    reference = truth.reference(judge)
    plans = [truth.builder.plan_of(one) for one in ones]
    codes, styles = [one.code for one in ones], [one.style for one in ones]
    own = [truth.codes.single(one, CANVAS) for one in ones]
    figures: dict[str, Any] = {}
    for name, settings in DRAWN.items():
        for options in settings:
            drawn = asked.draw(plans, options)
            rank = ranks(judge.features(decode(model.image_tokenizer, drawn)), codes, styles, reference)
            same = [float(np.mean(a.numpy() == b)) >= COPY for a, b in zip(drawn, own, strict=True)]
            figures[f"{name} {getattr(options, name):g}"] = {**top(rank), "memorised": percent(same)}
            print(name, getattr(options, name), figures[f"{name} {getattr(options, name):g}"], flush=True)
    names = [truth.builder.named(one).name for one in ones]
    wanted = [Plan((Thing(truth.builder.named(one).a),)) for one in ones]
    for variety in VARIETY:
        made = asked.plan([name for name in names for _ in range(PLANS)], SamplingConfig(temperature=variety))
        groups = [made[i : i + PLANS] for i in range(0, len(made), PLANS)]
        figures[f"variety {variety:g}"] = {
            "right": percent(
                [content(plan) == content(true) for some, true in zip(groups, wanted, strict=True) for plan in some]
            ),
            "different plans": round(float(np.mean([len({str(plan) for plan in some}) for some in groups])), 2),
        }
        print("variety", variety, figures[f"variety {variety:g}"], flush=True)
    return figures
