"""Train the scorer, which picks the best of several generated images: how well an image fits a text.

    python -m train.scorer --data data/mine --out runs/scorer

OUT receives config.json, log.jsonl, checkpoints/ (to resume: run the same command again) and model/, which
`cm3.model.scorer.Scorer.from_pretrained` reads. The training data are the captioned documents of the shards. The log
has the retrieval of held-out images.
"""

from pathlib import Path
from typing import Annotated

import typer

from train.contrastive.config import ScorerTrainingConfig
from train.contrastive.run import train
from train.runtime import config as configs


def main(
    out: Annotated[Path, typer.Option(help="folder of the run")] = Path("runs/scorer"),
    config: Annotated[Path | None, typer.Option(help="TOML file")] = None,
    data: Annotated[str | None, typer.Option(help="folder of the token shards")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="settings: key=value or group.key=value")] = None,
) -> None:
    try:
        settings = configs.load(ScorerTrainingConfig, config, overrides)
        train(configs.override(settings, {"data.folder": data}) if data else settings, out)
    except (OSError, ValueError) as error:
        raise SystemExit(f"scorer: {error}") from None


if __name__ == "__main__":
    typer.run(main)
