"""Where images lie, in folders and in webdataset tars, and how one is read.

A tar's table is read once, and its members are then reached in place: nothing is unpacked.
"""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

from PIL import Image
from rich.progress import track

from cm3.captioning.run import IMAGE_SUFFIXES
from tokenizer_image.pixels import no_file, open_image

MAX_MEMBERS = 1_000_000  # of a tar
COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ\0": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}


class Entry(NamedTuple):
    """Where an image's bytes lie: a file, or a member of a tar."""

    name: str
    file: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Raises ValueError where the file ends before."""
        with open(self.file, "rb") as file:
            there = max(0, os.fstat(file.fileno()).st_size - self.offset)  # a damaged tar may promise terabytes
            if there < self.size:
                raise ValueError(f"cut off: {there} of {self.size} bytes")
            file.seek(self.offset)
            return file.read(self.size)


class Split(NamedTuple):
    """Images to train on and images to evaluate on; `bad`: file -> reason, for what index passes over."""

    train: list[Entry]
    held_out: list[Entry]
    bad: dict[str, str]


def walk(folder: Path, passed_over: dict[str, str] | None = None) -> Iterator[Path]:
    """The files in a folder and below, in order; none that is hidden, and no folder twice where links go round.

    passed_over: takes up, by path, why what has an image's name and is no file is left out: pipes, links that lead
    nowhere. Raises ValueError where there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(names):
            path = Path(place, name)
            if name.startswith("."):
                continue
            if not (reason := no_file(path)):
                yield path
            elif passed_over is not None and path.suffix.lower() in IMAGE_SUFFIXES:
                passed_over[str(path)] = reason


def members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The plain files in a tar, in order.

    Raises:
        ValueError: the tar is cut off, or no tar, or has more than MAX_MEMBERS; what came before is whole.
    """
    try:
        with tarfile.open(path, "r:") as tar:  # "r:": members of a compressed tar cannot be reached at once
            for count, member in enumerate(tar):
                if count >= MAX_MEMBERS:
                    raise ValueError(f"more than {MAX_MEMBERS:,} members: split the tar")
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # it would keep all
                if member.isfile() and not member.issparse():
                    yield member
    except (OSError, tarfile.TarError, OverflowError) as error:
        if program := compressed(path):
            raise ValueError(
                f"a compressed tar, whose members cannot be reached in place: {program} it first"
            ) from error
        raise ValueError(f"not a whole tar ({error})") from error


def compressed(path: Path) -> str:
    """The program that unpacks a compressed file, by its first bytes; none for others."""
    try:
        with path.open("rb") as file:
            head = file.read(6)
    except OSError:
        return ""
    return next((program for magic, program in COMPRESSED.items() if head.startswith(magic)), "")


def index(folder: Path) -> tuple[list[Entry], dict[str, str]]:
    """The images in a folder and below and in its tars, by name; file -> reason for tars that are cut off, and for
    what has an image's name and is no file."""
    entries: list[Entry] = []
    tars: list[Path] = []
    bad: dict[str, str] = {}
    for path in walk(folder, bad):
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            entries.append(Entry(str(path), str(path), 0, path.stat().st_size))
        elif suffix == ".tar":
            tars.append(path)
    for path in track(tars, "reading the tars' tables", disable=len(tars) < 10, transient=True):
        try:
            for member in members(path):
                if Path(member.name).suffix.lower() in IMAGE_SUFFIXES:
                    entries.append(Entry(f"{path}:{member.name}", str(path), member.offset_data, member.size))
        except ValueError as error:
            bad[str(path)] = str(error)
    return entries, bad


def split(path: str | Path, evaluate_on: str = "", every: int = 20) -> Split:
    """The images to train on and those to evaluate on.

    Args:
        path: a folder of images or tars; or of a data set, with train/.
        evaluate_on: the folder beside train/ to evaluate on; used where there is a train/.
        every: without train/ or evaluate_on, the first of so many images is held out.

    Raises:
        ValueError: no such folder, or no images in it.
    """
    folder = Path(path)
    whole = folder / "train" if (folder / "train").is_dir() else folder
    entries, bad = index(whole)
    if len(entries) < 2:
        broken = "".join(f"; {name}: {reason}" for name, reason in list(bad.items())[:3])
        raise ValueError(
            f"{whole} has {len(entries)} images: give a folder with at least two ({' '.join(IMAGE_SUFFIXES)}), "
            f"in files or in tars{broken}"
        )
    if whole == folder or not evaluate_on:
        return Split([entry for i, entry in enumerate(entries) if i % every], entries[::every], bad)
    held_out, more = index(folder / evaluate_on)
    if not held_out:
        raise ValueError(f"{folder / evaluate_on} has no images: evaluate on another split")
    return Split(entries, held_out, bad | more)


def decode(data: bytes, least: int) -> Image.Image:
    """A drawing with transparency as RGBa, any other image as RGB, upright.

    Args:
        data: a file's bytes.
        least: an image whose shorter side is at least twice as many pixels is shrunk by a whole factor, down to these.

    Raises:
        ValueError: a file that is no image, or damaged, or too large (tokenizer_image.pixels).
    """
    image = open_image(data, ground=None, least=least)
    if image.mode == "RGBA":
        opaque = cast(tuple[int, int], image.getchannel("A").getextrema())[0] == 255
        image = image.convert("RGB" if opaque else "RGBa")
    factor = min(image.size) // least
    return image.reduce(factor) if factor > 1 else image
