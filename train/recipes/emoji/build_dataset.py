"""Build the emoji data set: pinned packages -> rendered images with names, facts and splits, as webdataset shards.

    python -m train.recipes.emoji.build_dataset --out data/emoji            # npm fetches what is missing
    python -m train.recipes.emoji.build_dataset --out data/emoji --packages DIR

The same packages give byte-identical shards. Interrupted runs continue: OUT/cache keeps what is done.

    OUT/{train,held_out_pairs,held_out_concepts}/shard-00000.tar    KEY.png (RGBA, 256 x 256), KEY.json (facts)
    OUT/extra/shard-00000.tar    everyday things in further styles, for questions alone
    OUT/manifest.jsonl    one row an image: source, licence, author, code points, split, pixel hash
    OUT/names.json        every concept with its names and keywords in all languages
    OUT/data.json         packages with hashes, counts
    OUT/ATTRIBUTION.md    generated from the manifest
"""

import hashlib
import io
import json
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from PIL import Image
from rich.progress import track

from train.images.samples import write_shards
from train.recipes.emoji.colours import main_colour
from train.recipes.emoji.concepts import Concept, extra_icons, family_of, icon_keys, read_concepts, svg
from train.recipes.emoji.dataset import EXTRA, SPLITS, cut_sample, is_drawn, write_manifest
from train.recipes.emoji.packages import EXTRA_STYLES, LANGUAGES, PACKAGES, STYLES, Package, Style, Tarball, fetch

SIZE = 256  # pixels, both ways
HELD_OUT_PAIRS = 0.15  # of the families with at least four designs: one design each
HELD_OUT = Path(__file__).with_name("held_out_concepts.txt")
NEAR_DUPLICATE = 0.012  # root mean square difference of 16 x 16 thumbnails in [0, 1]


def chance(*words: str) -> float:
    """A number in [0, 1) that depends on the words alone."""
    return int.from_bytes(hashlib.sha256("\0".join(words).encode()).digest()[:7]) / 2**56


def split_of(concepts: list[Concept], drawn: dict[str, set[str]]) -> dict[tuple[str, str], str]:
    """(code, style word) -> split.

    Args:
        concepts: all of them.
        drawn: style word -> codes that it has.
    """
    families: dict[str, list[Concept]] = defaultdict(list)
    for concept in concepts:
        families[concept.family].append(concept)
    seldom = {family_of(line.split()[0]) for line in HELD_OUT.read_text().splitlines() if not line.startswith("#")}
    splits = {}
    for family, members in families.items():
        codes = {member.code for member in members}
        designs = sorted({style.design for style in STYLES if codes & drawn[style.word]})
        held = None
        if family not in seldom and len(designs) >= 4 and chance("cell", family) < HELD_OUT_PAIRS:
            held = designs[int(chance("design", family) * len(designs))]
        for style in STYLES:
            split = "held_out_concepts" if family in seldom else "held_out_pairs" if style.design == held else "train"
            splits |= {(code, style.word): split for code in codes & drawn[style.word]}
    return splits


def render(source: bytes | str) -> bytes:
    """SVG text or the bytes of a raster image -> PNG, RGBA, SIZE x SIZE."""
    if isinstance(source, str):
        import resvg_py

        image = Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=source, width=SIZE, height=SIZE)))
    else:
        image = Image.open(io.BytesIO(source))
    image = image.convert("RGBA")
    if image.size != (SIZE, SIZE):  # not square: centred on a transparent square
        image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
        square = Image.new("RGBA", (SIZE, SIZE))
        square.paste(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
        image = square
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=9)
    return out.getvalue()


def _render_file(job: tuple[bytes | str, Path]) -> None:
    source, path = job
    temporary = path.with_suffix(".part")
    temporary.write_bytes(render(source))
    temporary.rename(path)


def facts(concept: Concept, style: Style, png: bytes) -> dict:
    """What is true of one image, for captions and questions."""
    image = Image.open(io.BytesIO(png)).convert("RGBa")
    rgba = np.asarray(image.resize((64, 64), Image.Resampling.BOX).convert("RGBA"))  # a colour needs no more
    return {
        "code": concept.code,
        "family": concept.family,
        "name": {language: concept.name[language] for language in ("en", "ar")},
        "group": concept.group,
        "subgroup": concept.subgroup,
        "style": style.word,
        "colour": main_colour(rgba),
    }


def thumbnail(png: bytes) -> np.ndarray:
    """[16 * 16 * 3] float in [0, 1], on white."""
    image = Image.open(io.BytesIO(png))
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image)
    return np.asarray(ground.convert("RGB").resize((16, 16), Image.Resampling.BOX), np.float32).ravel() / 255


def drop_leaks(rows: list[dict], thumbnails: np.ndarray) -> list[dict]:
    """Leave out of what is trained on what is (nearly) an image of a held-out split."""
    held = np.array([row["split"] not in ("train", EXTRA) for row in rows])
    queries = thumbnails[held]
    keep = []
    for row, image, is_held in zip(rows, thumbnails, held, strict=True):
        leak = not is_held and float(((queries - image) ** 2).mean(1).min(initial=1.0)) ** 0.5 < NEAR_DUPLICATE
        keep += [] if leak else [row]
    return keep


class Drawn(NamedTuple):
    """An image of a concept: the icon's key in the style's package, the image's name in its style, its split."""

    style: Style
    concept: Concept
    icon: str
    name: str
    split: str


def drawn_images(concepts: list[Concept], tarballs: dict[Package, Tarball]) -> list[Drawn]:
    """Every image of the concepts; of the extra styles those of everyday things that training may see."""
    icons = {style.word: icon_keys(style, concepts, tarballs) for style in STYLES}
    splits = split_of(concepts, {word: set(keys) for word, keys in icons.items()})
    held = {code for (code, _), split in splits.items() if split == "held_out_concepts"}
    everyday = [concept for concept in concepts if is_drawn(vars(concept)) and concept.code not in held]
    by_code = {concept.code: concept for concept in concepts}
    out = [
        Drawn(style, concept, key, concept.code, splits[concept.code, style.word])
        for style in STYLES
        for concept in concepts
        if (key := icons[style.word].get(concept.code)) is not None
    ]
    for style in EXTRA_STYLES:
        found = extra_icons(style, everyday, tarballs).items()
        out += [Drawn(style, by_code[code], key, key, EXTRA) for key, code in found]
    return out


def build(out: Path, packages: Path | None = None, limit: int | None = None) -> dict:
    """Everything above in order. Returns the content of data.json.

    Args:
        out: the data set's folder.
        packages: folder of tarballs; default OUT/cache/packages, filled through npm.
        limit: keep only the first so many concepts (for a quick look).
    """
    cache = out / "cache"
    tarballs = {}
    for package in track(PACKAGES, "packages"):
        tarballs[package] = Tarball(fetch(package, packages or cache / "packages"))
    concepts = read_concepts(tarballs)[:limit]
    images, jobs = [], []
    for one in drawn_images(concepts, tarballs):
        path = cache / f"render-{SIZE}" / one.style.word.replace(" ", "-") / f"{one.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.append((one, path))
        if not path.exists():
            tarball, raster = tarballs[one.style.package], one.icon.endswith(".webp")
            jobs.append((tarball.read(one.icon) if raster else svg(one.style, one.icon, tarballs), path))
    with ProcessPoolExecutor() as pool:
        list(track(pool.map(_render_file, jobs, chunksize=16), "rendering", total=len(jobs)))

    rows, thumbnails, content = [], [], {}
    for (style, concept, key, _, split), path in track(images, "facts"):
        png = path.read_bytes()
        sample = f"{path.parent.name}_{path.stem}"
        content[sample] = (png, facts(concept, style, png))
        thumbnails.append(thumbnail(png))
        rows.append(
            {
                "key": sample,
                "package": style.package.name,
                "version": style.package.version,
                "integrity": style.package.integrity,
                "icon": key,
                "code": concept.code,
                "family": concept.family,
                "style": style.word,
                "licence": style.licence,
                "licence_file": style.licence_file,
                "author": style.author,
                "captions": {language: f"cldr {language}" for language in LANGUAGES},
                "renderer": "pillow" if key.endswith(".webp") else f"resvg-py {version('resvg-py')}",
                "pixels": hashlib.sha256(Image.open(io.BytesIO(png)).tobytes()).hexdigest(),
                "split": split,
            }
        )
    kept = drop_leaks(rows, np.stack(thumbnails))
    # Shards are read in order when they are streamed: mix concepts and styles once, by hash.
    kept.sort(key=lambda row: chance("order", row["key"]))
    counts = {}
    for split in (*SPLITS, EXTRA):
        chosen = [row for row in kept if row["split"] == split]
        counts[split] = write_shards(out / split, ((row["key"], *content[row["key"]]) for row in chosen))
    summary = {
        "packages": [{"name": p.name, "version": p.version, "integrity": p.integrity} for p in PACKAGES],
        "size": SIZE,
        "concepts": len(concepts),
        "counts": counts,
        "near_duplicates_dropped": len(rows) - len(kept),
        "styles": dict(Counter(row["style"] for row in kept)),
    }
    write_manifest(out, kept)
    (out / "names.json").write_text(json.dumps([asdict(concept) for concept in concepts], ensure_ascii=False) + "\n")
    (out / "data.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def main(
    out: Annotated[Path, typer.Option(help="folder of the data set")] = Path("data/emoji"),
    packages: Annotated[Path | None, typer.Option(help="folder with the packages' tarballs")] = None,
    limit: Annotated[int | None, typer.Option(help="only the first so many concepts")] = None,
    sample: Annotated[Path | None, typer.Option(help="cut a small sample of the set in OUT into this folder")] = None,
) -> None:
    try:
        print(json.dumps(cut_sample(out, sample) if sample else build(out, packages, limit)["counts"]))
    except (ValueError, OSError) as error:
        raise SystemExit(f"build_dataset: {error}") from None


if __name__ == "__main__":
    typer.run(main)
