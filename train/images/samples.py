"""Image data sets on disk: webdataset shards of `KEY.png` and `KEY.json`, a folder for each split."""

import io
import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from webdataset.compat import WebDataset
from webdataset.writer import TarWriter

SHARD = 2000  # images in a shard


def read_samples(folder: Path) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Yield (key, PNG, facts) of every sample in a split's shards, in order.

    Raises:
        ValueError: the folder has no shards.
    """
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    if not shards:
        raise ValueError(f"no shards in {folder}: build the data set first")
    for sample in WebDataset(shards, shardshuffle=False, empty_check=False):
        yield sample["__key__"], sample["png"], json.loads(sample["json"])


def read_split(folder: Path) -> Iterator[tuple[str, Image.Image, dict[str, Any]]]:
    """Yield (key, image in RGBa, facts), otherwise as read_samples."""
    for key, png, facts in read_samples(folder):
        with Image.open(io.BytesIO(png)) as image:
            yield key, image.convert("RGBA").convert("RGBa"), facts


def write_shards(folder: Path, samples: Iterable[tuple[str, bytes, dict[str, Any]]]) -> int:
    """Write shards of (key, PNG, facts), each whole or not at all. Shards that are there are replaced.

    Returns:
        The number of samples.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("shard-*.tar*"):
        old.unlink()
    count, rest = 0, iter(samples)
    while part := list(islice(rest, SHARD)):
        path = folder / f"shard-{count // SHARD:05d}.tar"
        with TarWriter(f"{path}.part", encoder=False, mtime=0, user="", group="", mode=0o644) as sink:
            for key, png, facts in part:
                sink.write({"__key__": key, "json": to_json(facts).encode(), "png": png})
        os.rename(f"{path}.part", path)
        count += len(part)
    return count


def to_json(value: object) -> str:
    """Return one line of JSON that is the same for equal values."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
