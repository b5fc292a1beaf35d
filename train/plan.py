"""What a run will take, before it starts: parameters, memory, speed, hours; and the best number of rows at once.

python -m train.plan                                     # the named sizes: parameters, compute, memory
python -m train.lm --data data/mine --dry-run            # one run, measured on this machine
python -m train.lm --data data/mine --find-batch
"""

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
import typer
from accelerate.utils.memory import should_reduce_batch_size
from rich.console import Console
from rich.table import Table
from torch import nn

from cm3.config import PRESETS, CM3Config
from cm3.transformer import CM3ForCausalLM
from cm3.vocab import Vocab
from train.loss import Learner
from train.packing import Batch, Rows, Steps
from train.precision import autocast, uses_bf16
from train.recipe import Config, image_tokenizer_of, learner_of, lora_of, objective_of, optimizers_of
from train.shards import Shards, read_meta
from train.starting import add_lora

GIB = 2**30
# Dense bf16 peaks in FLOP/s, from the makers' data sheets.
PEAKS = {"B200": 2.25e15, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}


class Memory(NamedTuple):
    """Bytes on each device: weights, gradients, optimisers' state, averaged weights."""

    weights: int
    gradients: int
    optimizers: int
    average: int


class Speed(NamedTuple):
    """seconds: of a forward and backward pass. saved: bytes of activations kept for the backward pass."""

    seconds: float
    saved: int


def matrix_parameters(config: CM3Config) -> int:
    """Parameters that every token is multiplied with: all but embeddings and norms; a tied head counts."""
    assert config.intermediate_size and config.num_key_value_heads and config.vocab_size
    d, kv = config.hidden_size, config.num_key_value_heads * config.head_dim
    mlp = (3 if config.activation == "swiglu" else 2) * d * config.intermediate_size
    return config.num_hidden_layers * (2 * d * d + 2 * d * kv + mlp) + d * config.vocab_size


def flops_per_token(config: CM3Config, row: int) -> float:
    """Forward and backward: 6 for each such parameter, and attention over the whole row (Chowdhery et al. 2022, PaLM,
    appendix B). Recomputed activations do not count."""
    return 6 * matrix_parameters(config) + 12 * config.num_hidden_layers * config.hidden_size * row


def muon_flops(config: CM3Config) -> float:
    """Of a step of Muon: five Newton-Schulz iterations of three products for each matrix inside the blocks."""
    assert config.intermediate_size and config.num_key_value_heads
    d, kv = config.hidden_size, config.num_key_value_heads * config.head_dim
    wide = [(config.intermediate_size, d)] * (3 if config.activation == "swiglu" else 2)
    sides = [sorted(shape) for shape in [(d, d)] * 2 + [(kv, d)] * 2 + wide]
    return config.num_hidden_layers * sum(5 * (2 * m * m * n + 2 * m**3 + 2 * m * m * n) for m, n in sides)


def step_flops(config: CM3Config, row: int, tokens: int, optimizers: Iterable[torch.optim.Optimizer]) -> float:
    """FLOPs of a step on `tokens` tokens, padding included. AdamW's are left out: a few for each parameter."""
    muon = any(isinstance(one, torch.optim.Muon) for one in optimizers)
    return tokens * flops_per_token(config, row) + (muon_flops(config) if muon else 0)


def utilisation(config: CM3Config, row: int, tokens_per_second: float, device: torch.device) -> dict[str, float]:
    """{"mfu": share of the device's peak in bf16} where the peak is known, else nothing."""
    if device.type != "cuda":
        return {}
    name = torch.cuda.get_device_name(device)
    peak = next((peak for key, peak in PEAKS.items() if key in name), None)
    return {"mfu": tokens_per_second * flops_per_token(config, row) / peak} if peak else {}


def memory(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], average: bool, shards: int) -> Memory:
    """Bytes on each device before the first activation.

    Args:
        model: with its trained parameters asking for gradients.
        optimizers: one state a parameter for Muon, two for AdamW.
        average: whether averaged weights are kept.
        shards: devices that share all of it; 1 = each holds everything.
    """
    every = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    states = sum(
        p.numel() * p.element_size() * (1 if isinstance(one, torch.optim.Muon) else 2)
        for one in optimizers
        for group in one.param_groups
        for p in group["params"]
    )
    return Memory(*(-(-size // shards) for size in (every, trained, states, trained if average else 0)))


def measure(learner: Learner, batch: Batch, config: Config, device: torch.device, repeats: int = 3) -> Speed:
    """A forward and backward pass of one batch, after one to warm up."""
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    mine = {p.untyped_storage().data_ptr() for p in learner.parameters()}
    seconds = []
    for i in range(1 + repeats):
        started = time.perf_counter()
        with autocast(config.precision, device):
            if i:
                total = learner(batch).total
            else:
                with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                    total = learner(batch).total
        total.backward()
        learner.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return Speed(min(seconds[1:]), sum(size for place, size in saved.items() if place not in mine))


def free_memory(device: torch.device) -> int:
    """Bytes."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def outline(config: Config, meta: dict[str, Any]) -> CM3ForCausalLM | None:
    """The run's model without memory, for a preset; None where it starts from another model."""
    if config.start:
        return None
    with torch.device("meta"):
        return CM3ForCausalLM(CM3Config.preset(config.preset, **{**meta["vocab"], **config.model}))


def plan_run(config: Config, find: bool) -> dict[str, Any]:
    """Print what the run will take on this machine, measured on its first rows; with `find`, for 1, 2, 4 ... rows at
    once. Returns the figures. Raises ValueError for what would stop the run itself."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    world = config.processes or int(os.environ.get("WORLD_SIZE", 1))
    per_rank = config.rows(world)
    meta = read_meta(Path(config.data))
    console = Console(highlight=False)
    ghost = outline(config, meta)
    spread = world if config.parallel == "fsdp" else 1
    if ghost is not None:
        if lora_of(config).rank:
            add_lora(ghost, lora_of(config), config.seed)
        held = memory(ghost, optimizers_of(ghost, config, device), config.ema > 0, 1)
        if sum(held) > 0.8 * free_memory(device):
            figures = facts(config, ghost, held, spread, device)
            console.print(table(figures))
            print(json.dumps(figures))
            console.print(
                f"not measured: weights, gradients and optimisers take {sum(held) / GIB:.1f} GiB on one "
                f"device, and {free_memory(device) / GIB:.1f} GiB are free here"
            )
            return figures
    shards = Shards(config.data, verify=False, max_bad=config.max_bad)
    image_tokenizer = image_tokenizer_of(config, meta)
    learner = learner_of(config, meta, image_tokenizer, device).learner
    model = learner.model
    rows = Rows(shards, Vocab.from_config(model.config), objective_of(config), config.row, config.seed, config.window)
    held = memory(learner, optimizers_of(learner, config, device), config.ema > 0, 1)
    figures = facts(config, model, held, spread, device)
    choices = [config.micro_rows or per_rank]
    if find:
        choices = sorted({*(2**i for i in range(per_rank.bit_length())), per_rank})
    tried: list[dict[str, float]] = []
    for micro in choices:
        part = Steps(rows, micro, micro)[0].parts[0]
        try:
            speed = measure(learner, Batch(*(array.to(device) for array in part)), config, device)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            console.print(f"{micro} rows at once do not fit into memory")
            break
        tried.append(
            {
                "micro_rows": micro,
                "tokens_per_second": micro * config.row / speed.seconds,
                "activations_gib": speed.saved / GIB,
            }
        )
        if find and 2 * speed.saved > 0.8 * free_memory(device):
            break
    if not tried:
        raise ValueError(f"not even {choices[0]} rows of {config.row} tokens fit: set recompute=true or a shorter row")
    fastest = max(one["tokens_per_second"] for one in tried)
    best = next(one for one in tried if one["tokens_per_second"] > 0.97 * fastest)
    step = timed_step(learner, config, device)
    passes = config.batch_tokens / world / best["tokens_per_second"]
    figures |= best | {
        "seconds_per_step": passes + step,
        "passes_per_second": best["tokens_per_second"],
        "optimizer_seconds": step,
        "tokens_per_second": config.batch_tokens / world / (passes + step),
        "hours": config.steps * (passes + step) / 3600,
        "tried": tried,
    }
    console.print(table(figures))
    print(json.dumps(figures))
    return figures


def presets() -> Table:
    """The named sizes: what each takes on one device, and on each of 8 and 32 that share it (parallel=fsdp)."""
    out = Table(
        box=None,
        title="weights, gradients and optimisers (Muon and AdamW, fp32), GiB a device; activations come on top",
    )
    for column in ("preset", "parameters", "row", "GFLOP/token", "alone", "of 8", "of 32"):
        out.add_column(column, justify="left" if column == "preset" else "right")
    for name in PRESETS:
        with torch.device("meta"):
            model = CM3ForCausalLM(CM3Config.preset(name))
        config = Config(preset=name, matrices="muon")
        row = model.config.max_position_embeddings
        some = optimizers_of(model, config, torch.device("cpu"))
        held = [sum(memory(model, some, False, devices)) / GIB for devices in (1, 8, 32)]
        count = sum(p.numel() for p in model.parameters())
        out.add_row(
            name,
            f"{count / 1e6:,.1f} M",
            str(row),
            f"{flops_per_token(model.config, row) / 1e9:,.3g}",
            *(f"{size:,.2f}" for size in held),
        )
    return out


def timed_step(learner: Learner, config: Config, device: torch.device) -> float:
    """Seconds of the optimisers' step; the weights are good for nothing else afterwards."""
    some = optimizers_of(learner, config, device)
    for parameter in learner.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3) if parameter.requires_grad else None
    times = []
    for _ in range(2):
        started = time.perf_counter()
        for one in some:
            one.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return times[-1]


def facts(config: Config, model: CM3ForCausalLM, held: Memory, spread: int, device: torch.device) -> dict[str, Any]:
    """What is known without running."""
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "flops_per_token": flops_per_token(model.config, config.row),
        "tokens": config.steps * config.batch_tokens,
        **{f"{name}_gib": size / spread / GIB for name, size in held._asdict().items()},
        "bf16": uses_bf16(config.precision, device),
    }


def table(figures: dict[str, Any]) -> Table:
    out = Table(box=None, show_header=False, title="what the run will take, on each device")
    for key, value in figures.items():
        if key == "tried":
            for one in value:
                out.add_row(
                    f"  {one['micro_rows']:g} rows at once",
                    f"{one['tokens_per_second']:,.0f} tokens/s, {one['activations_gib']:.2f} GiB of activations",
                )
        else:
            out.add_row(key.replace("_", " "), f"{value:,.3g}" if isinstance(value, float) else f"{value:,}")
    return out


def main() -> None:
    Console().print(presets())


if __name__ == "__main__":
    typer.run(main)
