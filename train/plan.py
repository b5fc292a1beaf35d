"""What a run will take, before it starts: parameters, memory, speed, hours; and the best number of rows at once.

python -m train.plan                                     # the named sizes: parameters, compute, memory
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
