"""The oldest releases, with which `make test-oldest` runs the tests."""

import runpy
import tomllib

import pytest

from checkout import ROOT

floors = runpy.run_path(str(ROOT / ".ci" / "floors.py"))["floors"]


def test_every_dependency_of_the_package_its_extras_and_groups_has_a_floor():
    found = floors(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    assert {"torch", "uvloop", "fastapi", "peft", "pytest-xdist"} <= set(found)  # of all kinds, one with a marker
    assert "cm3leon" not in found


def test_extras_of_its_own_and_markers_are_no_part_of_a_floor():
    project = {
        "name": "own",
        "dependencies": ["one>=1,<2"],
        "optional-dependencies": {"more": ["two[x]>=2.1; a == 'b'"]},
    }
    groups = {"dev": ["own[more]", {"include-group": "other"}], "other": ["three>=3"]}
    assert floors({"project": project, "dependency-groups": groups}) == {"one": "1", "two": "2.1", "three": "3"}


def test_a_dependency_without_a_floor_is_named():
    project = {"name": "own", "dependencies": ["one==1"], "optional-dependencies": {}}
    with pytest.raises(ValueError, match="'one==1' must be NAME>=FLOOR"):
        floors({"project": project, "dependency-groups": {}})
