"""Configs: defaults, then a TOML file, then overrides; every mistake one clear ValueError."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from train import lm
from train.runtime import config as configs
from train.vq.config import ImageTokenizerConfig


@dataclass(frozen=True)
class Run:
    steps: int = 10
    lr: float = 1e-3
    name: str = "run"
    fast: bool = False
    betas: tuple[float, float] = (0.9, 0.95)
    model: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def toml(tmp_path: Path):
    def write(text: str) -> Path:
        (tmp_path / "run.toml").write_text(text, encoding="utf-8")
        return tmp_path / "run.toml"

    return write


def test_nothing_given_gives_the_defaults():
    assert configs.load(Run) == Run()


def test_a_bare_name_is_one_of_the_configs_that_are_here():
    assert configs.load(lm.LMConfig, Path("lm_canvas")).preset == "emoji-256"
    with pytest.raises(ValueError, match="config nothing"):
        configs.load(lm.LMConfig, Path("nothing"))


def test_a_file_replaces_defaults_and_overrides_replace_the_file(toml):
    file = toml('steps = 20\nlr = 2\nname = "تجربة"\nbetas = [0.8, 0.9]\n[model]\nwidth = 64\ndepth = 2\n')
    config = configs.load(Run, file, ["steps=30", "model.width=128", "fast=true"])
    assert config == Run(30, 2.0, "تجربة", True, (0.8, 0.9), {"width": 128, "depth": 2})
    assert isinstance(config.lr, float)


def test_a_dotted_override_needs_no_table_in_the_file():
    assert configs.load(Run, None, ["model.rope.theta=1e4"]).model == {"rope": {"theta": 1e4}}


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("name=words", "words"),
        ("name='5'", "5"),
        ("name=a=b", "a=b"),
        ("lr=3e-4", 3e-4),
        ("betas=[0, 0.5]", (0, 0.5)),
    ],
)
def test_overrides_are_toml_and_bare_words_strings(override: str, value: Any):
    assert getattr(configs.load(Run, None, [override]), override.split("=")[0]) == value


@pytest.mark.parametrize("override", ["step=3", "optimizer.lr=3", "=3"])
def test_unknown_keys_are_named_with_the_known_ones(override: str):
    with pytest.raises(ValueError, match=r"unknown config keys: .*; known: steps, lr, name"):
        configs.load(Run, None, [override])


def test_unknown_keys_of_a_file_are_named(toml):
    with pytest.raises(ValueError, match="unknown config keys: setps, speed"):
        configs.load(Run, toml("setps = 3\nspeed = 1\n"))


@pytest.mark.parametrize(
    "override",
    [
        "steps=many",
        "steps=1.5",
        "steps=true",
        "lr=fast",
        "lr=true",
        "fast=1",
        "name=5",
        "betas=0.9",
        "model=5",
        "steps.one=1",
        "model=big",
    ],
)
def test_values_of_another_type_are_refused_by_name(override: str):
    name = override.partition("=")[0].partition(".")[0]
    with pytest.raises(ValueError, match=f"config {name} = .*: want"):
        configs.load(Run, None, [override])


def test_a_table_cannot_be_reached_through_a_value(toml):
    with pytest.raises(ValueError, match=r"override 'steps\.one=1': steps is no group of settings"):
        configs.load(Run, toml("steps = 3\n"), ["steps.one=1"])


def test_an_override_without_a_value_is_refused():
    with pytest.raises(ValueError, match="override 'steps': want key=value"):
        configs.load(Run, None, ["steps"])


@pytest.mark.parametrize("text", ["steps = \n", "steps 3", "[model\n"])
def test_a_file_that_is_no_toml_is_named(toml, text: str):
    with pytest.raises(ValueError, match=r"config .*run\.toml: "):
        configs.load(Run, toml(text))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"config .*none\.toml: .*No such file"):
        configs.load(Run, tmp_path / "none.toml")


def test_the_resolved_config_is_saved_as_json(tmp_path: Path):
    configs.save(configs.load(Run, None, ["steps=3"]), tmp_path / "config.json")
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "steps": 3,
        "lr": 1e-3,
        "name": "run",
        "fast": False,
        "betas": [0.9, 0.95],
        "model": {},
    }


KINDS = {
    "image_tokenizer": ImageTokenizerConfig,
    "lm": lm.LMConfig,
}
FILES = sorted(configs.CONFIGS.glob("*.toml"))


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_every_committed_config_loads(file: Path):
    kind = next(kind for name, kind in KINDS.items() if file.stem.startswith(name))
    assert configs.load(kind, file) != kind() or file.stat().st_size == 0
