"""Evaluate a model or an image tokenizer: one suite of figures a command.

    python -m train.evaluate SUITE [OPTIONS]
    python -m train.evaluate SUITE --help

Every suite is a module of train/evaluation/suites, whose `main` has its options. All are seeded: the same weights give
the same figures.
"""

import importlib
import sys
from typing import Any

import typer

SUITES = {
    "tokenizer": "image tokenizers beside WebP and JPEG at equal bytes",
    "safety": "block lists against tricks of spelling",
}


def command(suite: str) -> Any:
    """Return the command of a suite, as typer makes it."""
    app = typer.Typer(add_completion=False)
    app.command(name=suite)(importlib.import_module(f"train.evaluation.suites.{suite}").main)
    return typer.main.get_command(app)


def usage() -> str:
    """Return the help text."""
    lines = [f"  {name:10} {text}" for name, text in SUITES.items()]
    return "\n".join(["usage: python -m train.evaluate SUITE [OPTIONS]", "", "suites:", *lines])


def main() -> None:
    """Run a suite. A user's mistake ends it with one line."""
    suite, *arguments = sys.argv[1:] or ["--help"]
    if suite == "--help":
        print(usage())
        return
    if suite not in SUITES:
        raise SystemExit(f"evaluate: there is no suite {suite!r}: choose {', '.join(SUITES)}")
    try:
        command(suite)(arguments, prog_name=f"python -m train.evaluate {suite}")
    except (OSError, ValueError) as error:
        raise SystemExit(f"evaluate {suite}: {error}") from None


if __name__ == "__main__":
    main()
