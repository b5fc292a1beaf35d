"""The log of a run: its rows, what a resume takes back, and the trackers."""

import json
from pathlib import Path

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from train.runtime.distributed import launched
from train.runtime.runlog import RunLog, flat, rounded, take_back


def reset() -> None:
    """accelerate keeps one state for a whole process."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture(autouse=True)
def _one_process() -> None:
    reset()


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def write(out: Path, first: int, steps: list[int], accelerator: Accelerator | None = None) -> None:
    with RunLog("lm", out, first, 10, accelerator or Accelerator(cpu=True)) as log:
        for step in steps:
            log.write({"step": step, "loss": {"answer": 1.0 / step}, "digest": 7})
            log.show(step, "words")
        log.say("[left out]: x")


def test_rows_are_lines_of_json_with_six_places(tmp_path: Path):
    write(tmp_path, 0, [1, 3])
    assert rows(tmp_path) == [
        {"step": 1, "loss": {"answer": 1.0}, "digest": 7},
        {"step": 3, "loss": {"answer": 0.333333}, "digest": 7},
    ]
    assert rounded({"a": {"b": 1 / 3}, "c": "x"}) == {"a": {"b": 0.333333}, "c": "x"}


def test_a_resume_takes_back_the_rows_of_later_steps_and_a_line_that_was_cut_off(tmp_path: Path):
    write(tmp_path, 0, [1, 2, 3, 4])
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 2, "held_out": {"all": 1.5}}\n{"step": 5, "lo')
    write(tmp_path, 2, [3])
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 2, 3]
    take_back(tmp_path / "nowhere.jsonl", 3)


def test_what_is_said_may_hold_brackets(tmp_path: Path, capsys: pytest.CaptureFixture):
    write(tmp_path, 0, [1])
    assert "[left out]: x" in capsys.readouterr().out


def test_numbers_of_a_row_are_flat_and_the_rest_is_left_out():
    row = {"step": 3, "loss": {"answer": 1.0, "deep": {"er": 2}}, "skipped": "spike", "on": True, "list": [1]}
    assert flat(row) == {"step": 3, "loss/answer": 1.0, "loss/deep/er": 2}


def test_tensorboard_gets_the_scalars_and_forgets_those_of_steps_that_run_again(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, 0, [1, 2, 3], launched(0, ("tensorboard",), str(tmp_path)))
    reset()
    write(tmp_path, 2, [3], launched(0, ("tensorboard",), str(tmp_path)))
    (event, *_) = sorted(tmp_path.rglob("events.out.tfevents.*"))
    read = EventAccumulator(str(event.parent))
    read.Reload()
    assert {"loss/answer", "digest"} <= {*read.Tags()["scalars"]}
    assert [scalar.step for scalar in read.Scalars("loss/answer")] == [1, 2, 3]


@pytest.mark.parametrize("tracker", ["tensorbord", "comet_ml"])
def test_a_tracker_that_is_unknown_or_not_installed_is_named(tmp_path: Path, tracker: str):
    with pytest.raises(ValueError, match=rf"{tracker} is not known or not installed: choose .*tensorboard") as error:
        launched(0, ("tensorboard", tracker), str(tmp_path))
    assert "\n" not in str(error.value)
