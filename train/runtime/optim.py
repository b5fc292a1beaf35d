"""Optimizers with a learning rate for each group of parameters, schedules, skipped steps and averaged weights."""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

GROUPS = ("matrices", "rest")


class LearningRates(NamedTuple):
    """Peak learning rates.

    Attributes:
        matrices: of the matrices inside the blocks.
        rest: of all other parameters.
    """

    matrices: float
    rest: float


def groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the trained parameters by group."""
    out: dict[str, list[nn.Parameter]] = {name: [] for name in GROUPS}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inside = "layers." in name or "bridge" in name
        out["matrices" if inside and parameter.ndim == 2 and "norm" not in name else "rest"].append(parameter)
    return out


class SinglePrecisionMuon(torch.optim.Muon):
    """torch.optim.Muon in fp32, with all matrices of one shape in one batch.

    It is for devices that emulate bf16, in which torch.optim.Muon computes. On two AVX2 cores a step of a model with 6
    blocks of width 256 takes 0.4 s in place of 16 (256 x 256: 0.28 s a matrix).
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            shapes: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                average = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(average, group["momentum"]) if group["nesterov"] else average
                shapes.setdefault(parameter.shape, []).append((parameter, update))
            for (rows, columns), pairs in shapes.items():
                made = orthogonal(
                    torch.stack([update for _, update in pairs]), group["ns_coefficients"], group["ns_steps"]
                )
                length = -group["lr"] * max(1.0, rows / columns) ** 0.5
                for (parameter, _), update in zip(pairs, made, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=length)
        return loss


def orthogonal(matrices: Tensor, coefficients: Sequence[float], steps: int) -> Tensor:
    """Orthogonalise matrices: Muon's Newton-Schulz iteration (Jordan et al. 2024).

    Args:
        matrices: [N, A, B].
        coefficients: of the iteration.
        steps: number of iterations.

    Returns:
        [N, A, B], with singular values near 1.
    """
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    out = matrices.mT if tall else matrices
    out = out / torch.linalg.vector_norm(out, dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = out @ out.mT
        out = torch.baddbmm(out, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), out, beta=a)
    return out.mT if tall else out


def optimizers(
    model: nn.Module,
    matrix_optimizer: str,
    peaks: LearningRates,
    betas: tuple[float, float],
    weight_decay: float,
    bf16: bool = True,
) -> list[torch.optim.Optimizer]:
    """Make the optimizers of a model. Each parameter group holds its peak learning rate as "peak".

    Args:
        model: its parameters that require gradients are trained.
        matrix_optimizer: "muon" (Jordan et al. 2024) or "adamw", for the matrices inside the blocks.
        peaks: peak learning rates.
        betas: of AdamW.
        weight_decay: of the matrices inside the blocks; nothing else decays.
        bf16: whether Muon may compute in bf16.

    Raises:
        ValueError: an unknown optimizer; nothing to train.
    """
    if matrix_optimizer not in ("muon", "adamw"):
        raise ValueError(f"optim.matrix_optimizer is {matrix_optimizer!r}: choose auto, muon or adamw")
    parts = {name: parameters for name, parameters in groups(model).items() if parameters}
    if not parts:
        raise ValueError("no parameter is to be trained: all are frozen")
    settings: list[dict[str, Any]] = [
        {
            "params": parameters,
            "lr": getattr(peaks, name),
            "peak": getattr(peaks, name),
            "weight_decay": weight_decay if name == "matrices" else 0.0,
        }
        for name, parameters in parts.items()
    ]
    out: list[torch.optim.Optimizer] = []
    if matrix_optimizer == "muon" and "matrices" in parts:
        muon = torch.optim.Muon if bf16 else SinglePrecisionMuon
        out.append(muon([settings.pop(0)], adjust_lr_fn="original"))
    if settings:
        out.append(torch.optim.AdamW(settings, betas=betas, fused=True))
    return out


def lr_factor(step: int, steps: int, schedule: str, warmup: int, decay: float = 0.0, final: float = 0.0) -> float:
    """Return the factor of the peak learning rates in a step.

    Args:
        step: this step, from 0.
        steps: number of steps.
        schedule: "wsd" (warmup, constant, linear decay; Hu et al. 2024, MiniCPM, section 4) or "cosine".
        warmup: steps of linear warmup.
        decay: share of the run in which "wsd" decays.
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
    """Decides which steps to skip: those with a loss or gradient that is not finite, and spikes.

    A spike is a loss or a gradient norm more than `sigmas` standard deviations above the mean of the last `memory`
    steps, once half of them are known: OLMo's rule (OLMo-core, SkipStepOptimizer). A spike counts among the last steps
    like any other, so that a lasting change is soon no spike.

    Args:
        sigmas: threshold in standard deviations; 0 = no step is a spike.
        memory: number of last steps that are compared with.

    Attributes:
        skipped: number of skipped steps by reason.
        in_a_row: number of steps that were skipped in a row, up to now.
    """

    def __init__(self, sigmas: float = 6.0, memory: int = 128):
        self.sigmas = sigmas
        self.losses: deque[float] = deque(maxlen=memory)
        self.norms: deque[float] = deque(maxlen=memory)
        self.skipped = {"not finite": 0, "spike": 0}
        self.in_a_row = 0

    def verdict(self, loss: float, norm: float) -> str:
        """Return "" to take the step, or the reason to skip it."""
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

    def forget(self) -> None:
        """Forget the last steps, as after a change of the loss."""
        self.losses.clear()
        self.norms.clear()

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
    """Return whether a value lies more than `sigmas` standard deviations above the mean of those before it."""
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
        """Exchange the average with the parameters; a second call exchanges them back."""
        for name, parameter in self.parameters.items():
            held = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(held)
