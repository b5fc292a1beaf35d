"""A disk that is full in a save: the checkpoint before it stays, and the run says so and goes on or ends, as told."""

import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from attempts import Child, Truth, answer, model_hash, snapshot, trail, train, truth_of
from tests.faults.test_kills import complete, names
from train.language.config import LMConfig
from train.runtime.checkpoints import UNFINISHED
from train.runtime.config import override

pytestmark = pytest.mark.faults

CHECKPOINT = 570_000  # bytes, about


@pytest.fixture(scope="module")
def short(config: LMConfig) -> LMConfig:
    return override(config, {"steps": 5, "eval.every": 0, "checkpoint.keep": 1})


@pytest.fixture(scope="module")
def truth(short: LMConfig, tmp_path_factory: pytest.TempPathFactory) -> Truth:
    """Of a run with room enough."""
    folder = tmp_path_factory.mktemp("room")
    Child(folder / "log", train, override(short, {"checkpoint.keep": 99}), folder / "whole").done()
    return truth_of(folder / "whole", 0)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with room for one checkpoint and a half."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={CHECKPOINT * 3 // 2}", "none", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True) if shutil.which("mount") else None
    if done is None or done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip() if done else 'no mount command'}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def small_files() -> None:
    """No file may be as large as a checkpoint's; a larger one gives OSError (EFBIG)."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (CHECKPOINT // 2, CHECKPOINT // 2))


def checked(out: Path, truth: Truth, folder: Path, step: int) -> None:
    """What is there is the checkpoint of `step`, whole, and nothing else."""
    assert names(out) == [f"step-{step:08}"] and answer(folder, snapshot, out / "checkpoints") == truth.snapshots[step]


@pytest.mark.parametrize("async_save", [True, False])
def test_a_run_ends_where_a_checkpoint_cannot_be_written_and_the_same_command_goes_on_later(
    short: LMConfig, truth: Truth, disk: Path, tmp_path: Path, async_save: bool
):
    config, out = override(short, {"checkpoint.async_save": async_save}), tmp_path / "out"
    out.mkdir()
    (out / "checkpoints").symlink_to(disk, target_is_directory=True)
    child = Child(tmp_path / "log", train, config, out)
    assert child.wait() == 1
    said = (tmp_path / "log").read_text()
    assert "No space left on device" in said and "older checkpoints are untouched" in said
    checked(out, truth, tmp_path, 1)
    subprocess.run(["mount", "-o", f"remount,size={CHECKPOINT * 4}", str(disk)], check=True)  # room is made
    Child(tmp_path / "log", train, config, out).done()
    assert trail(out) == truth.trail and model_hash(out) == truth.model
    checked(out, truth, tmp_path, short.steps)


def test_a_run_goes_on_where_it_is_told_to(short: LMConfig, truth: Truth, disk: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "checkpoints").symlink_to(disk, target_is_directory=True)
    Child(tmp_path / "log", train, override(short, {"checkpoint.ignore_save_errors": True}), out).done()
    said = (tmp_path / "log").read_text()
    assert said.count("the training goes on") == short.steps - 1 and "No space left on device" in said
    checked(out, truth, tmp_path, 1)
    assert trail(out) == truth.trail and model_hash(out) == truth.model


@pytest.mark.parametrize("ignore_save_errors", [True, False])
def test_a_file_that_may_not_grow_is_like_a_full_disk(
    short: LMConfig, truth: Truth, tmp_path: Path, ignore_save_errors: bool
):
    out, config = tmp_path / "out", override(short, {"checkpoint.ignore_save_errors": ignore_save_errors})
    Child(tmp_path / "log", train, replace(config, steps=2), out).done()
    shutil.rmtree(out / "model")
    child = Child(tmp_path / "log", train, config, out, small_files)
    assert child.wait() == (0 if ignore_save_errors else 1)
    said = (tmp_path / "log").read_text()
    assert "File too large" in said and "older checkpoints are untouched" in said
    assert ("the training goes on" in said) == ignore_save_errors
    assert names(out) == ["step-00000002"]
    if ignore_save_errors:
        assert [row[0] for row in trail(out)] == [1, 2, 3, 4, 5] and model_hash(out)
    Child(tmp_path / "log", train, config, out).done()
    assert complete(out) == short.steps and not any(name.endswith(UNFINISHED) for name in names(out))


@pytest.mark.parametrize("ignore_save_errors", [True, False])
def test_a_disk_that_is_full_for_all_files_stops_the_run_or_lets_it_go_on_as_configured(
    short: LMConfig, truth: Truth, disk: Path, tmp_path: Path, ignore_save_errors: bool
):
    """The log cannot be written either; nor the model, if there is no room at the end of a run that goes on."""
    out, ballast = disk / "out", disk / "ballast"
    subprocess.run(["mount", "-o", f"remount,size={CHECKPOINT * 6}", str(disk)], check=True)
    child = Child(
        tmp_path / "log",
        train,
        override(short, {"steps": 400, "checkpoint.ignore_save_errors": ignore_save_errors}),
        out,
    )
    while complete(out) < 2:
        assert child.poll() is None, (tmp_path / "log").read_text()
    with suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(bytes(65536))
    ended = child.wait()
    said = (tmp_path / "log").read_text()
    assert "No space left on device" in said and ("the training goes on" in said) == ignore_save_errors
    assert ended == 1 or ignore_save_errors
    assert (ended == 1) == said.splitlines()[-1].startswith("OSError")
    ballast.unlink()
    left = complete(out)
    found = answer(tmp_path, snapshot, out / "checkpoints")
    assert found and found.step == left >= 2
