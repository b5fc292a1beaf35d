"""Readers of your own data in the usual layouts, in chunks that are read independently.

    cat.jpg + cat.txt or cat.json      a folder of images with captions beside them
    *.tar                              webdataset (img2dataset): KEY.jpg + KEY.txt or KEY.json
    *.jsonl                            {"image": PATH, "caption": ...}, or {"items": [{"text": ...}, {"image": PATH}]}
    *.csv, *.tsv                       a column of paths, a column of captions (open_clip)
    *.parquet                          images as bytes or paths, with captions; or interleaved (OBELICS)
    datasets.save_to_disk              the folder

Captions are in .txt, or in .json under "caption" or "text". .json files and tables may also name source, licence and
owner. Nothing is downloaded. tables.py reads the last four layouts.
"""

import errno
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from train.documents.sample import (
    MAX_TEXT,
    TEXT_COLUMNS,
    USUAL,
    Columns,
    Sample,
    Skip,
    Unusable,
    check_size,
    cleaned,
    decoded,
    facts_of,
    json_object,
)
from train.documents.tables import Jsonl, Parquet, SavedDataset, Spreadsheet
from train.images.files import IMAGE_SUFFIXES, Entry, members, walk

FORMATS = ("auto", "folder", "tar", "jsonl", "csv", "parquet", "datasets")
TAR_PART = 64_000_000  # bytes of a tar that are one chunk; so its index need not be read first


class Source(Protocol):
    """Samples in chunks. A chunk always has the same samples, in every process.

    Attributes:
        kind: one of FORMATS.
        listing: twelve hex digits that change with the files and their order.
        skipped: samples that are skipped before any chunk is read.
    """

    kind: str
    listing: str
    skipped: list[Skip]

    def __len__(self) -> int:
        """Return the number of chunks."""
        ...

    def read(self, number: int) -> Iterator[Sample | Skip]:
        """Read the samples of a chunk."""
        ...


def open_source(path: str | Path, columns: Columns = USUAL, format: str = "auto", samples: int = 2048) -> Source:
    """Find the layout of the data, and list the files.

    Args:
        path: a file or a folder.
        columns: of tables.
        format: one of FORMATS, for a folder that holds several.
        samples: largest number of samples in a chunk. A chunk of a tar has TAR_PART bytes instead.

    Raises:
        ValueError: there is nothing that can be read, or the folder holds several layouts.
    """
    path, passed_over = Path(path), dict[str, str]()
    if format not in FORMATS:
        raise ValueError(f"format {format!r}: want one of {', '.join(FORMATS)}")
    if path.is_file():
        kinds = {_kind(path): [path]} if _kind(path) not in ("", "image", "words") else {}
    elif (path / "dataset_dict.json").is_file():
        raise ValueError(f"{path} holds several splits of a data set: name one of their folders, {_below(path)}")
    elif (path / "dataset_info.json").is_file() and (path / "state.json").is_file():
        kinds = {"datasets": [path]}
    elif path.is_dir():
        kinds = _kinds(path, passed_over)
    else:
        raise ValueError(f"{path} does not exist: give a folder or a file")
    if format != "auto":
        kinds = {format: kinds[format]} if kinds.get(format) else {}
    if len(kinds) != 1:
        raise ValueError(_which(path, format, kinds))
    kind, files = next(iter(kinds.items()))
    if kind == "folder":
        folder = ImageFolder(path, files, samples)
        folder.skipped += [
            Skip(str(Path(name).relative_to(path)), f"no file: {reason}") for name, reason in passed_over.items()
        ]
        return folder
    root = path if path.is_dir() else path.parent
    if kind == "tar":
        return Tars(root, files)
    if kind == "jsonl":
        return Jsonl(root, files, columns, samples)
    if kind == "csv":
        return Spreadsheet(root, files, columns, samples)
    return (Parquet if kind == "parquet" else SavedDataset)(root, files, columns, samples)


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "image"
    return {
        ".tar": "tar",
        ".jsonl": "jsonl",
        ".ndjson": "jsonl",
        ".csv": "csv",
        ".tsv": "csv",
        ".parquet": "parquet",
        ".txt": "words",
        ".json": "words",
    }.get(suffix, "")


def _kinds(folder: Path, passed_over: dict[str, str]) -> dict[str, list[Path]]:
    """Return the files of each format in a folder.

    Images without captions beside them belong to a table. Tables beside tars are the reports of img2dataset.

    Args:
        folder: of the files.
        passed_over: as for train.images.files.walk.
    """
    found: dict[str, list[Path]] = {}
    for path in walk(folder, passed_over):
        if kind := _kind(path):
            found.setdefault(kind, []).append(path)
    images, words = found.pop("image", []), found.pop("words", [])
    stems = {path.with_suffix("") for path in words}
    if images and (not found or any(path.with_suffix("") in stems for path in images)):
        found["folder"] = sorted(images + words)
    if "tar" in found:
        found.pop("parquet", None)
    return found


def _below(path: Path) -> str:
    return ", ".join(sorted(child.name for child in path.iterdir() if child.is_dir()))


def _which(path: Path, format: str, kinds: dict[str, list[Path]]) -> str:
    if kinds:
        found = ", ".join(f"{kind} ({len(files)} files)" for kind, files in sorted(kinds.items()))
        return f"{path} holds several layouts, {found}: choose one with --format"
    if format != "auto":
        return f"{path} holds nothing of the format {format}"
    return (
        f"{path} holds nothing that can be read: want images ({' '.join(IMAGE_SUFFIXES)}) with .txt or .json beside "
        "them, uncompressed .tar, .jsonl, .csv, .tsv, .parquet, or a folder of datasets.save_to_disk"
    )


def listing_of(root: Path, files: Iterable[Path], *more: str) -> str:
    """Return twelve hex digits of the names and sizes of files."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode("utf-8", "surrogateescape"))
    digest.update("\n".join(more).encode())
    return digest.hexdigest()[:12]


class NamedSample(NamedTuple):
    """The files of a sample, in a folder or a tar.

    Attributes:
        name: of the sample.
        image: the image file, if there is one.
        captions: caption files, by suffix.
    """

    name: str
    image: Entry | None
    captions: dict[str, Entry]


def record_of(sample: NamedSample) -> Sample | Skip:
    """Read the caption of a sample."""
    name = sample.name
    try:
        if sample.image is None:
            raise Unusable("caption without an image")
        check_size(sample.image.size)
        text, row = "", {}
        if ".txt" in sample.captions:
            text = decoded(_read(sample.captions[".txt"]), ".txt")
        if ".json" in sample.captions:
            row = json_object(decoded(_read(sample.captions[".json"]), ".json"), ".json")
            text = text or next((row[key] for key in TEXT_COLUMNS if row.get(key)), "")
        if not isinstance(text, str) or not text.strip():
            raise Unusable("no caption: " + ("it is empty" if sample.captions else "there is no .txt or .json file"))
        return Sample(name, (cleaned(text).strip(), sample.image), facts_of(row))
    except Unusable as error:
        return Skip(name, str(error))
    except OSError as error:
        return Skip(name, f"cannot be read: {error.strerror}")


def _read(entry: Entry) -> bytes:
    if entry.size > MAX_TEXT:
        raise Unusable(f"text too long: {entry.size:,} bytes, the limit is {MAX_TEXT:,}")
    data = entry.read()
    if len(data) < entry.size:
        raise Unusable(f"cut off: {len(data)} of {entry.size} bytes of its caption")
    return data


class ImageFolder:
    """Images with captions beside them."""

    kind = "folder"

    def __init__(self, root: Path, files: Sequence[Path], samples: int):
        self.root, self.samples = root, samples
        self.skipped: list[Skip] = []
        self.names: list[tuple[str, tuple[str, ...]]] = []  # path without suffix; suffixes, first that of the image
        by_stem: dict[str, list[str]] = {}
        for path in files:
            stem = path.relative_to(root).with_suffix("")
            by_stem.setdefault(str(stem), []).append(path.suffix)
        captions = images = 0
        for stem, suffixes in by_stem.items():
            first, *others = [suffix for suffix in suffixes if suffix.lower() in IMAGE_SUFFIXES] or [""]
            texts = [suffix for suffix in suffixes if suffix.lower() in (".txt", ".json")]
            self.skipped += [
                Skip(stem + other, f"second image of one name: {stem + first} is taken") for other in others
            ]
            self.names.append((stem, (first, *texts)))
            images += bool(first)
            captions += bool(first and texts)
        if not captions:
            raise ValueError(
                f"{root} has {images} images and no caption: put cat.txt beside cat.jpg, or cat.json "
                'with {"caption": ...}'
            )
        self.listing = listing_of(root, files)

    def __len__(self) -> int:
        return -(-len(self.names) // self.samples)

    def read(self, number: int) -> Iterator[Sample | Skip]:
        for stem, (image, *texts) in self.names[number * self.samples : (number + 1) * self.samples]:
            name = stem + (image or texts[0])
            try:
                found = self._entry(stem + image) if image else None
                beside = {suffix.lower(): self._entry(stem + suffix) for suffix in texts}
            except PermissionError as error:
                yield Skip(name, f"caption elsewhere: {error.strerror}")
                continue
            except OSError as error:
                yield Skip(name, f"missing file: {error.strerror}")
                continue
            yield record_of(NamedSample(name, found, beside))

    def _entry(self, name: str) -> Entry:
        """Return a file of a sample.

        Raises:
            OSError: the file is missing.
            PermissionError: a caption is a link to a file elsewhere, which is hardly meant to become training data.
        """
        path = self.root / name
        if path.is_symlink() and path.suffix.lower() not in IMAGE_SUFFIXES:
            real, homes = path.resolve(), (self.root.resolve(), path.parent.resolve())
            if not any(real.is_relative_to(home) for home in homes):
                raise PermissionError(errno.EACCES, f"{path.name} is a link that leads out of the folder")
        return Entry(name, str(path), 0, path.stat().st_size)


class Tars:
    """Webdataset tars. All members with the same key are a sample, wherever they are in the tar."""

    kind = "tar"

    def __init__(self, root: Path, files: Sequence[Path]):
        self.root, self.skipped = root, list[Skip]()
        self.parts = [(path, part) for path in files for part in range(max(1, -(-path.stat().st_size // TAR_PART)))]
        self.listing = listing_of(root, files)

    def __len__(self) -> int:
        return len(self.parts)

    def read(self, number: int) -> Iterator[Sample | Skip]:
        """Read the samples whose first member begins in a part of a tar."""
        path, part = self.parts[number]
        tar = str(path.relative_to(self.root))
        picked: dict[str, dict[str, Any]] = {}
        skipped: list[Skip] = []
        try:
            for member in members(path):
                match = re.fullmatch(r"((?:.*/)?[^/.]+)\.([^/]*)", member.name)  # webdataset: up to the first dot
                suffix = f".{match[2].lower()}" if match else ""
                if not match or (suffix not in IMAGE_SUFFIXES and suffix not in (".txt", ".json")):
                    continue
                entry = Entry(f"{tar}:{member.name}", str(path), member.offset_data, member.size)
                sample = picked.setdefault(match[1], {"part": member.offset // TAR_PART})
                role = "image" if suffix in IMAGE_SUFFIXES else suffix
                if role not in sample:
                    sample[role] = entry
                elif sample["part"] == part:
                    what = "an image" if role == "image" else f"a {role.strip('.')}"
                    skipped.append(Skip(entry.name, f"duplicate key: {match[1]!r} has {what} already"))
        except ValueError as error:
            if part == 0:
                skipped.append(Skip(tar, str(error)))
        for key, sample in picked.items():
            if sample["part"] == part:
                captions = {suffix: sample[suffix] for suffix in (".txt", ".json") if suffix in sample}
                yield record_of(NamedSample(f"{tar}:{key}", sample.get("image"), captions))
        yield from skipped
