"""The emoji data set on disk: images in shards, a manifest, and what is told of each image."""

import io
import json
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from webdataset.compat import WebDataset
from webdataset.writer import TarWriter

Facts = dict[str, Any]


def read_samples(folder: Path) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """(key, PNG, facts) of every sample in a split's shards, in order.

    Raises:
        ValueError: there are no shards.
    """
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    if not shards:
        raise ValueError(f"no shards in {folder}: run python -m train.build_emoji first")
    for sample in WebDataset(shards, shardshuffle=False, empty_check=False):
        yield sample["__key__"], sample["png"], json.loads(sample["json"])


def read_split(folder: Path) -> Iterator[tuple[str, Image.Image, dict[str, Any]]]:
    """(key, drawing in RGBa, facts), otherwise as read_samples."""
    for key, png, facts in read_samples(folder):
        with Image.open(io.BytesIO(png)) as image:
            yield key, image.convert("RGBA").convert("RGBa"), facts


MANIFEST = "manifest.jsonl"
SHARD = 2000  # images a shard


SPLITS = ("train", "held_out_pairs", "held_out_concepts")
EXTRA = "extra"  # of no split: further styles, trained on with questions alone


def write_shards(folder: Path, samples: Iterable[tuple[str, bytes, dict]]) -> int:
    """Webdataset shards of (key, PNG, facts), each written whole or not at all. Returns the number of samples."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("shard-*.tar*"):
        old.unlink()
    count, rest = 0, iter(samples)
    while part := list(islice(rest, SHARD)):
        path = folder / f"shard-{count // SHARD:05d}.tar"
        with TarWriter(f"{path}.part", encoder=False, mtime=0, user="", group="", mode=0o644) as sink:
            for key, png, row in part:
                sink.write({"__key__": key, "json": _json(row).encode(), "png": png})
        os.rename(f"{path}.part", path)
        count += len(part)
    return count


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """Its rows.

    Raises:
        FileNotFoundError: the data set has none.
    """
    return [json.loads(line) for line in (folder / MANIFEST).open(encoding="utf-8")]


def write_manifest(folder: Path, rows: list[dict]) -> None:
    """manifest.jsonl and the ATTRIBUTION.md that follows from it."""
    (folder / MANIFEST).write_text("".join(_json(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "ATTRIBUTION.md").write_text(attribution(rows), encoding="utf-8")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def attribution(rows: list[dict]) -> str:
    """The credits that must travel with the images and with weights trained on them, made from the manifest."""
    counts = Counter((row["style"], row["package"], row["licence"], row["author"]) for row in rows)
    lines = ["# Attribution", "", "Images, by style:", ""]
    for (style, package, licence, author), count in sorted(counts.items()):
        lines.append(f"- {style}: {count} images by {author}, licence {licence}, from the npm package {package}")
    lines += [
        "",
        "Names and keywords: Unicode CLDR (cldr-annotations-full, cldr-annotations-derived-full), "
        "licence Unicode-3.0, © Unicode, Inc.",
        "Groups: emojibase-data, licence MIT, © Miles Johnson.",
        "",
        "Changes made: rendered to pixels, scaled, recoloured, put together, placed on plain grounds; the images "
        "themselves are not distributed with the weights.",
        "",
    ]
    return "\n".join(lines)


# Unicode groups and subgroups whose concepts the model draws: all but people, flags and abstract signs.
DRAWN_GROUPS = ("smileys-emotion", "animals-nature", "food-drink", "travel-places", "activities", "objects")
DRAWN_SUBGROUPS = ("body-parts", "geometric")
HANDS = "hand"  # subgroups that begin so: in yellow, without skin tones


def is_drawn(facts: Facts) -> bool:
    """Whether the model draws the concept: no clock faces, no insults, and of plain shapes one size."""
    name = facts["name"]["en"]
    if name.endswith(("o'clock", "-thirty")):
        return False
    if name == "middle finger":  # an insult
        return False
    if facts["subgroup"] == "geometric" and any(word in name for word in ("medium", "small", "button")):
        return False
    return facts["group"] in DRAWN_GROUPS or facts["subgroup"] in DRAWN_SUBGROUPS or facts["subgroup"].startswith(HANDS)


def others_of(rows: list[Facts]) -> dict[str, list[Facts]]:
    """Subgroup -> one row of each of its concepts."""
    seen: dict[str, dict[str, Facts]] = defaultdict(dict)
    for row in rows:
        seen[row["subgroup"]].setdefault(row["code"], row)
    return {subgroup: list(members.values()) for subgroup, members in seen.items()}


@dataclass(frozen=True)
class EmojiImages:
    """Drawings in RGBa of one split, each with its key, its facts and the row of the data set's manifest."""

    keys: list[str]
    drawings: list[Image.Image]
    rows: list[Facts]
    origins: list[dict[str, Any]]


def read_images(data: Path, split: str, subgroups: Collection[str], concepts: set[str] | None = None) -> EmojiImages:
    """The images of the given Unicode subgroups (none = all), and of the given concepts (None = all)."""
    origins = {row["key"]: row for row in (read_manifest(data) if (data / MANIFEST).is_file() else [])}
    out = EmojiImages([], [], [], [])
    for key, drawing, row in read_split(data / split):
        if (not subgroups or row["subgroup"] in subgroups) and (concepts is None or row["code"] in concepts):
            out.keys.append(key)
            out.drawings.append(drawing)
            out.rows.append(row)
            out.origins.append(origins.get(key, {}))
    return out


def manifest_row(key: str, row: Facts, origin: dict[str, Any], documents: int) -> dict[str, Any]:
    """Where an image comes from; "" where the data set has no manifest. `sha256` is of the image's pixels."""
    package = "@".join(filter(None, (origin.get("package"), origin.get("version"))))
    return {
        "name": key,
        "source": package,
        "licence": origin.get("licence", ""),
        "owner": origin.get("author", ""),
        "sha256": origin.get("pixels", ""),
        "style": row["style"],
        "code": row["code"],
        "documents": documents,
    }


# Concepts of the sample that the repository holds, for tests and a quick start.
SAMPLE_CODES = """
1f34e 1f431 1f436 1f695 1f355 1f337 1f3b8 1f41f 1f34c 26bd 1f680 1f9c1 1f98b 1f332 1f438 1f347
1f6b2 1f427 1f344 1f418 1f353 1f3ba 1f528 1f455 1f42c 1f34b 1f68c 1f33b 1f98a 1f369 1f451 1f511
2708 26f5 1f422 1f437 1f33d 1f382 1f941
""".split()


def cut_sample(data: Path, out: Path, codes: Collection[str] = SAMPLE_CODES) -> dict[str, int]:
    """The images of the given concepts, in their splits, with manifest and attribution. Returns counts by split."""
    rows = [row for row in read_manifest(data) if row["code"] in codes]
    counts: dict[str, int] = {}
    for split in (*SPLITS, EXTRA):
        if any((data / split).glob("*.tar")):
            samples = (sample for sample in read_samples(data / split) if sample[2]["code"] in codes)
            counts[split] = write_shards(out / split, samples)
    out.mkdir(parents=True, exist_ok=True)
    write_manifest(out, rows)
    return counts
