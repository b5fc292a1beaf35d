"""What a run takes on this machine, before it starts: parameters, memory, speed, hours."""

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size
from rich.console import Console
from rich.table import Table
from torch import nn

from cm3.model.config import PRESETS, CM3Config
from cm3.model.transformer import CM3ForCausalLM
from cm3.tokens.vocab import Vocab
from train.documents.shard_files import read_meta
from train.documents.shards import Shards
from train.language.config import LMConfig
from train.language.lora import add_lora
from train.language.loss import LMLearner
from train.language.packing import Batch, PackedSequences, Steps
from train.language.setup import image_tokenizer_of, learner_of, optimizers_of
from train.runtime.config import override
from train.runtime.flops import flops_per_token
from train.runtime.precision import autocast, uses_bf16

GIB = 2**30


class TrainingMemory(NamedTuple):
    """Bytes on each device: weights, gradients, optimizer state, averaged weights."""

    weights: int
    gradients: int
    optimizers: int
    average: int


class Speed(NamedTuple):
    """A forward and backward pass.

    Attributes:
        seconds: its time.
        saved: bytes of activations that are kept for the backward pass.
    """

    seconds: float
    saved: int


def training_memory(
    model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], average: bool, shards: int
) -> TrainingMemory:
    """Return the bytes on each device before the first activation.

    Args:
        model: its trained parameters require gradients.
        optimizers: Muon keeps one state a parameter, AdamW two.
        average: whether averaged weights are kept.
        shards: number of devices that share all of it; 1 = each holds everything.
    """
    every = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    states = sum(
        p.numel() * p.element_size() * (1 if isinstance(one, torch.optim.Muon) else 2)
        for one in optimizers
        for group in one.param_groups
        for p in group["params"]
    )
    return TrainingMemory(*(-(-size // shards) for size in (every, trained, states, trained if average else 0)))


def measure(learner: LMLearner, batch: Batch, config: LMConfig, device: torch.device, repeats: int = 3) -> Speed:
    """Time forward and backward passes of one batch; the first is not timed."""
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
    """Return the free memory of a device in bytes."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def outline(config: LMConfig, meta: dict[str, Any]) -> CM3ForCausalLM | None:
    """Return the run's model on the meta device; None where the run starts from another model."""
    if config.start:
        return None
    with torch.device("meta"):
        return CM3ForCausalLM(CM3Config.preset(config.preset, **{**meta["vocab"], **config.model}))


def plan_run(config: LMConfig, find: bool) -> dict[str, Any]:
    """Measure the run on its first sequences, and print what it takes on this machine.

    Args:
        config: of the run.
        find: whether to try micro-batches of 1, 2, 4 ... sequences.

    Returns:
        The figures.

    Raises:
        ValueError: what would stop the run itself.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    world = config.distributed.processes or int(os.environ.get("WORLD_SIZE", 1))
    per_rank = config.sequences(world)
    meta = read_meta(Path(config.data.folder))
    console = Console(highlight=False)
    ghost = outline(config, meta)
    spread = world if config.distributed.strategy == "fsdp" else 1
    if ghost is not None:
        if config.lora.rank:
            add_lora(ghost, config.lora, config.seed)
        held = training_memory(ghost, optimizers_of(ghost, config, device), config.optim.ema_decay > 0, 1)
        if sum(held) > 0.8 * free_memory(device):
            figures = facts(config, ghost, held, spread, device)
            console.print(plan_table(figures))
            print(json.dumps(figures))
            console.print(
                f"not measured: weights, gradients and optimizer state take {sum(held) / GIB:.1f} GiB on one "
                f"device, and {free_memory(device) / GIB:.1f} GiB are free here"
            )
            return figures
    shards = Shards(config.data.folder, verify=False, max_bad=config.data.max_bad_fraction)
    image_tokenizer = image_tokenizer_of(config, shards)
    learner = learner_of(config, meta, image_tokenizer, device).learner
    model = learner.model
    sequences = PackedSequences(
        shards,
        Vocab.from_config(model.config),
        config.objective,
        config.data.seq_len,
        config.seed,
        config.data.packing_window,
    )
    held = training_memory(learner, optimizers_of(learner, config, device), config.optim.ema_decay > 0, 1)
    figures = facts(config, model, held, spread, device)
    choices = [config.micro_batch_size or per_rank]
    if find:
        choices = sorted({*(2**i for i in range(per_rank.bit_length())), per_rank})
    tried: list[dict[str, float]] = []
    for micro in choices:
        part = Steps(sequences, micro, micro)[0].parts[0]
        try:
            speed = measure(learner, part.to(device), config, device)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            console.print(f"a micro-batch of {micro} sequences does not fit into memory")
            break
        tried.append(
            {
                "micro_batch_size": micro,
                "tokens_per_second": micro * config.data.seq_len / speed.seconds,
                "activations_gib": speed.saved / GIB,
            }
        )
        if find and 2 * speed.saved > 0.8 * free_memory(device):
            break
    if not tried:
        raise ValueError(
            f"not even {choices[0]} sequences of {config.data.seq_len} tokens fit: set "
            "activation_checkpointing=true or lower data.seq_len"
        )
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
    console.print(plan_table(figures))
    print(json.dumps(figures))
    return figures


def presets() -> Table:
    """Return a table of the presets: what each takes on one device, and on each of 8 and 32 with FSDP."""
    out = Table(
        box=None,
        title="weights, gradients and optimizer state (Muon and AdamW, fp32), GiB a device; activations come on top",
    )
    for column in ("preset", "parameters", "seq_len", "GFLOP/token", "one device", "each of 8", "each of 32"):
        out.add_column(column, justify="left" if column == "preset" else "right")
    for name in PRESETS:
        with torch.device("meta"):
            model = CM3ForCausalLM(CM3Config.preset(name))
        config = override(LMConfig(), {"preset": name, "optim.matrix_optimizer": "muon"})
        seq_len = model.config.max_position_embeddings
        some = optimizers_of(model, config, torch.device("cpu"))
        held = [sum(training_memory(model, some, False, devices)) / GIB for devices in (1, 8, 32)]
        count = sum(p.numel() for p in model.parameters())
        out.add_row(
            name,
            f"{count / 1e6:,.1f} M",
            str(seq_len),
            f"{flops_per_token(model.config, seq_len) / 1e9:,.3g}",
            *(f"{size:,.2f}" for size in held),
        )
    return out


def timed_step(learner: LMLearner, config: LMConfig, device: torch.device) -> float:
    """Time the optimizers' step, in seconds. The weights cannot be used afterwards."""
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


def facts(
    config: LMConfig, model: CM3ForCausalLM, held: TrainingMemory, spread: int, device: torch.device
) -> dict[str, Any]:
    """Return the figures that are known without a measurement."""
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "flops_per_token": flops_per_token(model.config, config.data.seq_len),
        "tokens": config.steps * config.batch_tokens,
        **{f"{name}_gib": size / spread / GIB for name, size in held._asdict().items()},
        "bf16": uses_bf16(config.precision, device),
    }


def plan_table(figures: dict[str, Any]) -> Table:
    """Return the figures as a table."""
    out = Table(box=None, show_header=False, title="what the run takes, on each device")
    for key, value in figures.items():
        if key == "tried":
            for one in value:
                out.add_row(
                    f"  micro-batch of {one['micro_batch_size']:g} sequences",
                    f"{one['tokens_per_second']:,.0f} tokens/s, {one['activations_gib']:.2f} GiB of activations",
                )
        else:
            out.add_row(key.replace("_", " "), f"{value:,.3g}" if isinstance(value, float) else f"{value:,}")
    return out
