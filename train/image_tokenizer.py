"""Train an image tokenizer on a folder of images, or on webdataset shards.

    python -m train.image_tokenizer --data my_images --out runs/mine_vq
    torchrun --nproc_per_node 8 -m train.image_tokenizer --config image_tokenizer_f16 --data photos

OUT receives config.json, log.jsonl, curves.png, samples-*.png, checkpoints/ (to resume: run the same command again)
and model/, which `ImageTokenizer.from_pretrained` reads. Losses: absolute and squared error; distance of frozen
features; a patch discriminator (VQGAN, Esser et al. 2021, section 3.1); alignment or a JEPA objective for codes that
carry meaning.
"""

from pathlib import Path
from typing import Annotated

import typer

from train.runtime import config as configs
from train.vq.config import ImageTokenizerConfig
from train.vq.run import train


def main(
    out: Annotated[Path, typer.Option(help="folder of the run")] = Path("runs/image_tokenizer"),
    config: Annotated[Path | None, typer.Option(help="TOML file")] = None,
    data: Annotated[str | None, typer.Option(help="folder of images or of a data set")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="settings: key=value or group.key=value")] = None,
) -> None:
    try:
        settings = configs.load(ImageTokenizerConfig, config, overrides)
        train(configs.override(settings, {"data.folder": data}) if data else settings, out)
    except (OSError, ValueError) as error:
        raise SystemExit(f"image_tokenizer: {error}") from None


if __name__ == "__main__":
    typer.run(main)
