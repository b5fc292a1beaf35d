"""Encoding of many images, and code shards, which train.encode writes and read_codes reads.

    FOLDER/codes-00000.safetensors    codes [sum of h * w], grids [images, 2]; names and skipped files in its metadata
    FOLDER/manifest.json              image tokenizer, size, counts, skipped files with their reasons

Each shard holds a fixed range of the list of files, and is written at once. A run that was interrupted continues with
the first shard that is missing.
"""

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cm3.files import whole, write_whole
from tokenizer_image import ImageTokenizer
from tokenizer_image.checkpoint import make_readable
from tokenizer_image.tokenizer import Size
from train.images.files import Entry, index
from train.images.loader import to_pixels
from train.images.views import View, place
from train.runtime.config import changes

MANIFEST = "manifest.json"

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


class Encoded(NamedTuple):
    """The codes of a file.

    Attributes:
        entry: the file.
        codes: [h, w]; empty, [0, 0], where the file was skipped.
        reason: why it was skipped; "" if it was not.
    """

    entry: Entry
    codes: Tensor
    reason: str


def load_ahead(
    items: Iterable[Item], load: Callable[[Item], Loaded], batch: int, workers: int
) -> Iterator[list[tuple[Item, Loaded]]]:
    """Load items in threads, two batches ahead.

    Args:
        items: in the order of the result.
        load: loads one.
        batch: items in a batch.
        workers: threads.

    Yields:
        Batches of (item, loaded item).
    """
    with ThreadPoolExecutor(workers) as pool:
        rest = iter(items)
        ahead = deque((item, pool.submit(load, item)) for item in islice(rest, 3 * batch))
        while ahead:
            yield [(item, future.result()) for item, future in (ahead.popleft() for _ in range(min(batch, len(ahead))))]
            ahead.extend((item, pool.submit(load, item)) for item in islice(rest, batch))


def encode_entries(
    entries: Sequence[Entry], tokenizer: ImageTokenizer, size: Size = "fit", batch: int = 16, workers: int = 2
) -> Iterator[Encoded]:
    """Encode files, in order. Threads read and decode the next ones meanwhile.

    Args:
        entries: files, or members of tars.
        tokenizer: on its device.
        size: as for ImageTokenizer.encode.
        batch: files in a batch. Images of the same size in a batch go through the model together.
        workers: threads.
    """

    def load(entry: Entry) -> Tensor | str:
        try:
            return tokenizer.pixels(entry.read(), size)
        except (OSError, ValueError) as error:
            return str(error).removeprefix("the image: ")

    for chunk in load_ahead(entries, load, batch, workers):
        codes = iter(encode_sizes([loaded for _, loaded in chunk if isinstance(loaded, Tensor)], tokenizer))
        for entry, loaded in chunk:
            if isinstance(loaded, str):
                yield Encoded(entry, torch.zeros(0, 0, dtype=torch.long), loaded)
            else:
                yield Encoded(entry, next(codes), "")


def encode_sizes(pixels: Sequence[Tensor], tokenizer: ImageTokenizer) -> list[Tensor]:
    """Encode images of any sizes, [3, H, W] each. Those of the same size go through the model together.

    Returns:
        The codes of each image, [h, w].
    """
    codes: dict[int, Tensor] = {}
    for size in dict.fromkeys(image.shape for image in pixels):
        indices = [i for i, image in enumerate(pixels) if image.shape == size]
        codes |= zip(indices, tokenizer.encode_pixels(torch.stack([pixels[i] for i in indices])), strict=True)
    return [codes[i] for i in range(len(pixels))]


def write_codes(
    folder: Path,
    out: Path,
    tokenizer: ImageTokenizer,
    size: Size = "fit",
    batch: int = 16,
    workers: int = 2,
    per_shard: int = 2048,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Encode the images in a folder and its subfolders and tars.

    Args:
        folder: of images or tars.
        out: folder of the shards. Shards of the same run that exist are kept.
        tokenizer: as for encode_entries.
        size: as for encode_entries.
        batch: as for encode_entries.
        workers: as for encode_entries.
        per_shard: files in a shard.
        dtype: of the tokenizer's weights.

    Returns:
        The content of the manifest.

    Raises:
        ValueError: there are no images, or none can be read, or `out` holds shards of another run.
    """
    tokenizer.model.check_size(*(tokenizer.size if isinstance(size, str) else size))
    entries, bad_tars = index(folder)
    if not entries:
        broken = "".join(f"; {name}: {reason}" for name, reason in list(bad_tars.items())[:3])
        raise ValueError(f"{folder} has no images, in files or in tars{broken}")
    listing = "\n".join(f"{e.name} {e.size}" for e in entries)
    run = {
        "image_tokenizer": tokenizer.fingerprint(),
        "num_codes": tokenizer.num_codes,
        "dtype": str(dtype).removeprefix("torch."),
        "size": size if isinstance(size, str) else list(size),
        "files": len(entries),
        "list": hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()[:12],
        "per_shard": per_shard,
    }
    before = _claim(out, run)
    tokenizer.to(tokenizer.device, dtype)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    done = 0
    started = time.perf_counter()
    with Progress(*columns) as bar:
        task = bar.add_task("encoding", total=len(entries))
        for i in range(0, len(entries), per_shard):
            path, part = _shard(out, i // per_shard), entries[i : i + per_shard]
            if path.exists():
                bar.advance(task, len(part))
                continue
            encoded = []
            for one in encode_entries(part, tokenizer, size, batch, workers):
                encoded.append(one)
                done += 1
                speed = done / (time.perf_counter() - started)
                bar.update(task, advance=1, description=f"encoding {speed:.1f} images/s")
            _save(path, encoded, folder, tokenizer.num_codes)
    seconds = time.perf_counter() - started
    skipped = dict(bad_tars)
    images = 0
    for path in _shards(out):
        metadata = _metadata(path)
        images += len(metadata["names"])
        skipped |= metadata["skipped"]
    speed = round(done / seconds, 2) if done else before.get("images_per_second")
    facts = {"images": images, "skipped": skipped, "images_per_second": speed}
    _note(out, run | facts)
    if not images:
        name, reason = next(iter(skipped.items()))
        raise ValueError(f"{folder}: none of the {len(entries)} images can be encoded; the first, {name}: {reason}")
    return run | facts


def read_codes(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Read code shards.

    Yields:
        (name, codes [h, w] long) of each image, in order.

    Raises:
        ValueError: the folder has no shards.
    """
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder / MANIFEST} is missing: run python -m train.encode first")
    for path in _shards(folder):
        with safe_open(path, "pt") as file:
            codes, grids = file.get_tensor("codes").long(), file.get_tensor("grids").tolist()
        parts = codes.split([height * width for height, width in grids])
        for name, part, (height, width) in zip(_metadata(path)["names"], parts, grids, strict=True):
            yield name, part.view(height, width)


def _claim(out: Path, run: dict[str, Any]) -> dict[str, Any]:
    """Write a manifest that says which run `out` belongs to, and return the manifest that was there.

    Raises:
        ValueError: `out` belongs to another run.
    """
    out.mkdir(parents=True, exist_ok=True)
    before: dict[str, Any] = {}
    if (out / MANIFEST).exists():
        before = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        if other := changes(before, run):
            raise ValueError(f"{out} holds shards of another run ({other}): delete it or choose another one")
    else:
        _note(out, run)
    return before


def _save(path: Path, encoded: list[Encoded], folder: Path, num_codes: int) -> None:
    """Write a shard, whole or not at all."""
    good = [one for one in encoded if not one.reason]
    flat = torch.cat([one.codes.flatten() for one in good] or [torch.zeros(0, dtype=torch.long)])
    arrays = {
        "codes": flat.to(torch.uint16 if num_codes <= 2**16 else torch.int32),
        "grids": torch.tensor([one.codes.shape for one in good], dtype=torch.int32).view(-1, 2),
    }
    metadata = {
        "names": json.dumps([_relative(one.entry, folder) for one in good]),
        "skipped": json.dumps({_relative(one.entry, folder): one.reason for one in encoded if one.reason}),
    }
    with whole(path, f"{path.stem}.unfinished") as unfinished:
        save_file(arrays, unfinished, metadata)
        make_readable(unfinished)


def _relative(entry: Entry, folder: Path) -> str:
    return str(Path(entry.name).relative_to(folder))


def _metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return {key: json.loads(value) for key, value in file.metadata().items()}


def _shard(out: Path, number: int) -> Path:
    return out / f"codes-{number:05}.safetensors"


def _shards(out: Path) -> list[Path]:
    return sorted(out.glob("codes-*.safetensors"))


def _note(out: Path, content: dict[str, Any]) -> None:
    write_whole(out / MANIFEST, json.dumps(content, indent=1, ensure_ascii=False) + "\n", errors="backslashreplace")


def encode_views(drawings: list[Image.Image], views: list[list[View]], tokenizer: ImageTokenizer) -> torch.Tensor:
    """Encode every view of every drawing. Returns codes [N, V, h, w]."""
    size, out = tokenizer.size[0], []
    for i in track(range(0, len(drawings), 16), "encoding"):
        pairs = zip(drawings[i : i + 16], views[i : i + 16], strict=True)
        images = [place(drawing, view, size) for drawing, row in pairs for view in row]
        pixels = to_pixels(images)
        out.append(torch.cat([tokenizer.model.encode(part) for part in pixels.to(tokenizer.device).split(128)]).cpu())
    return torch.cat(out).view(len(drawings), len(views[0]), *tokenizer.grid)


def decode(tokenizer: ImageTokenizer, codes: Tensor) -> list[Image.Image]:
    """Decode codes [N, h, w] to N images."""
    images = tokenizer.decode(codes)
    assert isinstance(images, list)
    return images
