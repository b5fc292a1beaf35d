"""Every command in the documentation parses: its options exist, and its settings are fields of the script's Config.
Links lead somewhere, and tables are readable.

test_docs_run.py runs the commands and the code that take seconds.
"""

import argparse
import importlib
import re
import shlex
from typing import Any

import pytest
import typer

import cm3
from checkout import ROOT
from cm3.cli import main as cli
from pages import ALL, PAGES, blocks, headings, prose
from tokenizer_image import convert
from train import evaluate
from train.contrastive.config import ScorerTrainingConfig
from train.language.config import LMConfig
from train.runtime import config as configs
from train.vq.config import ImageTokenizerConfig

CONFIGS = {
    "train.lm": LMConfig,
    "train.image_tokenizer": ImageTokenizerConfig,
    "train.scorer": ScorerTrainingConfig,
}
COMMAND = re.compile(r"-m ((?:train|benchmarks)(?:\.\w+)+)(.*)")


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
    words = [word for word in shlex.split(arguments) if word != "..."]
    if module == "train.evaluate":
        return evaluate.command(words[0]).make_context(module, words[1:], resilient_parsing=False).params
    app = typer.Typer(add_completion=False)
    app.command()(importlib.import_module(module).main)
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


def words_of(program: str) -> list[list[str]]:
    """The command lines of the pages that begin with these words, without them."""
    lines = {
        part.strip() for page in PAGES for one in blocks(page) if one.kind == "shell" for part in one.code.split("|")
    }
    return [shlex.split(line.removeprefix(program)) for line in sorted(lines) if line.startswith(program)]


@pytest.mark.parametrize("words", words_of("cm3 "), ids=" ".join)
def test_a_line_of_the_command_parses(words: list[str]):
    group: Any = typer.main.get_command(cli.app)
    if words == ["--install-completion"]:  # typer's own, which ends the command
        assert any(words[0] in parameter.opts for parameter in group.params)
        return
    with group.make_context("cm3", words[:]) as context:
        name, command, rest = group.resolve_command(context, words)
        assert command is not None
        command.make_context(name, rest, parent=context)


class Parsed(Exception):
    pass


@pytest.mark.parametrize("words", words_of("python -m tokenizer_image.convert "), ids=" ".join)
def test_a_line_of_the_converter_parses(words: list[str], monkeypatch: pytest.MonkeyPatch):
    whole = argparse.ArgumentParser.parse_args

    def parse_args(self: argparse.ArgumentParser) -> None:
        raise Parsed(whole(self, words))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    with pytest.raises(Parsed):
        convert.main()


def test_what_make_is_asked_for_is_in_the_makefile():
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    asked = {words[0] for words in words_of("make ")}
    assert {"run", "test", "demo"} <= asked
    for target in asked:
        assert re.search(rf"^{re.escape(target)}:", rules, re.MULTILINE), target


def test_scripts_that_are_named_are_there_and_know_their_options():
    lines = words_of("python examples/")
    assert lines
    for script, *arguments in lines:
        source = (ROOT / "examples" / script).read_text(encoding="utf-8")
        assert all(f'"{word}"' in source for word in arguments if word.startswith("-")), script


def test_a_link_leads_to_a_file_and_to_a_heading_of_it():
    broken = []
    for page in ALL:
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            if "://" in target or target.startswith("mailto:"):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path) if path else page
            if not file.exists() or (anchor and anchor not in headings(file)):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken


def test_every_page_of_the_documentation_is_linked_from_an_index():
    linked = set()
    for index in (ROOT / "docs" / "index.md", ROOT / "docs" / "experiments" / "index.md"):
        targets = re.findall(r"\]\(([^)#\s]+)\)", prose(index))
        linked |= {(index.parent / target).resolve() for target in targets if "://" not in target}
    pages = {page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "reference"}
    assert not {page.name for page in pages - linked} - {"index.md"}


def test_no_table_cell_is_longer_than_80_characters():
    long = [
        f"{page.relative_to(ROOT)}: {cell.strip()}"
        for page in ALL
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
        for cell in line.strip("|").split("|")
        if len(cell.strip()) > 80
    ]
    assert not long


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 110


def test_the_citation_has_the_version_of_the_package():
    assert f"\nversion: {cm3.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
