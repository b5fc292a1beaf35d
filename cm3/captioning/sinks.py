"""Where captions go: nowhere, or into a text file beside each image; tables are in tables.py.

Nothing is written over an image, nor over a file that the run reads.
"""

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from PIL import Image as PIL_Image

from cm3.files import write_whole

Existing = Literal["skip", "overwrite", "append", "prepend"]
# Endings of images, also of those that are not read here: no text gets one of them.
IMAGES = frozenset(
    ".apng .avif .avifs .bmp .cr2 .cr3 .dds .dib .dng .eps .exr .gif .hdr .heic .heif .hif .icns .ico .j2k .jfif .jp2 "
    ".jpe .jpeg .jpg .jxl .mpo .nef .arw .orf .pbm .pcx .pdf .pgm .png .pnm .ppm .ps .psd .qoi .raf .raw .rgb .rw2 "
    ".sgi .svg .svgz .tga .tif .tiff .webp .wmf .xbm .xpm".split()
)
SEPARATOR = ", "  # between a text that was there and one that joins it, as tags are


@dataclass(frozen=True)
class Told:
    """texts: by column, in order; none where error says why not."""

    path: Path
    texts: dict[str, str]
    error: str = ""


class Sink(Protocol):
    """Where texts go. Nothing that was added is lost if the run is cut off afterwards."""

    def has(self, path: Path) -> bool:
        """Whether the image has its text. Asked once of each image, before it is opened.

        Raises:
            ValueError: its text has no place.
            OSError: its text cannot be written there.
        """
        ...

    def add(self, told: Told) -> None: ...
    def close(self) -> None: ...


class Nowhere:
    """For texts that are only shown."""

    def has(self, path: Path) -> bool:
        return False

    def add(self, told: Told) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class Beside:
    """A text file beside each image, of its name with another ending; several texts are lines.

    Attributes:
        extension: the ending, with its dot.
        existing: what becomes of a text that is there.
        reads: files that the run reads, and folders of such, as real paths: none is written over.

    Raises:
        ValueError: the ending is one of images.
    """

    extension: str
    existing: Existing
    reads: frozenset[Path] = frozenset()
    taken: dict[Path, Path] = field(default_factory=dict[Path, Path])  # text file -> the image that it belongs to

    def __post_init__(self) -> None:
        if Path(f"x{self.extension}").suffix.strip().lower() in IMAGES:
            raise ValueError(
                f"the ending of texts is {self.extension!r}, which images have, and images are never written over: "
                "choose another, such as .txt"
            )

    def place(self, path: Path) -> Path:
        return path.with_suffix(self.extension)

    def has(self, path: Path) -> bool:
        place = self.place(path)
        first = self.taken.setdefault(place, path)
        if first != path:
            raise ValueError(
                f"{place.name} is the text of {first.name} already: rename one of the two, or write a table with --out"
            )
        if os.path.exists(place):
            if self.existing == "skip":
                return True
            check_replaceable(place, self.reads)
        elif place.parent.is_dir() and not os.access(place.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return False

    def add(self, told: Told) -> None:
        place, text = self.place(told.path), "\n".join(told.texts.values())
        if self.existing in ("append", "prepend") and place.exists():
            try:
                before = place.read_text(encoding="utf-8").strip()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{place.name} is not in UTF-8, so nothing is joined to it: save it as UTF-8 first"
                ) from error
            parts = (before, text) if self.existing == "append" else (text, before)
            text = SEPARATOR.join(part for part in parts if part)
        write_whole(place, text + "\n")

    def close(self) -> None:
        pass


def check_replaceable(place: Path, reads: frozenset[Path]) -> None:
    """Whether a file may be written over. Raises ValueError for an image, for what is no plain file, and for a file
    that is among `reads` or below them."""
    real = Path(os.path.realpath(place))
    if not real.is_file():
        raise ValueError(f"{place} is no plain file, so no text is written there")
    if not reads.isdisjoint((real, *real.parents)):
        raise ValueError(f"{place} is a file that this run reads, so no text is written over it: name another place")
    if is_image(real):
        raise ValueError(f"{place} is an image, so no text is written over it: name another place")


def is_image(path: Path) -> bool:
    """By what the file holds, whatever its name."""
    try:
        PIL_Image.open(path).close()
    except PIL_Image.DecompressionBombError:
        return True
    except Exception:  # bytes that are no image make PIL raise almost anything
        return False
    return True


def is_text(words: str) -> bool:
    """Whether UTF-8 can hold it: no byte of a name that is in another encoding."""
    return not any("\ud800" <= char <= "\udfff" for char in words)
