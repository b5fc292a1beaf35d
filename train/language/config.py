"""The settings of a run of the language model."""

from dataclasses import dataclass, field
from typing import Any

from train.language.lora import Lora
from train.language.objective import Objective
from train.runtime.distributed import KINDS as PARALLEL


@dataclass(frozen=True)
class LMConfig:
    """One run.

    Attributes:
        data: folder of token shards.
        image_tokenizer: folder or name of the image tokenizer that made them; empty = where it was then, or the one of
            `start`.
        start: folder or name of a model to train on; empty = from nothing, as `preset` and `model` say.
        preset: key of cm3.model.config.PRESETS; the vocabulary's layout comes from the shards.
        model: fields of CM3Config that replace the preset's.
        lora: adapters in place of all weights, where its rank is not 0.
        objective: which forms documents take, and how much each kind of token counts.
        bridged: learn how the embeddings of ids add to their rows in the head: what is copied from one picture to
            another is then learnt for all codes at once. The model that leaves the run has a plain head.
        codebook_init: start the embeddings of image codes from the codebook, so that codes that look alike start alike.
        steps: optimiser steps.
        row: tokens of a packed row; documents longer than that are left out.
        batch_tokens: tokens a step, padding included, on all devices; a multiple of row times the devices.
        micro_rows: rows that go through a device at once; 0 = all of a step's. --find-batch looks for it.
        window: documents that are packed together.
        matrices: optimiser of the matrices inside the blocks: "muon", "adamw", or "auto" = Muon without lora.
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
        max_skipped_steps: stop after so many skipped steps in a row.
        z_loss: weight of the z-loss.
        ema: decay of averaged weights, which are then evaluated and saved; 0 = none.
        precision: "fp32", "bf16" or "auto": bf16 where the device computes it fast.
        compile: torch.compile the blocks.
        attention: implementation; "auto" = on a GPU flash_attention_2 where it is installed, else flex_attention for
            heads that it takes, else sdpa; on a CPU eager (faster there for rows of a few hundred tokens).
        recompute: activation checkpointing: blocks compute their activations again for the backward pass.
        chunk: targets whose logits are held at once; on a CPU 256 are faster than 1024 by half where there are 20,000
            ids.
        softmax: over "all" ids, or over those of the target's own "modality": a code is then compared with codes, any
            other id with the others. That is cheaper, and what the grammar leaves when the model writes.
        calibration: with softmax "modality", share of the steps, the last ones, that are over all ids nevertheless, so
            that the probabilities mean something without the grammar too.
        negatives: with softmax "modality", a code competes with the codes of its batch and a sample of so many others
            (sampled softmax); 0 = with all. Cheaper where there are many codes; the loss of codes is then an estimate.
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
        async_save: write checkpoints while training goes on.
        ignore_save_errors: train on, with a warning, where a checkpoint cannot be written.
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
    lora: Lora = field(default_factory=Lora)
    objective: Objective = field(default_factory=Objective)
    codebook_init: bool = True
    bridged: bool = False
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
    max_skipped_steps: int = 50
    z_loss: float = 0.0
    ema: float = 0.0
    precision: str = "auto"
    compile: bool = False
    attention: str = "auto"
    recompute: bool = False
    chunk: int = 256
    softmax: str = "all"
    calibration: float = 0.0
    negatives: int = 0
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
    async_save: bool = True
    ignore_save_errors: bool = False
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
            ("softmax", ("all", "modality")),
            ("parallel", PARALLEL),
            ("precision", ("auto", "bf16", "fp32")),
            ("matrices", ("auto", "muon", "adamw")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose {', '.join(known)}")
        for name in ("steps", "row", "batch_tokens", "window", "chunk", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if not 0 <= self.calibration <= 1:
            raise ValueError(f"calibration is {self.calibration}, but must be a share of the steps, 0 to 1")
        if self.calibration and self.softmax != "modality":
            raise ValueError(f"calibration={self.calibration} needs softmax=modality: all ids compete in every step")
        if self.negatives and self.softmax != "modality":
            raise ValueError(f"negatives={self.negatives} needs softmax=modality: codes are then compared with codes")
        if self.bridged and self.lora.rank:
            raise ValueError("bridged changes the head, which lora leaves as it is: set one of them")
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
