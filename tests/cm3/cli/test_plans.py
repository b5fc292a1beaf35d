"""The `cm3` command with a model that plans: plans are printed, kept in the file, and given."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cm3.cli import main as cli
from planner import ALONE, BLUE, CAT, PAIR

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cm3(
    planning_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run a command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(task: str, *args: str) -> tuple[int, str, str]:
        usual = ["--model", str(planning_folder), "--seed", "0", "--temperature", "0"]
        usual += ["--variety", "0"] if task == "generate" else []
        monkeypatch.setattr(sys, "argv", ["cm3", task, *usual, *args])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        out, err = capsys.readouterr()
        return int(exit.value.code or 0), out, err

    return run


def test_the_plan_is_printed_and_kept_in_the_file(cm3: Run):
    code, out, err = cm3("generate", "a cat on blue", "-n", "2")
    assert (code, out) == (0, "out.png\n")
    assert err.count(f"plan: {BLUE}\n") == 1
    assert Image.open("out.png").text["plan"] == f"{BLUE}\n{BLUE}"  # pyright: ignore[reportAttributeAccessIssue]


def test_json_has_the_plan_of_each_image(cm3: Run):
    code, out, _ = cm3("generate", "a cat", "-n", "2", "-o", "{i}.png", "--json")
    assert code == 0 and json.loads(out)["plans"] == [CAT, CAT]
    assert Image.open("1.png").text["plan"] == CAT  # pyright: ignore[reportAttributeAccessIssue]


def test_a_plan_is_given(cm3: Run):
    code, out, _ = cm3("generate", "-n", "1", "--plan", ALONE, "--json")
    assert code == 0 and json.loads(out)["plans"] == [ALONE]


def test_without_planning_there_is_no_plan(cm3: Run):
    code, out, err = cm3("generate", CAT, "-n", "1", "--no-planning", "--json")
    assert code == 0 and "plans" not in json.loads(out) and "plan:" not in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--plan", CAT, "--no-planning"), "contradict each other"),
        (("--plan", "a cat, a dog"), "two things stand at one place"),
        (("--plan", ""), "no plan"),
    ],
)
def test_plans_that_cannot_be_drawn_are_refused_in_one_line(cm3: Run, args: tuple[str, ...], message: str):
    code, out, err = cm3("generate", "a cat", "-n", "1", *args)
    assert (code, out) == (2, "") and message in err and err.strip().count("\n") == 0


def test_an_edit_prints_the_new_plan(cm3: Run):
    assert cm3("generate", "--plan", PAIR, "-n", "1", "-o", "source.png", "--scale", "1")[0] == 0
    code, out, err = cm3("edit", "source.png", "remove the dog")
    assert (code, out) == (0, "out.png\n") and f"plan: {ALONE}\n" in err
