"""Two ranks, killed one at a time: the other ends too, and both go on to the same bits."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attempts import Child, Truth, answer, model_hash, ranks, snapshot, trail, truth_of
from checkout import ROOT
from tests.faults.test_kills import being_written, check_state, complete
from train.language.config import LMConfig
from train.runtime.config import override

pytestmark = pytest.mark.faults

KILLS = 12
PATIENCE = 20.0  # seconds; torchrun gives the others 30 after SIGTERM, then kills them


@dataclass
class Tally:
    """`alone`: ranks that ended by themselves after the other was killed, without SIGTERM or SIGKILL."""

    kills: int = 0
    in_save: int = 0
    runs: int = 0
    unloadable: int = 0
    alone: int = 0
    seconds: float = 0.0


@pytest.fixture(scope="module")
def tally(account: dict[str, Any]) -> Iterator[Tally]:
    found = Tally()
    yield found
    account["ranks"] = asdict(found)


@pytest.fixture(scope="module")
def two(config: LMConfig) -> LMConfig:
    return override(config, {"steps": 8, "eval.every": 0})


@pytest.fixture(scope="module")
def truth(two: LMConfig, tmp_path_factory: pytest.TempPathFactory) -> Truth:
    """Of the uninterrupted run on two ranks."""
    out, started = tmp_path_factory.mktemp("two") / "whole", time.monotonic()
    for child in ranks(override(two, {"checkpoint.keep": 99}), out):
        child.done()
    return truth_of(out, time.monotonic() - started)


def end(other: Child) -> bool:
    """What torchrun does with the ranks that are left. Whether it was not needed."""
    for number, patience in ((None, PATIENCE), (signal.SIGTERM, PATIENCE)):
        if number:
            other.send(number)
        limit = time.monotonic() + patience
        while time.monotonic() < limit:
            if other.poll() is not None:
                return number is None
            time.sleep(0.005)
    other.kill()
    return False


def test_ranks_killed_one_at_a_time_go_on_to_the_same_bits(two: LMConfig, truth: Truth, tmp_path: Path, tally: Tally):
    rng, started, number = np.random.default_rng(11), time.monotonic(), 0
    assert truth.model and [row[0] for row in truth.trail] == list(range(1, 9))
    while True:
        out = tmp_path / f"run-{number}"
        children, victim = ranks(two, out), tally.kills % 2
        first, in_save = complete(out), rng.random() < 0.5
        limit = time.monotonic() + rng.random() * truth.seconds * (1 - 0.5 * first / two.steps)
        wanted = rng.integers(0, 3)
        while tally.kills < KILLS and children[victim].poll() is None:
            if time.monotonic() > limit and not in_save:
                break
            if in_save and (name := being_written(out)) and int(name[5:13]) > first + wanted:
                break
            time.sleep(0.0005)
        if tally.kills < KILLS and children[victim].kill():
            tally.kills += 1
            tally.in_save += bool(being_written(out))
            tally.alone += end(children[1 - victim])
            check_state(out, truth, two, tally)  # pyright: ignore[reportArgumentType]
            continue
        for child in children:
            child.done()
        tally.runs += 1
        assert trail(out) == truth.trail
        assert answer(tmp_path, snapshot, out / "checkpoints") == truth.snapshots[two.steps]
        assert model_hash(out) == truth.model
        number += 1
        if tally.kills >= KILLS:
            break
    tally.seconds = round(time.monotonic() - started, 1)
    assert tally.in_save > 1


def torchrun(two: LMConfig, truth: Truth, folder: Path, share: bool) -> dict[str, Any]:
    """A run under torchrun, one of whose ranks is killed. Returns what became of it.

    Args:
        two: of the run.
        truth: of the uninterrupted one.
        folder: to work in.
        share: let the restarted ranks use torchrun's own store, with what the killed ones left in it.
    """
    out, log = folder / "out", folder / "log"
    usual, ours = asdict(LMConfig()), asdict(two)
    overrides = [
        f"{key}={json.dumps(value)}"
        for key, value in ours.items()
        if value != usual[key] and not isinstance(value, dict)
    ]
    overrides += [
        f"{group}.{key}={json.dumps(value)}"
        for group, values in ours.items()
        if isinstance(values, dict)
        for key, value in values.items()
        if value != usual[group].get(key)
    ]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "--max-restarts",
        "1",
        "--monitor-interval",
        "0.2",
        "-m",
        "train.lm",
        "--out",
        str(out),
        *overrides,
    ]
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "0" if share else "1",
    }
    started = time.monotonic()
    with log.open("w") as file:
        run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        while complete(out) < 3:
            assert run.poll() is None and time.monotonic() < started + 200, log.read_text()[-4000:]
            time.sleep(0.001)
        workers = [int(path.parent.name) for path in processes() if parent(path) == run.pid]
        assert len(workers) == 2, workers
        os.kill(workers[1], signal.SIGKILL)
        left = complete(out)
        assert run.wait(200) == 0, log.read_text()[-4000:]
    finally:
        if run.poll() is None:
            run.terminate()  # it ends its ranks, which have sessions of their own
            try:
                run.wait(60)
            except subprocess.TimeoutExpired:
                for pid in [*(int(path.parent.name) for path in processes() if parent(path) == run.pid), run.pid]:
                    os.kill(pid, signal.SIGKILL)
    assert left < two.steps, "killed too late to show it"
    assert trail(out) == truth.trail
    assert answer(folder, snapshot, out / "checkpoints") == truth.snapshots[two.steps]
    assert model_hash(out) == truth.model
    return {"killed after step": left, "seconds": round(time.monotonic() - started, 1)}


def test_torchrun_starts_the_ranks_again_after_one_was_killed(
    two: LMConfig, truth: Truth, tmp_path: Path, account: dict[str, Any]
):
    account["torchrun"] = torchrun(two, truth, tmp_path, share=False)


def test_torchrun_with_its_usual_store_does_too(two: LMConfig, truth: Truth, tmp_path: Path, account: dict[str, Any]):
    account["torchrun, usual store"] = "failed"
    account["torchrun, usual store"] = torchrun(two, truth, tmp_path, share=True)


def processes() -> Iterator[Path]:
    return Path("/proc").glob("[0-9]*/stat")


def parent(stat: Path) -> int:
    """Of a process; 0 where it is gone."""
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
