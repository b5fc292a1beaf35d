"""Tiny npm packages with a few drawn emoji in every style, so that the data set can be built offline in a second."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from train.recipes.emoji import build_dataset, concepts
from train.recipes.emoji import packages as sources
from train.recipes.emoji.packages import Package

# Code -> (English, Arabic); ten fruits make the splits hold out a concept (watermelon) and pairs (peach, melon).
FRUITS = {
    "1f34e": ("red apple", "تفاحة حمراء"),
    "1f34a": ("tangerine", "يوسفي"),
    "1f34b": ("lemon", "ليمون"),
    "1f34c": ("banana", "موز"),
    "1f349": ("watermelon", "بطيخ"),
    "1f347": ("grapes", "عنب"),
    "1f352": ("cherries", "كرز"),
    "1f351": ("peach", "خوخ"),
    "1f34d": ("pineapple", "أناناس"),
    "1f348": ("melon", "شمام"),
}
ANIMALS = {"1f436": ("dog face", "وجه كلب")}
NAMES = FRUITS | ANIMALS
# Icons of the extra styles; what is no concept, or means another thing, is among them, and a concept held out.
EXTRA_ICONS = {
    "fxemoji": ("redapple", "banana", "watermelon", "bow"),
    "streamline": ("lemon-1", "lemon-2", "dog-face", "moon"),
    "icon park": ("banana", "moon"),
}
Twins = Mapping[tuple[str, str], tuple[str, str]]


@dataclass(frozen=True)
class Fakes:
    """folder: the tarballs. packages: all of them. styles, extra: the real styles, drawn by the fake packages."""

    folder: Path
    packages: tuple[Package, ...]
    styles: tuple[sources.Style, ...]
    extra: tuple[sources.Style, ...]

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let train build from these packages."""
        annotations, derived, emojibase = self.packages[-3:]
        held_out = self.folder / "held_out_concepts.txt"
        held_out.write_text("# seldom named\n1f349  watermelon\n")
        monkeypatch.setattr(build_dataset, "HELD_OUT", held_out)
        monkeypatch.setattr(build_dataset, "PACKAGES", self.packages)
        monkeypatch.setattr(build_dataset, "STYLES", self.styles)
        monkeypatch.setattr(build_dataset, "EXTRA_STYLES", self.extra)
        monkeypatch.setattr(concepts, "STYLES", self.styles)
        for name, package in (("ANNOTATIONS", annotations), ("DERIVED", derived), ("EMOJIBASE", emojibase)):
            monkeypatch.setattr(concepts, name, package)


def pack(folder: Path, name: str, files: Mapping[str, Any], version: str = "1.0.0") -> Package:
    """Write the tarball of a package (bytes as they are, anything else as JSON) and pin it."""
    package = Package(name, version, "")
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / package.tarball, "w:gz") as tar:
        for path, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{path}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return replace(package, integrity=sources.integrity(folder / package.tarball))


def drawing(style: str, code: str, twins: Twins) -> tuple[int, int, str]:
    """Where the concept's square lies (of 36) and its colour; one drawing a style and concept, but for twins."""
    digest = hashlib.sha256(" ".join(twins.get((style, code), (style, code))).encode()).digest()
    return digest[0] % 22, digest[1] % 22, f"#{digest[2:5].hex()}"


def body(style: str, code: str, twins: Twins) -> str:
    x, y, colour = drawing(style, code, twins)
    return f'<rect x="{x}" y="{y}" width="14" height="14" fill="{colour}"/>'


def webp(style: str, code: str, twins: Twins) -> bytes:
    x, y, colour = drawing(style, code, twins)
    image = Image.new("RGBA", (72, 72))
    ImageDraw.Draw(image).rectangle((2 * x, 2 * y, 2 * x + 27, 2 * y + 27), colour)
    out = io.BytesIO()
    image.save(out, "WEBP", lossless=True)
    return out.getvalue()


def make(folder: Path, twins: Twins | None = None) -> Fakes:
    """All packages. twins: (style, code) -> the (style, code) whose drawing it shares."""
    twins, styles, packages = twins or {}, [], {}
    for style in sources.STYLES:
        if style.package not in packages:
            word, keys = style.word, {code: concepts.slug(NAMES[code][0]) for code in NAMES}
            if word == "fluent 3d":  # raster, named by code points
                files: dict[str, Any] = {f"assets/{code}.webp": webp(word, code, twins) for code in NAMES}
            else:  # emojione has no code points of its own: it is matched by name
                icons = {keys[code]: {"body": body(word, code, twins)} for code in NAMES}
                chars = {} if word == "emojione" else keys
                files = {"icons.json": {"icons": icons, "width": 36, "height": 36}, "chars.json": chars}
            packages[style.package] = pack(folder, style.package.name, files)
        styles.append(replace(style, package=packages[style.package]))
    extra = []
    for style in sources.EXTRA_STYLES:
        icons = {key: {"body": body(style.word, key, twins)} for key in EXTRA_ICONS[style.word]}
        files = {"icons.json": {"icons": icons, "width": 36, "height": 36}, "chars.json": {}}
        packages[style.package] = pack(folder, style.package.name, files)
        extra.append(replace(style, package=packages[style.package]))
    entries = {
        language: {
            chr(int(code, 16)): {"tts": [name], "default": [name, f"{name} {i}"]}
            for code, names in NAMES.items()
            for name in (names[i] if i < len(names) else f"{names[0]} {language}",)
        }
        for i, language in enumerate(concepts.LANGUAGES)
    }
    annotations = pack(
        folder,
        "annotations",
        {
            f"annotations/{language}/annotations.json": {"annotations": {"annotations": rows}}
            for language, rows in entries.items()
        },
    )
    derived = pack(
        folder,
        "derived",
        {
            f"annotationsDerived/{language}/annotations.json": {"annotationsDerived": {"annotations": {}}}
            for language in entries
        },
    )
    rows = [
        {"hexcode": code.upper(), "order": i, "group": int(code in FRUITS), "subgroup": int(code in FRUITS)}
        for i, code in enumerate(NAMES)
    ]
    groups = {
        "groups": {"0": "animals-nature", "1": "food-drink"},
        "subgroups": {"0": "animal-mammal", "1": "food-fruit"},
    }
    short = {"1F34C": ["banana", "plantain"], "1F436": "dog", "1F34A": "sunglasses"}
    files = {"en/data.json": rows, "meta/groups.json": groups, "en/shortcodes/github.json": short}
    emojibase = pack(folder, "emojibase", files)
    return Fakes(folder, (*packages.values(), annotations, derived, emojibase), tuple(styles), tuple(extra))
