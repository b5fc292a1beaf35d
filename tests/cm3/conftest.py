"""A model that plans, trained once for all tests that need it."""

from pathlib import Path

import pytest

from cm3 import CM3
from planner import planner


@pytest.fixture(scope="session")
def planning() -> CM3:
    """A tiny model of the form "plan" that knows a small world by heart (tests/helpers/planner.py)."""
    return planner()


@pytest.fixture(scope="session")
def planning_folder(planning: CM3, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "planning"
    planning.save_pretrained(folder)
    return folder
