"""A sample of your own data: text and images in order, or the reason why it is skipped.

A reason begins with its kind, up to one of `:;(`, so that skipped samples are counted by kind: "not UTF-8: byte 3 is
0xff". Images are not read before they are needed.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from train.images.files import Entry

MAX_IMAGE = 256_000_000  # bytes of an image's file; its pixels have their own limit (tokenizer_image/pixels.py)
MAX_TEXT = 1_000_000  # bytes of a caption, or of one piece of text
IMAGE_COLUMNS = (
    "filepath",
    "image",
    "images",
    "path",
    "image_path",
    "file_name",
    "filename",
    "img",
    "jpg",
    "jpeg",
    "png",
    "webp",
)
TEXT_COLUMNS = ("title", "caption", "text", "captions", "description", "txt")


class Bytes(NamedTuple):
    """An image that is stored in a table. It has the interface of Entry.

    Attributes:
        name: for messages.
        data: the bytes of an image file.
    """

    name: str
    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self) -> bytes:
        return self.data


class Provenance(NamedTuple):
    """Where a sample comes from; "" = unknown."""

    source: str = ""
    licence: str = ""
    owner: str = ""
    language: str = ""


class Sample(NamedTuple):
    """A sample.

    Attributes:
        name: in its source, such as `cats/1.jpg`, `shard.tar:0001` or `table.csv:17` (line or row, from 1).
        pieces: texts and images, in order; if not interleaved, a caption and its image.
        facts: where it comes from.
        interleaved: whether it is one document of texts and images, rather than an image with a caption.
    """

    name: str
    pieces: tuple[str | Entry | Bytes, ...]
    facts: Provenance = Provenance()
    interleaved: bool = False


class Skip(NamedTuple):
    """A sample that is skipped.

    Attributes:
        name: as in Sample.
        reason: why it is skipped.
    """

    name: str
    reason: str

    @property
    def kind(self) -> str:
        """The reason without details."""
        return re.split("[:;(]", self.reason)[0].strip()


class Columns(NamedTuple):
    """Columns of a table.

    Attributes:
        image: with the image; "" = the first of IMAGE_COLUMNS that the table has.
        text: with the caption; "" = the first of TEXT_COLUMNS that the table has.
    """

    image: str = ""
    text: str = ""

    def among(self, names: Iterable[str], table: Path) -> "Columns":
        """Find the columns in a table.

        Args:
            names: the table's columns.
            table: its path, for messages.

        Raises:
            ValueError: the table lacks one.
        """
        names = list(names)
        return Columns(
            _pick(self.image, IMAGE_COLUMNS, names, table, "image"),
            _pick(self.text, TEXT_COLUMNS, names, table, "text"),
        )


def _pick(wanted: str, usual: tuple[str, ...], names: list[str], table: Path, what: str) -> str:
    for name in (wanted,) if wanted else usual:
        if name in names:
            return name
    missing = f"no column {wanted!r}" if wanted else f"none of the {what} columns {', '.join(usual)}"
    raise ValueError(
        f"{table} has {missing}, but {', '.join(map(repr, names[:20])) or 'none at all'}: name its {what} "
        f"column with --{what}-column"
    )


USUAL = Columns()


class Unusable(Exception):
    """A sample is skipped for this reason. The readers catch it."""


def facts_of(row: Mapping[str, Any]) -> Provenance:
    """Read where a sample comes from, from the usual columns of its row."""

    def first(*names: str) -> str:
        return next((str(row[name])[:1000] for name in names if row.get(name)), "")

    source = first("source", "url")
    if not source and isinstance(general := row.get("general_metadata"), str):  # OBELICS: JSON with the page's URL
        try:
            source = str(json.loads(general)["url"])[:1000]
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
    return Provenance(
        source, first("licence", "license"), first("owner", "author", "creator"), first("language", "lang")
    )


def from_row(name: str, row: Mapping[str, Any], folder: Path, columns: Columns = USUAL) -> Sample | Skip:
    """Read a sample from a row of a table.

    Args:
        name: of the sample.
        row: with `items` ([{"text": ...}, {"image": ...}]); or with lists `images` and `texts` of the same length, of
            which exactly one is null at each index (OBELICS); or with a caption and one or several images.
        folder: of the table; paths are relative to it.
        columns: with the image and the caption.
    """
    try:
        pieces, interleaved = _pieces(name, row, folder, columns)
    except Unusable as error:
        return Skip(name, str(error))
    return Sample(name, pieces, facts_of(row), interleaved)


def _pieces(name: str, row: Mapping[str, Any], folder: Path, columns: Columns) -> tuple[tuple, bool]:
    if "items" in row:
        pairs = [_item(i, item) for i, item in enumerate(_a_list(row["items"], "items"))]
    elif isinstance(row.get("texts"), list):
        images, texts = _a_list(row.get("images"), "images"), row["texts"]
        if len(images) != len(texts):
            raise Unusable(f"broken row: {len(images)} images and {len(texts)} texts, want equal numbers")
        pairs = list(zip(texts, images, strict=True))
        for i, (text, image) in enumerate(pairs):
            if (text is None) == (image is None):
                raise Unusable(f"broken row: index {i} has {'neither' if text is None else 'both'} text and image")
    else:
        return _captioned(name, row, folder, columns)
    pieces = [
        caption(text, "text") if image is None else image_entry(image, folder, name)
        for text, image in pairs
        if image is not None or text != ""
    ]
    if not pieces:
        raise Unusable("neither text nor image")
    return tuple(pieces), True


def _a_list(value: Any, what: str) -> list:
    if not isinstance(value, list):
        raise Unusable(f"broken row: {what} is {value!r:.40}, want a list")
    return value


def _item(index: int, item: Any) -> tuple[Any, Any]:
    """Return (text, None) or (None, image)."""
    if isinstance(item, dict):  # arrow gives every field to every item
        item = {key: value for key, value in item.items() if value is not None}
    match item:
        case {"text": str(text), **rest} if not rest:
            return text, None
        case {"image": image, **rest} if not rest:
            return None, image
    raise Unusable(f'broken row: item {index} is {item!r:.60}, want {{"text": ...}} or {{"image": ...}}')


def _captioned(name: str, row: Mapping[str, Any], folder: Path, columns: Columns) -> tuple[tuple, bool]:
    def value(wanted: str, usual: tuple[str, ...]) -> Any:
        found = (row[key] for key in ((wanted,) if wanted else usual) if row.get(key) not in (None, "", []))
        return next(found, None)

    image, text = value(columns.image, IMAGE_COLUMNS), value(columns.text, TEXT_COLUMNS)
    if isinstance(text, list):  # several captions of an image
        text = text[0]
    if image is None and text is None:
        raise Unusable("neither text nor image")
    if image is None:
        raise Unusable("no image: only text")
    text = caption(text, "caption")
    images = image if isinstance(image, list) else [image]
    return (text, *(image_entry(one, folder, name) for one in images)), len(images) > 1


def caption(text: Any, what: str) -> str:
    """Return a text without characters that nobody sees.

    Args:
        text: any value of a table.
        what: "caption", which must not be blank, or "text".

    Raises:
        Unusable: it is not a text, is too long, or is not valid Unicode.
    """
    if text is None or (isinstance(text, str) and what == "caption" and not text.strip()):
        raise Unusable(f"no {what}: it is empty")
    if not isinstance(text, str):
        raise Unusable(f"broken row: the {what} is {text!r:.40}, want text")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:  # surrogates: bytes of the table that are not UTF-8
        raise Unusable(f"not UTF-8: {text[error.start : error.start + 20]!a}") from error
    if size > MAX_TEXT:
        raise Unusable(f"text too long: {size:,} bytes, the limit is {MAX_TEXT:,}")
    text = cleaned(text)
    return text.strip() if what == "caption" else text


def cleaned(text: str) -> str:
    """Remove NULs and byte order marks."""
    return text.translate({0: None, 0xFEFF: None})


def image_entry(value: Any, folder: Path, name: str) -> Entry | Bytes:
    """Return an image of a row: its bytes, or its file.

    Args:
        value: bytes, a path, or a dict with either (the Image column of `datasets`).
        folder: of the table; paths are relative to it.
        name: for messages.

    Raises:
        Unusable: it is not on this machine, or too large.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        check_size(len(value))
        return Bytes(name, value)
    if not isinstance(value, str) or not value:
        raise Unusable(f"no image: {value!r:.40}")
    if re.match("[A-Za-z][A-Za-z0-9+.-]+:/", value):
        raise Unusable(f"not downloaded: {value:.200}; fetch it first, for example with img2dataset")
    path = folder / value
    try:
        size = path.stat().st_size if path.is_file() else None
    except (OSError, ValueError):  # a name too long, or with a NUL
        size = None
    if size is None:
        raise Unusable(f"missing file: {value:.200}")
    check_size(size)
    return Entry(name, str(path), 0, size)


def check_size(size: int) -> None:
    """Raise Unusable if an image file has too many bytes."""
    if size > MAX_IMAGE:
        raise Unusable(f"too many bytes: {size:,}, the limit is {MAX_IMAGE:,}")


def decoded(data: bytes, what: str) -> str:
    """Decode a text file.

    Raises:
        Unusable: it is not UTF-8, or too long.
    """
    if len(data) > MAX_TEXT:
        raise Unusable(f"text too long: {what} has {len(data):,} bytes, the limit is {MAX_TEXT:,}")
    try:
        return cleaned(data.decode("utf-8-sig")).strip()
    except UnicodeDecodeError as error:
        raise Unusable(f"not UTF-8: byte {error.start} of {what} is 0x{data[error.start]:02x}") from error


def json_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        Unusable: it is not one.
    """
    try:
        row = json.loads(text)
    except UnicodeDecodeError as error:
        raise Unusable(f"not UTF-8: byte {error.start} of {what}") from error
    except (ValueError, RecursionError) as error:
        raise Unusable(f"broken JSON: {what}, {error}") from error
    if not isinstance(row, dict):
        raise Unusable(f"broken JSON: {what} is {row!r:.40}, want an object")
    return row
