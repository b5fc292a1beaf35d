"""The emoji data set on disk: its splits, its manifest, and which concepts the model draws."""

import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from train.images.samples import read_samples, to_json, write_shards

Facts = dict[str, Any]


MANIFEST = "manifest.jsonl"
SPLITS = ("train", "held_out_pairs", "held_out_concepts")
EXTRA = "extra"  # of no split: further styles, trained on with questions alone


def read_manifest(folder: Path) -> list[dict[str, Any]]:
    """Its rows.

    Raises:
        FileNotFoundError: the data set has none.
    """
    return [json.loads(line) for line in (folder / MANIFEST).open(encoding="utf-8")]


def write_manifest(folder: Path, rows: list[dict]) -> None:
    """manifest.jsonl and the ATTRIBUTION.md that follows from it."""
    (folder / MANIFEST).write_text("".join(to_json(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "ATTRIBUTION.md").write_text(attribution(rows), encoding="utf-8")


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
