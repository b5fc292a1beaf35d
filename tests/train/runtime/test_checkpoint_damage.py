"""Checkpoints whose writing was broken off, and checkpoints that are damaged or another model's."""

import errno
import json
import os
import pickle
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import damage, names, network, optimizers, tensor
from train.runtime import checkpoints as module
from train.runtime.checkpoint_files import Writer
from train.runtime.checkpoint_state import ModelAndOptimizers
from train.runtime.checkpoints import Checkpoints


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
