"""Evaluate decoding: guidance, temperature and contrastive decoding.

    python -m train.evaluate decoding --model emoji --out runs/sweep

Two images of every prompt are generated with each setting. Concepts, prompts and judge are those of the suite
"concepts". top-1 and top-5 measure whether the images show what the prompt says. Diversity is 1 - cosine of the judge's
features of both images; for comparison, it is also measured on real images of the same concept in two styles. OUT
receives sweep.json, sweep.md and sweep.png. Settings that are in sweep.json for the same model are not repeated.
"""

import json
from pathlib import Path
from typing import Any, cast

import matplotlib
import torch
from PIL import Image
from rich.progress import track

from cm3.pipeline import CM3
from train.evaluation.concepts import JudgedPrompts, asked_of, identity, load_split, reference_of, shares
from train.evaluation.judge import Judge, Reference, ranks
from train.evaluation.options import DATA, TOKENS, Data, Model, Out, Prompts, Tokens

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402

PAIR = 2  # images of each prompt
USUAL = {"guidance": 1.0, "temperature": 0.8, "top_p": 0.9}


def settings() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the arguments of CM3.generate, by curve and by point on the curve."""
    return {
        "temperature, top-p 0.9": {f"{t:g}": USUAL | {"temperature": t} for t in (0.3, 0.5, 1.0)},
        "guidance, temperature 0.8, top-p 0.9": {f"{s:g}": USUAL | {"guidance": s} for s in (1, 1.5, 2, 3, 4, 6, 8)},
        "the same, falling to 1": {
            f"{s:g}": USUAL | {"guidance": s, "guidance_schedule": "falling"} for s in (1.5, 2, 3, 6)
        },
        "guidance, temperature 1, top-p 0.95": {"6": {"guidance": 6, "temperature": 1.0, "top_p": 0.95}},
        "CD-K, k of alpha 0.5": {f"{k}": contrastive(k, 0.5) for k in (2, 8, 32)},
        "CD-K, alpha of k 8": {f"{alpha:g}": contrastive(8, alpha) for alpha in (0.1, 1.0)},
        "half top-p, half CD-K": {"8, 0.5": USUAL | {"guidance": 6.0, "decoding": "both", "contrast": (8, 0.5)}},
    }


def contrastive(k: int, alpha: float) -> dict[str, Any]:
    """Return the arguments of contrastive decoding."""
    return {"decoding": "cd-k", "contrast": (k, alpha), "temperature": 1.0}


def diversity(features: torch.Tensor) -> float:
    """Return the mean of 1 - cosine of pairs.

    Args:
        features: unit vectors, [2 N, F]; each pair follows the other.
    """
    pairs = features.view(-1, PAIR, features.shape[-1])
    return (1 - (pairs[:, 0] * pairs[:, 1]).sum(-1)).mean().item()


def measure(
    model: CM3, asked: JudgedPrompts, judge: Judge, reference: Reference, options: dict[str, Any]
) -> dict[str, float]:
    """Return top-1, top-5 with its standard error, and diversity of one setting."""
    drawn = model.generate(asked.prompts, n=PAIR, normalise=False, **options)
    features = judge.features([one for pair in drawn for one in pair])
    concepts, styles = ([fact for fact in facts for _ in range(PAIR)] for facts in (asked.concepts, asked.styles))
    rank = ranks(features, concepts, styles, reference).view(-1, PAIR)
    found = shares(rank)
    spread = (rank < 5).float().mean(1).std().item() / len(rank) ** 0.5
    return {**found, "top5 error": spread, "diversity": diversity(features)}


def decoding_table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    lines = ["| setting | | top-1 | top-5 | diversity |", "|---|---|---|---|---|"]
    for curve, points in result["settings"].items():
        lines += [
            f"| {curve} | {name} | {row['top1']:.1%} | {row['top5']:.1%} ± {row['top5 error']:.1%} | "
            f"{row['diversity']:.3f} |"
            for name, row in points.items()
        ]
    real = result["real images"]
    lines.append(f"| real images | | {real['top1']:.1%} | {real['top5']:.1%} | {real['diversity']:.3f} |")
    lines.append(
        f"| real images through the image tokenizer | | {real['through top1']:.1%} | {real['through top5']:.1%} | |"
    )
    return "\n".join(lines) + "\n"


def plot(result: dict[str, Any], path: Path) -> None:
    """Plot top-5 over diversity, with a curve for each group of settings."""
    figure, axes = plt.subplots(figsize=(8, 5), dpi=120)
    for curve, points in result["settings"].items():
        x, y = ([row[key] for row in points.values()] for key in ("diversity", "top5"))
        axes.plot(x, [100 * value for value in y], "o-", label=curve, markersize=4, linewidth=1)
        for (name, _), at, value in zip(points.items(), x, y, strict=True):
            axes.annotate(name, (at, 100 * value), textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.set_xlabel("diversity: 1 - cosine of two images of a prompt")
    axes.set_ylabel("judge's top-5, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def sweep(model: CM3, data: Path, tokens: Path, out: Path, count: int) -> dict[str, Any]:
    """Measure all settings, and write the results to OUT. Returns the content of sweep.json."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "sweep.json"
    concepts = set(json.loads((tokens / "concepts.json").read_text(encoding="utf-8")))
    train = load_split(data / "train", model.image_tokenizer.size[0], concepts)
    asked, real = asked_of(train, "en", count)
    mark = identity(model, asked.prompts)
    result: dict[str, Any] = {"model": mark, "prompts": len(asked.prompts), "settings": {}}
    if path.is_file() and (old := json.loads(path.read_text()))["model"] == mark:
        result = old
    judge = Judge()
    reference = reference_of(real, judge)
    shown = [
        next(one for one in real if one.facts["code"] == code and one.facts["style"] == style)
        for code, style in zip(asked.concepts, asked.styles, strict=True)
    ]
    others = [
        next(one for one in real if one.facts["code"] == code and one.facts["style"] != style)
        for code, style in zip(asked.concepts, asked.styles, strict=True)
    ]
    pairs = judge.features([one.image for pair in zip(shown, others, strict=True) for one in pair])
    decoded = [
        cast(Image.Image, model.image_tokenizer.decode(model.image_tokenizer.encode(one.image))) for one in shown
    ]
    through = shares(ranks(judge.features(decoded), asked.concepts, asked.styles, reference))
    result["real images"] = {
        **shares(ranks(pairs[::PAIR], asked.concepts, asked.styles, reference)),
        "diversity": diversity(pairs),
        **{f"through {key}": value for key, value in through.items()},
    }
    todo = [(curve, name, options) for curve, points in settings().items() for name, options in points.items()]
    for curve, name, options in track(todo, "settings"):
        points = result["settings"].setdefault(curve, {})
        if name not in points:
            points[name] = measure(model, asked, judge, reference, options)
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / "sweep.md").write_text(decoding_table(result), encoding="utf-8")
    plot(result, out / "sweep.png")
    return result


def main(
    model: Model = "emoji",
    data: Data = DATA,
    tokens: Tokens = TOKENS,
    out: Out = Path("runs/sweep"),
    count: Prompts = 120,
) -> None:
    result = sweep(CM3.from_pretrained(model), data, tokens, out, count)
    print(decoding_table(result))
