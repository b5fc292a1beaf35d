"""The image files of the command: looked at before the work, written whole or not at all."""

import os
import stat
import unicodedata
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cm3.files import check_writable, followed, whole

FORMATS = (".png", ".jpg", ".jpeg", ".webp")
OPAQUE = (".jpg", ".jpeg")
MAX_ENLARGEMENT = 16
SMALL = 256  # pixels; smaller images are enlarged


def grid(images: list[Image.Image], scale: int) -> Image.Image:
    """Put images of one size and mode side by side, in about as many rows as columns.

    Args:
        images: the images.
        scale: enlarges each; 0 enlarges small ones to about SMALL pixels.
    """
    scale = scale or min(MAX_ENLARGEMENT, max(1, SMALL // max(images[0].size)))
    rows = round(len(images) ** 0.5)
    columns = -(-len(images) // rows)
    width, height = (side * scale for side in images[0].size)
    sheet = Image.new(images[0].mode, (columns * width, rows * height), "white")
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        sheet.paste(image.resize((width, height), Image.Resampling.BICUBIC), (column * width, row * height))
    return sheet


def fit_for(path: Path, image: Image.Image) -> Image.Image:
    """The image on white, where the file's format has no transparency."""
    if path.suffix.lower() not in OPAQUE or image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def check_images(*paths: str) -> None:
    """Find out before the model is loaded that an image's file cannot be read.

    Raises:
        ValueError: it cannot be read.
    """
    for path in paths:
        try:
            if stat.S_ISFIFO(os.stat(path).st_mode):  # to open it would wait for its writer
                raise ValueError(f"{path}: cannot be read (it is a pipe); save the image in a file first")
            open(path, "rb").close()
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror})") from error


def check_output(path: Path, overwrite: bool = True) -> None:
    """Find out before the work that the image cannot be saved.

    Raises:
        ValueError: it cannot be saved.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: the name of an image must end with one of {', '.join(FORMATS)}")
    check_writable(path, overwrite)


@contextmanager
def places_for(names: list[Path], overwrite: bool) -> Generator[list[Path]]:
    """Where to write files of these names: there, with `overwrite`, and otherwise where no file is lost.

    Where there is a file of one of the names, a number is added to all: out-1.png, out-2.png. The new files are made
    empty, so that no other run takes them, and those that are still empty at the end are taken away.
    """
    if overwrite:
        yield names
        return
    number = 0
    while not claim(places := [numbered(name, number) for name in names]):
        number += 1
    try:
        yield places
    finally:
        for target in map(followed, places):
            if target.exists() and not target.stat().st_size:
                target.unlink()


def numbered(path: Path, number: int) -> Path:
    """out.png, out-1.png, out-2.png"""
    return path.with_name(f"{path.stem}-{number}{path.suffix}") if number else path


def claim(places: list[Path]) -> bool:
    """Make all of these files, empty, or none where one of them is there."""
    made: list[Path] = []
    try:
        for target in map(followed, places):
            target.open("xb").close()
            made.append(target)
    except OSError as error:
        for target in made:
            target.unlink()
        if isinstance(error, FileExistsError):
            return False
        raise
    return True


def save(image: Image.Image, path: Path, facts: dict[str, str] | None = None) -> None:
    """Write the whole file or nothing: first beside it, under a name that no other run has, then renamed. A link stays
    one, and leads to the new image. facts: texts for a PNG file."""
    kind = Image.registered_extensions()[path.suffix.lower()]
    with whole(followed(path)) as part:
        image.save(part, kind, **({"pnginfo": png_text(facts)} if facts and kind == "PNG" else {}))


def plain(words: str) -> str:
    """In one line: control characters, such as the newlines that names of files may have, are escaped."""
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char
        for char in words
    )


def png_text(facts: dict[str, str]) -> PngInfo:
    """Texts that a PNG file holds, by their keywords."""
    info = PngInfo()
    for keyword, text in facts.items():
        info.add_itxt(keyword, text.encode(errors="replace").decode())
    return info
