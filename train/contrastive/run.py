"""A training run of the scorer: its data, model, optimizer, checkpoints and log."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from cm3.model.scorer import Scorer, ScorerConfig
from tokenizer_image import ImageTokenizer
from train.contrastive.config import ScorerTrainingConfig
from train.contrastive.loss import (
    contrastive_loss,
    encode_by_length,
    retrieval,
    with_code_noise,
    with_patch_dropout,
)
from train.contrastive.pairs import Names, Pairs, batch_indices, distinct_images, names_of, pairs_of
from train.documents.shards import Shards
from train.runtime import config as configs
from train.runtime.checkpoint_state import ModelAndOptimizers
from train.runtime.optim import LearningRates, lr_factor, optimizers
from train.runtime.precision import autocast
from train.runtime.run import checkpoints_of, open_run
from train.runtime.runlog import RunLog
from train.runtime.seeds import generator

FROM_SHARDS = ("text_vocab_size", "image_vocab_size", "image_grid", "text_tokenizer", "image_tokenizer")


def train(config: ScorerTrainingConfig, out: Path) -> Path:
    """Train, from the newest checkpoint in OUT where there is one.

    Args:
        config: of the run.
        out: folder of the run.

    Returns:
        The folder of the scorer.

    Raises:
        ValueError: as ScorerRun and ScorerRun.step.
        OSError: a checkpoint cannot be written.
    """
    with open_run(out, 1, config.log.trackers) as accelerator:
        run = ScorerRun(config, out, accelerator)
        with RunLog("scorer", out, run.first, config.steps, accelerator) as log, run.checkpoints:
            for step in range(run.first, config.steps):
                result = run.step(step)
                log.show(step + 1)
                last = step + 1 == config.steps
                if (step + 1) % config.log.every == 0 or last:
                    run.report(step + 1, result, log)
                if (step + 1) % config.eval.every == 0 or last:
                    run.evaluate(step + 1, log)
                if (step + 1) % config.checkpoint.every == 0 or last:
                    run.checkpoints.save(step + 1, run.parts)
        run.export()  # the run may have ended before, between the last checkpoint and the model
    return out / "model"


def starting_scorer(config: ScorerTrainingConfig, meta: dict[str, Any], image_tokenizer: ImageTokenizer) -> Scorer:
    """Return the scorer before the first step.

    The embeddings of codes start half from the codebook and half at random, so that similar codes start alike.

    Args:
        config: of the run.
        meta: content of the shards' meta.json.
        image_tokenizer: with the codebook.

    Raises:
        ValueError: config.model has unknown fields, or fields that come from the shards.
    """
    if fixed := sorted(config.model.keys() & set(FROM_SHARDS)):
        raise ValueError(f"model.{fixed[0]} comes from the shards: leave it out")
    given = {**meta["vocab"], **{key: meta[key] for key in ("text_tokenizer", "image_tokenizer")}}
    shape = configs.fill(ScorerConfig, {**config.model, **{key: given[key] for key in FROM_SHARDS}})
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(config.seed)
        scorer = Scorer(shape)
        codes = image_tokenizer.model.quantize.codebook().float().cpu()  # [K, Z]
        table = scorer.embed_codes.weight.data
        projected = codes @ torch.randn(codes.shape[1], table.shape[1])
        table.copy_((table + table.std() * projected / projected.std()) * 0.5**0.5)
    return scorer


class ScorerStep(NamedTuple):
    """What a step did.

    Attributes:
        loss: of the batch.
        accuracy: share of the batch's images whose text is the most similar one of the batch.
        grad_norm: norm of the gradient before clipping.
        lr: learning rate.
    """

    loss: Tensor
    accuracy: Tensor
    grad_norm: Tensor
    lr: float


class ScorerRun:
    """Data, model, optimizer and their state, from the newest checkpoint in OUT where there is one.

    Args:
        config: of the run.
        out: folder of the run.
        accelerator: its process.

    Attributes:
        first: the step to start with.
        parts: what a checkpoint holds.

    Raises:
        ValueError: the configuration does not fit the data, or OUT holds another run.
    """

    def __init__(self, config: ScorerTrainingConfig, out: Path, accelerator: Accelerator):
        self.config, self.out, self.device = config, out, accelerator.device
        self._open_data()
        image_tokenizer = self.shards.image_tokenizer(config.image_tokenizer)
        self.scorer = starting_scorer(config, self.shards.meta, image_tokenizer).to(self.device).train()
        optim = config.optim
        self.optimizers = optimizers(
            self.scorer, "adamw", LearningRates(optim.lr, optim.lr), optim.betas, optim.weight_decay
        )
        self._restore()
        self.clock = time.perf_counter()

    def _open_data(self) -> None:
        folder = self.config.data.folder
        self.shards = Shards(folder)
        self.pairs = pairs_of(self.shards)
        self.held_out: Pairs | None = None
        self.names = Names([], [])
        if self.shards.meta["splits"].get("held_out", {}).get("documents"):
            held_out = pairs_of(Shards(folder, "held_out"))
            self.names = names_of(held_out)
            self.held_out = distinct_images(held_out, self.config.eval.images)

    def _restore(self) -> None:
        config = self.config
        expected = {"data": self.shards.fingerprint(), "batch_size": config.batch_size, "seed": config.seed}
        self.parts: dict[str, Any] = {
            "scorer": ModelAndOptimizers(self.scorer, self.optimizers),
            "run": dict(expected),
        }
        self.checkpoints = checkpoints_of(self.out, config.checkpoint)
        self.first = self.checkpoints.load(self.parts) or 0
        if other := configs.changes(self.parts["run"], expected):
            raise ValueError(f"{self.out} holds another run: {other}; take another --out")
        self.out.mkdir(parents=True, exist_ok=True)
        configs.save(config, self.out / "config.json")

    def step(self, step: int) -> ScorerStep:
        """Take one step.

        Raises:
            ValueError: the gradient is not finite.
        """
        config, scorer, pairs, optim = self.config, self.scorer, self.pairs, self.config.optim
        random = generator(config.seed, 1, step)
        rows = batch_indices(step, len(pairs.texts), config.batch_size, config.seed)
        codes = with_code_noise(pairs.codes[rows].long(), config.augment.code_noise, random)
        with autocast(config.precision, self.device):
            texts = encode_by_length(scorer, [pairs.texts[i] for i in rows]).float()
            patches = with_patch_dropout(scorer.patches(codes), config.augment.patch_dropout, random)
            images = scorer.encode_patches(patches).float()
        loss = contrastive_loss(texts, images, scorer.scale(), [pairs.concepts[i] for i in rows])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(scorer.parameters(), optim.grad_clip)
        if not torch.isfinite(norm):
            raise ValueError(f"the gradient is {norm.item()} at step {step}: lower optim.lr (now {optim.lr})")
        factor = lr_factor(step, config.steps, "cosine", optim.warmup_steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.step()
            optimizer.zero_grad()
        nearest = (texts @ images.T).argmax(1)
        accuracy = nearest.eq(torch.arange(len(rows), device=self.device)).float().mean()
        return ScorerStep(loss.detach(), accuracy, norm, optim.lr * factor)

    def report(self, step: int, result: ScorerStep, log: RunLog) -> None:
        """Write a row of the log."""
        seconds, self.clock = time.perf_counter() - self.clock, time.perf_counter()
        loss, accuracy = result.loss.item(), result.accuracy.item()
        log.write(
            {
                "step": step,
                "loss": loss,
                "batch_accuracy": accuracy,
                "scale": self.scorer.scale().item(),
                "grad_norm": result.grad_norm.item(),
                "lr": result.lr,
                "seconds": seconds,
            }
        )
        log.show(step, f"loss {loss:.3f}, batch accuracy {accuracy:.0%}")

    def evaluate(self, step: int, log: RunLog) -> None:
        """Measure retrieval on the held-out images, where there are any, and write model/."""
        if held_out := self.held_out:
            found = retrieval(self.scorer, self.names, held_out.codes, held_out.concepts)
            log.write({"step": step, "held_out_retrieval": found, "images": len(held_out.concepts)})
            log.say(f"step {step}: {', '.join(f'{key} {value:.1%}' for key, value in found.items())}")
        self.export()
        self.clock = time.perf_counter()

    def export(self) -> None:
        """Write OUT/model."""
        self.scorer.save_pretrained(self.out / "model")
