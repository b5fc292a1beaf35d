"""Options that several suites of train.evaluate have."""

from pathlib import Path
from typing import Annotated

import typer

DATA, TOKENS = Path("data/emoji"), Path("data/emoji-tokens")

Model = Annotated[str, typer.Option(help="folder or name of the model")]
Data = Annotated[Path, typer.Option(help="folder of the data set")]
Tokens = Annotated[Path, typer.Option(help="folder of the token shards")]
Out = Annotated[Path, typer.Option(help="folder of the results")]
Sample = Annotated[int, typer.Option(help="largest number of images of each split")]
Prompts = Annotated[int, typer.Option(help="largest number of prompts")]
Guidance = Annotated[float, typer.Option(help="classifier-free guidance scale")]
Temperature = Annotated[float, typer.Option(help="sampling temperature of the images")]
TopP = Annotated[float, typer.Option(help="top-p of the images")]
