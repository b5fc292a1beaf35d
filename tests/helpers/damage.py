"""Ways to damage files, drawn by a seeded generator, and what becomes of each case."""

import io
import json
import os
import pickle
import random
import resource
import signal
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

NEVER = ("missed", "unnamed", "other error", "hang")
SECONDS = 30  # a case that takes longer hangs


class Outcome(NamedTuple):
    """What became of a case: `fate` is "skipped", "refused" (one ValueError), "harmless", or what must never be:
    "missed", "unnamed", "other error", "hang"."""

    case: int
    kind: str
    fate: str
    reason: str


class Hang(BaseException):
    pass


@contextmanager
def time_limit() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise Hang

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def outcomes(cases: int, seed: int, one: Callable[[int, random.Random], tuple[str, str, str]]) -> dict[str, Any]:
    """In a child: what became of all cases, and by how much the memory's peak grew, in bytes.

    Args:
        cases: how many.
        seed: of them.
        one: (case, generator) -> kind, fate, reason; ValueError makes it "refused".
    """
    before, found = peak(), []
    for case in range(cases):
        rng = random.Random(seed * 1_000_003 + case)
        try:
            with time_limit():
                found.append(Outcome(case, *one(case, rng)))
        except Hang:
            found.append(Outcome(case, "?", "hang", f"more than {SECONDS} s"))
        except Exception as error:
            found.append(Outcome(case, "?", "other error", f"{type(error).__name__}: {error}"))
    return {"outcomes": found, "bytes": peak() - before}


def judged(result: dict[str, Any], room: int, never: tuple[str, ...] = NEVER) -> dict[str, Any]:
    """Counts of what became of the cases; none may have become what must never be, nor have taken more memory."""
    found: list[Outcome] = result["outcomes"]
    wrong = [one for one in found if one.fate in never]
    assert not wrong, f"{len(wrong)} of {len(found)}: " + "\n".join(str(one)[:600] for one in wrong[:12])
    assert result["bytes"] < room, f"{result['bytes']:,} bytes more"
    return {"cases": len(found), **Counter(one.fate for one in found), "megabytes": round(result["bytes"] / 2**20)}


def no_file(path: Path, rng: random.Random) -> str:
    """Put something in a file's place that is none. Returns what."""
    path.unlink()
    ways: dict[str, Callable[[], Any]] = {
        "gone": lambda: None,
        "folder": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
        "dead link": lambda: path.symlink_to("nowhere"),
        "link to itself": lambda: path.symlink_to(path.name),
        "device": lambda: path.symlink_to("/dev/zero"),
    }
    kind = rng.choice(sorted(ways))
    ways[kind]()
    return kind


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def flipped(data: bytes, rng: random.Random, count: int, first: int = 0, last: int | None = None) -> bytes:
    """With so many bits turned, at places from `first` to `last`."""
    out = bytearray(data)
    some = rng.sample(range(first, min(last or len(out), len(out))), count)
    places = [place * 8 + rng.randrange(8) for place in some]
    for place in places:
        out[place // 8] ^= 1 << place % 8
    return bytes(out)


def strangers(rng: random.Random) -> dict[str, bytes]:
    """Files that are something else."""
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb", bytes(20_000_000))
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w") as file:
        file.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    return {
        "empty": b"",
        "one byte": b"\x89",
        "zip bomb": zipped.getvalue(),
        "tar": tarred.getvalue(),
        "pickle": pickle.dumps({"ids": np.arange(9)}),
        "json": json.dumps({"ids": [1, 2]}).encode(),
        "deep json": b"[" * 100_000,
        "web page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n/x {x} def x\n",
        "noise": rng.randbytes(4000),
        "zeros": bytes(4000),
        "npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", 60000) + b"{'descr': '<f8'",
    }


def png(width: int, height: int, data: bytes = b"", depth: int = 1, colour: int = 0, extra: bytes = b"") -> bytes:
    """A PNG that says what it is told to."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def images(seed: int) -> dict[str, bytes]:
    """One sound image of each format."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8).repeat(2, 0).repeat(2, 1))
    out = {}
    for format, settings in (
        ("PNG", {}),
        ("JPEG", {"quality": 80}),
        ("WEBP", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
    ):
        file = io.BytesIO()
        image.save(file, format, **settings)
        out[format.lower()] = file.getvalue()
    file = io.BytesIO()
    image.convert("RGBA").save(file, "PNG", save_all=True, append_images=[image.convert("RGBA")] * 3)
    return out | {"apng": file.getvalue()}


def bombs() -> dict[str, bytes]:
    """Small files that claim, or unpack to, much more; all must be refused, but the last four, which may be read."""
    text = zlib.compress(bytes(200_000_000), 9)
    many = io.BytesIO()
    one = Image.new("P", (8, 8))
    one.save(many, "GIF", save_all=True, append_images=[Image.new("P", (8, 8), i % 200) for i in range(2000)])
    zeros = zlib.compress(bytes((7900 // 8 + 1) * 7900), 9)
    return {
        "declared png": png(2**31 - 1, 2**31 - 1, zlib.compress(bytes(100))),
        "large png": png(60_000, 60_000, zlib.compress(bytes(60_000 // 8 * 60_000), 9)),
        "flat png": png(2**31 - 1, 1, zlib.compress(bytes(100))),
        "chunk of 2 GB": b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**31 - 1) + b"IHDR" + bytes(40),
        "gif screen": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\xff\xff\xff\xff\0\x08",
        "bmp": b"BM" + struct.pack("<IHHIIiiHH", 70, 0, 0, 54, 40, 2**30, 2**30, 1, 24) + bytes(33),
        "ppm": b"P6 1000000 1000000 255\n" + bytes(100),
        "jpeg": b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xdc\xff\xdc\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01" + bytes(50),
        "webp canvas": b"RIFF" + struct.pack("<I4s4sI", 30, b"WEBP", b"VP8X", 10) + b"\2" + b"\xff" * 9 + bytes(4),
        "tiff loop": b"II*\0" + struct.pack("<IHHHIII", 8, 1, 256, 4, 2**31, 8, 8),
        "text in a png": png(8, 8, zlib.compress(bytes(100)), extra=chunk(b"zTXt", b"k\0\0" + text)),
        "profile in a png": png(8, 8, zlib.compress(bytes(16)), extra=chunk(b"iCCP", b"k\0\0" + text)),
        "2000 frames": many.getvalue(),
        "62 million pixels": png(7900, 7900, zeros),
    }


def huge_members(rng: random.Random) -> dict[str, bytes]:
    """Archives in which a member says that it is larger than any memory."""
    sound = tar_of(sorted(images(rng.randrange(99)).items()))
    starts = [place for place in range(0, len(sound), 512) if sound[place + 257 : place + 262] == b"ustar"]
    found = {"pax size": pax_of({"size": str(2**60)}, bytes(512))}
    for name, size in (("8 EB", 2**62), ("1 TB", 2**40), ("2^90", 2**90)):
        found[f"size {name}"] = with_size(sound, rng.choice(starts), size)
        found[f"last size {name}"] = with_size(sound, starts[-1], size)
    return found


def tars(rng: random.Random) -> dict[str, bytes]:
    """Archives that are damaged, or bombs."""
    sound, members = tar_of(sorted(images(rng.randrange(99)).items())), {}
    starts = [place for place in range(0, len(sound), 512) if sound[place + 257 : place + 262] == b"ustar"]
    at = rng.choice(starts)
    members["truncated"] = sound[: rng.randrange(len(sound))]
    members["flips in headers"] = flipped(sound, rng, rng.randrange(1, 6), at, at + 400)
    members["flips"] = flipped(sound, rng, rng.randrange(1, 60))
    for name, size in (("8 GB", 8**11 - 1), ("negative", -5)):
        members[f"size {name}"] = with_size(sound, at, size)
        members[f"last size {name}"] = with_size(sound, starts[-1], size)
    members["tar in a tar"] = tar_of([("inner.tar", sound), ("inner.png", sound), *sorted(images(1).items())])
    members["3000 members"] = tar_of([(f"{i:05}.png", b"\x89") for i in range(3000)])
    members["compressed"] = b"\x1f\x8b\x08" + zlib.compress(sound)
    members["outside"] = tar_of([("../../etc/x.png", images(2)["png"]), ("/etc/y.png", images(3)["png"])])
    members["sparse"] = pax_of(
        {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "a.png",
            "GNU.sparse.realsize": str(2**50),
        },
        b"1\n0\n1\n" + bytes(506),
    )
    members["pax nonsense"] = pax_of({"size": "many", "mtime": "yesterday", "path": "\udcff.png"}, bytes(512))
    members["long name"] = pax_of({"path": "x" * 3_000_000 + ".png"}, bytes(512))
    return members | {name: data for name, data in strangers(rng).items() if name not in ("zeros", "tar")}


def tar_of(files: list[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for i, (name, data) in enumerate(files):
            info = tarfile.TarInfo(name if "." in name else f"{i:03}.{name.replace('apng', 'png')}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def pax_of(headers: dict[str, str], data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as tar:
        info = tarfile.TarInfo("a.png")
        info.size, info.pax_headers = len(data), headers
        tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def with_size(tar: bytes, at: int, size: int) -> bytes:
    """The member whose header is at `at` says that it has `size` bytes."""
    header = bytearray(tar[at : at + 512])
    if 0 <= size < 8**11:
        header[124:136] = b"%011o\0" % size
    else:
        header[124:136] = bytes([128 if size >= 0 else 255]) + (size % 2**88).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return tar[:at] + bytes(header) + tar[at + 512 :]
