"""Checkpoints: whole or not there, exact, for any number of ranks."""

import errno
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from train.runtime import checkpoints as module
from train.runtime.checkpoint_files import Writer
from train.runtime.checkpoint_state import ModelAndOptimizers, RandomState
from train.runtime.checkpoints import Checkpoints


def network(width: int = 4, seed: int = 0) -> nn.Sequential:
    """A matrix that Muon trains, one that is frozen, a layer for AdamW."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, width, bias=False), nn.Linear(width, 4), nn.Linear(4, 4))
    model[1].requires_grad_(False)
    return model


def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    one, _, two = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return [
        torch.optim.Muon([one.weight], 0.02, 0.1, adjust_lr_fn="original"),
        torch.optim.AdamW(two.parameters(), 0.01, betas=(0.9, 0.95), weight_decay=0.1, fused=True),
    ]


def train(model: nn.Module, by: list[torch.optim.Optimizer], first: int, last: int) -> None:
    for step in range(first, last):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        for optimizer in by:
            optimizer.step()
            optimizer.zero_grad()


def contents(model: nn.Module, by: list[torch.optim.Optimizer]) -> dict[str, Any]:
    found: dict[str, Any] = {name: whole(value) for name, value in model.state_dict().items()}
    for i, optimizer in enumerate(by):
        for j, state in optimizer.state_dict()["state"].items():
            found |= {f"{i}.{j}.{name}": whole(value) for name, value in state.items()}
    return found


def whole(value: Any) -> Tensor:
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Checkpoints]]:
    made: list[Checkpoints] = []

    def make(**options: Any) -> Checkpoints:
        made.append(Checkpoints(tmp_path / "checkpoints", **options))
        return made[-1]

    yield make
    for checkpoints in made:
        checkpoints._saving = None
        checkpoints._pool.shutdown()


def tensor(value: float, size: int = 3) -> dict[str, Any]:
    return {"part": {"x": torch.full((size,), float(value))}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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


def killed(work: Callable[[], None]) -> None:
    """Do it in a child that must be killed on the way."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("moment", ["in the middle of a file", "before the index", "before the name", "after the name"])
def test_what_a_killed_save_leaves_is_never_loaded(
    make: Callable[..., Checkpoints], tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
):
    make(async_save=False).save(1, tensor(1))
    rename, real = os.rename, torch.save

    def torn(value: Any, stream: Any) -> None:
        real(value, stream)
        stream.raw.flush()
        die()

    with monkeypatch.context() as patch:
        if moment == "in the middle of a file":
            patch.setattr(torch, "save", torn)
        elif moment == "before the index":
            patch.setattr(Writer, "finish", die)
        elif moment == "before the name":
            patch.setattr(os, "rename", lambda a, b: die() if str(a).endswith(".unfinished") else rename(a, b))
        else:
            patch.setattr(os, "rename", lambda a, b: (rename(a, b), str(a).endswith(".unfinished") and die()))
        killed(lambda: make(async_save=False).save(2, tensor(2)))
    whole = 2 if moment == "after the name" else 1
    assert len(names(tmp_path / "checkpoints")) == 2  # what was cut off lies there
    checkpoints, parts = make(), tensor(0)
    assert checkpoints.load(parts) == whole
    assert parts["part"]["x"].tolist() == [whole] * 3
    assert names(tmp_path / "checkpoints") == [f"step-{step:08}" for step in range(1, whole + 1)]
    checkpoints.save(3, tensor(3))
    checkpoints.wait()
    assert checkpoints.load(tensor(0)) == 3


def test_a_failed_rename_is_told_at_the_next_save(
    make: Callable[..., Checkpoints], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    checkpoints = make()
    checkpoints.save(1, tensor(1))
    checkpoints.wait()

    def fails(a: Any, b: Any) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fails)
        checkpoints.save(2, tensor(2))
        with pytest.raises(OSError, match="step-00000002 could not be written .*the disk is gone.*untouched"):
            checkpoints.save(3, tensor(3))
    assert names(tmp_path / "checkpoints") == ["step-00000001"]
    checkpoints.save(3, tensor(3))
    assert checkpoints.load(tensor(0)) == 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("ignore_save_errors", [False, True])
def test_a_full_disk_leaves_the_old_checkpoint(small_disk: Path, ignore_save_errors: bool):
    with Checkpoints(small_disk, ignore_save_errors=ignore_save_errors) as checkpoints:
        checkpoints.save(1, tensor(1, 50_000))
        checkpoints.save(2, tensor(2, 300_000))
        if ignore_save_errors:
            with pytest.warns(UserWarning, match="No space left on device.*the training goes on"):
                checkpoints.save(3, tensor(3, 50_000))
        else:
            with pytest.raises(OSError, match=r"step-00000002 could not .*No space left on device.*make room"):
                checkpoints.wait()
            checkpoints.save(3, tensor(3, 50_000))
    assert names(small_disk) == ["step-00000001", "step-00000003"]


def test_a_writer_that_finds_no_space_is_told_without_a_small_disk_too(
    make: Callable[..., Checkpoints], monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Writer, "write_data", full)
    with pytest.raises(OSError, match="No space left on device"):
        make(async_save=False).save(1, tensor(1))
    checkpoints = make()
    checkpoints.save(1, tensor(1))
    with pytest.warns(UserWarning, match="No space left"):  # it must not hide what ended the run
        assert not checkpoints.__exit__(KeyboardInterrupt)


def damage(folder: Path, how: str) -> None:
    data = folder / "__0_0.distcp"
    content = bytearray(data.read_bytes())
    if how == "cut":
        data.write_bytes(content[:-10])
    elif how == "flipped":
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    else:
        (folder / how).unlink()


@pytest.mark.parametrize("how", ["cut", "flipped", ".metadata", "manifest.json", "values.json", "__0_0.distcp"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(make: Callable[..., Checkpoints], tmp_path: Path, how: str):
    with make() as checkpoints:
        checkpoints.save(1, tensor(1))
        checkpoints.save(2, tensor(2))
    damage(tmp_path / "checkpoints" / "step-00000002", how)
    parts = tensor(0)
    checkpoints = make()
    with pytest.warns(UserWarning, match="step-00000002 is damaged .*moved to .*damaged"):
        assert checkpoints.load(parts) == 1
    assert parts["part"]["x"].tolist() == [1, 1, 1]
    checkpoints.save(2, tensor(5))  # the run comes to that step again
    assert checkpoints.load(parts) == 2
    assert parts["part"]["x"].tolist() == [5, 5, 5]


def test_if_none_can_be_read_the_run_does_not_start_afresh(make: Callable[..., Checkpoints], tmp_path: Path):
    with make() as checkpoints:
        checkpoints.save(1, tensor(1))
    damage(tmp_path / "checkpoints" / "step-00000001", "cut")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match="none of the 1 checkpoints"):
        make().load(tensor(0))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"part": {"x": torch.zeros(4)}}, r"part.x is \[3\] torch.float32 there and \[4\] torch.float32 here"),
        ({"part": {"x": torch.zeros(3).half()}}, r"part.x is \[3\] torch.float32 there and \[3\] torch.float16 here"),
        ({"part": {"x": torch.zeros(3), "y": torch.zeros(1)}}, r"part.y is missing there and \[1\] torch.float32 here"),
        ({"part": {}}, r"part.x is \[3\] torch.float32 there and missing here"),
        ({"part": {"x": torch.zeros(3)}, "ema": {}}, "ema is missing there and a part here"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused_before_anything_changes(
    make: Callable[..., Checkpoints], parts: dict[str, Any], message: str, tmp_path: Path
):
    with make() as checkpoints:
        checkpoints.save(1, tensor(1))
        with pytest.raises(ValueError, match=rf"another architecture: {message}; start in another folder"):
            checkpoints.load(parts)
    assert all(not value.any() for value in parts["part"].values())
    assert names(tmp_path / "checkpoints") == ["step-00000001"]


def test_another_width_or_optimizer_is_named(make: Callable[..., Checkpoints]):
    model = network()
    with make() as checkpoints:
        checkpoints.save(1, {"lm": ModelAndOptimizers(model, optimizers(model))})
        wide = network(6)
        with pytest.raises(ValueError, match=r"lm.model.0.weight is \[4, 4\] .* there and \[6, 4\]"):
            checkpoints.load({"lm": ModelAndOptimizers(wide, optimizers(wide))})
        adamw = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.01)
        with pytest.raises(ValueError, match=r"lm.optimizers.state.0.weight.step is missing there.* and 1 more;"):
            checkpoints.load({"lm": ModelAndOptimizers(model, [adamw])})


def test_an_index_that_would_run_code_is_refused(make: Callable[..., Checkpoints], tmp_path: Path):
    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "ran"),)

    with make() as checkpoints:
        checkpoints.save(1, tensor(1))
    folder = tmp_path / "checkpoints" / "step-00000001"
    (folder / ".metadata").write_bytes(pickle.dumps(Evil()))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] |= module.facts(folder, ".metadata")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="asks for posix.mkdir"):
        make().load(tensor(0))
    assert not (tmp_path / "ran").exists()


def test_mistakes_are_told_at_the_start(make: Callable[..., Checkpoints], monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="keep is 0"):
        make(keep=0)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="WORLD_SIZE is 4, but the process group has 1 ranks"):
        make()
