"""Images for an image tokenizer that must keep small things: scenes, things alone and signs beside whole drawings.

    python -m train.build_scenes --data data/emoji --out data/emoji-scenes
    python -m train.image_tokenizer --config image_tokenizer_emoji_decoder --out runs/decoder

OUT is a data set like DATA: its training split has DATA's drawings too, `unseen_cell` is DATA's, and `unseen_scene`
has scenes whose combinations no training scene has (train/scenes/scene.py). A tokenizer that has only seen drawings
that fill the image keeps a thing of 3 x 3 cells at 16 dB (docs/experiments, E9).
"""

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from rich.progress import track

from cm3.tokens.templates import LANGUAGES
from train.emoji.dataset import read_samples, write_shards
from train.runtime import config as configs
from train.scenes.scene import THINGS, Thing, render
from train.scenes.signs import pick, sign
from train.scenes.studio import Studio, read_things


@dataclass(frozen=True)
class ScenesConfig:
    """What is drawn.

    Attributes:
        images: to train on, beside the drawings themselves.
        held_out: with unseen combinations.
        solo: share of things alone, most of them filling the image, on all grounds, painted or not.
        signs: share of signs; the rest are scenes of one to three things.
        size: side of an image, in pixels.
        cells: of codes that a side has.
        things: English names of what scenes are made of.
        aligned: share of scenes whose things are aligned with the cells.
        white: share of white grounds.
        seed: of everything random.
    """

    images: int = 12_000
    held_out: int = 400
    solo: float = 0.3
    signs: float = 0.06
    size: int = 128
    cells: int = 8
    things: tuple[str, ...] = THINGS
    aligned: float = 0.9
    white: float = 0.7
    seed: int = 0


def image(studio: Studio, config: ScenesConfig, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
    """One image [S, S, 3] uint8, and what it shows: keys of the drawings, or a sign's word."""
    kind = rng.random()
    if kind < config.signs:
        words = studio.words[LANGUAGES[rng.integers(len(LANGUAGES))]]
        word, board = pick(words, rng)
        step = studio.scenes.step if rng.random() < config.aligned else 0
        return sign(word, board, config.size, step), {"sign": word}
    stage = studio.solo if kind < config.signs + config.solo else studio.scenes
    scene = stage.scene(rng)
    return render(scene, config.size).image, {"parents": [one.thing.key for one in scene.placed]}


def samples(
    things: list[Thing], split: str, count: int, config: ScenesConfig
) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """(key, PNG, facts) of so many images of a split."""
    novel = split != "train"
    studio = Studio.of(things, config.things, config.size, novel, config.aligned, config.cells, config.white)
    rng = np.random.default_rng((config.seed, novel))
    for i in track(range(count), f"scenes, {split}"):
        pixels, facts = image(studio, config, rng)
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG")
        yield f"scene-{i:06d}", png.getvalue(), facts


def build(data: Path, out: Path, config: ScenesConfig) -> dict[str, int]:
    """Everything above. Returns the number of images of each split. Raises ValueError where DATA has no shards, or
    the cells do not divide the side."""
    if config.size % config.cells:
        raise ValueError(f"size {config.size} is not a multiple of cells = {config.cells}")
    if out.resolve() == data.resolve():
        raise ValueError(f"{out} is the data set itself: name another folder")
    things = read_things(data, "train")
    scenes = samples(things, "train", config.images, config)
    counts = {
        "train": write_shards(out / "train", chain(read_samples(data / "train"), scenes)),
        "unseen_cell": write_shards(out / "unseen_cell", read_samples(data / "unseen_cell")),
        "unseen_scene": write_shards(out / "unseen_scene", samples(things, "unseen_scene", config.held_out, config)),
    }
    for name in ("manifest.jsonl", "ATTRIBUTION.md"):
        if (data / name).is_file():
            shutil.copyfile(data / name, out / name)
    (out / "data.json").write_text(json.dumps({"images": counts, "config": asdict(config)}) + "\n", encoding="utf-8")
    return counts


def main(
    data: Annotated[Path, typer.Option(help="folder of the data set")] = Path("data/emoji"),
    out: Annotated[Path, typer.Option(help="folder of the new one")] = Path("data/emoji-scenes"),
    config: Annotated[Path | None, typer.Option(help="TOML file")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value")] = None,
) -> None:
    try:
        counts = build(data, out, configs.load(ScenesConfig, config, overrides))
    except (OSError, ValueError) as error:
        raise SystemExit(f"build_scenes: {error}") from None
    print(json.dumps(counts))


if __name__ == "__main__":
    typer.run(main)
