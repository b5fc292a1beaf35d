"""Checkpoints of several ranks: they become another number of ranks, and all hear of the failure of one. Slow: each
process loads PyTorch anew."""

import errno
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from checkpoints import contents, damage, names, network, optimizers, same, train
from train.runtime import checkpoints as module
from train.runtime.checkpoint_files import Writer
from train.runtime.checkpoint_state import ModelAndOptimizers, RandomState
from train.runtime.checkpoints import Checkpoints

pytestmark = pytest.mark.slow


def ranks_run(work: Callable[..., None], count: int, *args: Any) -> None:
    """Start the ranks and end them all, whatever happens."""
    meet = tempfile.mktemp(prefix="meet-")
    running: Any = torch.multiprocessing.spawn(one_rank, (work, count, meet, *args), count, join=False)  # pyright: ignore
    try:
        until = time.monotonic() + 120
        while not running.join(timeout=1):
            assert time.monotonic() < until, f"{work.__name__} hangs"
    finally:
        for process in running.processes:
            process.kill()


def one_rank(rank: int, work: Callable[..., None], count: int, meet: str, *args: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meet}", rank=rank, world_size=count, timeout=timedelta(seconds=60)
    )
    assert dist.get_world_size() == count == 2
    try:
        work(*args)
    finally:
        dist.destroy_process_group()


def wrapped(model: nn.Sequential, how: str) -> nn.Module:
    if how == "ddp":
        return DistributedDataParallel(model)
    from torch.distributed.fsdp import fully_shard

    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    return model


def first_part(folder: Path, how: str) -> None:
    bare = network(5)  # 5 rows do not fall evenly on 2 ranks
    model = wrapped(bare, how)
    by = optimizers(bare)
    train(model, by, 0, 3)
    parts = {"lm": ModelAndOptimizers(model, by), "random": RandomState(), "mine": {"rank": dist.get_rank()}}
    saved = contents(bare, by)  # on all ranks: it gathers
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(3, parts)
        train(model, by, 3, 6)
    state = contents(bare, by)
    if dist.get_rank() == 0:
        torch.save((saved, state), folder / "expected.pt")


def second_part(folder: Path, how: str, step: int) -> None:
    bare = network(5, seed=1)
    model = wrapped(bare, how)
    by = optimizers(bare)
    parts = {"lm": ModelAndOptimizers(model, by), "random": RandomState(), "mine": {"rank": -1}}
    with Checkpoints(folder / "checkpoints") as checkpoints:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert checkpoints.load(parts) == step
        reported = [str(one.message) for one in said if "random states of 1 ranks, this run has 2" in str(one.message)]
        if step == 3:
            assert parts["mine"]["rank"] == dist.get_rank()
            assert not reported
        else:
            assert parts["mine"]["rank"] == 0
            assert len(reported) == (dist.get_rank() == 0)
    train(model, by, step, 6)
    state = contents(bare, by)
    if dist.get_rank() == 0:
        torch.save(state, folder / f"resumed-{step}.pt")


@pytest.mark.parametrize("how", ["fsdp", "ddp"])
def test_two_ranks_become_one_and_two_again(tmp_path: Path, how: str):
    ranks_run(first_part, 2, tmp_path, how)
    saved, expected = torch.load(tmp_path / "expected.pt")
    ranks_run(second_part, 2, tmp_path, how, 3)
    assert same(torch.load(tmp_path / "resumed-3.pt"), expected)

    model = network(5, seed=2)
    by = optimizers(model)
    parts = {"lm": ModelAndOptimizers(model, by), "random": RandomState(), "mine": {"rank": -1}}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        with pytest.warns(UserWarning, match="random states of 2 ranks, this run has 1"):
            assert checkpoints.load(parts) == 3
        assert parts["mine"] == {"rank": 0}
        assert same(contents(model, by), saved)
        train(model, by, 3, 4)
        checkpoints.save(4, parts)
        train(model, by, 4, 6)
    for name, value in contents(model, by).items():
        torch.testing.assert_close(value, expected[name], rtol=0.05, atol=0.01)  # Muon computes in bf16

    ranks_run(second_part, 2, tmp_path, how, 4)
    for name, value in torch.load(tmp_path / "resumed-4.pt").items():
        torch.testing.assert_close(value, expected[name], rtol=0.05, atol=0.01)  # Muon computes in bf16


def one_rank_fails(folder: Path) -> None:
    real = Writer.write_data

    def full(self: Writer, *args: Any) -> Any:
        if dist.get_rank() == 1:
            try:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                raise OSError(module.reason(error)) from error
        return real(self, *args)

    parts = {"part": {f"x{i}": torch.full((3,), 1.0) for i in range(4)}}
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(1, parts)
    checkpoints.wait()
    Writer.write_data = full  # pyright: ignore[reportAttributeAccessIssue]
    checkpoints.save(2, parts)
    dist.all_reduce(torch.ones(1))  # the training goes on meanwhile
    with pytest.raises(OSError, match=r"rank 1: \[Errno 28\] No space left on device"):
        checkpoints.wait()
    Writer.write_data = real
    checkpoints.save(3, parts)
    checkpoints.wait()
    assert checkpoints.load(parts) == 3
    dist.barrier()
    assert names(folder / "checkpoints") == ["step-00000001", "step-00000003"]
    dist.barrier()
    if dist.get_rank() == 0:
        damage(folder / "checkpoints" / "step-00000003", ".metadata")
    dist.barrier()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert checkpoints.load(parts) == 1
    assert any("damaged" in str(one.message) for one in said) == (dist.get_rank() == 0)


def test_all_ranks_hear_of_the_failure_of_one(tmp_path: Path):
    ranks_run(one_rank_fails, 2, tmp_path)
    assert (tmp_path / "checkpoints" / "step-00000003.damaged").is_dir()
