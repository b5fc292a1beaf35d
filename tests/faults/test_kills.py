"""kill -9 at random moments: nothing is ever left that cannot be loaded, and the end is the same to the last bit."""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attempts import Child, Truth, answer, model_hash, snapshot, trail, train, truth_of
from train.language.config import LMConfig
from train.runtime.checkpoint_files import DAMAGED
from train.runtime.checkpoints import UNFINISHED
from train.runtime.config import override

pytestmark = pytest.mark.faults

KILLS = 200
IN_SAVE = 60
FAMILY = 0.75  # share of the kills that take the loader workers along
SETTINGS = {  # and each one's share of the kills
    "plain": ({}, 0.35),
    "loader workers": ({"data.workers": 2}, 0.3),
    "muon, ema, a save every other step": (
        {"optim.matrix_optimizer": "muon", "optim.ema_decay": 0.5, "checkpoint.every": 2},
        0.15,
    ),
    "saves that the training waits for": ({"checkpoint.async_save": False}, 0.2),
}


@dataclass
class Tally:
    """What became of the kills.

    Attributes:
        in_save: those that left an unfinished checkpoint of a step that no complete one has.
        places: what that one held.
        unloadable: newest checkpoints that could not be loaded, or are not bit-equal to the uninterrupted run's.
    """

    kills: int = 0
    in_save: int = 0
    runs: int = 0
    starts: int = 0
    unloadable: int = 0
    seconds: float = 0.0
    places: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module")
def tallies(account: dict[str, Any]) -> Iterator[dict[str, Tally]]:
    found: dict[str, Tally] = {}
    yield found
    account["kills"] = {name: asdict(tally) for name, tally in found.items()}


def names(out: Path) -> list[str]:
    folder = out / "checkpoints"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def complete(out: Path) -> int:
    """Step of the newest complete checkpoint; 0 where there is none."""
    return max((int(name[5:]) for name in names(out) if name[5:].isdigit()), default=0)


def being_written(out: Path) -> str:
    """Name of an unfinished checkpoint that is not an old one on its way out."""
    steps = [name for name in names(out) if name.endswith(UNFINISHED)]
    return next((name for name in steps if int(name[5:13]) > complete(out)), "")


def wait_for_save(child: Child, out: Path, saves: int) -> bool:
    """Until that many saves have begun. Whether the child still runs."""
    seen = set()
    while child.poll() is None:
        if name := being_written(out):
            seen.add(name)
            if len(seen) > saves:
                return True
        time.sleep(0.0005)
    return False


def uninterrupted(config: LMConfig, folder: Path) -> Truth:
    folder.mkdir(parents=True)
    started = time.monotonic()
    Child(folder / "whole.log", train, override(config, {"checkpoint.keep": 99}), folder / "whole").done()
    return truth_of(folder / "whole", time.monotonic() - started)


def check_state(out: Path, truth: Truth, config: LMConfig, tally: Tally) -> None:
    """After a kill: what is there can be loaded, is what it should be, and little is lost."""
    newest, logged = complete(out), max((row[0] for row in trail(out)), default=0)
    found = answer(out.parent, snapshot, out / "checkpoints")
    if newest and (found is None or found != truth.snapshots[newest]):
        tally.unloadable += 1
        raise AssertionError(f"step {newest}: {found}, want {truth.snapshots[newest]}")
    assert not any(DAMAGED in name for name in names(out))
    assert logged - newest <= 2 * config.checkpoint.every, f"step {logged} was logged, but {newest} is what is left"


def check_end(out: Path, truth: Truth, config: LMConfig, tally: Tally) -> None:
    """After the run has ended: weights, optimizer, order of samples and log are those of the uninterrupted run."""
    tally.runs += 1
    assert trail(out) == truth.trail
    found = answer(out.parent, snapshot, out / "checkpoints")
    assert found == truth.snapshots[config.steps]
    assert model_hash(out) == truth.model


def torment(config: LMConfig, folder: Path, kills: int, in_save: int, tally: Tally, seed: int) -> None:
    """Run after run, each killed over and over, until there were enough kills."""
    rng, truth, started = np.random.default_rng(seed), uninterrupted(config, folder), time.monotonic()
    assert truth.model and [row[0] for row in truth.trail if row[1]] == list(range(1, config.steps + 1))
    assert max(row[4] or 0 for row in truth.trail) > 1, "the run must pass the end of an epoch"
    assert len(truth.snapshots) == config.steps // config.checkpoint.every
    number = 0
    while True:
        out, before = folder / f"run-{number}", complete(folder / f"run-{number}")
        child, ran = Child(out.with_suffix(".log"), train, config, out), False
        tally.starts += 1
        enough = tally.kills >= kills and tally.in_save >= in_save
        if enough:
            child.done()
        elif rng.random() < 0.45:
            if wait_for_save(child, out, int(rng.integers(0, 4))):
                time.sleep(rng.random() * 0.03)
                ran = child.kill(family=rng.random() < FAMILY)
        else:
            end = time.monotonic() + rng.random() * truth.seconds * (1 - 0.6 * before / config.steps)
            while time.monotonic() < end and child.poll() is None:
                time.sleep(0.001)
            ran = child.kill(family=rng.random() < FAMILY)
        if ran:
            tally.kills += 1
            if name := being_written(out):
                tally.in_save += 1
                held = " ".join(sorted(path.name for path in (out / "checkpoints" / name).iterdir())) or "nothing"
                tally.places[held] = tally.places.get(held, 0) + 1
            wait_for_orphans(child)
            check_state(out, truth, config, tally)
            continue
        child.done()
        check_end(out, truth, config, tally)
        number += 1
        if enough:
            break
    tally.seconds = round(time.monotonic() - started, 1)


def wait_for_orphans(child: Child) -> None:
    """Loader workers notice that the training process is gone."""
    end = time.monotonic() + 30
    while child.orphans():
        assert time.monotonic() < end, f"loader workers outlive their run:\n{child.log.read_text()[-2000:]}"
        time.sleep(0.01)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_killed_anywhere_goes_on_to_the_same_bits(
    config: LMConfig, tmp_path: Path, tallies: dict[str, Tally], name: str
):
    settings, share = SETTINGS[name]
    tally = tallies[name] = Tally()
    seed = list(SETTINGS).index(name)
    torment(override(config, settings), tmp_path / "runs", round(KILLS * share), round(IN_SAVE * share), tally, seed)
    assert tally.unloadable == 0


def test_there_were_enough_kills(tallies: dict[str, Tally]):
    if len(tallies) < len(SETTINGS):
        pytest.skip("not all settings were run")
    print(json.dumps({name: asdict(tally) for name, tally in tallies.items()}, indent=1))
    assert sum(tally.kills for tally in tallies.values()) >= KILLS
    assert sum(tally.in_save for tally in tallies.values()) >= IN_SAVE
    assert sum(tally.unloadable for tally in tallies.values()) == 0


@pytest.mark.parametrize("left", ["nothing", "a part"])
def test_a_run_killed_between_its_last_checkpoint_and_its_model_still_gets_one(
    config: LMConfig, tmp_path: Path, left: str
):
    config = override(config, {"steps": 2, "eval.every": 0})
    truth = uninterrupted(config, tmp_path / "runs")
    out = tmp_path / "runs" / "cut"
    child = Child(tmp_path / "cut.log", train, config, out)
    while complete(out) < 2:
        assert child.poll() is None, child.log.read_text()
        time.sleep(0.0005)
    child.kill()
    shutil.rmtree(out / "model", ignore_errors=True)  # where the kill came late
    if left == "a part":
        shutil.rmtree(out / "model.unfinished", ignore_errors=True)
        (out / "model.unfinished").mkdir()
        (out / "model.unfinished" / "config.json").write_text("{")
    Child(tmp_path / "cut.log", train, config, out).done()
    assert model_hash(out) == truth.model


def test_a_run_killed_while_it_takes_rows_of_the_log_back_keeps_the_others(config: LMConfig, tmp_path: Path):
    def die(path: Path, text: str, **_: Any) -> int:
        with path.open("w") as file:
            if not path.name.startswith("log"):
                return file.write(text)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")

    out, log = tmp_path / "cut", tmp_path / "log"
    Child(log, train, replace(config, steps=2), out).done()
    before = trail(out)
    assert Child(log, train, config, out, lambda: setattr(Path, "write_text", die)).wait() == -signal.SIGKILL
    Child(log, train, replace(config, steps=2), out).done()
    assert before and trail(out) == before
