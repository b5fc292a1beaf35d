"""Damaged images and tars, and bombs: skipped, counted and named, or refused with one clear error; nothing hangs."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attempts import answer
from damage import bombs, flipped, huge_members, images, judged, no_file, outcomes, strangers, tars
from tokenizer_image import ImageTokenizer
from train.images.codes import encode_entries, write_codes
from train.images.files import Entry, index
from train.images.loader import ImageLoader
from train.prepare import PrepareOptions, prepare

pytestmark = pytest.mark.faults

IMAGES, TARS = 300, 120
GIGABYTE = 2**30


@pytest.fixture(scope="module")
def tallies(account: dict[str, Any]) -> dict[str, Any]:
    return account.setdefault("damage", {})


def damaged_image(rng: random.Random, sound: dict[str, bytes], large: dict[str, bytes]) -> tuple[str, str, bytes]:
    """Kind, suffix and content; kinds that begin with "!" cannot be read as images."""
    name = rng.choice(sorted(sound))
    data, suffix = sound[name], {"apng": "png", "ppm": "png"}.get(name, name)
    way = rng.choice(["truncated", "early", "a flip", "flips", "header", "swapped", "stranger", "bomb"])
    if way == "truncated":
        return f"{way} {name}", suffix, data[: rng.randrange(len(data))]
    if way == "early":
        return f"!{way} {name}", suffix, data[: rng.randrange(1, 12)]
    if way == "a flip":
        return f"{way} {name}", suffix, flipped(data, rng, 1)
    if way == "flips":
        return f"{way} {name}", suffix, flipped(data, rng, rng.randrange(2, 60))
    if way == "header":
        return f"{way} {name}", suffix, flipped(data, rng, rng.randrange(1, 6), 0, 64)
    if way == "swapped":  # a sound image under another's suffix is an image
        return f"{way} {name}", rng.choice(["png", "jpg", "webp", "gif"]), data
    if way == "stranger":
        name, data = rng.choice(sorted(strangers(rng).items()))
        return f"!{way}: {name}", rng.choice(["png", "jpg", "webp", "gif"]), data
    names = sorted(large)
    name = rng.choice(names if rng.random() < 0.5 else names[1:])
    must = "" if name in ("2000 frames", "62 million pixels", "text in a png", "profile in a png") else "!"
    return f"{must}{way}: {name}", "png", large[name]


def image_cases(vq: Path, folder: Path, cases: int, seed: int) -> dict[str, Any]:
    tokenizer = ImageTokenizer.from_pretrained(vq)
    sound, large = images(0), bombs()
    usual = [
        (f"{i}-{name}.{'png' if name in ('apng', 'ppm') else name}", data)
        for i in range(2)
        for name, data in images(i + 1).items()
    ]

    def one(case: int, rng: random.Random) -> tuple[str, str, str]:
        here = folder / f"{case}"
        here.mkdir()
        for name, content in usual:
            (here / name).write_bytes(content)
        many = rng.random() < 0.1
        kinds, victims = [], []
        for i in range(9 if many else 1):
            kind, suffix, content = damaged_image(rng, sound, large)
            path = here / f"bad-{i}.{suffix}"
            path.write_bytes(content)
            kinds.append(kind)
            victims.append(path)
        if not many and rng.random() < 0.05:
            kinds = [no_file(victims[0], rng)]
        kind = ", ".join(kinds)
        try:
            return kind, *image_fate(here, kinds, victims, tokenizer)
        except ValueError as error:
            must = sum(kind[0] == "!" for kind in kinds)
            clear = "more than max_bad = 20%" in str(error) and many and "bad-" in str(error)
            return kind, "refused" if clear else "other error", f"{must} {error!r}"
        except Exception as error:
            return kind, "other error", repr(error)
        finally:
            shutil.rmtree(here)

    folder.mkdir()
    return outcomes(cases, seed, one)


def image_fate(here: Path, kinds: list[str], victims: list[Path], tokenizer: ImageTokenizer) -> tuple[str, str]:
    source = ImageLoader(here, 16, max_bad=0.2, aspects=("1:1", "3:2") if len(victims) % 2 else ("1:1",))
    for step in range(2 * len(source) // 4 + 2):
        batch = source.batch(step, 4)
        assert bool(batch.isfinite().all()) and float(batch.abs().max()) <= 1
    source.held_out_images()
    for entry in [*source.entries, *source.held_out]:  # whatever the order and the buckets were
        source._load(entry)  # pyright: ignore[reportPrivateUsage]
    if extra := [name for name in source.skipped if Path(name) not in victims]:
        return "other error", f"sound images were skipped: {extra}"
    if not all(source.skipped.values()):
        return "unnamed", str(source.skipped)
    entries = [Entry(str(path), str(path), 0, path.stat().st_size) for path in victims if path.is_file()]
    encoded = list(encode_entries(entries, tokenizer))
    if [bool(one.reason) for one in encoded] != [entry.name in source.skipped for entry in entries]:
        return "other error", f"two readers differ: {[one.reason for one in encoded]} and {source.skipped}"
    for kind, path in zip(kinds, victims, strict=True):
        if kind[0] == "!" and str(path) not in source.skipped:
            return "missed", f"{path.name}"
    return ("skipped" if source.skipped else "harmless"), str(source.skipped)


def test_damaged_images_are_skipped_counted_and_named(data: Path, tmp_path: Path, tallies: dict[str, Any]):
    result = answer(tmp_path, image_cases, data / "vq", tmp_path / "cases", IMAGES, 3)
    tallies["images"] = judged(result, 2 * GIGABYTE)
    assert sum(one.fate == "skipped" for one in result["outcomes"]) > IMAGES / 3
    assert sum(one.fate == "refused" for one in result["outcomes"]) > IMAGES / 40


def tar_cases(vq: Path, folder: Path, cases: int, seed: int, make: Callable[..., dict[str, bytes]]) -> dict[str, Any]:
    tokenizer, found = ImageTokenizer.from_pretrained(vq), dict[str, bytes]()

    def one(case: int, rng: random.Random) -> tuple[str, str, str]:
        if not found or case % len(found) == 0:
            found.update(make(rng))
        here = folder / f"{case}"
        here.mkdir()
        for i in range(4):
            (here / f"{i}.png").write_bytes(images(i)["png"])
        kind = sorted(found)[case % len(found)]
        (here / "some.tar").write_bytes(found[kind])
        try:
            entries, bad = index(here)
            if any(
                entry.name not in {str(here / f"{i}.png") for i in range(4)} and "some.tar:" not in entry.name
                for entry in entries
            ) or not all(bad.values()):
                return kind, "unnamed", str(bad)
            encoded = list(encode_entries(entries, tokenizer))
            lost = {Path(one.entry.name).name[:80]: one.reason for one in encoded if one.reason} | bad
            try:
                source = ImageLoader(here, 16, max_bad=1.0)
                for entry in [*source.entries, *source.held_out]:
                    source._load(entry)  # pyright: ignore[reportPrivateUsage]
            except ValueError as error:
                return kind, "refused", str(error)
            return kind, "skipped" if lost else "harmless", str(lost)[:300]
        except Exception as error:
            return kind, "other error", repr(error)
        finally:
            shutil.rmtree(here)

    folder.mkdir()
    return outcomes(cases, seed, one)


def test_damaged_tars_are_skipped_counted_and_named(data: Path, tmp_path: Path, tallies: dict[str, Any]):
    result = answer(tmp_path, tar_cases, data / "vq", tmp_path / "cases", TARS, 4, tars)
    tallies["tars"] = judged(result, 2 * GIGABYTE)
    assert sum(one.fate == "skipped" for one in result["outcomes"]) > TARS / 2


def test_a_member_larger_than_any_memory_is_skipped(data: Path, tmp_path: Path, tallies: dict[str, Any]):
    result = answer(tmp_path, tar_cases, data / "vq", tmp_path / "cases", 14, 5, huge_members)
    tallies["tars with huge members"] = judged(result, 2 * GIGABYTE)


# The way of one's own data: train.prepare and train.encode


def prepared(vq: Path, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What train.prepare makes of six sound samples among damaged ones; the names of those that it left out."""
    rng, source = random.Random(6), folder / "source"
    source.mkdir()
    damaged = strangers(rng) | {name: data for name, data in bombs().items() if name != "62 million pixels"}
    for i in range(6):
        (source / f"good-{i}.png").write_bytes(images(i)["png"])
        (source / f"good-{i}.txt").write_text(f"image {i}")
    for i, (name, data) in enumerate(damaged.items()):
        (source / f"bad-{i}.png").write_bytes(data)
        (source / f"bad-{i}.txt").write_text(name)
    for i, data in enumerate(strangers(rng).values()):  # their captions are damaged
        (source / f"words-{i}.png").write_bytes(images(i)["png"])
        (source / f"words-{i}.json").write_bytes(data)
    meta = prepare(source, folder / "out", PrepareOptions(image_tokenizer=str(vq), max_tokens=100, text_vocab=300))
    rows = [json.loads(line) for line in (folder / "out" / "skipped.jsonl").read_text().splitlines()]
    assert all(row["reason"] for row in rows)
    return meta, [row["name"] for row in rows]


def test_what_cannot_be_prepared_is_left_out_and_named(data: Path, tmp_path: Path, tallies: dict[str, Any]):
    meta, named = answer(tmp_path, prepared, data / "vq", tmp_path)
    assert sum(meta["skipped"].values()) == len(named) == len(set(named)) > 30
    assert not [name for name in named if name.startswith("good-")]
    tallies["prepare"] = {"cases": len(named), "skipped": len(named)}


def with_odd_names(folder: Path) -> Path:
    """Images whose names are not UTF-8."""
    source = folder / "source"
    source.mkdir()
    for i, stem in enumerate([b"1", b"2", b"3", b"\xff", b"\xfe"]):
        with open(os.fsencode(source) + b"/" + stem + b".png", "wb") as file:
            file.write(images(i)["png"] if stem != b"\xfe" else b"")
        with open(os.fsencode(source) + b"/" + stem + b".txt", "wb") as file:
            file.write(b"an image")
    return source


def prepare_odd_names(vq: Path, folder: Path) -> int:
    return prepare(
        with_odd_names(folder), folder / "out", PrepareOptions(image_tokenizer=str(vq), max_tokens=100, text_vocab=300)
    )["documents"]


def encode_odd_names(vq: Path, folder: Path) -> int:
    return write_codes(with_odd_names(folder), folder / "out", ImageTokenizer.from_pretrained(vq))["images"]


@pytest.mark.parametrize("work", [prepare_odd_names, encode_odd_names])
def test_names_that_are_not_utf_8_do_no_harm(data: Path, tmp_path: Path, work: Callable[[Path, Path], int]):
    assert answer(tmp_path, work, data / "vq", tmp_path) >= 3
