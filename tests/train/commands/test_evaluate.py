"""The command of all evaluations: its table of suites, and what it says to a wrong one."""

import sys
from pathlib import Path

import pytest

from train import evaluate

FOLDER = Path(evaluate.__file__).parent / "evaluation" / "suites"


def test_every_suite_is_in_the_table():
    assert sorted(evaluate.SUITES) == sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("suite", evaluate.SUITES)
def test_every_suite_has_options_with_help(suite: str):
    options = evaluate.command(suite).params
    assert options and all(option.help for option in options)


def test_a_suite_that_does_not_exist_is_named_with_the_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["evaluate", "nothing"])
    with pytest.raises(SystemExit, match="evaluate: there is no suite 'nothing': choose tokenizer, "):
        evaluate.main()


def test_without_a_suite_all_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["evaluate"])
    evaluate.main()
    assert set(evaluate.SUITES) <= set(capsys.readouterr().out.split())
