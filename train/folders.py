"""Where pictures lie, in folders and in webdataset tars, and how one is read.

A tar's table is read once, and its members are then reached in place: nothing is unpacked.
"""

import os
import tarfile
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, cast

from PIL import Image, ImageOps
from rich.progress import track

from tokenizer_image.pixels import FORMATS, open_image
from train.views import PICTURES


class Entry(NamedTuple):
    """Where a picture's bytes lie: a file, or a member of a tar."""

    name: str
    file: str
    offset: int
    size: int

    def read(self) -> bytes:
        with open(self.file, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class Split(NamedTuple):
    """Pictures to train on and pictures to evaluate on; `bad`: file -> reason, for tars that are cut off."""

    train: list[Entry]
    held_out: list[Entry]
    bad: dict[str, str]


def index(folder: Path) -> tuple[list[Entry], dict[str, str]]:
    """The pictures in a folder and below and in its tars, by name; file -> reason for tars that are cut off."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    entries: list[Entry] = []
    tars: list[Path] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(name for name in names if not name.startswith(".")):
            path, suffix = Path(place, name), Path(name).suffix.lower()
            if suffix in PICTURES and path.is_file():
                entries.append(Entry(str(path), str(path), 0, path.stat().st_size))
            elif suffix == ".tar":
                tars.append(path)
    bad: dict[str, str] = {}
    for path in track(tars, "reading the tars' tables", disable=len(tars) < 10, transient=True):
        try:
            with tarfile.open(path, "r:") as tar:  # "r:": members of a compressed tar cannot be reached at once
                for member in tar:
                    if member.isfile() and Path(member.name).suffix.lower() in PICTURES:
                        entries.append(Entry(f"{path}:{member.name}", str(path), member.offset_data, member.size))
        except (OSError, tarfile.TarError) as error:
            bad[str(path)] = f"not a whole tar ({error})"
    return entries, bad


def split(path: str | Path, evaluate_on: str = "", every: int = 20) -> Split:
    """The pictures to train on and those to evaluate on.

    Args:
        path: a folder of pictures or tars; or of a data set, with train/.
        evaluate_on: the folder beside train/ to evaluate on; used where there is a train/.
        every: without train/ or evaluate_on, the first of so many pictures is held out.

    Raises:
        ValueError: no such folder, or no pictures in it.
    """
    folder = Path(path)
    whole = folder / "train" if (folder / "train").is_dir() else folder
    entries, bad = index(whole)
    if len(entries) < 2:
        broken = "".join(f"; {name}: {reason}" for name, reason in list(bad.items())[:3])
        raise ValueError(
            f"{whole} has {len(entries)} pictures: give a folder with at least two ({' '.join(PICTURES)}), "
            f"in files or in tars{broken}"
        )
    if whole == folder or not evaluate_on:
        return Split([entry for i, entry in enumerate(entries) if i % every], entries[::every], bad)
    held_out, more = index(folder / evaluate_on)
    if not held_out:
        raise ValueError(f"{folder / evaluate_on} has no pictures: evaluate on another split")
    return Split(entries, held_out, bad | more)


def decode(data: bytes, least: int) -> Image.Image:
    """A drawing with transparency as RGBa, any other picture as RGB, upright.

    Args:
        data: a file's bytes.
        least: a picture whose shorter side is at least twice as many pixels is shrunk by a whole factor, down to these.

    Raises:
        ValueError: a file that is no picture, or damaged, or too large (tokenizer_image.pixels).
    """
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except Exception:  # open_image says what is wrong
        return open_image(data)
    image.draft("RGB", (least, least))  # a large JPEG is decoded at a half, a quarter or an eighth
    picture = open_image(image)
    if image.has_transparency_data and image.mode[0] not in "IF":
        drawing = ImageOps.exif_transpose(image).convert("RGBA")
        if cast(tuple[int, int], drawing.getchannel("A").getextrema())[0] < 255:
            picture = drawing.convert("RGBa")
    factor = min(picture.size) // least
    return picture.reduce(factor) if factor > 1 else picture
