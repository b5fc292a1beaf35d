"""Print parameters, compute and memory of the presets.

python -m train.plan                                     # all presets
python -m train.lm --data data/mine --dry-run            # one run, measured on this machine
python -m train.lm --data data/mine --find-batch
"""

import typer
from rich.console import Console

from train.language.plan import presets


def main() -> None:
    Console().print(presets())


if __name__ == "__main__":
    typer.run(main)
