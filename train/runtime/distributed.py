"""One process or many: launch, DDP and FSDP, collective operations.

DDP comes from accelerate. Sharding is PyTorch's own fully_shard (FSDP2), block by block: accelerate's does not engage
on a CPU, where the tests run.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

KINDS = ("ddp", "fsdp")


def launched(processes: int = 0, trackers: tuple[str, ...] = (), folder: str = ".") -> Accelerator:
    """Join the processes that torchrun or accelerate started.

    Args:
        processes: number of processes that there must be; 0 = any.
        trackers: "tensorboard", "wandb", "trackio" ...
        folder: where the trackers write.

    Raises:
        ValueError: another number of processes, a WORLD_SIZE without a launcher, or a tracker that is not installed.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size > 1 and (lacking := [key for key in ("RANK", "LOCAL_RANK", "MASTER_ADDR") if key not in os.environ]):
        raise ValueError(
            f"WORLD_SIZE is {size}, but {', '.join(lacking)} are not set: start with torchrun "
            f"--nproc_per_node {size} -m train.lm ..., or unset WORLD_SIZE"
        )
    if lacking := sorted({*trackers} - (here := {str(tracker) for tracker in get_available_trackers()})):
        raise ValueError(
            f"log.trackers: {', '.join(lacking)} is not known or not installed: choose from what is here, "
            f"{', '.join(sorted(here)) or 'none'}, or install it"
        )
    meet_again()
    patience = InitProcessGroupKwargs(timeout=timedelta(minutes=30))
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no",
        kwargs_handlers=[patience],
        log_with=list(trackers) or None,
        project_dir=folder,
    )
    if (found := accelerator.num_processes) != (processes or max(size, found)):
        raise ValueError(
            f"{found} processes train together, not {processes or size}: accelerate launch --cpu starts "
            "one whatever it is told; use ACCELERATE_USE_CPU=true torchrun"
        )
    return accelerator


def left(accelerator: Accelerator) -> None:
    """Leave the process group at the end of a run: otherwise gloo's threads may abort the process as it exits.

    The next run of this process joins anew.
    """
    if dist.is_initialized() and not accelerator.state.fork_launched:
        dist.barrier()
        # Gloo's threads drop the tensors of their last work under Python's lock, which PyTorch 2.13 holds while it
        # destroys the group and waits for these threads: they are given the time before.
        time.sleep(0.2)
        dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


def meet_again() -> None:
    """Let processes that torchrun has restarted join under new names.

    PyTorch 2.13 keeps one store over restarts, in which gloo would find the addresses of the processes that died.
    """
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if not restarts or dist.is_initialized() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() != "true"
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world, False)  # pyright: ignore[reportPrivateImportUsage]
    named = dist.PrefixStore(f"restart {restarts}", store)  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group(
        "nccl" if gpu else "gloo", store=named, rank=rank, world_size=world, timeout=timedelta(minutes=30)
    )


def parallelized(learner: nn.Module, accelerator: Accelerator, kind: str, bf16: bool) -> nn.Module:
    """Return the module to call in training: `learner` itself, in DDP, or sharded in place.

    Args:
        learner: on its device, with its weights; its blocks' class is named in `_no_split_modules` of a module in it.
        accelerator: the processes.
        kind: "ddp" or "fsdp"; without effect for one process.
        bf16: whether sharded parameters are gathered in bf16 (gradients are reduced in fp32).
    """
    if accelerator.num_processes == 1:
        return learner
    if kind == "fsdp":
        names = {name for module in learner.modules() for name in getattr(module, "_no_split_modules", None) or ()}
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        policy = MixedPrecisionPolicy(torch.bfloat16 if bf16 else None, torch.float32)
        for module in [module for module in learner.modules() if type(module).__name__ in names]:
            fully_shard(module, mesh=mesh, mp_policy=policy)
        # A batch's weights stay in fp32: in bf16, 0.1 is 0.1001.
        fully_shard(learner, mesh=mesh, mp_policy=replace(policy, cast_forward_inputs=False))
        return learner
    return accelerator.prepare_model(learner)


@contextlib.contextmanager
def until_signalled() -> Iterator[list[bool]]:
    """Yield [False], which becomes [True] when the process gets SIGTERM; the signal does not end the process."""
    asked = [False]
    if threading.current_thread() is not threading.main_thread():  # signals reach that one alone
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.__setitem__(0, True))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def collecting(model: nn.Module, last: bool) -> Iterator[None]:
    """Context of a micro-batch's backward pass: gradients are exchanged after the last one only."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        yield
    elif isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    else:
        yield


def summed(values: Tensor) -> Tensor:
    """Return the sum over all processes."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def gathered(value: Tensor) -> Tensor:
    """Return a tensor that may be sharded, whole on each process."""
    return cast(Tensor, value.full_tensor()) if isinstance(value, DTensor) else value


def whole_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return whole copies on the CPU, in the main process. Every process must call it; the others get {}."""
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = gathered(tensor.detach())
        if not dist.is_initialized() or dist.get_rank() == 0:
            whole[name] = full.to("cpu", copy=True)
    return whole


def together(accelerator: Accelerator, value: Any) -> list[Any]:
    """Return the values of all processes, by rank."""
    if accelerator.num_processes == 1:
        return [value]
    out: list[Any] = [None] * accelerator.num_processes
    dist.all_gather_object(out, value)
    return out
