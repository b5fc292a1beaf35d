"""Evaluate reranking: how much better the best of several generated images is, for each way to choose it.

    python -m train.evaluate reranking --model emoji --scorer runs/scorer/model --out runs/rerank

Concepts, prompts and judge are those of the suite "concepts". The judge, EfficientNet, is independent of the scorer.
These choices are compared: the first image, a random one, that of the scorer, that of the language model (the
log-probability of the prompt as the image's caption), that of both together, which is what CM3.generate(best_of=8)
returns, and that of the judge itself as the upper bound. OUT receives rerank.json, rerank.md (the table),
contact_sheet.png (the real image, the first generated images, and the one that best_of returns), and
drawings.safetensors: the images and the ranks by the judge, which another scorer can use.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cm3.engine.options import GenerateOptions
from cm3.model.scorer import Scorer
from cm3.pipeline import CM3
from train.emoji.phrases import STYLED
from train.evaluation.concepts import (
    JUDGED,
    JudgedPrompts,
    SplitImage,
    asked_of,
    identity,
    load_split,
    reference_of,
    settings,
    shares,
)
from train.evaluation.judge import Judge, ranks
from train.evaluation.options import DATA, TOKENS, Data, Guidance, Model, Out, Prompts, Temperature, Tokens, TopP
from train.images.codes import decode
from train.images.sheet import contact_sheet

DRAWINGS = "drawings.safetensors"
FIRST = 4  # generated images in each row of the contact sheet, besides the best
EIGHT = GenerateOptions(n=8, normalise=False)  # prompts are generated as they are


def cached(path: Path, mark: str) -> dict[str, Tensor]:
    """Return the tensors of a file that was written with this mark; {} if there is none."""
    if not path.is_file():
        return {}
    with safe_open(path, "pt") as file:
        same = (file.metadata() or {}).get("identity") == mark
        return {name: file.get_tensor(name) for name in ("codes", "ranks")} if same else {}


def drawn(model: CM3, prompts: list[str], options: GenerateOptions) -> Tensor:
    """Generate n images of each prompt. Returns codes [prompts, n, h, w]."""
    codes = torch.stack([one.codes for one in model.run(model.jobs.draw(prompts, options))])
    return codes.view(len(prompts), options.n, *model.grid)


def judged(model: CM3, codes: Tensor, asked: JudgedPrompts, real: list[SplitImage], judge: Judge) -> Tensor:
    """Return the judge's rank of the right concept for each image, [prompts, n]; 0 is the best."""
    n = codes.shape[1]
    reference = reference_of(real, judge)
    shown = decode(model.image_tokenizer, codes.flatten(0, 1))
    concepts, styles = ([fact for fact in facts for _ in range(n)] for facts in (asked.concepts, asked.styles))
    return ranks(judge.features(shown), concepts, styles, reference).view(-1, n)


@torch.inference_mode()
def likelihood(model: CM3, codes: Tensor, texts: list[str]) -> Tensor:
    """Rate each image by the log-probability of the text as its caption, [prompts, n]."""
    pairs = zip(texts, codes, strict=True)
    return torch.stack([model.caption_log_probs(words, list(grids)) for words, grids in pairs])


def scored(model: CM3, scorer: Scorer, codes: Tensor, texts: list[str]) -> Tensor:
    """Rate each image by the scorer, [prompts, n]."""
    pairs = zip(texts, codes, strict=True)
    return torch.stack([scorer.score([model.text_tokenizer.encode(text)], grids) for text, grids in pairs])


def standard(ratings: Tensor) -> Tensor:
    """Return ratings [prompts, n] in standard deviations from the mean of each prompt."""
    return (ratings - ratings.mean(1, keepdim=True)) / ratings.std(1, keepdim=True).clamp(min=1e-6)


def chosen(rank: Tensor, ratings: Tensor, best_of: int) -> dict[str, float]:
    """Return `shares` of the images with the best ratings.

    Args:
        rank: by the judge, [prompts, n].
        ratings: [prompts, n].
        best_of: number of images of each prompt among which to choose.
    """
    best = ratings[:, :best_of].argmax(1, keepdim=True)
    return shares(rank.gather(1, best))


def picked_sheet(model: CM3, asked: JudgedPrompts, real: list[SplitImage], codes: Tensor, best: Tensor) -> Image.Image:
    """Draw a contact sheet of about 24 prompts: the real image, the first generated ones, and the best one.

    Args:
        model: to decode codes.
        asked: the prompts.
        real: real images.
        codes: of the generated images, [prompts, n, h, w].
        best: index of the best image of each prompt, [prompts].
    """
    place = {(one.facts["code"], one.facts["style"]): one.image for one in real}
    picks = range(0, len(codes), max(1, len(codes) // 24))
    shown = torch.cat([codes[:, :FIRST], codes[torch.arange(len(codes)), best][:, None]], 1)
    rows = [[place[asked.concepts[i], asked.styles[i]], *decode(model.image_tokenizer, shown[i])] for i in picks]
    return contact_sheet([asked.prompts[i] for i in picks], rows)


def reranking_table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    lines = [
        f"| chosen by, judged among {JUDGED} concepts | best of | top-1 | top-5 | mean rank |",
        "|---|---|---|---|---|",
    ]
    for name, rows in result["picked"].items():
        lines += [
            f"| {name} | {n} | {row['top1']:.1%} | {row['top5']:.1%} | {row['place']:.1f} |" for n, row in rows.items()
        ]
    return "\n".join(lines) + "\n"


def measure(
    model: CM3,
    scorer: Scorer,
    data: Path,
    tokens: Path,
    out: Path,
    options: GenerateOptions = EIGHT,
    language: str = "en",
    count: int = JUDGED,
) -> dict[str, Any]:
    """Measure all choices, and write the results to OUT.

    Args:
        model: the language model.
        scorer: with the tokenizers of the model.
        data: folder of the data set.
        tokens: folder of the token shards, which lists the model's concepts.
        out: folder of the results.
        options: of generation; options.n is the number of images of each prompt.
        language: of the prompts.
        count: largest number of prompts.

    Returns:
        The content of rerank.json.

    Raises:
        ValueError: there is a single image to choose from, or the scorer has other tokenizers.
    """
    best_of, seed = options.n, options.seed
    if best_of < 2:
        raise ValueError(f"best_of is {best_of}, but there must be at least 2 images to choose from")
    scorer.check(model.text_tokenizer.fingerprint(), model.image_tokenizer.fingerprint())
    out.mkdir(parents=True, exist_ok=True)
    started = time.time()
    concepts = set(json.loads((tokens / "concepts.json").read_text(encoding="utf-8")))
    train = load_split(data / "train", model.image_tokenizer.size[0], concepts)
    asked, real = asked_of(train, language, count)
    mark = identity(model, asked, best_of, settings(options), seed, len(real))
    kept = cached(out / DRAWINGS, mark)
    if not kept:
        codes = drawn(model, asked.prompts, options)
        kept = {"codes": codes, "ranks": judged(model, codes, asked, real, Judge())}
        save_file(kept, out / DRAWINGS, {"identity": mark})
    codes, rank = kept["codes"], kept["ranks"]  # [prompts, n, h, w], [prompts, n]
    clock = time.time()
    by_scorer = scored(model, scorer, codes, asked.prompts)
    seconds = time.time() - clock
    by_prompt = likelihood(model, codes, asked.prompts)
    by_both = standard(by_scorer) + standard(by_prompt)
    ratings = {
        "the scorer": by_scorer,
        "the language model, prompt as caption": by_prompt,
        "both of these, as best_of": by_both,
        "the language model, name as caption": likelihood(model, codes, asked.names),
        "the judge": -rank.float(),
    }
    picked_sheet(model, asked, real, codes, by_both.argmax(1)).save(out / "contact_sheet.png")
    several = [k for k in (2, 4, 8, 16, 32) if k < best_of] + [best_of]
    picked = {"first image": {1: shares(rank[:, :1])}, "mean of all images": {1: shares(rank)}}
    picked |= {name: {k: chosen(rank, rating, k) for k in several} for name, rating in ratings.items()}
    result = {
        "prompts": len(asked.prompts),
        "language": language,
        "seed": seed,
        **settings(options),
        "picked": picked,
        "scorer_seconds_per_prompt": seconds / len(codes),
        "seconds": round(time.time() - started, 1),
    }
    (out / "rerank.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / "rerank.md").write_text(reranking_table(result), encoding="utf-8")
    return result


def main(
    model: Model = "emoji",
    scorer: Annotated[Path, typer.Option(help="folder of the scorer")] = Path("runs/scorer/model"),
    data: Data = DATA,
    tokens: Tokens = TOKENS,
    out: Out = Path("runs/rerank"),
    best_of: Annotated[int, typer.Option(help="images of each prompt")] = EIGHT.n,
    language: Annotated[str, typer.Option(help="of the prompts: en or ar")] = "en",
    seed: Annotated[int, typer.Option(help="seed of the first image")] = 0,
    count: Prompts = JUDGED,
    guidance: Guidance = EIGHT.guidance,
    temperature: Temperature = EIGHT.temperature,
    top_p: TopP = EIGHT.top_p,
) -> None:
    if language not in STYLED:
        raise ValueError(f"language is {language!r}, but must be one of {', '.join(STYLED)}")
    options = replace(EIGHT, n=best_of, seed=seed, guidance=guidance, temperature=temperature, top_p=top_p)
    pipeline = CM3.from_pretrained(model)
    result = measure(pipeline, Scorer.from_pretrained(scorer), data, tokens, out, options, language, count)
    print(reranking_table(result))
