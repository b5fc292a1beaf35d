"""Find and read image files in folders and in webdataset tars.

The index of a tar is read once. Its members are then read in place; nothing is unpacked.
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
    """The bytes of an image: a file, or a member of a tar.

    Attributes:
        name: for messages.
        file: path of the file or the tar.
        offset: first byte of the image in it.
        size: number of bytes.
    """

    name: str
    file: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Read the bytes.

        Raises:
            ValueError: the file is shorter.
        """
        with open(self.file, "rb") as file:
            there = max(0, os.fstat(file.fileno()).st_size - self.offset)  # a damaged tar may promise terabytes
            if there < self.size:
                raise ValueError(f"cut off: {there} of {self.size} bytes")
            file.seek(self.offset)
            return file.read(self.size)


class Split(NamedTuple):
    """Images of a data set.

    Attributes:
        train: for training.
        held_out: for evaluation.
        bad: files that are left out, each with the reason.
    """

    train: list[Entry]
    held_out: list[Entry]
    bad: dict[str, str]


def walk(folder: Path, passed_over: dict[str, str] | None = None) -> Iterator[Path]:
    """Find the files in a folder and its subfolders, in order.

    Hidden files are left out. A folder that links lead to twice is read once.

    Args:
        folder: of the files.
        passed_over: is filled with the paths that have an image's suffix but are not files, such as pipes and broken
            links, each with the reason.

    Raises:
        ValueError: there is no such folder.
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
    """Find the regular files in a tar, in order.

    Raises:
        ValueError: the file is truncated, is no tar, or has more than MAX_MEMBERS members. Members up to there are
            yielded before.
    """
    try:
        with tarfile.open(path, "r:") as tar:  # "r:": not compressed, since its members are read in place
            for count, member in enumerate(tar):
                if count >= MAX_MEMBERS:
                    raise ValueError(f"more than {MAX_MEMBERS:,} members: split the tar")
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # else it keeps all of them
                if member.isfile() and not member.issparse():
                    yield member
    except (OSError, tarfile.TarError, OverflowError) as error:
        if program := compressed(path):
            raise ValueError(
                f"a compressed tar, whose members cannot be reached in place: {program} it first"
            ) from error
        raise ValueError(f"not a whole tar ({error})") from error


def compressed(path: Path) -> str:
    """Return the program that decompresses a file, by its first bytes; "" if it is not compressed."""
    try:
        with path.open("rb") as file:
            head = file.read(6)
    except OSError:
        return ""
    return next((program for magic, program in COMPRESSED.items() if head.startswith(magic)), "")


def index(folder: Path) -> tuple[list[Entry], dict[str, str]]:
    """Find the images in a folder, its subfolders and its tars.

    Returns:
        The images, by name; and truncated tars and paths that are not files, each with the reason.
    """
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
    """Find the images of a data set, for training and for evaluation.

    Args:
        path: a folder of images or tars, or of a data set with train/.
        evaluate_on: folder beside train/ with the held-out images.
        every: without train/ or evaluate_on, the first of so many images is held out.

    Raises:
        ValueError: there is no such folder, or it has no images.
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
    """Decode an image, upright: RGBa if parts are transparent, else RGB.

    Args:
        data: the bytes of a file.
        least: the shorter side may be reduced by a whole factor, but not below this many pixels.

    Raises:
        ValueError: the file is no image, is damaged, or is too large (tokenizer_image.pixels).
    """
    image = open_image(data, ground=None, least=least)
    if image.mode == "RGBA":
        opaque = cast(tuple[int, int], image.getchannel("A").getextrema())[0] == 255
        image = image.convert("RGB" if opaque else "RGBa")
    factor = min(image.size) // least
    return image.reduce(factor) if factor > 1 else image
