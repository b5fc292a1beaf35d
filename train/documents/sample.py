"""One sample of a person's own data: text and images in order, or the reason why it cannot be used.

A reason begins with its kind and goes on behind one of `:;(`, so that skipped samples can be counted by kind:
"not UTF-8: byte 3 is 0xff". Images stay where they lie until they are asked for.
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
    """An image inside a table."""

    name: str
    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self) -> bytes:
        return self.data


class Provenance(NamedTuple):
    """Where a sample comes from; "" where nobody says."""

    source: str = ""
    licence: str = ""
    owner: str = ""
    language: str = ""


class Sample(NamedTuple):
    """A sample.

    Attributes:
        name: within its source, such as `cats/1.jpg`, `shard.tar:0001` or `table.csv:17` (line or row, from 1).
        pieces: text and images, in order; a caption and its image where not `interleaved`.
        facts: where it comes from.
        interleaved: to be learnt as it reads, not as a caption.
    """

    name: str
    pieces: tuple[str | Entry | Bytes, ...]
    facts: Provenance = Provenance()
    interleaved: bool = False


class Skip(NamedTuple):
    """A sample that cannot be used, and why."""

    name: str
    reason: str

    @property
    def kind(self) -> str:
        return re.split("[:;(]", self.reason)[0].strip()


class Columns(NamedTuple):
    """The columns of a table that hold the image and the text; "" = the first of the usual names."""

    image: str = ""
    text: str = ""

    def among(self, names: Iterable[str], table: Path) -> "Columns":
        """The columns that the table has. Raises ValueError where it lacks one."""
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
    """Why a sample is skipped; never leaves the readers."""


def facts_of(row: Mapping[str, Any]) -> Provenance:
    """What a row says under the usual names."""

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
    """The sample that a row of a table spells.

    Args:
        name: of the sample.
        row: with `items` ([{"text": ...}, {"image": ...}]); or with lists `images` and `texts` of one length, one of
            them null at each place (OBELICS); or with an image, or several, and a caption.
        folder: of the table, to which paths are relative.
        columns: which hold image and caption.
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
            raise Unusable(f"broken row: {len(images)} images and {len(texts)} texts, want as many")
        pairs = list(zip(texts, images, strict=True))
        for i, (text, image) in enumerate(pairs):
            if (text is None) == (image is None):
                raise Unusable(f"broken row: place {i} has {'neither' if text is None else 'both'} text and image")
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


def _item(place: int, item: Any) -> tuple[Any, Any]:
    """(text, None) or (None, image)."""
    if isinstance(item, dict):  # arrow gives every field to every item
        item = {key: value for key, value in item.items() if value is not None}
    match item:
        case {"text": str(text), **rest} if not rest:
            return text, None
        case {"image": image, **rest} if not rest:
            return None, image
    raise Unusable(f'broken row: item {place} is {item!r:.60}, want {{"text": ...}} or {{"image": ...}}')


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
    words = caption(text, "caption")
    images = image if isinstance(image, list) else [image]
    return (words, *(image_entry(one, folder, name) for one in images)), len(images) > 1


def caption(text: Any, what: str) -> str:
    """The text itself. Raises Unusable for none, or one that is no text."""
    if text is None or (isinstance(text, str) and what == "caption" and not text.strip()):
        raise Unusable(f"no {what}: it is empty")
    if not isinstance(text, str):
        raise Unusable(f"broken row: the {what} is {text!r:.40}, want text")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:  # surrogates, which stand for bytes that a table could not decode
        raise Unusable(f"not UTF-8: {text[error.start : error.start + 20]!a}") from error
    if size > MAX_TEXT:
        raise Unusable(f"text too long: {size:,} bytes, the limit is {MAX_TEXT:,}")
    text = cleaned(text)
    return text.strip() if what == "caption" else text


def cleaned(text: str) -> str:
    """Without NULs and byte order marks, which files carry and no reader sees."""
    return text.translate({0: None, 0xFEFF: None})


def image_entry(value: Any, folder: Path, name: str) -> Entry | Bytes:
    """Where an image's bytes are. Raises Unusable where they are not on this machine, or too many."""
    if isinstance(value, dict):  # the Image column of `datasets`
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
    if size > MAX_IMAGE:
        raise Unusable(f"too many bytes: {size:,}, the limit is {MAX_IMAGE:,}")


def decoded(data: bytes, what: str) -> str:
    """A text file's words. Raises Unusable where they are not UTF-8."""
    if len(data) > MAX_TEXT:
        raise Unusable(f"text too long: {what} has {len(data):,} bytes, the limit is {MAX_TEXT:,}")
    try:
        return cleaned(data.decode("utf-8-sig")).strip()
    except UnicodeDecodeError as error:
        raise Unusable(f"not UTF-8: byte {error.start} of {what} is 0x{data[error.start]:02x}") from error


def json_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Raises Unusable for what is no JSON object."""
    try:
        row = json.loads(text)
    except UnicodeDecodeError as error:
        raise Unusable(f"not UTF-8: byte {error.start} of {what}") from error
    except (ValueError, RecursionError) as error:
        raise Unusable(f"broken JSON: {what}, {error}") from error
    if not isinstance(row, dict):
        raise Unusable(f"broken JSON: {what} is {row!r:.40}, want an object")
    return row
