"""Samples in tar files."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from samples import bad, good, png, read
from train.documents import sample as record
from train.documents import sources as records
from train.documents.sample import Sample
from train.documents.sources import open_source
from train.images import files as folders


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_tars_have_samples_by_key(tmp_path: Path):
    row = {"caption": "from json", "url": "https://x/1.jpg", "key": "b", "status": "success", "width": 8}
    write_tar(
        tmp_path / "00000.tar",
        [
            ("d/a.txt", "أحمر".encode()),
            ("d/a.png", png(1)),
            ("b.jpg", png(2)),
            ("b.json", json.dumps(row).encode()),
            ("c.cls", b"4"),
        ],
    )
    (tmp_path / "00000.parquet").write_bytes(b"img2dataset's account of the tar")
    source = open_source(tmp_path)
    assert good(source) == {"00000.tar:d/a": ("أحمر", png(1)), "00000.tar:b": ("from json", png(2))}
    assert [found.facts.source for found in read(source) if isinstance(found, Sample)] == ["", "https://x/1.jpg"]
    assert good(open_source(tmp_path / "00000.tar")) == good(source)


def test_what_is_wrong_in_a_tar_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    members = [
        ("a.png", png(1)),
        ("a.txt", b"one"),
        ("a.png", png(2)),
        ("b.txt", b"alone"),
        ("c.webp", png(3)),
        ("d.png", b""),
        ("d.txt", b"\xff"),
    ]
    write_tar(tmp_path / "x.tar", members)
    source = open_source(tmp_path / "x.tar")
    assert good(source) == {"x.tar:a": ("one", png(1))}
    reasons = bad(source)
    assert reasons["x.tar:a.png"] == "duplicate key: 'a' has an image already"
    assert reasons["x.tar:b"] == "caption without an image"
    assert reasons["x.tar:c"].startswith("no caption") and reasons["x.tar:d"].startswith("not UTF-8")

    data = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(data[:2000])  # cut off in the second image
    assert good(open_source(tmp_path)) == {"x.tar:a": ("one", png(1))}
    assert "not a whole tar" in bad(open_source(tmp_path))["x.tar"]
    (tmp_path / "x.tar").write_bytes(b"no tar at all" * 1000)
    assert "not a whole tar" in bad(open_source(tmp_path))["x.tar"]

    write_tar(tmp_path / "x.tar", members)
    monkeypatch.setattr(folders, "MAX_MEMBERS", 3)
    assert "more than 3 members" in bad(open_source(tmp_path))["x.tar"]
    monkeypatch.setattr(record, "MAX_IMAGE", 10)
    assert bad(open_source(tmp_path))["x.tar:a"].startswith("too many bytes")


def test_the_parts_of_a_large_tar_have_each_sample_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_tar(
        tmp_path / "x.tar",
        [(f"{i}.{kind}", png(i) if kind == "png" else b"%d" % i) for i in range(20) for kind in ("png", "txt")],
    )
    whole = good(open_source(tmp_path))
    monkeypatch.setattr(records, "TAR_PART", 5000)
    source = open_source(tmp_path)
    assert len(source) > 5 and good(source) == whole and len(whole) == 20
    assert len(read(source)) == 20
