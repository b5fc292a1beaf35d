"""Options that several suites of train.evaluate have."""

from pathlib import Path
from typing import Annotated

import typer

DATA = Path("data/emoji")

Data = Annotated[Path, typer.Option(help="folder of the data set")]
Out = Annotated[Path, typer.Option(help="folder of the results")]
Sample = Annotated[int, typer.Option(help="largest number of images of each split")]
