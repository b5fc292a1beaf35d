"""Turn the data set into token shards: pictures in several views to codes, what is said of them to text ids.

    python -m train.tokenize_data --data data/emoji --image-tokenizer runs/decoder/model --out data/emoji-tokens

OUT receives what train/shards.py describes, and concepts.json: the concepts in it, with their names. The text tokenizer
is trained here, on the training split alone.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from rich.progress import track

from cm3.text import TextTokenizer
from tokenizer_image import ImageTokenizer
from train import config as configs
from train.phrases import Facts, caption, targets
from train.pictures import to_pixels
from train.shards import ShardWriter
from train.views import PLAIN, Augmentation, View, place, read_split

LANGUAGES = ("en", "ar")

EVERYDAY = (
    "animal-mammal", "animal-bird", "animal-amphibian", "animal-reptile", "animal-marine", "animal-bug", "plant-flower",
    "plant-other", "food-fruit", "food-vegetable", "food-prepared", "food-asian", "food-sweet", "drink", "dishware",
    "transport-ground", "transport-water", "transport-air", "sport", "musical-instrument", "clothing", "tool",
    "household",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """What goes into the shards.

    Attributes:
        subgroups: Unicode subgroups of the concepts; empty = all of them.
        views: views of each picture; the first is plain.
        draw: documents a view that are captions with the picture, in turn in each language.
        ask: documents a view that ask something.
        text_vocab: ids of the text tokenizer, at most.
        max_sharing: a keyword may name at most so many concepts to stand for one.
        seed: of everything random.
        white: share of white grounds among the views after the first.
        scale: smallest scale of a view.
        shift: largest shift of a view, in pixels.
        mirror: share of mirrored views.
    """

    subgroups: tuple[str, ...] = EVERYDAY
    views: int = 24
    draw: int = 2
    ask: int = 2
    text_vocab: int = 4096
    max_sharing: int = 6
    seed: int = 0
    white: float = 0.6
    scale: float = 0.85
    shift: int = 2
    mirror: float = 0.5


def chosen(facts: Facts, config: Config) -> bool:
    return not config.subgroups or facts["subgroup"] in config.subgroups


def aliases_of(rows: list[Facts], max_sharing: int) -> dict[tuple[str, str], list[str]]:
    """(code, language) -> keywords that name this concept and few others."""
    owners: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        for language in LANGUAGES:
            for word in row["keywords"][language]:
                owners[language, word].add(row["code"])
    out: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for language in LANGUAGES:
            words = [word for word in row["keywords"][language] if len(owners[language, word]) <= max_sharing]
            out[row["code"], language] = words
    return out


def texts(rows: list[Facts], config: Config) -> Iterator[str]:
    """What the text tokenizer is trained on: names, keywords, and each kind of phrase, of the training split."""
    rng = np.random.default_rng(config.seed)
    by_kind = others_of(rows)
    for row in rows:
        for language in LANGUAGES:
            yield from (" " + word for word in (row["name"][language], *row["keywords"][language]))
            yield caption(row, "white", language, [], rng)
            for target in targets(row, "white", language, by_kind[row["subgroup"]], rng):
                yield target.prompt
                yield target.answer


def others_of(rows: list[Facts]) -> dict[str, list[Facts]]:
    """Subgroup -> one row of each of its concepts."""
    seen: dict[str, dict[str, Facts]] = defaultdict(dict)
    for row in rows:
        seen[row["subgroup"]].setdefault(row["code"], row)
    return {subgroup: list(members.values()) for subgroup, members in seen.items()}


def encode_views(drawings: list[Image.Image], views: list[list[View]], tokenizer: ImageTokenizer) -> torch.Tensor:
    """Codes of every view of every drawing, [N, V, h * w]."""
    size, out = tokenizer.size[0], []
    for i in track(range(0, len(drawings), 16), "encoding"):
        pairs = zip(drawings[i : i + 16], views[i : i + 16], strict=True)
        pictures = [place(drawing, view, size) for drawing, row in pairs for view in row]
        pixels = to_pixels(pictures)
        out.append(torch.cat([tokenizer.model.encode(part) for part in pixels.to(tokenizer.device).split(128)]).cpu())
    return torch.cat(out).view(len(drawings), len(views[0]), -1)


def build(data: Path, image_tokenizer: ImageTokenizer, out: Path, config: Config) -> dict:
    """Everything above in order. Returns the content of meta.json."""
    samples = [(drawing, row) for _, drawing, row in read_split(data / "train") if chosen(row, config)]
    if not samples:
        raise ValueError(f"no training picture in {data} belongs to the subgroups {', '.join(config.subgroups)}")
    drawings, rows = [drawing for drawing, _ in samples], [row for _, row in samples]
    text = TextTokenizer.train(texts(rows, config), config.text_vocab)
    rng = np.random.default_rng(config.seed)
    augmentation = Augmentation(config.white, config.scale, config.shift, config.mirror)
    size = image_tokenizer.size[0]
    views = [[PLAIN, *(augmentation.sample(rng, size) for _ in range(config.views - 1))] for _ in rows]
    codes = encode_views(drawings, views, image_tokenizer)

    aliases, by_kind = aliases_of(rows, config.max_sharing), others_of(rows)
    writer, tasks = ShardWriter(text, image_tokenizer), Counter()
    for i, row in enumerate(track(rows, "documents")):
        others = [other for other in by_kind[row["subgroup"]] if other["family"] != row["family"]]
        for j, view in enumerate(views[i]):
            picture = codes[i, j].tolist()
            for k in range(config.draw):
                language = LANGUAGES[(j + k) % 2]
                words = caption(row, view.ground, language, aliases[row["code"], language], rng)
                writer.draw(words, picture)
                tasks["draw"] += 1
            for k in range(config.ask):
                asked = targets(row, view.ground, LANGUAGES[(j + k) % 2], others, rng)
                writer.ask(asked, picture)
                tasks.update(target.task for target in asked)
    concepts = {row["code"]: {"name": row["name"], "subgroup": row["subgroup"]} for row in rows}
    meta = writer.save(
        out,
        pictures=len(rows),
        concepts=len(concepts),
        tasks=dict(tasks),
        styles=dict(Counter(row["style"] for row in rows)),
        config=asdict(config),
    )
    (out / "concepts.json").write_text(json.dumps(concepts, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    return meta


def main(
    data: Annotated[Path, typer.Option(help="folder of the data set")] = Path("data/emoji"),
    image_tokenizer: Annotated[str, typer.Option(help="folder or name")] = "runs/decoder/model",
    out: Annotated[Path, typer.Option(help="folder of the token shards")] = Path("data/emoji-tokens"),
    config: Annotated[Path | None, typer.Option(help="TOML file")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value")] = None,
) -> None:
    try:
        settings = configs.load(Config, config, overrides)
        meta = build(data, ImageTokenizer.from_pretrained(image_tokenizer), out, settings)
        print(json.dumps({key: meta[key] for key in ("pictures", "concepts", "documents", "tokens")}))
    except (OSError, ValueError) as error:
        raise SystemExit(f"tokenize_data: {error}") from None


if __name__ == "__main__":
    typer.run(main)
