"""The settings of a run of the scorer."""

from dataclasses import dataclass, field
from typing import Any

from train.runtime.settings import CheckpointConfig, LogConfig, OptimConfig


@dataclass(frozen=True)
class ScorerDataConfig:
    """The training data.

    Attributes:
        folder: folder of token shards.
    """

    folder: str = "data/emoji-tokens"


@dataclass(frozen=True)
class ScorerAugmentConfig:
    """Augmentation of the images.

    Attributes:
        patch_dropout: share of an image's patches that are left out (FLIP, Li et al. 2023, section 3).
        code_noise: largest share of an image's codes that are replaced by another image's. Generated images contain
            wrong codes, too.
    """

    patch_dropout: float = 0.25
    code_noise: float = 0.3


@dataclass(frozen=True)
class ScorerOptimConfig(OptimConfig):
    """AdamW, with linear warmup and half a cosine to 0."""

    lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.1


@dataclass(frozen=True)
class ScorerEvalConfig:
    """Retrieval on held-out images; each evaluation also writes model/.

    Attributes:
        every: steps between evaluations.
        images: largest number of images.
    """

    every: int = 250
    images: int = 1000


@dataclass(frozen=True)
class ScorerTrainingConfig:
    """One run.

    Attributes:
        image_tokenizer: folder or name of the image tokenizer that made the shards; empty = where it was then.
        model: fields of cm3.model.scorer.ScorerConfig that do not come from the shards.
        steps: optimizer steps.
        batch_size: pairs of a text and an image in a step.
        precision: "fp32", "bf16" or "auto": bf16 where the device computes it fast.
        seed: of everything random.
        data: the training data.
        augment: augmentation.
        optim: the optimizer.
        checkpoint: checkpoints.
        eval: evaluations.
        log: the log.
    """

    image_tokenizer: str = ""
    model: dict[str, Any] = field(default_factory=dict)
    steps: int = 2500
    batch_size: int = 256
    precision: str = "auto"
    seed: int = 0
    data: ScorerDataConfig = field(default_factory=ScorerDataConfig)
    augment: ScorerAugmentConfig = field(default_factory=ScorerAugmentConfig)
    optim: ScorerOptimConfig = field(default_factory=ScorerOptimConfig)
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every=250))
    eval: ScorerEvalConfig = field(default_factory=ScorerEvalConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        for name in ("patch_dropout", "code_noise"):
            if not 0 <= (share := getattr(self.augment, name)) < 1:
                raise ValueError(f"augment.{name} is {share}, but must be 0 or more and less than 1")
        for name, value, least in (
            ("steps", self.steps, 1),
            ("batch_size", self.batch_size, 2),
            ("checkpoint.every", self.checkpoint.every, 1),
            ("eval.every", self.eval.every, 1),
            ("eval.images", self.eval.images, 1),
            ("log.every", self.log.every, 1),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}, but must be at least {least}")
