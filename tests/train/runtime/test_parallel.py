"""Processes find each other, or it is said why not; one process is a world of one."""

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn

from train.runtime.distributed import collecting, gathered, launched, parallelized, summed, together, whole_state


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(key, raising=False)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def test_one_process_is_a_world_of_one():
    accelerator = launched()
    assert (accelerator.num_processes, accelerator.process_index, accelerator.is_main_process) == (1, 0, True)
    assert launched(1).num_processes == 1


def test_a_world_size_that_nobody_launched_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(
        ValueError,
        match="WORLD_SIZE is 4, but RANK, LOCAL_RANK, MASTER_ADDR are not set: start with torchrun --nproc_per_node 4",
    ):
        launched()


def test_another_number_of_processes_than_asked_for_is_refused():
    with pytest.raises(ValueError, match="1 processes train together, not 2: .*torchrun"):
        launched(2)


def test_one_process_keeps_its_module_and_its_values():
    accelerator, module = launched(), nn.Linear(2, 2)
    assert all(parallelized(module, accelerator, kind, True) is module for kind in ("ddp", "fsdp"))
    with collecting(module, False):
        module(torch.ones(1, 2)).sum().backward()
    assert module.weight.grad is not None
    values = torch.ones(2)
    assert summed(values) is values and values.tolist() == [1, 1] and gathered(values) is values
    assert together(accelerator, 7) == [7]


def test_whole_state_is_a_copy():
    tensors = {"a": nn.Parameter(torch.zeros(2))}
    copy = whole_state(dict(tensors))
    copy["a"] += 1
    assert tensors["a"].tolist() == [0, 0] and not copy["a"].requires_grad
