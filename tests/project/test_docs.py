"""Every command in the documentation parses: its options exist, and its settings are fields of the script's Config."""

import importlib
import re
import shlex
from typing import Any

import pytest
import typer

from checkout import ROOT
from train.build_instructions import InstructionsConfig
from train.build_scenes import ScenesConfig
from train.image_tokenizer import ImageTokenizerConfig
from train.language.config import LMConfig
from train.runtime import config as configs
from train.scorer import ScorerTrainingConfig
from train.tokenize_emoji import TokenizeConfig

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = {
    "train.lm": LMConfig,
    "train.image_tokenizer": ImageTokenizerConfig,
    "train.tokenize_emoji": TokenizeConfig,
    "train.build_instructions": InstructionsConfig,
    "train.build_scenes": ScenesConfig,
    "train.scorer": ScorerTrainingConfig,
}
COMMAND = re.compile(r"-m ((?:train|benchmarks)\.\w+)(.*)")


def commands() -> list[tuple[str, str]]:
    """(module, arguments) of each command, in blocks of code and in inline code."""
    found = []
    for page in PAGES:
        text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))  # lines that go on
        blocks = re.findall(r"^(?: {4})?((?:python|torchrun) .*)$", text, re.MULTILINE)
        for command in [*blocks, *re.findall(r"`((?:python|torchrun) [^`]*)`", text)]:
            if match := COMMAND.search(re.split(r"\s+[#\[]", command)[0]):
                found.append((match[1], match[2].strip()))
    return found


def parse(module: str, arguments: str) -> dict[str, Any]:
    app = typer.Typer(add_completion=False)
    app.command()(importlib.import_module(module).main)
    words = [word for word in shlex.split(arguments) if word != "..."]
    return typer.main.get_command(app).make_context(module, words, resilient_parsing=False).params


def test_there_are_commands():
    assert len(commands()) > 20


@pytest.mark.parametrize(("module", "arguments"), sorted(set(commands())))
def test_a_command_of_the_documentation_parses(module: str, arguments: str):
    if not arguments:
        return  # named in passing
    given = parse(module, arguments)
    if module in CONFIGS:
        configs.load(CONFIGS[module], given["config"], given["overrides"])


@pytest.mark.parametrize("arguments", ["--no-such-option", "--config no_such_file", "steps=few", "no_such_key=1"])
def test_a_command_that_is_wrong_does_not_parse(arguments: str):
    with pytest.raises((typer.TyperException, ValueError)):
        test_a_command_of_the_documentation_parses("train.lm", arguments)
