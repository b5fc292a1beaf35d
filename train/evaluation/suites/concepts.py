"""Evaluate a model on the splits of the emoji data set: reconstruction, captioning, VQA, generation.

    python -m train.evaluate concepts --model runs/lm/model --out runs/evaluation

OUT receives evaluation.json, evaluation.md (the table) and contact_sheet.png. Everything is seeded: the same model
gives the same figures. Each split is measured on a fixed sample of its images, placed plainly.
"""

import json
import re
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import track
from torchmetrics.functional.image import structural_similarity_index_measure

from cm3.engine.options import GenerateOptions
from cm3.pipeline import CM3
from cm3.tokens.templates import LANGUAGES
from train.documents.shard_files import read_meta
from train.documents.shards import Shards, Target
from train.emoji.dataset import others_of
from train.emoji.phrases import KINDS as GROUPS
from train.emoji.phrases import Facts, ask_colour, ask_ground, ask_is, ask_kind, ask_style, ask_what
from train.evaluation.concepts import SPLIT_FOLDERS, SplitImage, load_split, plain
from train.evaluation.drawings import drawings
from train.evaluation.judge import JUDGES, Judge
from train.evaluation.options import DATA, TOKENS, Data, Guidance, Model, Out, Sample, Temperature, Tokens, TopP
from train.evaluation.report import concept_table
from train.images.loader import to_pixels
from train.images.metrics import psnr

DRAWN = GenerateOptions(n=4, normalise=False)  # the prompts are generated as they are


def reconstruction(model: CM3, samples: list[SplitImage]) -> dict[str, float]:
    """Return mean PSNR (dB) and SSIM over the images, and the codebook usage."""
    pixels = to_pixels([np.asarray(sample.image) for sample in samples]).to(model.image_tokenizer.device)
    vq = model.image_tokenizer.model
    codes = torch.cat([vq.encode(part) for part in pixels.split(64)])
    out = torch.cat([vq.decode(part) for part in codes.split(64)])
    ssim = structural_similarity_index_measure(out, pixels, data_range=2.0)
    assert isinstance(ssim, torch.Tensor)
    return {
        "images": len(samples),
        "psnr": psnr(out, pixels).mean().item(),
        "ssim": ssim.item(),
        "codebook_usage": codes.unique().numel() / vq.config.n_embed,
    }


def captions(model: CM3, samples: list[SplitImage]) -> dict[str, Any]:
    """Return, by language, the share of captions that are the name (but for case), or the name or a keyword."""
    out: dict[str, Any] = {"images": len(samples)}
    for language in LANGUAGES:
        said = model.caption([sample.image for sample in samples], language=language)
        exact = keyword = 0
        for text, sample in zip(said, samples, strict=True):
            name, words = sample.facts["name"][language], sample.facts["keywords"][language]
            exact += plain(text) == plain(name)
            keyword += plain(text) in {plain(word) for word in (name, *words)}
        out[language] = {"exact": exact / len(samples), "name_or_keyword": keyword / len(samples)}
    return out


def questions(samples: list[SplitImage], others: dict[str, list[Facts]]) -> list[list[tuple[int, str, Target]]]:
    """Return, for each language, the questions on every sample: (index of the sample, language, target)."""
    out = []
    for language in LANGUAGES:
        rng = np.random.default_rng(0)
        rows = []
        for i, sample in enumerate(samples):
            facts = sample.facts
            asked = [
                ask_what(facts, language, rng),
                ask_style(facts, language, rng),
                ask_ground("white", language, rng),
            ]
            if facts["subgroup"] in GROUPS:
                asked.append(ask_kind(facts, language, rng))
            if facts["colour"]:
                asked.append(ask_colour(facts, language, rng))
            wrong = [other for other in others.get(facts["subgroup"], []) if other["family"] != facts["family"]]
            if wrong:
                asked.append(ask_is(facts, wrong[rng.integers(len(wrong))], language, rng))
            rows += [(i, language, target) for target in asked]
        out.append(rows)
    return out


def answers(
    model: CM3, samples: list[SplitImage], others: dict[str, list[Facts]], majority: dict[str, str]
) -> dict[str, Any]:
    """Return the accuracy of each task, beside the majority-answer baseline.

    The task "ground" is left out of the means: every test image has a white background.
    """
    right: dict[str, list[int]] = defaultdict(list)
    guessed: dict[str, list[int]] = defaultdict(list)
    for rows in questions(samples, others):
        texts = model.run(model.jobs.write([(samples[i].image, target.prompt) for i, _, target in rows]))
        for text, (_, _, target) in zip(texts, rows, strict=True):
            right[target.task].append(plain(text) == plain(target.answer))
            guessed[target.task].append(plain(majority.get(pooled(target.prompt), "")) == plain(target.answer))
    tasks = {
        task: {
            "questions": len(right[task]),
            "accuracy": float(np.mean(right[task])),
            "majority": float(np.mean(guessed[task])),
        }
        for task in sorted(right)
    }
    counted = [task for task in tasks if task != "ground"]
    flat = (
        np.concatenate([right[task] for task in counted]).mean(),
        np.concatenate([guessed[task] for task in counted]).mean(),
    )
    return {
        "tasks": tasks,
        "accuracy": float(flat[0]),
        "majority": float(flat[1]),
        "above_majority": float(flat[0] - flat[1]),
    }


def pooled(prompt: str) -> str:
    """Return a prompt without the object that a yes-or-no question names, so that all of these count as one."""
    return re.sub(r"(Is it |هل هذه صورة ).*[?؟]", r"\1...", prompt.strip())


def majority_concept_answers(tokens: Path) -> dict[str, str]:
    """Return the most frequent answer in the training documents to each pooled prompt."""
    shards = Shards(tokens)
    vocab, text = shards.vocab(), shards.text_tokenizer()  # the model's may be another one
    seen: dict[str, Counter] = defaultdict(Counter)
    for number in np.flatnonzero(shards.spans[:, 0, 1]).tolist():
        document, start = shards.document(number), 1
        for low, high in document.spans:
            prompt = text.decode(vocab.ids_to_text(document.ids[start:low]))
            seen[pooled(prompt)][text.decode(vocab.ids_to_text(document.ids[low:high]))] += 1
            start = high
    return {prompt: counts.most_common(1)[0][0] for prompt, counts in seen.items()}


def evaluate(
    model: CM3, data: Path, tokens: Path, out: Path, sample: int = 200, options: GenerateOptions = DRAWN
) -> dict[str, Any]:
    """Evaluate everything and write the results to OUT. Return the content of evaluation.json."""
    out.mkdir(parents=True, exist_ok=True)
    meta = read_meta(tokens)
    concepts = set(json.loads((tokens / "concepts.json").read_text(encoding="utf-8")))
    size = model.image_tokenizer.size[0]
    started = time.time()
    train = load_split(data / "train", size, concepts)
    subgroups = set(meta["config"]["subgroups"])
    all_pairs = load_split(data / SPLIT_FOLDERS["held_out_pairs"], size, None)
    all_concepts = load_split(data / SPLIT_FOLDERS["held_out_concepts"], size, None)
    pairs = [s for s in all_pairs if s.facts["code"] in concepts]
    held_concepts = [s for s in all_concepts if not subgroups or s.facts["subgroup"] in subgroups]
    splits = {"train": train, "held_out_pairs": pairs, "held_out_concepts": held_concepts}
    others = others_of([s.facts for s in train])
    majority = majority_concept_answers(tokens)
    result: dict[str, Any] = {"splits": {}}
    for split, samples in track(splits.items(), "captions and answers", total=len(splits)):
        picks = np.random.default_rng(0).permutation(len(samples))[:sample]
        samples = [samples[i] for i in sorted(picks)]
        if not samples:
            raise ValueError(f"the {split} split of {data} has none of the model's concepts")
        result["splits"][split] = {
            "reconstruction": reconstruction(model, samples),
            "captions": captions(model, samples),
            "answers": answers(model, samples, others, majority),
        }
    share = reconstruction(model, all_pairs + all_concepts)
    result["codebook_usage_test"] = {
        "images": share["images"],
        "share": share["codebook_usage"],
        "psnr": share["psnr"],
    }
    judges = {name: Judge(name) for name in JUDGES}
    result["drawings"], sheet = drawings(model, train, pairs, judges, options)
    result["seconds"] = round(time.time() - started, 1)
    (out / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "evaluation.md").write_text(concept_table(result))
    sheet.save(out / "contact_sheet.png")
    return result


def main(
    model: Model = "emoji",
    data: Data = DATA,
    tokens: Tokens = TOKENS,
    out: Out = Path("runs/evaluation"),
    sample: Sample = 200,
    guidance: Guidance = DRAWN.guidance,
    temperature: Temperature = DRAWN.temperature,
    top_p: TopP = DRAWN.top_p,
    each: Annotated[int, typer.Option(help="images of each prompt")] = DRAWN.n,
    best_of: Annotated[int, typer.Option(help="candidates of each image")] = DRAWN.best_of,
    bf16: Annotated[bool, typer.Option(help="the language model in bfloat16")] = False,
) -> None:
    options = replace(DRAWN, n=each, best_of=best_of, guidance=guidance, temperature=temperature, top_p=top_p)
    loaded = CM3.from_pretrained(model, dtype=torch.bfloat16 if bf16 else "auto")
    result = evaluate(loaded, data, tokens, out, sample, options)
    print(concept_table(result))
