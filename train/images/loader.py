"""Images to train on, from a folder or from webdataset tars: any step's batch at once, in the same order every time.

    source = Images("photos", size=256, multiple=16)
    for step, pixels in source.batches(first_step=1000, batch_size=32):  # [B, 3, H, W] in [-1, 1]

A batch depends on the seed and the step alone, so a run resumes exactly from its step. Threads decode, not the worker
processes of torch's DataLoader: they share the memory of decoded images and the account of bad files; webdataset
reads shards as a stream and cannot start at a step.

A drawing on a transparent ground is placed as train/images/views.py has it; any other image is cropped.
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
    """Images whose batches have one shape; `members` are places in the list of all images."""

    shape: Shape
    members: np.ndarray


class Turn(NamedTuple):
    """Whose turn a step is, and how many steps that bucket had before."""

    bucket: int
    before: int


def shape_of(aspect: str, size: int, multiple: int) -> Shape:
    """Sides whose ratio is about `aspect` ("3:2", width to height) and whose area is about size^2.

    Raises ValueError for an aspect that cannot be read, or a size that the tokenizer cannot cut into codes.
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
    """A drawing in RGBa as `view` has it, whole where the view does not shift it out: [H, W, 3] uint8."""
    longest = max(shape)
    side = max(math.ceil(drawing.width * longest / shape.width), math.ceil(drawing.height * longest / shape.height))
    square = drawing
    if drawing.size != (side, side):
        square = Image.new("RGBa", (side, side))
        square.paste(drawing, ((side - drawing.width) // 2, (side - drawing.height) // 2))
    top, left = (longest - shape.height) // 2, (longest - shape.width) // 2
    return place(square, view, longest)[top : top + shape.height, left : left + shape.width]


def crop(image: Image.Image, area: float, right: float, down: float, mirror: bool, shape: Shape) -> np.ndarray:
    """A part of an RGB image, scaled to `shape`: [H, W, 3] uint8.

    Args:
        image: of any size.
        area: of the part, as a share of the largest that has the right aspect.
        right, down: where the part lies in what is left free, 0..1; 0.5 is the middle.
        mirror: left to right.
        shape: of the result.
    """
    scale = math.sqrt(area) * min(image.width / shape.width, image.height / shape.height)
    width, height = shape.width * scale, shape.height * scale
    x, y = (image.width - width) * right, (image.height - height) * down
    box = (x, y, min(x + width, image.width), min(y + height, image.height))
    part = image.resize((shape.width, shape.height), Image.Resampling.LANCZOS, box=box)
    return np.asarray(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else part)


def to_pixels(images: Sequence[np.ndarray]) -> Tensor:
    """Images [H, W, 3] uint8 -> [B, 3, H, W] float in [-1, 1], channels last.

    numpy does the sums: torch would start a team of threads in every thread that decodes.
    """
    return torch.from_numpy(np.stack(images).astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)


@lru_cache(maxsize=8)
def permutation(seed: int, bucket: int, epoch: int, count: int) -> np.ndarray:
    """The order of a bucket's images in an epoch, [count]."""
    return np.random.default_rng((seed, 0, bucket, epoch)).permutation(np.arange(count, dtype=np.int32))


@lru_cache(maxsize=2)
def schedule(counts: tuple[int, ...], seed: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Each step's bucket, in proportion to its number of images, and that bucket's steps before: [steps] each.

    Multiples of the golden ratio fill [0, 1) evenly: a bucket is never more than a few steps behind its share.
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
        path: a folder of images or tars; or of a data set, with train/.
        size: side of a square image; of another aspect, the square root of its area about.
        multiple: of which every side is one (the tokenizer's downsampling).
        aspects: width:height; each image goes to the nearest, and a batch has one.
        crop: smallest and largest part of an opaque image, as a share of the largest part of the right aspect.
        views: of drawings; its share of mirrored images holds for opaque ones too.
        evaluate_on: as in `split`.
        every: as in `split`.
        seed: of order, crops and views.
        max_bad: largest share of bad files.
        cache: bytes of decoded images that are kept in memory: the first that come, until it is full.

    Attributes:
        skipped: bad file -> reason, so far.
        buckets: the images of each aspect.

    Raises:
        ValueError: no images; options that make no sense; too many bad files (from any method).
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
        """How many images there are to train on, bad ones too."""
        return len(self.entries)

    def batch(self, step: int, batch_size: int, rank: int = 0, world: int = 1) -> Tensor:
        """[B, 3, H, W] in [-1, 1], channels last: the same for the same seed, step, batch size, rank and world.

        The ranks' batches in order are the batch of one rank that is as large as all of them.
        """
        assert step >= 0 and batch_size > 0 and 0 <= rank < world, f"{step=} {batch_size=} {rank=} {world=}"
        turn = self._turn(step)
        first = (turn.before * world + rank) * batch_size
        return to_pixels([self._sample(turn.bucket, first + i) for i in range(batch_size)])

    def batches(
        self, first_step: int, batch_size: int, rank: int = 0, world: int = 1, workers: int = 2, prefetch: int = 4
    ) -> Generator[tuple[int, Tensor], None, None]:
        """(step, batch) from first_step on without end, with `prefetch` steps made ahead by `workers` threads."""
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
        """[N, 3, size, size]: up to `limit` of the images to evaluate on, evenly taken, uncropped as far as goes."""
        count = min(len(self.held_out), limit or len(self.held_out))
        shape, images = Shape(self.size, self.size), []
        for i in range(count):
            if image := self._read(self.held_out[i * len(self.held_out) // count], sys.maxsize):
                images.append(
                    put(image, PLAIN, shape) if image.mode == "RGBa" else crop(image, 1, 0.5, 0.5, False, shape)
                )
        if not images:
            raise ValueError(f"{self.path}: none of the images to evaluate on can be read{self._examples()}")
        return to_pixels(images)

    def _turn(self, step: int) -> Turn:
        if len(self.buckets) == 1:
            return Turn(0, step)
        counts = tuple(len(bucket.members) for bucket in self.buckets)
        buckets, before = schedule(counts, self.seed, max(1024, 1 << step.bit_length()))
        return Turn(int(buckets[step]), int(before[step]))

    def _sample(self, bucket: int, position: int) -> np.ndarray:
        """[H, W, 3] uint8: what stands at a position in a bucket's endless row of epochs."""
        shape, members = self.buckets[bucket]
        epoch, place_ = divmod(position, len(members))
        image = self._good(int(members[permutation(self.seed, bucket, epoch, len(members))[place_]]))
        rng = np.random.default_rng((self.seed, 2, bucket, position))
        if image.mode == "RGBa":
            return put(image, self.views.sample(rng, max(shape)), shape)
        area, mirror = rng.uniform(*self.crop), bool(rng.random() < self.views.mirror)
        return crop(image, area, rng.random(), rng.random(), mirror, shape)

    def _good(self, number: int) -> Image.Image:
        """The image, or the next one in the list that can be read."""
        for i in range(len(self.entries)):
            if image := self._load(self.entries[(number + i) % len(self.entries)]):
                return image
        raise ValueError(f"{self.path}: none of the {len(self.entries)} images can be read{self._examples()}")

    def _load(self, entry: Entry) -> Image.Image | None:
        """The decoded image, from memory where it is kept; None for a bad one."""
        if (image := self._cache.get(entry)) is not None:
            return image
        if (image := self._read(entry, self.least)) is not None:
            with self._lock:
                room = self._room - image.width * image.height * 4
                if room >= 0 and entry not in self._cache:
                    self._cache[entry], self._room = image, room
        return image

    def _read(self, entry: Entry, least: int) -> Image.Image | None:
        """The decoded image, shrunk as far as `least` allows; None for a bad one."""
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
        """Each image in the bucket of the nearest aspect; with one aspect no file is opened."""
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
        """Width to height; None for a bad file. Only the file's header is read."""
        try:
            with open(entry.file, "rb") as file:
                part = cast(IO[bytes], ContainerIO.ContainerIO(file, entry.offset, entry.size))
                with Image.open(part, formats=FORMATS) as image:
                    turned = image.getexif().get(0x0112, 1) >= 5  # Orientation: 5 to 8 lie on their side
                    return image.height / image.width if turned else image.width / image.height
        except Exception:  # broken bytes make PIL raise almost anything; _load says what is wrong
            return loaded.width / loaded.height if (loaded := self._load(entry)) else None
