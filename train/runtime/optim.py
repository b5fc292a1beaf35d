"""What moves the weights: optimisers with a rate for each group, schedules, the rule that skips bad steps, averages."""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

GROUPS = ("matrices", "embedding", "head", "rest")


class LearningRates(NamedTuple):
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
        if "layers." in name or "bridge" in name:
            group = "matrices" if parameter.ndim == 2 and "norm" not in name else "rest"
        else:
            group = "embedding" if "embed_" in name else "head" if "lm_head" in name else "rest"
        out[group].append(parameter)
    return out


class SinglePrecisionMuon(torch.optim.Muon):
    """torch.optim.Muon in fp32, matrices of one shape together: for devices that emulate the bf16 that it computes in.

    On two AVX2 cores a step of a model of 6 blocks of 256 takes 0.4 s in place of 16 (256 x 256: 0.28 s a matrix).
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
    """[N, A, B], each with singular values near 1 in place of its own: Muon's Newton-Schulz (Jordan et al. 2024)."""
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
    matrices: str,
    rates: LearningRates,
    betas: tuple[float, float],
    weight_decay: float,
    bf16: bool = True,
) -> list[torch.optim.Optimizer]:
    """The optimisers that share a model's parameters; each group holds its peak rate as "peak".

    Args:
        model: of which the parameters that require gradients are trained.
        matrices: "muon" (Jordan et al. 2024) or "adamw" for those inside the blocks.
        rates: peak rates.
        betas: of AdamW.
        weight_decay: of the matrices inside the blocks alone.
        bf16: whether Muon may compute in it.

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
        muon = torch.optim.Muon if bf16 else SinglePrecisionMuon
        out.append(muon([settings.pop(0)], adjust_lr_fn="original"))
    if settings:
        out.append(torch.optim.AdamW(settings, betas=betas, fused=True))
    return out


def lr_factor(step: int, steps: int, schedule: str, warmup: int, decay: float = 0.0, final: float = 0.0) -> float:
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

    def forget(self) -> None:
        """The steps before are no measure of those to come."""
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
