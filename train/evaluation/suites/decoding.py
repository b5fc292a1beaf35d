"""Evaluate decoding: guidance, temperature and contrastive decoding. "reranking" evaluates the best of several.

    python -m train.evaluate decoding --model emoji --out runs/sweep

Each way draws two images of every prompt, by the concepts, prompts and judge of the suite "concepts": top-1 and top-5
say whether the images show what was asked for, diversity how far the two lie apart: 1 - cosine of the judge's features,
which is also given for real images of one concept in two styles. OUT receives sweep.json, sweep.md and sweep.png;
ways that are in sweep.json already, of the same model, are not drawn again.
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

PAIR = 2  # drawings of each prompt
USUAL = {"guidance": 1.0, "temperature": 0.8, "top_p": 0.9}


def ways() -> dict[str, dict[str, dict[str, Any]]]:
    """Return curve -> name of a point -> arguments of CM3.generate."""
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
    return {"decoding": "cd-k", "contrast": (k, alpha), "temperature": 1.0}


def apart(features: torch.Tensor) -> float:
    """Return the mean of 1 - cosine over pairs of neighbours.

    Args:
        features: [2 N, F], of length 1.
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
    return {**found, "top5 error": spread, "diversity": apart(features)}


def decoding_table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["| way | | top-1 | top-5 | diversity |", "|---|---|---|---|---|"]
    for curve, points in result["ways"].items():
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
    """Top-5 over diversity, a curve for each family of ways."""
    figure, axes = plt.subplots(figsize=(8, 5), dpi=120)
    for curve, points in result["ways"].items():
        x, y = ([row[key] for row in points.values()] for key in ("diversity", "top5"))
        axes.plot(x, [100 * value for value in y], "o-", label=curve, markersize=4, linewidth=1)
        for (name, _), at, value in zip(points.items(), x, y, strict=True):
            axes.annotate(name, (at, 100 * value), textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.set_xlabel("diversity: 1 - cosine of two drawings of one prompt")
    axes.set_ylabel("judge's top-5, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def sweep(model: CM3, data: Path, tokens: Path, out: Path, count: int) -> dict[str, Any]:
    """Everything above. Returns what sweep.json holds."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "sweep.json"
    concepts = set(json.loads((tokens / "concepts.json").read_text(encoding="utf-8")))
    train = load_split(data / "train", model.image_tokenizer.size[0], concepts)
    asked, real = asked_of(train, "en", count)
    mark = identity(model, asked.prompts)
    result: dict[str, Any] = {"model": mark, "prompts": len(asked.prompts), "ways": {}}
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
        "diversity": apart(pairs),
        **{f"through {key}": value for key, value in through.items()},
    }
    todo = [(curve, name, options) for curve, points in ways().items() for name, options in points.items()]
    for curve, name, options in track(todo, "ways"):
        points = result["ways"].setdefault(curve, {})
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
