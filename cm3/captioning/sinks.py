"""Sinks for captions: none, or a text file beside each image. tables.py has tables.

No sink overwrites an image, or a file that the run reads.
"""

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from PIL import Image as PIL_Image

from cm3.files import write_whole

Existing = Literal["skip", "overwrite", "append", "prepend"]
# Endings of images, also of formats that are not read here. No text file may have one of them.
IMAGE_ENDINGS = frozenset(
    ".apng .avif .avifs .bmp .cr2 .cr3 .dds .dib .dng .eps .exr .gif .hdr .heic .heif .hif .icns .ico .j2k .jfif .jp2 "
    ".jpe .jpeg .jpg .jxl .mpo .nef .arw .orf .pbm .pcx .pdf .pgm .png .pnm .ppm .ps .psd .qoi .raf .raw .rgb .rw2 "
    ".sgi .svg .svgz .tga .tif .tiff .webp .wmf .xbm .xpm".split()
)
SEPARATOR = ", "  # between an existing and a new text, as between tags


@dataclass(frozen=True)
class Result:
    """The texts of one image.

    Attributes:
        path: of the image.
        texts: by column, in order; empty if there is an error.
        error: why there are no texts; "" if there is no error.
    """

    path: Path
    texts: dict[str, str]
    error: str = ""


class Sink(Protocol):
    """Writes texts. What was added is not lost if the run is killed afterwards."""

    def has(self, path: Path) -> bool:
        """Whether the image already has its text. Called once for each image, before it is decoded.

        Raises:
            ValueError: the text must not be written to its place.
            OSError: the text cannot be written.
        """
        ...

    def add(self, result: Result) -> None: ...
    def close(self) -> None: ...


class NoSink:
    """Discards the texts."""

    def has(self, path: Path) -> bool:
        return False

    def add(self, result: Result) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class TextFiles:
    """Writes a text file beside each image, with its name and another ending. Several texts are lines.

    Attributes:
        extension: the ending, with its dot.
        existing: what to do with a text that exists.
        reads: real paths of files that the run reads, and of folders of such files. They are not overwritten.
        taken: the image that each text file belongs to.

    Raises:
        ValueError: the ending is that of an image format.
    """

    extension: str
    existing: Existing
    reads: frozenset[Path] = frozenset()
    taken: dict[Path, Path] = field(default_factory=dict[Path, Path])

    def __post_init__(self) -> None:
        if Path(f"x{self.extension}").suffix.strip().lower() in IMAGE_ENDINGS:
            raise ValueError(
                f"the ending of texts is {self.extension!r}, which images have, and images are never written over: "
                "choose another, such as .txt"
            )

    def text_path(self, path: Path) -> Path:
        """The text file of an image."""
        return path.with_suffix(self.extension)

    def has(self, path: Path) -> bool:
        text = self.text_path(path)
        first = self.taken.setdefault(text, path)
        if first != path:
            raise ValueError(
                f"{text.name} is the text of {first.name} already: rename one of the two, or write a table with --out"
            )
        if os.path.exists(text):
            if self.existing == "skip":
                return True
            check_replaceable(text, self.reads)
        elif text.parent.is_dir() and not os.access(text.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return False

    def add(self, result: Result) -> None:
        target, text = self.text_path(result.path), "\n".join(result.texts.values())
        if self.existing in ("append", "prepend") and target.exists():
            try:
                before = target.read_text(encoding="utf-8").strip()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{target.name} is not in UTF-8, so nothing is joined to it: save it as UTF-8 first"
                ) from error
            parts = (before, text) if self.existing == "append" else (text, before)
            text = SEPARATOR.join(part for part in parts if part)
        write_whole(target, text + "\n")

    def close(self) -> None:
        pass


def check_replaceable(path: Path, reads: frozenset[Path]) -> None:
    """Raise a ValueError for a file that must not be overwritten: an image, no regular file, or in `reads` or below."""
    real = Path(os.path.realpath(path))
    if not real.is_file():
        raise ValueError(f"{path} is no plain file, so no text is written there")
    if not reads.isdisjoint((real, *real.parents)):
        raise ValueError(f"{path} is a file that this run reads, so no text is written over it: name another place")
    if is_image(real):
        raise ValueError(f"{path} is an image, so no text is written over it: name another place")


def is_image(path: Path) -> bool:
    """Whether the file's content is an image, whatever its name."""
    try:
        PIL_Image.open(path).close()
    except PIL_Image.DecompressionBombError:
        return True
    except Exception:  # PIL raises many kinds of errors for other content
        return False
    return True


def is_text(words: str) -> bool:
    """Whether UTF-8 can encode a string. It cannot if the string is a file name in another encoding."""
    return not any("\ud800" <= char <= "\udfff" for char in words)
