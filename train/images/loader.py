"""Training images from a folder or from webdataset tars, with random access to the batch of any step.

    source = ImageLoader("photos", size=256, multiple=16)
    for step, pixels in source.batches(first_step=1000, batch_size=32):  # [B, 3, H, W] in [-1, 1]

A batch depends on the seed and the step only, so a run resumes exactly. Images are decoded in threads, which share the
cache of decoded images and the list of bad files; the worker processes of torch's DataLoader could not. webdataset
reads shards as a stream, and cannot start at a step.

Images with transparency are placed as train/images/views.py describes; opaque ones are cropped.
"""

import itertools
import math
import sys
import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np
import torch
from PIL import ContainerIO, Image
from rich.progress import track
from torch import Tensor

from tokenizer_image.pixels import FORMATS
from train.images.files import Entry, decode, split
from train.images.views import PLAIN, Augmentation, View, place

CACHE = 2**29  # bytes of decoded images
GOLDEN = (math.sqrt(5) - 1) / 2


class Shape(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int


class Bucket(NamedTuple):
    """Images whose batches have the same shape.

    Attributes:
        shape: of the batches.
        members: indices in the list of all images.
    """

    shape: Shape
    members: np.ndarray


class Turn(NamedTuple):
    """The bucket of a step.

    Attributes:
        bucket: its number.
        before: number of earlier steps of the same bucket.
    """

    bucket: int
    before: int


def shape_of(aspect: str, size: int, multiple: int) -> Shape:
    """Return a shape of about a given aspect ratio, and an area of about size x size.

    Args:
        aspect: width to height, such as "3:2".
        size: side of a square, in pixels.
        multiple: of which both sides are multiples.

    Raises:
        ValueError: the aspect cannot be read, or the size is no multiple.
    """
    width, _, height = aspect.partition(":")
    try:
        ratio = float(width) / float(height)
    except (ValueError, ZeroDivisionError):
        ratio = 0.0
    if not 0.05 <= ratio <= 20:
        raise ValueError(f"aspect {aspect!r}: want width:height between 1:20 and 20:1, such as '3:2'")
    if size < multiple or size % multiple:
        low = max(1, size // multiple) * multiple
        raise ValueError(f"size {size} is not a multiple of {multiple}: take {low} or {low + multiple}")
    sides = (size / math.sqrt(ratio), size * math.sqrt(ratio))
    return Shape(*(max(1, round(side / multiple)) * multiple for side in sides))


def put(drawing: Image.Image, view: View, shape: Shape) -> np.ndarray:
    """Draw a view of an RGBa drawing of any shape, uncropped unless the view shifts it out: [H, W, 3] uint8."""
    longest = max(shape)
    side = max(math.ceil(drawing.width * longest / shape.width), math.ceil(drawing.height * longest / shape.height))
    square = drawing
    if drawing.size != (side, side):
        square = Image.new("RGBa", (side, side))
        square.paste(drawing, ((side - drawing.width) // 2, (side - drawing.height) // 2))
    top, left = (longest - shape.height) // 2, (longest - shape.width) // 2
    return place(square, view, longest)[top : top + shape.height, left : left + shape.width]


def crop(image: Image.Image, area: float, right: float, down: float, mirror: bool, shape: Shape) -> np.ndarray:
    """Crop an RGB image and scale the crop: [H, W, 3] uint8.

    Args:
        image: of any size.
        area: of the crop, as a share of the largest one with the right aspect ratio.
        right: position of the crop, 0 (left) to 1 (right).
        down: position of the crop, 0 (top) to 1 (bottom).
        mirror: whether left and right are exchanged.
        shape: of the result.
    """
    scale = math.sqrt(area) * min(image.width / shape.width, image.height / shape.height)
    width, height = shape.width * scale, shape.height * scale
    x, y = (image.width - width) * right, (image.height - height) * down
    box = (x, y, min(x + width, image.width), min(y + height, image.height))
    part = image.resize((shape.width, shape.height), Image.Resampling.LANCZOS, box=box)
    return np.asarray(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else part)


def to_pixels(images: Sequence[np.ndarray]) -> Tensor:
    """Stack images [H, W, 3] uint8 to [B, 3, H, W] floats in [-1, 1], in channels-last memory.

    This uses numpy, since torch would start its own threads in every thread that decodes.
    """
    return torch.from_numpy(np.stack(images).astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)


@lru_cache(maxsize=8)
def permutation(seed: int, bucket: int, epoch: int, count: int) -> np.ndarray:
    """Return the order of a bucket's images in an epoch, [count]."""
    return np.random.default_rng((seed, 0, bucket, epoch)).permutation(np.arange(count, dtype=np.int32))


@lru_cache(maxsize=2)
def schedule(counts: tuple[int, ...], seed: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Assign steps to buckets in proportion to their numbers of images.

    Multiples of the golden ratio fill [0, 1) evenly, so a bucket is never more than a few steps behind its share.

    Returns:
        The bucket of each step, and the number of earlier steps of that bucket, [steps] each.
    """
    points = (np.random.default_rng((seed, 1)).random() + np.arange(steps) * GOLDEN) % 1
    edges = np.cumsum(counts)[:-1] / sum(counts)
    buckets = np.searchsorted(edges, points, side="right")
    before = np.zeros(steps, np.int64)
    for bucket in range(len(counts)):
        mine = buckets == bucket
        before[mine] = np.arange(mine.sum())
    return buckets, before


class ImageLoader:
    """Training images with random access by step.

    Args:
        path: a folder of images or tars, or of a data set with train/.
        size: side of a square image; other shapes have about the same area.
        multiple: of which all sides are multiples: the downsampling of the image tokenizer.
        aspects: aspect ratios, width:height. Each image has the nearest one; all images of a batch have the same.
        crop: smallest and largest area of a crop of an opaque image, as a share of the largest possible one.
        views: of images with transparency; opaque ones are mirrored as often.
        evaluate_on: as in `split`.
        every: as in `split`.
        seed: of order, crops and views.
        max_bad: largest share of bad files.
        cache: bytes of memory for decoded images; the first ones are kept until it is full.

    Attributes:
        skipped: bad files so far, each with the reason.
        buckets: the images of each aspect ratio.

    Raises:
        ValueError: there are no images, or options do not fit together. From any method: too many files are bad.
    """

    def __init__(
        self,
        path: str | Path,
        size: int,
        *,
        multiple: int = 1,
        aspects: Sequence[str] = ("1:1",),
        crop: tuple[float, float] = (0.6, 1.0),
        views: Augmentation = Augmentation(),  # noqa: B008 - frozen
        evaluate_on: str = "",
        every: int = 20,
        seed: int = 0,
        max_bad: float = 0.1,
        cache: int = CACHE,
    ):
        if not 0 < crop[0] <= crop[1] <= 1:
            raise ValueError(f"crop {crop}: want (smallest, largest) with 0 < smallest <= largest <= 1")
        shapes = sorted({shape_of(aspect, size, multiple) for aspect in aspects})
        if not shapes:
            raise ValueError("aspects is empty: give at least one, such as '1:1'")
        self.path, self.size, self.crop, self.views, self.seed, self.max_bad = path, size, crop, views, seed, max_bad
        self.entries, self.held_out, self.skipped = split(path, evaluate_on, every)
        self.least = 2 * max(size, *itertools.chain(*shapes))
        self._lock = threading.Lock()
        self._cache: dict[Entry, Image.Image] = {}
        self._room = cache
        self.buckets = self._sort(shapes)

    def __len__(self) -> int:
        """Return the number of training images, including bad ones."""
        return len(self.entries)

    def batch(self, step: int, batch_size: int, rank: int = 0, world: int = 1) -> Tensor:
        """Return the images of a step, [B, 3, H, W] in [-1, 1], in channels-last memory.

        They depend on the arguments and the seed only. The batches of all ranks together are the batch of a single
        rank with a batch size `world` times as large.
        """
        assert step >= 0 and batch_size > 0 and 0 <= rank < world, f"{step=} {batch_size=} {rank=} {world=}"
        turn = self._turn(step)
        first = (turn.before * world + rank) * batch_size
        return to_pixels([self._sample(turn.bucket, first + i) for i in range(batch_size)])

    def batches(
        self, first_step: int, batch_size: int, rank: int = 0, world: int = 1, workers: int = 2, prefetch: int = 4
    ) -> Generator[tuple[int, Tensor], None, None]:
        """Yield (step, images) for ever, from a step on.

        Args:
            first_step: the step to start with.
            batch_size: images of this rank in a step.
            rank: of this process.
            world: number of ranks.
            workers: threads.
            prefetch: steps that are loaded ahead.
        """
        pool = ThreadPoolExecutor(workers)
        try:
            steps = range(first_step, first_step + prefetch)
            ahead = deque(pool.submit(self.batch, step, batch_size, rank, world) for step in steps)
            for step in itertools.count(first_step):
                ahead.append(pool.submit(self.batch, step + prefetch, batch_size, rank, world))
                yield step, ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def held_out_images(self, limit: int | None = None) -> Tensor:
        """Return up to `limit` held-out images, spread over all, [N, 3, size, size], cropped to a square if necessary.

        Raises:
            ValueError: none can be read.
        """
        count = min(len(self.held_out), limit or len(self.held_out))
        shape, images = Shape(self.size, self.size), []
        for i in range(count):
            if image := self._read(self.held_out[i * len(self.held_out) // count], sys.maxsize):
                images.append(
                    put(image, PLAIN, shape) if image.mode == "RGBa" else crop(image, 1, 0.5, 0.5, False, shape)
                )
        if not images:
            raise ValueError(f"{self.path}: none of the held-out images can be read{self._examples()}")
        return to_pixels(images)

    def _turn(self, step: int) -> Turn:
        if len(self.buckets) == 1:
            return Turn(0, step)
        counts = tuple(len(bucket.members) for bucket in self.buckets)
        buckets, before = schedule(counts, self.seed, max(1024, 1 << step.bit_length()))
        return Turn(int(buckets[step]), int(before[step]))

    def _sample(self, bucket: int, position: int) -> np.ndarray:
        """Return the image at a position of a bucket, counted over all epochs: [H, W, 3] uint8."""
        shape, members = self.buckets[bucket]
        epoch, place_ = divmod(position, len(members))
        image = self._good(int(members[permutation(self.seed, bucket, epoch, len(members))[place_]]))
        rng = np.random.default_rng((self.seed, 2, bucket, position))
        if image.mode == "RGBa":
            return put(image, self.views.sample(rng, max(shape)), shape)
        area, mirror = rng.uniform(*self.crop), bool(rng.random() < self.views.mirror)
        return crop(image, area, rng.random(), rng.random(), mirror, shape)

    def _good(self, number: int) -> Image.Image:
        """Return an image, or the next one that can be read."""
        for i in range(len(self.entries)):
            if image := self._load(self.entries[(number + i) % len(self.entries)]):
                return image
        raise ValueError(f"{self.path}: none of the {len(self.entries)} images can be read{self._examples()}")

    def _load(self, entry: Entry) -> Image.Image | None:
        """Return a decoded image, from the cache if it is there; None for a bad one."""
        if (image := self._cache.get(entry)) is not None:
            return image
        if (image := self._read(entry, self.least)) is not None:
            with self._lock:
                room = self._room - image.width * image.height * 4
                if room >= 0 and entry not in self._cache:
                    self._cache[entry], self._room = image, room
        return image

    def _read(self, entry: Entry, least: int) -> Image.Image | None:
        """Decode an image, reduced as far as `least` allows; None for a bad one."""
        if entry.name in self.skipped:
            return None
        try:
            return decode(entry.read(), least)
        except (OSError, ValueError) as error:
            return self._skip(entry, error)

    def _skip(self, entry: Entry, error: Exception) -> None:
        with self._lock:
            self.skipped[entry.name] = str(error).removeprefix("the image: ")
            total, bad = len(self.entries) + len(self.held_out), len(self.skipped)
        if bad > max(1, self.max_bad * total):
            raise ValueError(
                f"{self.path}: {bad} of {total} files are bad, more than max_bad = {self.max_bad:.0%}: remove them or "
                f"raise max_bad{self._examples()}"
            )

    def _examples(self) -> str:
        with self._lock:
            return "".join(f"; {name}: {reason}" for name, reason in list(self.skipped.items())[:3])

    def _sort(self, shapes: list[Shape]) -> list[Bucket]:
        """Put each image into the bucket of the nearest aspect ratio. With a single one, no file is opened."""
        if len(shapes) == 1:
            return [Bucket(shapes[0], np.arange(len(self.entries)))]
        aspects = np.log([shape.width / shape.height for shape in shapes])
        nearest = np.full(len(self.entries), -1)
        with ThreadPoolExecutor() as pool:
            sizes = pool.map(self._upright_aspect, self.entries)
            bar = track(sizes, "sizes of the images", len(self.entries), disable=len(self.entries) < 2000)
            for i, aspect in enumerate(bar):
                if aspect:
                    nearest[i] = np.abs(aspects - math.log(aspect)).argmin()
        buckets = [Bucket(shape, np.flatnonzero(nearest == i)) for i, shape in enumerate(shapes)]
        buckets = [bucket for bucket in buckets if len(bucket.members)]
        if not buckets:
            raise ValueError(f"{self.path}: none of the {len(self.entries)} images can be read{self._examples()}")
        return buckets

    def _upright_aspect(self, entry: Entry) -> float | None:
        """Return width to height of an image, from the header of its file; None for a bad file."""
        try:
            with open(entry.file, "rb") as file:
                part = cast(IO[bytes], ContainerIO.ContainerIO(file, entry.offset, entry.size))
                with Image.open(part, formats=FORMATS) as image:
                    turned = image.getexif().get(0x0112, 1) >= 5  # Orientation: 5 to 8 are rotated by 90 degrees
                    return image.height / image.width if turned else image.width / image.height
        except Exception:  # PIL raises many kinds of errors for broken files; _load gives the reason
            return loaded.width / loaded.height if (loaded := self._load(entry)) else None
