"""What moves the weights: optimisers with a rate for each group, schedules, the rule that skips bad steps, averages."""

import math
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

GROUPS = ("matrices", "embedding", "head", "rest")


class Rates(NamedTuple):
    """Peak learning rates: of the matrices inside the blocks, of the embeddings, the head, and of all else."""

    matrices: float
    embedding: float
    head: float
    rest: float


def groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters that are trained, by group. A head tied to the embedding is an embedding."""
    out: dict[str, list[nn.Parameter]] = {name: [] for name in GROUPS}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if "layers." in name:
            group = "matrices" if parameter.ndim == 2 and "norm" not in name else "rest"
        else:
            group = "embedding" if "embed_" in name else "head" if "lm_head" in name else "rest"
        out[group].append(parameter)
    return out


def optimizers(
    model: nn.Module, matrices: str, rates: Rates, betas: tuple[float, float], weight_decay: float
) -> list[torch.optim.Optimizer]:
    """The optimisers that share a model's parameters; each group holds its peak rate as "peak".

    Args:
        model: of which the parameters that require gradients are trained.
        matrices: "muon" (Jordan et al. 2024; torch.optim.Muon computes in bf16) or "adamw" for those inside the blocks.
        rates: peak rates.
        betas: of AdamW.
        weight_decay: of the matrices inside the blocks alone.

    Raises:
        ValueError: an optimiser that is not known; nothing to train.
    """
    if matrices not in ("muon", "adamw"):
        raise ValueError(f"matrices is {matrices!r}: choose auto, muon or adamw")
    parts = {name: parameters for name, parameters in groups(model).items() if parameters}
    if not parts:
        raise ValueError("no parameter is to be trained: all are frozen")
    settings: list[dict[str, Any]] = [
        {
            "params": parameters,
            "lr": getattr(rates, name),
            "peak": getattr(rates, name),
            "weight_decay": weight_decay if name == "matrices" else 0.0,
        }
        for name, parameters in parts.items()
    ]
    out: list[torch.optim.Optimizer] = []
    if matrices == "muon" and "matrices" in parts:
        out.append(torch.optim.Muon([settings.pop(0)], adjust_lr_fn="original"))
    if settings:
        out.append(torch.optim.AdamW(settings, betas=betas, fused=True))
    return out


def rate(step: int, steps: int, schedule: str, warmup: int, decay: float = 0.0, final: float = 0.0) -> float:
    """The factor of the peak rates in a step.

    Args:
        step, steps: this one, and all.
        schedule: "wsd" (warm up, stay, fall in a line; Hu et al. 2024, MiniCPM, section 4) or "cosine".
        warmup: steps of linear warm-up.
        decay: share of the run in which "wsd" falls.
        final: factor at the end.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "cosine":
        done = (step - warmup) / max(1, steps - warmup)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))
    start = min((1 - decay) * steps, steps)
    return 1.0 if step < start else final + (1 - final) * (steps - step) / (steps - start)


class StepSkipper:
    """Says which steps to skip: those that are not finite, and spikes.

    A spike is a loss or a gradient norm more than `sigmas` standard deviations above the mean of the last `memory`
    steps, once half of them are known: OLMo's rule (OLMo-core, SkipStepOptimizer). A spike is remembered like any other
    step, so that a lasting change is soon no spike.

    Args:
        sigmas: 0 = no step is a spike.
        memory: steps that count.
    """

    def __init__(self, sigmas: float = 6.0, memory: int = 128):
        self.sigmas = sigmas
        self.losses: deque[float] = deque(maxlen=memory)
        self.norms: deque[float] = deque(maxlen=memory)
        self.skipped = {"not finite": 0, "spike": 0}
        self.in_a_row = 0

    def verdict(self, loss: float, norm: float) -> str:
        """ "" to take the step, or why it is skipped."""
        why = ""
        if not math.isfinite(loss) or not math.isfinite(norm):
            why = "not finite"
        else:
            if self.sigmas and (outlier(loss, self.losses, self.sigmas) or outlier(norm, self.norms, self.sigmas)):
                why = "spike"
            self.losses.append(loss)
            self.norms.append(norm)
        if why:
            self.skipped[why] += 1
        self.in_a_row = self.in_a_row + 1 if why else 0
        return why

    def state_dict(self) -> dict[str, Any]:
        return {
            "losses": list(self.losses),
            "norms": list(self.norms),
            "skipped": dict(self.skipped),
            "in_a_row": self.in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for mine, theirs in ((self.losses, state["losses"]), (self.norms, state["norms"])):
            mine.clear()
            mine.extend(theirs)
        self.skipped, self.in_a_row = dict(state["skipped"]), state["in_a_row"]


def outlier(value: float, before: deque[float], sigmas: float) -> bool:
    """Whether a value lies far above those before it."""
    if len(before) < (before.maxlen or 0) // 2:
        return False
    mean = sum(before) / len(before)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in before) / max(1, len(before) - 1))
    return value > mean + sigmas * deviation


class EMA:
    """Exponential moving average of parameters.

    Args:
        parameters: those that are trained; sharded ones keep their sharding.
        decay: of the average.
    """

    def __init__(self, parameters: Iterable[tuple[str, Tensor]], decay: float):
        self.decay = decay
        self.parameters = dict(parameters)
        self.values = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        for name, parameter in self.parameters.items():
            self.values[name].lerp_(parameter.detach(), 1 - self.decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the parameters; a second call brings them back."""
        for name, parameter in self.parameters.items():
            held = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(held)
