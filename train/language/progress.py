"""What a step of a training run did, and what is counted between two rows of the log."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from train.language.packing import Step


class StepResult(NamedTuple):
    """What a step did.

    Attributes:
        loss: mean loss.
        grad_norm: norm of the gradient before clipping.
        lr_factor: factor of the peak learning rates.
        skipped: why the step changed no weight; "" if it did.
        terminate: whether a process was asked to end.
        data: the step's data.
    """

    loss: float
    grad_norm: float
    lr_factor: float
    skipped: str
    terminate: bool
    data: Step

    def why_skipped(self, step: int) -> dict[str, Any]:
        """Return the log's row of a skipped step."""
        return {
            "step": step,
            "skipped": self.skipped,
            "total_loss": self.loss,
            "grad_norm": self.grad_norm,
            "digest": self.data.digest,
        }


@dataclass
class Counters:
    """What this process has counted since the last report.

    Attributes:
        losses: sums and counts of each kind of target, [2, kinds].
        tokens: all tokens, and padding among them, [2].
        clock: time of the last report.
    """

    losses: Tensor
    tokens: Tensor
    clock: float
