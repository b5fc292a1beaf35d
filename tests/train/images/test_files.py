"""Finding images in folders and tars, holding some out, and reading one."""

import io
import os
import struct
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from train.images.files import decode, index, members, split


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def sample_image(value: int = 100, size: tuple[int, int] = (24, 16)) -> Image.Image:
    return Image.new("RGB", size, (value, 50, 200))


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files at two depths, a tar, and what is no image."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "b.JPG").write_bytes(encoded(sample_image(), "JPEG"))
    (tmp_path / "deep" / "er" / "a.png").write_bytes(encoded(sample_image()))
    (tmp_path / "deep" / "notes.txt").write_text("no image")
    (tmp_path / "._b.JPG").write_bytes(b"what macOS leaves")
    write_tar(
        tmp_path / "shard.tar",
        {"x.png": encoded(sample_image(7)), "x.json": b"{}", "y.webp": encoded(sample_image(), "WEBP")},
    )
    return tmp_path


def test_images_are_found_at_any_depth_and_in_tars_always_in_the_same_order(folder: Path):
    entries, bad = index(folder)
    names = [entry.name.removeprefix(f"{folder}/") for entry in entries]
    assert names == ["b.JPG", "deep/er/a.png", "shard.tar:x.png", "shard.tar:y.webp"] and not bad
    assert index(folder)[0] == entries


def test_what_has_an_images_name_and_is_no_file_is_named(folder: Path):
    os.mkfifo(folder / "pipe.png")
    (folder / "deep" / "link.jpg").symlink_to(folder / "none.jpg")
    (folder / "deep" / "notes").symlink_to(folder / "nothing")
    (folder / "folder.png").mkdir()
    _, bad = index(folder)
    assert bad == {
        str(folder / "pipe.png"): "a pipe, a socket or a device",
        str(folder / "deep" / "link.jpg"): "a link that leads nowhere",
    }


def test_photographs_of_phones_are_found(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (folder / "z.HEIC").write_bytes(b"\0\0\0\x14ftypheic\0\0\0\0heic" + bytes(100))
    entry = next(one for one in index(folder)[0] if one.name.endswith("z.HEIC"))
    with pytest.raises(ValueError, match="pip install pillow-heif"):
        decode(entry.read(), 16)


def test_a_tar_member_is_read_where_it_lies(folder: Path):
    entry = index(folder)[0][2]
    with open(entry.file, "rb") as file:
        file.seek(entry.offset)
        assert file.read(entry.size) == encoded(sample_image(7))


def test_of_a_cut_off_tar_what_is_left_is_used_and_the_tar_is_named(tmp_path: Path):
    rng = np.random.default_rng(0)
    noise = encoded(Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)))
    write_tar(tmp_path / "a.tar", {f"{i}.png": noise for i in range(4)})
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[: len(data) // 3])
    entries, bad = index(tmp_path)
    assert len(entries) == 2  # the second is cut off, which its decoder will say
    assert list(bad) == [str(tmp_path / "a.tar")] and "not a whole tar" in bad[str(tmp_path / "a.tar")]


def test_every_so_many_images_of_a_plain_folder_are_held_out(tmp_path: Path):
    for i in range(12):
        (tmp_path / f"{i:02}.png").write_bytes(encoded(sample_image()))
    train, held_out, _ = split(tmp_path, every=5)
    assert [Path(entry.file).stem for entry in held_out] == ["00", "05", "10"]
    assert len(train) == 9 and not set(train) & set(held_out)


@pytest.mark.parametrize(("mode", "program"), [("gz", "gunzip"), ("bz2", "bunzip2"), ("xz", "unxz")])
def test_a_compressed_tar_is_named_with_the_program_that_unpacks_it(tmp_path: Path, mode: str, program: str):
    with tarfile.open(tmp_path / "shard.tar", cast(Any, f"w:{mode}")) as tar:
        info = tarfile.TarInfo("a.png")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(ValueError, match=rf"a compressed tar, .*: {program} it first"):
        next(members(tmp_path / "shard.tar"))


def test_a_data_set_has_its_own_splits(sample: Path):
    train, held_out, _ = split(sample, evaluate_on="held_out_pairs")
    assert len(train) == 220 and len(held_out) == 3
    assert all("held_out_pairs" in entry.file for entry in held_out)
    assert len(split(sample).held_out) == 11  # of train/, where no split is named


def test_folders_without_images_say_what_to_give(tmp_path: Path, sample: Path):
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        split(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has 0 images: give a folder with at least two \(\.png"):
        split(tmp_path)
    write_tar(tmp_path / "words.tar", {"a.txt": b"words"})
    with pytest.raises(ValueError, match="has 0 images"):
        split(tmp_path)
    (tmp_path / "empty.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"has 0 images.*empty\.tar: not a whole tar"):
        split(tmp_path)
    (tmp_path / "one.png").write_bytes(encoded(sample_image()))
    with pytest.raises(ValueError, match="has 1 images"):
        split(tmp_path)
    with pytest.raises(ValueError, match="held_out_nothing is not a folder"):
        split(sample, evaluate_on="held_out_nothing")


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK", "I;16"])
def test_an_image_without_transparency_is_rgb(mode: str):
    array = np.full((8, 8), 40_000, np.uint16)
    image = Image.fromarray(array) if mode == "I;16" else sample_image().convert(mode)
    assert decode(encoded(image, "TIFF"), 8).mode == "RGB"


def test_sixteen_bits_are_scaled_not_clipped():
    image = decode(encoded(Image.fromarray(np.full((8, 8), 128 * 257, np.uint16))), 8)
    assert image.getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_drawing_with_transparency_keeps_it(mode: str):
    drawing = Image.new("RGBA", (8, 8))
    drawing.paste((200, 0, 0, 255), (2, 2, 6, 6))
    image = decode(encoded(drawing.convert(mode)), 8)
    assert image.mode == "RGBa"
    alpha = np.asarray(image)[..., 3]
    assert alpha[0, 0] == 0 and alpha[4, 4] == 255


def test_an_alpha_channel_that_hides_nothing_makes_no_drawing():
    assert decode(encoded(sample_image().convert("RGBA")), 8).mode == "RGB"


def test_an_image_on_its_side_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(sample_image(size=(24, 16)), "JPEG", exif=exif), 16).size == (16, 24)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_large_images_are_kept_no_larger_than_needed(kind: str):
    assert decode(encoded(sample_image(size=(1200, 800)), kind), 100).size == (150, 100)
    assert decode(encoded(sample_image(size=(150, 199)), kind), 100).size == (150, 199)
    assert decode(encoded(sample_image(size=(30, 20)), kind), 100).size == (30, 20)


def claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    length, check = struct.pack(">I", 13), struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + length + header + check + bytes(4) + b"IDAT"


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "empty"),
        (b"hello, I am no image", "not an image"),
        (encoded(sample_image(size=(200, 200)), "JPEG")[:500], "damaged or cut off"),
        (encoded(sample_image(size=(200, 200)).convert("RGBA"))[:-60], "damaged or cut off"),
        (claims(9_000, 8_000), "too large: 9000 x 8000 pixels"),
        (claims(30_000, 30_000), "too large: over 178 million pixels"),
    ],
)
def test_a_bad_file_says_what_is_wrong(data: bytes, match: str):
    with pytest.raises(ValueError, match=match):
        decode(data, 64)
