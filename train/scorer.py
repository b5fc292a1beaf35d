"""Train the scorer that picks the best of several drawings: which text fits which image, in both languages.

    python -m train.scorer --out runs/scorer model.embedding_size=32  # as the embedded one is

OUT receives config.json, log.jsonl, checkpoints/ (to resume: run the same command again) and model/, which
`cm3.model.scorer.Scorer.from_pretrained` reads. It learns from the captioned documents of the training split; what it
found among the held-out ones stands in the log. `python -m train.evaluate reranking` measures whether its choice is
worth anything.
"""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from accelerate import Accelerator

from cm3.model.scorer import Scorer, ScorerConfig
from tokenizer_image import ImageTokenizer
from train.documents.shards import Shards
from train.language import setup as recipe
from train.language.config import LMConfig, LMDataConfig
from train.language.contrastive import Pairs, by_length, contrast, names_of, pairs_of, retrieval, spoiled, thinned
from train.runtime import config as configs
from train.runtime.checkpoint_state import ModelAndOptimizers
from train.runtime.checkpoints import Checkpoints
from train.runtime.optim import LearningRates, lr_factor, optimizers
from train.runtime.precision import autocast
from train.runtime.run import open_run
from train.runtime.runlog import RunLog
from train.runtime.seeds import generator

FROM_SHARDS = ("text_vocab_size", "image_vocab_size", "image_grid", "text_tokenizer", "image_tokenizer")
SAME = ("mask", "share", "repel")


@dataclass(frozen=True)
class ScorerTrainingConfig:
    """One run.

    Attributes:
        data: folder of token shards.
        image_tokenizer: folder or name of the image tokenizer that made them; empty = where it was then.
        model: fields of cm3.model.scorer.ScorerConfig that do not come from the shards.
        steps: optimiser steps.
        batch: pairs a step.
        lr: peak rate of AdamW; linear warm-up, then half a cosine to 0.
        warmup: steps of warm-up.
        betas: of AdamW.
        weight_decay: of the matrices inside the blocks.
        clip: largest norm of the gradient.
        same: what two pairs of one concept are to each other: "mask" = nothing, "share" = right as well,
            "repel" = wrong, like any other pair.
        drop: share of an image's cells that the tower does not see in training (FLIP, Li et al. 2023, section 3).
        wrong: share of its codes that are another image's, at most: drawings hold wrong codes.
        precision: "fp32", "bf16" or "auto": bf16 where the device computes it fast.
        seed: of everything random.
        log_every: steps between log lines.
        evaluate_every: steps between evaluations and checkpoints.
        evaluate_at_most: held-out images.
    """

    data: str = "data/emoji-tokens"
    image_tokenizer: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    steps: int = 2500
    batch: int = 256
    lr: float = 3e-3
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.1
    clip: float = 1.0
    same: str = "mask"
    drop: float = 0.25
    wrong: float = 0.3
    precision: str = "auto"
    seed: int = 0
    log_every: int = 20
    evaluate_every: int = 250
    evaluate_at_most: int = 1000

    def __post_init__(self) -> None:
        if self.same not in SAME:
            raise ValueError(f"same is {self.same!r}: choose {', '.join(SAME)}")
        for name in ("drop", "wrong"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be 0 or more and less than 1")
        for name, least in (("steps", 1), ("batch", 2), ("log_every", 1), ("evaluate_every", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least {least}")


def picks(step: int, count: int, batch: int, seed: int) -> list[int]:
    """The pairs of a step: each epoch sees every pair once, but for a rest that fills no batch."""
    batch = min(batch, count)
    epoch, place = divmod(step, count // batch)
    order = torch.randperm(count, generator=generator(seed, 0, epoch))
    return order[place * batch : (place + 1) * batch].tolist()


def starting_scorer(config: ScorerTrainingConfig, meta: dict[str, Any], image_tokenizer: ImageTokenizer) -> Scorer:
    """The scorer before the first step; codes that look alike start alike. Raises ValueError for unknown fields."""
    if fixed := sorted(config.model.keys() & set(FROM_SHARDS)):
        raise ValueError(f"model.{fixed[0]} comes from the shards: leave it out")
    given = {**meta["vocab"], **{key: meta[key] for key in ("text_tokenizer", "image_tokenizer")}}
    shape = configs.fill(ScorerConfig, {**config.model, **{key: given[key] for key in FROM_SHARDS}})
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(config.seed)
        scorer = Scorer(shape)
        look = image_tokenizer.model.quantize.codebook().float().cpu()  # [K, Z]
        table = scorer.embed_codes.weight.data
        look = look @ torch.randn(look.shape[1], table.shape[1])
        table.copy_((table + table.std() * look / look.std()) * 0.5**0.5)  # half its look, half its own
    return scorer


def train(config: ScorerTrainingConfig, out: Path) -> Path:
    """The whole run; goes on from the newest checkpoint in OUT where there is one. Returns the scorer's folder."""
    with open_run(out, 1) as accelerator:
        return train_opened(config, out, accelerator)


def train_opened(config: ScorerTrainingConfig, out: Path, accelerator: Accelerator) -> Path:
    """What `train` does in a run that is open."""
    device = accelerator.device
    shards = Shards(config.data)
    pairs = pairs_of(shards)
    image_tokenizer = recipe.image_tokenizer_of(
        LMConfig(data=LMDataConfig(config.data), image_tokenizer=config.image_tokenizer), shards.meta
    )
    scorer = starting_scorer(config, shards.meta, image_tokenizer).to(device).train()
    held, names = None, {}
    if shards.meta["splits"].get("held_out", {}).get("documents"):
        held = pairs_of(Shards(config.data, "held_out"))
        chosen = sorted({tuple(codes): i for i, codes in enumerate(held.codes.flatten(1).tolist())}.values())
        chosen = chosen[:: -(-len(chosen) // config.evaluate_at_most)]  # each image once, over all of the split
        names = names_of(shards, held)
        held = Pairs([held.texts[i] for i in chosen], held.codes[chosen], [held.concepts[i] for i in chosen])
    optimizer = optimizers(scorer, "adamw", LearningRates(*[config.lr] * 4), config.betas, config.weight_decay)

    run: dict[str, Any] = {"data": shards.fingerprint(), "batch": config.batch, "seed": config.seed}
    expected = dict(run)
    parts = {"scorer": ModelAndOptimizers(scorer, optimizer), "run": run}
    checkpoints = Checkpoints(out / "checkpoints")
    first = checkpoints.load(parts) or 0
    if other := configs.changes(parts["run"], expected):
        raise ValueError(f"{out} holds another run: {other}; take another --out")
    out.mkdir(parents=True, exist_ok=True)
    configs.save(config, out / "config.json")

    with RunLog("scorer", out, first, config.steps, accelerator) as log, checkpoints:
        clock = time.perf_counter()
        for step in range(first, config.steps):
            chance = generator(config.seed, 1, step)
            rows = picks(step, len(pairs.texts), config.batch, config.seed)
            codes = spoiled(pairs.codes[rows].long(), config.wrong, chance)
            with autocast(config.precision, device):
                texts = by_length(scorer, [pairs.texts[i] for i in rows]).float()
                images = scorer.encode_patches(thinned(scorer.patches(codes), config.drop, chance)).float()
            loss = contrast(texts, images, scorer.scale(), [pairs.concepts[i] for i in rows], config.same)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(scorer.parameters(), config.clip)
            if not torch.isfinite(norm):
                raise ValueError(f"the gradient is {norm.item()} at step {step}: lower lr (now {config.lr})")
            factor = lr_factor(step, config.steps, "cosine", config.warmup, 0.0)
            for one in optimizer:
                for group in one.param_groups:
                    group["lr"] = group["peak"] * factor
                one.step()
                one.zero_grad()
            log.show(step + 1)
            last = step + 1 == config.steps
            if (step + 1) % config.log_every == 0 or last:
                hit = (texts @ images.T).argmax(1).eq(torch.arange(len(rows), device=device)).float().mean().item()
                seconds, clock = time.perf_counter() - clock, time.perf_counter()
                log.write(
                    {
                        "step": step + 1,
                        "loss": loss.item(),
                        "batch_accuracy": hit,
                        "scale": scorer.scale().item(),
                        "grad_norm": norm.item(),
                        "lr": config.lr * factor,
                        "seconds": seconds,
                    }
                )
                log.show(step + 1, f"loss {loss.item():.3f}, right in the batch {hit:.0%}")
            if (step + 1) % config.evaluate_every == 0 or last:
                if held:
                    found = {name: retrieval(scorer, some, held.codes, held.concepts) for name, some in names.items()}
                    log.write({"step": step + 1, "held_out_retrieval": found, "images": len(held.concepts)})
                    log.say(
                        f"step {step + 1}: "
                        + ", ".join(
                            f"{name} {key} {value:.1%}" for name, row in found.items() for key, value in row.items()
                        )
                    )
                checkpoints.save(step + 1, parts)
                scorer.save_pretrained(out / "model")
                clock = time.perf_counter()
    scorer.save_pretrained(out / "model")  # it may have ended before, between the last checkpoint and the model
    return out / "model"


def main(
    out: Annotated[Path, typer.Option(help="folder of the run")] = Path("runs/scorer"),
    config: Annotated[Path | None, typer.Option(help="TOML file")] = None,
    data: Annotated[str | None, typer.Option(help="folder of the token shards")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value")] = None,
) -> None:
    try:
        settings = configs.load(ScorerTrainingConfig, config, overrides)
        train(replace(settings, data=data) if data else settings, out)
    except (OSError, ValueError) as error:
        raise SystemExit(f"scorer: {error}") from None


if __name__ == "__main__":
    typer.run(main)
