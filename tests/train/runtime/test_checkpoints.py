"""Checkpoints: what is saved comes back, and a resumed run is the one that was not stopped."""

import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from checkpoints import contents, names, network, optimizers, same, tensor, train
from train.runtime.checkpoint_files import Writer
from train.runtime.checkpoint_state import ModelAndOptimizers, RandomState
from train.runtime.checkpoints import Checkpoints


@pytest.mark.parametrize("stop", [0, 3])
def test_a_resumed_run_is_the_one_that_was_not_stopped(make: Callable[..., Checkpoints], stop: int):
    model = network()
    by = optimizers(model)
    train(model, by, 0, 6)
    expected = contents(model, by)

    model = network()
    by = optimizers(model)
    train(model, by, 0, stop)
    by[0].param_groups[0]["lr"] = 0.03125
    with make() as checkpoints:
        checkpoints.save(stop, {"lm": ModelAndOptimizers(model, by)})
        by[0].param_groups[0]["lr"] = 0.02
        train(model, by, stop, 6)
    assert same(contents(model, by), expected)  # saving changes nothing

    model = network(seed=1)
    by = optimizers(model)
    assert make().load({"lm": ModelAndOptimizers(model, by)}) == stop
    assert by[0].param_groups[0]["lr"] == 0.03125
    assert by[1].param_groups[0]["betas"] == (0.9, 0.95)
    by[0].param_groups[0]["lr"] = 0.02
    train(model, by, stop, 6)
    assert same(contents(model, by), expected)


def test_reading_the_state_changes_no_byte_of_the_weights():
    model = network()
    with torch.no_grad():
        next(model.parameters())[0, 0] = -0.0
    before = contents(model, [])["0.weight"]
    ModelAndOptimizers(model, optimizers(model)).state_dict()
    assert torch.equal(contents(model, [])["0.weight"].view(torch.int32), before.view(torch.int32))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_tied_weights_and_a_compiled_model_load_into_a_bare_one(make: Callable[..., Checkpoints]):
    def tied(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        layer = nn.Linear(4, 4, bias=False)
        other = nn.Linear(4, 4, bias=False)
        other.weight = layer.weight
        return nn.Sequential(layer, other)

    model = tied(0)
    adamw = torch.optim.AdamW(model.parameters(), 0.1)
    train(model, [adamw], 0, 2)
    with make() as checkpoints:
        checkpoints.save(1, {"lm": ModelAndOptimizers(torch.compile(model), [adamw])})  # pyright: ignore
    other = tied(1)
    other_adamw = torch.optim.AdamW(other.parameters(), 0.1)
    make().load({"lm": ModelAndOptimizers(other, [other_adamw])})
    train(model, [adamw], 2, 4)
    train(other, [other_adamw], 2, 4)
    assert other[1].weight is other[0].weight
    assert same(contents(model, [adamw]), contents(other, [other_adamw]))


def test_a_save_holds_the_state_at_its_call(make: Callable[..., Checkpoints], monkeypatch: pytest.MonkeyPatch):
    go, real = threading.Event(), Writer.write_data

    def late(self: Writer, *args: Any) -> Any:
        assert go.wait(20)
        return real(self, *args)

    monkeypatch.setattr(Writer, "write_data", late)
    parts = {"part": {"x": torch.arange(6.0).view(2, 3), "view": torch.arange(10)[2:5], "n": 1, "list": [1]}}
    with make() as checkpoints:
        checkpoints.save(1, parts)
        parts["part"]["x"].zero_()
        parts["part"]["view"].zero_()
        parts["part"]["list"].append(2)
        go.set()
        checkpoints.wait()
        assert checkpoints.load(parts) == 1
    assert parts["part"]["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert parts["part"]["view"].tolist() == [2, 3, 4]
    assert parts["part"]["list"] == [1]


@pytest.mark.parametrize("async_save", [True, False])
def test_values_and_tensors_come_back_as_they_were(make: Callable[..., Checkpoints], async_save: bool):
    values = {
        "int": 2**70,
        "float": 0.1,
        "inf": float("inf"),
        "text": "ä\ud800",
        "none": None,
        "yes": True,
        "list": [1, [2.5, "x"]],
        "tuple": (1, (2, []), {"a": (3,)}),
        "no": {},
        "in": {"a": {"b": 1}},
    }
    tensors = {
        "b": torch.tensor([1.5, -0.0], dtype=torch.bfloat16),
        "i": torch.tensor(7),
        "e": torch.empty(0, 3),
        "c": torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last),
        "t": torch.tensor(True),
    }
    tracker = nn.BatchNorm1d(3)
    tracker(torch.randn(4, 3))
    parts = {"mixed": {**values, "inner": tensors}, "norm": tracker, "alone": torch.tensor([5.0]), "best": 2.5}
    with make(async_save=async_save) as checkpoints:
        checkpoints.save(7, parts)
        blank = {key: torch.zeros_like(value) for key, value in tensors.items()}
        fresh = nn.BatchNorm1d(3)
        other = {"mixed": {"inner": blank}, "norm": fresh, "alone": torch.zeros(1), "best": 0.0}
        assert checkpoints.load(other) == 7
    assert other["mixed"].pop("inner") == blank
    assert other["mixed"] == values
    assert other["best"] == 2.5
    assert other["alone"].item() == 5
    assert same(blank, tensors) and blank["b"].view(torch.int16)[1] == tensors["b"].view(torch.int16)[1]
    assert same(fresh.state_dict(), tracker.state_dict())


def test_the_random_generators_go_on_where_they_were(make: Callable[..., Checkpoints]):
    def draw() -> list[float]:
        return [random.random(), random.gauss(), np.random.rand(), np.random.randn(), torch.rand(()).item()]

    draw()
    with make() as checkpoints:
        checkpoints.save(1, {"random": RandomState()})
        expected = draw()
        checkpoints.wait()
        draw()
        checkpoints.load({"random": RandomState()})
    assert draw() == expected


def test_the_writing_thread_draws_no_random_numbers(make: Callable[..., Checkpoints]):
    states = RandomState().state_dict()
    with make() as checkpoints:
        checkpoints.save(1, tensor(1))
    assert RandomState().state_dict() == states


def test_random_states_of_other_ranks_are_left_with_a_warning(monkeypatch: pytest.MonkeyPatch):
    saved = RandomState().state_dict() | {"ranks": 2}
    torch.rand(3)
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match="of 2 ranks, this run has 1"):
        RandomState().load_state_dict(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_checkpoint_nothing_is_loaded(make: Callable[..., Checkpoints]):
    parts = tensor(3)
    assert make().load(parts) is None
    assert parts["part"]["x"].tolist() == [3, 3, 3]


def test_the_newest_stay_and_the_permanent(make: Callable[..., Checkpoints], tmp_path: Path):
    with make(keep=2) as checkpoints:
        for step in (1, 2, 3, 10, 11):
            checkpoints.save(step, tensor(step), permanent=step == 2)
    assert names(tmp_path / "checkpoints") == ["step-00000002", "step-00000010", "step-00000011"]
    assert make().load(tensor(0)) == 11


def test_a_step_that_is_there_stays_as_it_is(make: Callable[..., Checkpoints], tmp_path: Path):
    with make(keep=1) as checkpoints:
        checkpoints.save(1, tensor(1))
        checkpoints.save(1, tensor(2), permanent=True)
        checkpoints.save(2, tensor(2))
    assert names(tmp_path / "checkpoints") == ["step-00000001", "step-00000002"]
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000002")
    parts = tensor(0)
    assert make().load(parts) == 1
    assert parts["part"]["x"].tolist() == [1, 1, 1]
