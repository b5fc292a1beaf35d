"""Train the language model on token shards: drawing, captioning and answering with one set of weights.

    python -m train.lm --config train/configs/lm_emoji.toml --out runs/lm

OUT receives config.json, log.jsonl, samples-*.png, checkpoint.pt (to resume: run the same command again) and model/,
which `CM3.from_pretrained` reads.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from cm3.config import CM3Config
from cm3.pipeline import CM3
from cm3.text import TextTokenizer
from cm3.transformer import CM3ForCausalLM
from cm3.vocab import Vocab
from tokenizer_image import ImageTokenizer
from train import config as configs
from train.objective import KINDS, Objective, training_row
from train.precision import autocast, bf16_is_fast
from train.shards import Shard, read_shard
from train.sheet import contact_sheet


@dataclass(frozen=True)
class Config:
    """One run.

    Attributes:
        data: folder of token shards.
        image_tokenizer: folder or name of the image tokenizer that made them.
        preset: key of cm3.config.PRESETS; the vocabulary's layout comes from the shards.
        model: fields of CM3Config that replace the preset's.
        objective: fields of train.objective.Objective.
        codebook_init: start the embeddings of image codes from the codebook, so that codes that look alike start alike.
        steps: optimiser steps.
        batch_size: documents a step.
        micro_batches: parts that a batch, sorted by length, is computed in.
        matrices: optimiser of the matrices inside the blocks: "muon", "adamw", or "auto" = Muon where bf16, in which
            PyTorch's Muon computes, is fast.
        muon_lr: rate of Muon.
        lr: rate of AdamW for everything else.
        warmup: steps of linear warm-up.
        decay: share of the run at its end in which the rate falls linearly to 0.
        betas: of AdamW.
        weight_decay: of the matrices.
        clip: largest norm of the gradient.
        precision: "fp32", "bf16" or "auto": bf16 where the device computes it fast.
        compile: torch.compile the blocks.
        attention: implementation; "auto" = sdpa on a GPU, eager on a CPU (faster there for short rows).
        seed: of everything random.
        log_every: steps between log lines.
        save_every: steps between checkpoints.
        sample_every: steps between sample pictures.
        prompts: what the samples are drawn from.
    """

    data: str = "data/emoji-tokens"
    image_tokenizer: str = "runs/decoder/model"
    preset: str = "emoji"
    model: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    codebook_init: bool = True
    steps: int = 5000
    batch_size: int = 48
    micro_batches: int = 2
    matrices: str = "auto"
    muon_lr: float = 0.02
    lr: float = 3e-3
    warmup: int = 100
    decay: float = 0.5
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip: float = 1.0
    precision: str = "auto"
    compile: bool = False
    attention: str = "auto"
    seed: int = 0
    log_every: int = 20
    save_every: int = 500
    sample_every: int = 500
    prompts: tuple[str, ...] = (
        "a red apple", "a cat", "a yellow taxi", "a pizza", "a soccer ball", "a tulip in the noto style",
        "a guitar on a pink background", "a blue fish",
    )  # fmt: skip


class Batch(NamedTuple):
    """ids, weights, kinds: [B, T], padded on the right with weight 0."""

    ids: Tensor
    weights: Tensor
    kinds: Tensor


def objective_of(config: Config) -> Objective:
    """Raises ValueError for a field that does not exist."""
    return configs.load(Objective, None, [f"{key}={value}" for key, value in config.objective.items()])


def batches(shard: Shard, vocab: Vocab, config: Config, first: int = 0) -> Iterator[list[Batch]]:
    """Micro-batches of each step from `first` on, for ever; step s is the same whatever step it starts from."""
    objective = objective_of(config)
    count = len(shard.offsets) - 1
    per_epoch = count // config.batch_size
    if per_epoch == 0:
        raise ValueError(f"{count} documents do not fill a batch of {config.batch_size}")
    step, order, epoch = first, np.empty(0, int), -1
    while True:
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = np.random.default_rng((config.seed, epoch)).permutation(count)
        rng = np.random.default_rng((config.seed, 1, step))
        start = step % per_epoch * config.batch_size
        rows = [
            training_row(*shard.document(i), vocab, objective, rng) for i in order[start : start + config.batch_size]
        ]
        rows.sort(key=lambda row: len(row.ids))
        size = -(-len(rows) // config.micro_batches)
        yield [collate(rows[i : i + size], vocab.pad) for i in range(0, len(rows), size)]
        step += 1


def collate(rows: list, pad: int, multiple: int = 8) -> Batch:
    """Rows of unequal length as one Batch; T is a multiple of `multiple`."""
    length = -(-max(len(row.ids) for row in rows) // multiple) * multiple
    ids = np.full((len(rows), length), pad)
    weights, kinds = np.zeros((len(rows), length), np.float32), np.zeros((len(rows), length), int)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)], weights[i, : len(row.ids)], kinds[i, : len(row.ids)] = row
    return Batch(torch.from_numpy(ids), torch.from_numpy(weights), torch.from_numpy(kinds))


def build_model(config: Config, meta: dict[str, Any], image_tokenizer: ImageTokenizer) -> CM3ForCausalLM:
    """A fresh model with the shards' vocabulary."""
    torch.manual_seed(config.seed)
    model = CM3ForCausalLM(CM3Config.preset(config.preset, **meta["vocab"], **config.model))
    if config.codebook_init:
        vocab = Vocab.from_config(model.config)
        codebook = image_tokenizer.model.quantize.codebook().cpu()  # [K, Z]
        for weight in (model.model.embed_tokens.weight, model.lm_head.weight):
            likeness = (
                codebook @ torch.randn(codebook.shape[1], weight.shape[1]) / codebook.std() / codebook.shape[1] ** 0.5
            )
            rows = weight.data[vocab.first_code :]
            rows.copy_((rows + model.config.init_std * likeness) * 0.5**0.5)  # half what it looks like, half its own
    return model


def optimizers(model: CM3ForCausalLM, config: Config) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) or AdamW for the matrices inside the blocks, AdamW for embeddings, head and norms.

    The peak rate of each is its `defaults["lr"]`.
    """
    if config.matrices not in ("auto", "muon", "adamw"):
        raise ValueError(f"matrices is {config.matrices!r}: choose auto, muon or adamw")
    inside = [p for p in model.model.layers.parameters() if p.ndim == 2]
    ids = {id(p) for p in inside}
    rest = [p for p in model.parameters() if id(p) not in ids]
    adamw = torch.optim.AdamW(rest, config.lr, config.betas, weight_decay=0.0, fused=True)
    if config.matrices == "muon" or (config.matrices == "auto" and bf16_is_fast(model.device)):
        return [torch.optim.Muon(inside, config.muon_lr, config.weight_decay, adjust_lr_fn="original"), adamw]
    return [torch.optim.AdamW(inside, config.lr, config.betas, weight_decay=config.weight_decay, fused=True), adamw]


def rate(step: int, config: Config) -> float:
    """Warm-up, stable, linear decay: the factor of the peak rates."""
    decay_from = (1 - config.decay) * config.steps
    if step < config.warmup:
        return (step + 1) / config.warmup
    return 1.0 if step < decay_from else (config.steps - step) / (config.steps - decay_from)


def losses(model: CM3ForCausalLM, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sum of the cross-entropies; and for each of KINDS the plain sum and the count, [len(KINDS)]."""
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state[:, :-1]  # [B, T - 1, D]
    weights, kinds = batch.weights[:, 1:], batch.kinds[:, 1:]
    counted = weights > 0
    logits = model.lm_head(hidden[counted]).float()  # [n, V]
    errors = F.cross_entropy(logits, batch.ids[:, 1:][counted], reduction="none")  # [n]
    sums = torch.zeros(len(KINDS) + 1).index_add_(0, kinds[counted].cpu(), errors.detach().cpu())
    counts = torch.bincount(kinds[counted].cpu(), minlength=len(KINDS) + 1)
    return (errors * weights[counted]).sum(), sums[1:], counts[1:]


def train(config: Config, out: Path) -> CM3:
    """The whole run; continues from OUT/checkpoint.pt where there is one."""
    objective_of(config)  # before anything is written
    shard, meta = read_shard(Path(config.data))
    image_tokenizer = ImageTokenizer.from_pretrained(config.image_tokenizer)
    if (mark := image_tokenizer.fingerprint()) != meta["image_tokenizer"]:
        raise ValueError(f"{config.data} was made by image tokenizer {meta['image_tokenizer']}, not by "
                         f"{config.image_tokenizer} ({mark})")  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    configs.save(config, out / "config.json")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(config, meta, image_tokenizer)
    model.to(device)  # pyright: ignore[reportArgumentType]
    pipeline = CM3(model, TextTokenizer.load(config.data), image_tokenizer.to(device))
    optimizer = optimizers(model, config)
    automatic = "eager" if device.type == "cpu" else "sdpa"
    model.set_attn_implementation(automatic if config.attention == "auto" else config.attention)
    if config.compile:
        for block in model.model.layers:
            block.compile()

    first, checkpoint = 0, out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for one, saved in zip(optimizer, state["optimizers"], strict=True):
            one.load_state_dict(saved)
        first = state["step"]

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, (out / "log.jsonl").open("a") as log:
        bar = progress.add_task("lm", total=config.steps, completed=first)
        source = batches(shard, Vocab.from_config(model.config), config, first)
        clock, tokens = time.perf_counter(), 0
        sums, counts = torch.zeros(len(KINDS)), torch.zeros(len(KINDS))
        model.train()
        for step in range(first, config.steps):
            parts = [Batch(*(array.to(device) for array in part)) for part in next(source)]
            total = sum(part.weights[:, 1:].sum() for part in parts)
            for part in parts:
                with autocast(config.precision, device):
                    loss, part_sums, part_counts = losses(model, part)
                (loss / total).backward()
                sums, counts = sums + part_sums, counts + part_counts
                tokens += part.ids.numel()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            if not torch.isfinite(norm):
                raise ValueError(f"the gradient is {norm.item()} at step {step}: lower muon_lr and lr")
            for one in optimizer:
                for group in one.param_groups:
                    group["lr"] = one.defaults["lr"] * rate(step, config)
                one.step()
                one.zero_grad()
            progress.update(bar, completed=step + 1)
            if (step + 1) % config.log_every == 0:
                seconds, clock = time.perf_counter() - clock, time.perf_counter()
                by_kind = {kind: round((sums[i] / counts[i]).item(), 4) for i, kind in enumerate(KINDS) if counts[i]}
                row = {"step": step + 1, "loss": by_kind, "gradient": round(norm.item(), 4), "rate": rate(step, config),
                       "documents_per_second": round(config.log_every * config.batch_size / seconds, 2),
                       "tokens_per_second": round(tokens / seconds)}  # fmt: skip
                tokens, sums, counts = 0, torch.zeros(len(KINDS)), torch.zeros(len(KINDS))
                log.write(json.dumps(row) + "\n")
                log.flush()
                words = ", ".join(f"{kind} {value:.2f}" for kind, value in by_kind.items())
                progress.update(bar, description=f"{words}, {row['documents_per_second']:.0f} documents/s")
            last = step + 1 == config.steps
            if (step + 1) % config.save_every == 0 or last:
                state = {
                    "model": model.state_dict(),
                    "optimizers": [one.state_dict() for one in optimizer],
                    "step": step + 1,
                }
                torch.save(state, checkpoint.with_suffix(".part"))
                checkpoint.with_suffix(".part").replace(checkpoint)
            if (step + 1) % config.sample_every == 0 or last:
                model.eval()
                drawn = [pipeline.generate(prompt, n=6, seed=0) for prompt in config.prompts]
                contact_sheet(list(config.prompts), drawn).save(out / f"samples-{step + 1:06d}.png")
                pipeline.save_pretrained(out / "model")
                model.train()
                clock = time.perf_counter()
    model.eval()
    return pipeline


def main(
    out: Annotated[Path, typer.Option(help="folder of the run")] = Path("runs/lm"),
    config: Annotated[Path | None, typer.Option(help="TOML file")] = None,
    data: Annotated[str | None, typer.Option(help="folder of the token shards")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value")] = None,
) -> None:
    try:
        settings = configs.load(Config, config, overrides)
        train(replace(settings, data=data) if data else settings, out)
    except (OSError, ValueError) as error:
        raise SystemExit(f"lm: {error}") from None


if __name__ == "__main__":
    typer.run(main)
