"""One run of train.lm: its settings, and what they make of a model, its optimisers and its attention."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import peft
import torch
from transformers.utils.import_utils import is_flash_attn_2_available

from cm3.pipeline import CM3
from cm3.transformer import CM3ForCausalLM
from tokenizer_image import ImageTokenizer
from train import config as configs
from train.loss import Learner
from train.objective import Objective
from train.optimizers import Rates, optimizers
from train.parallel import KINDS as PARALLEL
from train.precision import bf16_is_fast
from train.starting import Lora, add_lora, fresh_model, loaded_model


@dataclass(frozen=True)
class Config:
    """One run.

    Attributes:
        data: folder of token shards.
        image_tokenizer: folder or name of the image tokenizer that made them; empty = where it was then, or the one of
            `start`.
        start: folder or name of a model to train on; empty = from nothing, as `preset` and `model` say.
        preset: key of cm3.config.PRESETS; the vocabulary's layout comes from the shards.
        model: fields of CM3Config that replace the preset's.
        lora: fields of train.starting.Lora.
        objective: fields of train.objective.Objective.
        codebook_init: start the embeddings of image codes from the codebook, so that codes that look alike start alike.
        steps: optimiser steps.
        row: tokens of a packed row; documents longer than that are left out.
        batch_tokens: tokens a step, padding included, on all devices; a multiple of row times the devices.
        micro_rows: rows that go through a device at once; 0 = all of a step's. --find-batch looks for it.
        window: documents that are packed together.
        matrices: optimiser of the matrices inside the blocks: "muon", "adamw", or "auto" = Muon where bf16, in which
            PyTorch's Muon computes, is fast, and without lora.
        muon_lr: rate of Muon.
        lr: rate of AdamW.
        embedding_lr: its rate for the embeddings; 0 = lr.
        head_lr: its rate for the head; 0 = lr.
        schedule: "wsd" (warm up, stay, fall) or "cosine".
        warmup: steps of linear warm-up.
        decay: share of the run at its end in which "wsd" falls.
        final: factor of the rates at the end.
        betas: of AdamW.
        weight_decay: of the matrices inside the blocks.
        clip: largest norm of the gradient.
        spike: skip steps whose loss or gradient lies so many standard deviations above the last ones; 0 = never.
        most_skipped: stop after so many skipped steps in a row.
        z_loss: weight of the z-loss.
        ema: decay of averaged weights, which are then evaluated and saved; 0 = none.
        precision: "fp32", "bf16" or "auto": bf16 where the device computes it fast.
        compile: torch.compile the blocks.
        attention: implementation; "auto" = on a GPU flash_attention_2 where it is installed, else flex_attention for
            heads that it takes, else sdpa; on a CPU eager (faster there for rows of a few hundred tokens).
        recompute: activation checkpointing: blocks compute their activations again for the backward pass.
        chunk: targets whose logits are held at once.
        parallel: "ddp", or "fsdp" to shard weights, gradients and optimisers over the devices.
        processes: how many must train together; 0 = as many as were launched.
        local_sgd: steps that each process trains apart before the weights are averaged (LocalSGD); 0 = never apart.
        seed: of everything random.
        workers: processes that load data on each device; 0 = the training process itself.
        verify: read every shard once at the start and compare its hash.
        max_bad: largest share of documents in bad shards, or of bad documents.
        log_every: steps between log lines.
        save_every: steps between checkpoints.
        keep: checkpoints that stay.
        asynchronous: write checkpoints while training goes on.
        go_on: train on, with a warning, where a checkpoint cannot be written.
        evaluate_every: steps between evaluations on the held-out split; 0 = never.
        evaluate_rows: rows of it.
        sample_every: steps between sample pictures; each writes model/ too, as does the last step.
        prompts: what the samples are drawn from; none = no samples.
        trackers: "tensorboard", "wandb", "trackio": those that are installed.
    """

    data: str = "data/emoji-tokens"
    image_tokenizer: str = ""
    start: str = ""
    preset: str = "emoji"
    model: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)
    codebook_init: bool = True
    steps: int = 5000
    row: int = 256
    batch_tokens: int = 4096
    micro_rows: int = 0
    window: int = 4096
    matrices: str = "auto"
    muon_lr: float = 0.02
    lr: float = 3e-3
    embedding_lr: float = 0.0
    head_lr: float = 0.0
    schedule: str = "wsd"
    warmup: int = 100
    decay: float = 0.5
    final: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip: float = 1.0
    spike: float = 6.0
    most_skipped: int = 50
    z_loss: float = 0.0
    ema: float = 0.0
    precision: str = "auto"
    compile: bool = False
    attention: str = "auto"
    recompute: bool = False
    chunk: int = 1024
    parallel: str = "ddp"
    processes: int = 0
    local_sgd: int = 0
    seed: int = 0
    workers: int = 0
    verify: bool = True
    max_bad: float = 0.1
    log_every: int = 20
    save_every: int = 500
    keep: int = 2
    asynchronous: bool = True
    go_on: bool = False
    evaluate_every: int = 0
    evaluate_rows: int = 64
    sample_every: int = 500
    prompts: tuple[str, ...] = (
        "a red apple",
        "a cat",
        "a yellow taxi",
        "a pizza",
        "a soccer ball",
        "a tulip in the noto style",
        "a guitar on a pink background",
        "a blue fish",
    )
    trackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, known in (
            ("schedule", ("wsd", "cosine")),
            ("parallel", PARALLEL),
            ("precision", ("auto", "bf16", "fp32")),
            ("matrices", ("auto", "muon", "adamw")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose {', '.join(known)}")
        for name in ("steps", "row", "batch_tokens", "window", "chunk", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if (apart := self.local_sgd) and (
            self.parallel == "fsdp" or self.ema or self.save_every % apart or self.steps % apart
        ):
            raise ValueError(
                f"local_sgd={apart} needs parallel=ddp, no ema, and steps and save_every that are "
                "multiples of it, so that checkpoints hold weights that all share"
            )

    def rows(self, processes: int) -> int:
        """Rows a step on each process."""
        count, rest = divmod(self.batch_tokens, self.row * processes)
        if rest or not count:
            low = max(1, count) * self.row * processes
            raise ValueError(
                f"batch_tokens is {self.batch_tokens}, but must be a multiple of row x processes = "
                f"{self.row} x {processes}: take {low}"
            )
        return count


def objective_of(config: Config) -> Objective:
    """Raises ValueError for a field that does not exist."""
    return configs.fill(Objective, config.objective)


def lora_of(config: Config) -> Lora:
    """Raises ValueError for a field that does not exist."""
    return configs.fill(Lora, config.lora)


def attention_of(config: Config, device: torch.device, head_size: int) -> str:
    """The implementation of attention that a run takes."""
    if config.attention != "auto":
        return config.attention
    if device.type == "cpu":
        return "eager"
    if is_flash_attn_2_available():
        return "flash_attention_2"
    return "flex_attention" if head_size >= 16 and head_size & (head_size - 1) == 0 else "sdpa"


def image_tokenizer_of(config: Config, meta: dict[str, Any]) -> ImageTokenizer:
    """The image tokenizer of a run. Raises ValueError where it is not the one that made the shards."""
    if config.start and not config.image_tokenizer:
        found, named = CM3.from_pretrained(config.start, device="cpu").image_tokenizer, config.start
    else:
        named = config.image_tokenizer or meta.get("image_tokenizer_name", "")
        if not named:
            raise ValueError(f"{config.data} does not say which image tokenizer made it: set image_tokenizer")
        found = ImageTokenizer.from_pretrained(named)
    if (mark := found.fingerprint()) != meta["image_tokenizer"]:
        raise ValueError(
            f"{config.data} was made by image tokenizer {meta['image_tokenizer']}, not by {named} ({mark})"
        )
    return found


def starting_model(config: Config, meta: dict[str, Any], image_tokenizer: ImageTokenizer) -> CM3ForCausalLM:
    """The model before the first step, without adapters. Raises ValueError for shards of another model."""
    if config.start:
        model = loaded_model(config.start, meta, config.data, config.model)
    else:
        model = fresh_model(config.preset, config.model, meta, image_tokenizer, config.codebook_init, config.seed)
    if config.row > model.config.max_position_embeddings:
        raise ValueError(
            f"row is {config.row}, but the model's positions are "
            f"{model.config.max_position_embeddings}: make row smaller"
        )
    return model


class Made(NamedTuple):
    """A run's model with its loss, on its device; and what peft notes of its adapters, where it has any."""

    learner: Learner
    adapter: peft.LoraConfig | None


def learner_of(config: Config, meta: dict[str, Any], image_tokenizer: ImageTokenizer, device: torch.device) -> Made:
    """What a run trains, before its first step. Raises ValueError as starting_model and add_lora do."""
    model, lora = starting_model(config, meta, image_tokenizer), lora_of(config)
    adapter = add_lora(model, lora, config.seed) if lora.rank else None
    model.to(device)  # pyright: ignore[reportArgumentType]
    model.set_attn_implementation(attention_of(config, device, model.config.head_dim))
    if config.recompute:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if config.compile:
        for block in model.model.layers:
            block.compile()
    return Made(Learner(model, config.z_loss, config.chunk).train(), adapter)


def optimizers_of(model: torch.nn.Module, config: Config, device: torch.device) -> list[torch.optim.Optimizer]:
    automatic = "muon" if bf16_is_fast(device) and not lora_of(config).rank else "adamw"
    matrices = automatic if config.matrices == "auto" else config.matrices
    rates = Rates(
        config.muon_lr if matrices == "muon" else config.lr,
        config.embedding_lr or config.lr,
        config.head_lr or config.lr,
        config.lr,
    )
    return optimizers(model, matrices, rates, config.betas, config.weight_decay)
