"""Training images: order, resume, ranks, aspects, crops, and files that are bad."""

import itertools
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tokenizer_image.pixels import to_tensor
from train.images.loader import ImageLoader, Shape, crop, put, schedule, shape_of, to_pixels
from train.images.samples import read_split
from train.images.views import GROUNDS, PLAIN, Augmentation, View, place

STILL = Augmentation(mirror=0)
COUNT = 21  # one of every twenty-one is held out: 20 are left


def write(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    """Grey images; the value says which one."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, size in enumerate(sizes):
        Image.new("RGB", size, (10 * i, 10 * i, 10 * i)).save(folder / f"{i:03}.png")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "images", [(24, 16)] * COUNT)


def ids(batch: torch.Tensor) -> list[int]:
    """Which images of `write` a batch has."""
    return [round((value + 1) * 127.5 / 10) for value in batch[:, 0, 4, 4].tolist()]


@pytest.fixture
def noise() -> Image.Image:
    """An image that no symmetry maps to itself."""
    return Image.fromarray(np.random.default_rng(0).integers(256, size=(20, 30, 3), dtype=np.uint8))


def test_a_batch_is_pixels_from_minus_one_to_one(folder: Path):
    batch = ImageLoader(folder, 16).batch(0, 4)
    assert batch.shape == (4, 3, 16, 16) and batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    black_and_white = to_pixels([np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)])
    assert black_and_white[0].unique().tolist() == [-1] and black_and_white[1].unique().tolist() == [1]


def test_an_epoch_shows_each_training_image_once_and_no_held_out_one(folder: Path):
    source = ImageLoader(folder, 16, every=COUNT)
    epochs = [sorted(itertools.chain(*(ids(source.batch(step, 5)) for step in range(e, e + 4)))) for e in (0, 4, 8)]
    assert epochs == [list(range(1, COUNT))] * 3
    assert ids(source.batch(0, 20)) != ids(source.batch(1, 20))  # in another order


def test_a_batch_depends_on_seed_and_step_alone(sample: Path):
    one, two = (ImageLoader(sample, 16, seed=3) for _ in range(2))
    for step in (0, 7, 3):
        one.batch(step, 3)
    assert torch.equal(one.batch(100, 3), two.batch(100, 3))
    assert not torch.equal(one.batch(100, 3), one.batch(101, 3))
    assert not torch.equal(one.batch(100, 3), ImageLoader(sample, 16, seed=4).batch(100, 3))


def test_two_ranks_see_what_one_sees_with_twice_the_batch(sample: Path):
    source = ImageLoader(sample, 16)
    for step in (0, 60):
        ranks = [source.batch(step, 3, rank, world=2) for rank in (0, 1)]
        assert torch.equal(torch.cat(ranks), source.batch(step, 6))


@pytest.mark.parametrize("workers", [1, 3])
def test_the_iterator_gives_the_same_batches_from_any_step(sample: Path, workers: int):
    source = ImageLoader(sample, 16)
    batches = source.batches(5, 2, workers=workers)
    for expected, (step, batch) in zip(range(5, 11), batches, strict=False):
        assert step == expected and torch.equal(batch, source.batch(step, 2))


def test_a_closed_iterator_leaves_no_threads(folder: Path):
    before = threading.active_count()
    batches = ImageLoader(folder, 16).batches(0, 2, workers=3)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def test_images_from_memory_are_the_images_from_disk(sample: Path):
    kept, read = ImageLoader(sample, 16), ImageLoader(sample, 16, cache=0)
    for step in (0, 0, 1):
        assert torch.equal(kept.batch(step, 8), read.batch(step, 8))
    assert len(kept._cache) == 16 and not read._cache


def test_memory_keeps_to_its_limit(folder: Path):
    source = ImageLoader(folder, 16, cache=3 * 24 * 16 * 4 + 1)
    source.batch(0, 20)
    assert len(source._cache) == 3


def test_an_aspect_gives_about_the_area_of_the_square():
    assert shape_of("1:1", 256, 16) == Shape(256, 256)
    assert shape_of("3:2", 256, 16) == Shape(208, 320)
    assert shape_of("2:3", 256, 16) == Shape(320, 208)
    assert shape_of("16:9", 256, 16) == Shape(192, 336)
    assert shape_of("20:1", 16, 16) == Shape(16, 64)


def test_each_image_goes_to_the_nearest_aspect(tmp_path: Path):
    sizes = [(20, 20), (30, 20), (20, 30), (21, 20), (90, 20), (20, 50)]
    folder = write(tmp_path, [(1, 1), *sizes])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(folder / "007.jpg", exif=exif)  # upright it is 20 wide
    source = ImageLoader(folder, 16, multiple=4, aspects=("1:1", "3:2", "2:3"), every=COUNT)
    members = {tuple(bucket.shape): bucket.members.tolist() for bucket in source.buckets}
    assert members == {(16, 16): [0, 3], (12, 20): [1, 4], (20, 12): [2, 5, 6]}


def test_a_batch_has_one_aspect_and_each_comes_by_its_number_of_images(tmp_path: Path):
    folder = write(tmp_path, [(9, 9)] + [(30, 20)] * 15 + [(20, 30)] * 5)
    source = ImageLoader(folder, 16, multiple=4, aspects=("3:2", "2:3", "1:1"), every=COUNT)
    batches = [source.batch(step, 5) for step in range(40)]
    wide = [ids(batch) for batch in batches if batch.shape == (5, 3, 12, 20)]
    tall = [ids(batch) for batch in batches if batch.shape == (5, 3, 20, 12)]
    assert len(wide) + len(tall) == 40 and len(tall) in (9, 10, 11)
    assert sorted(itertools.chain(*wide[:3])) == list(range(1, 16))  # an epoch
    assert sorted(tall[0]) == list(range(16, 21))


def test_ranks_have_the_same_aspect_and_together_one_batch(tmp_path: Path):
    source = ImageLoader(write(tmp_path, [(30, 20)] * 8 + [(20, 30)] * 5), 16, multiple=4, aspects=("3:2", "2:3"))
    for step in range(8):
        assert torch.equal(torch.cat([source.batch(step, 2, r, 2) for r in (0, 1)]), source.batch(step, 4))


def test_the_schedule_of_aspects_does_not_change_as_it_grows():
    counts = (100, 37, 3)
    (short, before), (long, _) = schedule(counts, 0, 256), schedule(counts, 0, 4096)
    assert (short == long[:256]).all()
    assert [before[i] for i in range(256) if short[i] == 1] == list(range((short == 1).sum()))
    assert np.bincount(long) / 4096 == pytest.approx(np.array(counts) / 140, abs=2e-3)


def test_a_crop_of_everything_is_the_image(noise: Image.Image):
    np.testing.assert_array_equal(crop(noise, 1, 0.5, 0.5, False, Shape(20, 30)), np.asarray(noise))
    np.testing.assert_array_equal(crop(noise, 1, 0.5, 0.5, True, Shape(20, 30)), np.asarray(noise)[:, ::-1])


def test_a_crop_lies_where_it_is_told_and_keeps_its_aspect(noise: Image.Image):
    pixels = np.asarray(noise)
    np.testing.assert_array_equal(crop(noise, 1, 0, 0.5, False, Shape(20, 20)), pixels[:, :20])
    np.testing.assert_array_equal(crop(noise, 1, 1, 0.5, False, Shape(20, 20)), pixels[:, 10:])
    np.testing.assert_array_equal(crop(noise, 0.25, 1, 1, False, Shape(10, 10)), pixels[10:, 20:])


def test_crops_stay_within_the_share_that_was_asked_for(tmp_path: Path):
    ramp = np.broadcast_to(np.arange(0, 256, 2, dtype=np.uint8)[None, :, None], (128, 128, 3))
    for i in range(2):
        Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / f"{i}.png")
    batch = ImageLoader(tmp_path, 64, crop=(0.25, 0.64), views=STILL).batch(0, 200)
    spread = (batch[:, 0, 32, -1] - batch[:, 0, 32, 0]) / 2 * 63 / 62  # of the ramp: the side of the crop
    assert 0.47 < spread.min() < 0.53 and 0.77 < spread.max() < 0.82
    assert batch[:, 0, 32, 0].min() < -0.9 and batch[:, 0, 32, -1].max() > 0.9  # as far as both edges


def test_text_is_never_mirrored_when_nothing_is(tmp_path: Path):
    halves = Image.new("RGB", (16, 16))
    halves.paste((255, 255, 255), (8, 0, 16, 16))
    for i in range(2):
        halves.save(tmp_path / f"{i}.png")

    def mirrored(share: float) -> float:
        batch = ImageLoader(tmp_path, 16, crop=(1, 1), views=Augmentation(mirror=share)).batch(0, 200)
        return (batch[:, 0, 8, 0] > batch[:, 0, 8, -1]).float().mean().item()

    assert mirrored(0) == 0 and mirrored(1) == 1 and 0.35 < mirrored(0.5) < 0.65


def test_drawings_get_grounds_and_photographs_do_not(tmp_path: Path):
    def colours(mode: str) -> set[tuple[int, ...]]:
        folder = tmp_path / mode
        folder.mkdir()
        for i in range(2):
            Image.new(mode, (16, 16)).save(folder / f"{i}.png")
        batch = ImageLoader(folder, 8).batch(0, 99)
        return {tuple(colour.round().int().tolist()) for colour in (batch[:, :, 4, 4] + 1) * 127.5}

    assert colours("RGBA") == {colour for _, _, colour in GROUNDS.values()}
    assert colours("RGB") == {(0, 0, 0)}


@pytest.mark.parametrize("shape", [Shape(16, 16), Shape(12, 24), Shape(24, 12)])
@pytest.mark.parametrize("size", [(20, 20), (40, 20), (20, 40)])
def test_a_drawing_of_any_aspect_is_whole_and_undistorted(size: tuple[int, int], shape: Shape):
    drawing = Image.new("RGBA", size, (200, 0, 0, 255)).convert("RGBa")
    pixels = put(drawing, View("black"), shape)
    assert pixels.shape == (*shape, 3)
    red = pixels[..., 0] > 110
    height, width = red.any(1).sum(), red.any(0).sum()
    assert width / height == pytest.approx(size[0] / size[1], rel=0.2)
    assert height == shape.height or width == shape.width  # as large as fits


def test_held_out_images_are_plain_and_always_the_same(sample: Path):
    one, two = (ImageLoader(sample, 16, evaluate_on="held_out_pairs", seed=seed).held_out_images() for seed in (0, 1))
    plain = to_pixels([place(drawing, PLAIN, 16) for _, drawing, _ in read_split(sample / "held_out_pairs")])
    assert len(plain) == 3 and torch.equal(one, plain) and torch.equal(two, plain)


@pytest.mark.parametrize("size", [8, 20, 64])
def test_held_out_photographs_are_cropped_in_the_middle_as_the_tokenizer_does(tmp_path: Path, size: int):
    noise = np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8)
    for i in range(2):
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
    (held,) = ImageLoader(tmp_path, size).held_out_images()
    assert torch.equal(held, to_tensor(Image.fromarray(noise), (size, size)))


def test_a_limit_takes_held_out_images_from_all_over(folder: Path):
    source = ImageLoader(folder, 16, every=2)  # 0, 2, ... 20 are held out
    assert ids(source.held_out_images(limit=3)) == [0, 6, 14]
    assert len(source.held_out_images(limit=500)) == 11


def test_the_next_good_image_stands_in_for_a_bad_one(folder: Path):
    for i in (4, 5, 20):
        (folder / f"{i:03}.png").write_bytes(b"words")
    source = ImageLoader(folder, 16, every=COUNT, max_bad=0.2)
    good = set(range(1, COUNT)) - {4, 5, 20}
    assert sorted(itertools.chain(*(ids(source.batch(step, 5)) for step in range(4)))) == sorted([*good, 6, 6, 1])


BAD = {"empty": b"", "words": b"words", "zeros": bytes(200)}


@pytest.mark.parametrize("aspects", [("1:1",), ("1:1", "3:2")])
def test_a_few_bad_files_are_replaced_counted_once_and_named(folder: Path, aspects: tuple[str, ...]):
    (folder / "004.png").write_bytes(b"words")
    (folder / "009.png").write_bytes((folder / "009.png").read_bytes()[:-30])
    source, other = (ImageLoader(folder, 16, multiple=4, aspects=aspects, every=COUNT) for _ in range(2))
    seen = [ids(batch) for _, batch in itertools.islice(source.batches(0, 5), 8)]
    assert {Path(name).name: reason.split(";")[0].split(" (")[0] for name, reason in source.skipped.items()} == {
        "004.png": "not an image",
        "009.png": "damaged or cut off",
    }
    assert set(itertools.chain(*seen)) == set(range(1, COUNT)) - {4, 9}
    assert [ids(other.batch(step, 5)) for step in reversed(range(8))] == seen[::-1]  # in whatever order they are found


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_too_many_bad_files_stop_the_run_with_examples(folder: Path, data: bytes):
    for i in range(1, 5):
        (folder / f"{i:03}.png").write_bytes(data)
    source = ImageLoader(folder, 16, every=COUNT)
    # Two threads read: the one that finds the fourth may be heard first.
    with pytest.raises(ValueError, match=r"[34] of 21 files are bad, more than max_bad = 10%: .*00\d\.png: "):
        for _ in itertools.islice(source.batches(0, 5), 4):
            pass
    lenient = ImageLoader(folder, 16, every=COUNT, max_bad=0.5)
    assert len(list(itertools.islice(lenient.batches(0, 5), 4))) == 4 and len(lenient.skipped) == 4


def test_one_bad_image_of_a_few_does_not_stop_the_run(tmp_path: Path):
    (write(tmp_path, [(9, 9)] * 4) / "002.png").write_bytes(b"words")
    source = ImageLoader(tmp_path, 8, every=4)
    assert set(ids(source.batch(0, 3))) <= {1, 3} and len(source.skipped) == 1


@pytest.mark.parametrize("aspects", [("1:1",), ("1:1", "3:2")])
def test_a_folder_of_bad_files_says_so(tmp_path: Path, aspects: tuple[str, ...]):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"words")
    with pytest.raises(ValueError, match=r"none of the 2 images can be read; .*1\.jpg: not an image"):
        ImageLoader(tmp_path, 16, multiple=4, aspects=aspects, max_bad=1.0).batch(0, 1)
    with pytest.raises(ValueError, match="none of the held-out images can be read"):
        ImageLoader(tmp_path, 16).held_out_images()


def test_a_file_that_goes_away_during_the_run_is_bad(folder: Path):
    source = ImageLoader(folder, 16, every=COUNT)
    (folder / "007.png").unlink()
    assert 7 not in itertools.chain(*(ids(source.batch(step, 5)) for step in range(4)))
    assert "No such file" in source.skipped[str(folder / "007.png")]


def test_images_in_tars_with_damaged_members_are_trained_on(tmp_path: Path):
    files = write(tmp_path / "files", [(9, 9)] * COUNT)
    (files / "003.png").write_bytes((files / "003.png").read_bytes()[:-30])
    shards = tmp_path / "shards"
    shards.mkdir()
    for shard, first in (("0.tar", 0), ("1.tar", 11)):
        with tarfile.open(shards / shard, "w") as tar:
            for path in sorted(files.iterdir())[first : first + 11]:
                tar.add(path, path.name)
    one, two = ImageLoader(files, 8, every=COUNT), ImageLoader(shards, 8, every=COUNT)
    for step in range(4):
        assert torch.equal(one.batch(step, 5), two.batch(step, 5))
    assert list(two.skipped) == [f"{shards / '0.tar'}:003.png"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(size=20, multiple=16), "size 20 is not a multiple of 16: take 16 or 32"),
        (dict(size=8, multiple=16), "size 8 is not a multiple of 16: take 16 or 32"),
        (dict(size=16, aspects=("wide",)), "aspect 'wide': want width:height"),
        (dict(size=16, aspects=("3:0",)), "aspect '3:0': want width:height"),
        (dict(size=16, aspects=("1:100",)), "aspect '1:100': want width:height"),
        (dict(size=16, aspects=()), "aspects is empty"),
        (dict(size=16, crop=(0.0, 1.0)), r"crop \(0.0, 1.0\): want"),
        (dict(size=16, crop=(0.9, 0.6)), r"crop \(0.9, 0.6\): want"),
    ],
)
def test_options_that_make_no_sense_are_refused(folder: Path, options: dict, match: str):
    with pytest.raises(ValueError, match=match):
        ImageLoader(folder, **options)
