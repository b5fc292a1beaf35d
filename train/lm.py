"""Train the language model on token shards: generation, captioning and VQA with one set of weights.

    python -m train.lm --config train/configs/lm_canvas.toml --out runs/lm
    python -m train.lm --data data/mine --out runs/mine --dry-run                 # memory, speed and hours
    python -m train.lm --data data/mine --out runs/mine start=emoji lora.rank=16  # fine-tune with LoRA adapters
    torchrun --nproc_per_node 8 -m train.lm --data data/mine --out runs/mine distributed.strategy=fsdp

OUT receives config.json, log.jsonl, samples-*.png, checkpoints/ (to resume: run the same command again) and model/,
which `CM3.from_pretrained` reads.
"""

from pathlib import Path
from typing import Annotated

import typer

from train.language.config import LMConfig
from train.language.plan import plan_run
from train.language.run import train
from train.runtime import config as configs


def main(
    out: Annotated[Path, typer.Option(help="folder of the run")] = Path("runs/lm"),
    config: Annotated[Path | None, typer.Option(help="TOML file")] = None,
    data: Annotated[str | None, typer.Option(help="folder of the token shards")] = None,
    dry_run: Annotated[bool, typer.Option(help="measure what the run takes, print it and exit")] = False,
    find_batch: Annotated[bool, typer.Option(help="find the best micro_batch_size and exit")] = False,
    overrides: Annotated[list[str] | None, typer.Argument(help="settings: key=value or group.key=value")] = None,
) -> None:
    try:
        settings = configs.load(LMConfig, config, overrides)
        settings = configs.override(settings, {"data.folder": data}) if data else settings
        if dry_run or find_batch:
            plan_run(settings, find_batch)
        else:
            train(settings, out)
    except (OSError, ValueError) as error:
        raise SystemExit(f"lm: {error}") from None


if __name__ == "__main__":
    typer.run(main)
