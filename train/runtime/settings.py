"""Groups of settings that the trainers share: fields of a run's configuration, and tables in its TOML file."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer.

    Attributes:
        lr: peak learning rate of AdamW.
        warmup_steps: steps of linear warmup.
        betas: of AdamW.
        weight_decay: of AdamW, or of the matrices that decay.
        grad_clip: largest norm of the gradient.
    """

    lr: float = 1e-3
    warmup_steps: int = 100
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    grad_clip: float = 1.0


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints.

    Attributes:
        every: steps between checkpoints; the last step is always saved.
        keep: number of checkpoints that are kept.
        async_save: write checkpoints in the background.
        ignore_save_errors: warn and continue where a checkpoint cannot be written.
    """

    every: int = 500
    keep: int = 2
    async_save: bool = True
    ignore_save_errors: bool = False


@dataclass(frozen=True)
class LogConfig:
    """The log.

    Attributes:
        every: steps between lines of log.jsonl.
        trackers: "tensorboard", "wandb", "trackio": those that are installed.
    """

    every: int = 20
    trackers: tuple[str, ...] = ()
