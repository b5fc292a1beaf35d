"""People's own data in each layout: what is read, in which chunks, and what is left out under which name."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from train.documents import sample as record
from train.documents import sources as records
from train.documents.sample import Columns, Provenance, Sample, Skip
from train.documents.sources import Source, open_source
from train.images import files as folders
from train.images.files import Entry


def png(value: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 6), (value, 50, 200)).save(out, "PNG")
    return out.getvalue()


def read(source: Source) -> list[Sample | Skip]:
    return [*source.skipped, *(record for number in range(len(source)) for record in source.read(number))]


def good(source: Source) -> dict[str, tuple]:
    """Name -> pieces, images as their bytes."""
    return {
        found.name: tuple(piece if isinstance(piece, str) else piece.read() for piece in found.pieces)
        for found in read(source)
        if isinstance(found, Sample)
    }


def bad(source: Source) -> dict[str, str]:
    return {found.name: found.reason for found in read(source) if isinstance(found, Skip)}


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with three images, p0.png to p2.png."""
    for i in range(3):
        (tmp_path / f"p{i}.png").write_bytes(png(i))
    return tmp_path


def test_a_folder_has_captions_in_text_or_json_beside_its_images(root: Path):
    (root / "below").mkdir()
    (root / "below" / "p3.PNG").write_bytes(png(3))
    (root / "below" / "p3.TXT").write_bytes(b"\xef\xbb\xbfa blue field\r\n")
    (root / "p0.txt").write_text("حقل", encoding="utf-8")
    (root / "p1.json").write_text('{"caption": "a field", "license": "MIT", "author": "me", "url": "https://x"}')
    (root / "p2.txt").write_text("from the text")
    (root / "p2.json").write_text('{"caption": "not this", "licence": "CC0-1.0", "language": "ar"}')
    source = open_source(root)
    assert good(source) == {
        "below/p3.PNG": ("a blue field", png(3)),
        "p0.png": ("حقل", png(0)),
        "p1.png": ("a field", png(1)),
        "p2.png": ("from the text", png(2)),
    }
    facts = {found.name: found.facts for found in read(source) if isinstance(found, Sample)}
    assert facts["p1.png"] == Provenance("https://x", "MIT", "me") and facts["p2.png"] == Provenance(
        "", "CC0-1.0", "", "ar"
    )


def test_what_is_wrong_in_a_folder_is_named(root: Path, monkeypatch: pytest.MonkeyPatch):
    (root / "p0.txt").write_text("good")
    (root / "p0.jpg").write_bytes(png())
    (root / "p1.txt").write_bytes(b"caf\xe9")
    (root / "alone.txt").write_text("no image")
    (root / "big.png").write_bytes(png())
    (root / "big.txt").write_text("x" * 1_000_001)
    (root / "broken.png").write_bytes(png())
    (root / "broken.json").write_text('{"caption": ')
    (root / "deep.png").write_bytes(png())
    (root / "deep.json").write_text("[" * 100_000)
    (root / "blank.png").write_bytes(png())
    (root / "blank.txt").write_text(" \n")
    with (root / "huge.png").open("wb") as file:
        file.truncate(300_000_000)
    (root / "huge.txt").write_text("a huge file")
    found = open_source(root)
    assert list(good(found)) == ["p0.jpg"]
    reasons = bad(found)
    assert reasons["p0.png"] == "second image of one name: p0.jpg is taken"
    assert reasons["p1.png"].startswith("not UTF-8: byte 3 of .txt is 0xe9")
    assert reasons["p2.png"].startswith("no caption: neither .txt nor .json")
    assert reasons["alone.txt"] == "caption without an image"
    assert reasons["big.png"].startswith("text too long: 1,000,001 bytes, the limit is 1,000,000")
    assert reasons["broken.png"].startswith("broken JSON") and reasons["deep.png"].startswith("broken JSON")
    assert reasons["blank.png"].startswith("no caption: it is empty")
    assert reasons["huge.png"] == "too many bytes: 300,000,000, the limit is 256,000,000"
    kinds = {found.kind for found in read(found) if isinstance(found, Skip)}
    assert {"not UTF-8", "no caption", "broken JSON", "too many bytes", "second image of one name"} <= kinds


def test_pipes_and_links_that_lead_nowhere_are_skipped_and_named(root: Path):
    (root / "p0.txt").write_text("a field")
    os.mkfifo(root / "pipe.png")
    (root / "link.png").symlink_to(root / "nothing.png")
    found = open_source(root)
    assert list(good(found)) == ["p0.png"]
    reasons = bad(found)
    assert reasons["pipe.png"] == "no file: a pipe, a socket or a device"
    assert reasons["link.png"] == "no file: a link that leads nowhere"
    assert [skip.kind for skip in found.skipped] == ["no file", "no file"]


def test_folders_without_captions_images_or_anything_are_refused(root: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"has 3 images and no caption: put cat\.txt beside cat\.jpg"):
        open_source(root)
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="holds nothing that can be read: want images"):
        open_source(tmp_path / "words")
    with pytest.raises(ValueError, match="does not exist"):
        open_source(tmp_path / "none")
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"a\.zip holds nothing that can be read"):
        open_source(tmp_path / "a.zip")
    with pytest.raises(ValueError, match="format 'zip': want one of auto"):
        open_source(root, format="zip")
    with pytest.raises(ValueError, match="nothing of the format parquet"):
        open_source(root, format="parquet")


def test_a_folder_of_two_layouts_asks_which(root: Path):
    (root / "p0.txt").write_text("one")
    write_jsonl(root / "table.jsonl", [{"image": "p1.png", "text": "two"}])
    with pytest.raises(ValueError, match=r"several layouts, folder \(4 files\), jsonl \(1 files\): choose .*--format"):
        open_source(root)
    assert good(open_source(root, format="folder")) == {"p0.png": ("one", png(0))}
    assert good(open_source(root, format="jsonl")) == {"table.jsonl:1": ("two", png(1))}


def test_a_link_that_goes_round_is_followed_once(root: Path):
    (root / "p0.txt").write_text("one")
    (root / "again").symlink_to(root)
    assert list(good(open_source(root))) == ["p0.png"]


def test_a_caption_that_is_a_link_to_elsewhere_is_not_read(root: Path, tmp_path_factory: pytest.TempPathFactory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "secret.txt").write_text("secret")
    (elsewhere / "inside.png").write_bytes(png(1))
    (elsewhere / "inside.txt").write_text("two")
    (root / "words.md").write_text("one")
    (root / "p0.txt").symlink_to("words.md")
    (root / "p1.txt").symlink_to(elsewhere / "secret.txt")
    (root / "shared").symlink_to(elsewhere)  # a folder that is a link is a folder
    source = open_source(root)
    assert good(source) == {"p0.png": ("one", png(0)), "shared/inside.png": ("two", png(1))}
    assert bad(source)["p1.png"] == "caption elsewhere: p1.txt is a link that leads out of the folder"


def test_nuls_and_byte_order_marks_are_no_words(root: Path):
    mark = "\ufeff"
    (root / "p0.txt").write_bytes(f"{mark}a{mark} red\0 apple{mark}".encode())
    (root / "p1.json").write_text(mark + json.dumps({"caption": f"{mark}a \0cat"}))
    (root / "more").mkdir()
    write_jsonl(root / "more" / "table.jsonl", [{"image": "../p1.png", "text": f"{mark}a dog\0"}])
    assert {words for words, _ in good(open_source(root, format="folder")).values()} == {"a red apple", "a cat"}
    assert {words for words, _ in good(open_source(root / "more")).values()} == {"a dog"}


def test_avif_images_are_images(root: Path):
    Image.new("RGB", (8, 8), "red").save(root / "new.avif")
    (root / "new.txt").write_text("a red square")
    assert list(good(open_source(root))) == ["new.avif"]


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


def test_jsonl_has_captions_or_items_and_paths_from_its_folder(root: Path):
    (root / "tables").mkdir()
    rows = [
        {"image": "../p0.png", "caption": "one", "licence": "CC0-1.0", "owner": "me", "source": "here"},
        {"images": ["../p0.png", "../p1.png"], "text": "both"},
        {"items": [{"text": "before "}, {"image": "../p2.png"}, {"text": " after"}]},
        {"items": [{"text": "only words"}]},
        {"filepath": str(root / "p1.png"), "title": "an absolute path"},
    ]
    table = write_jsonl(root / "tables" / "t.jsonl", rows)
    source = open_source(table)
    assert good(source) == {
        "t.jsonl:1": ("one", png(0)),
        "t.jsonl:2": ("both", png(0), png(1)),
        "t.jsonl:3": ("before ", png(2), " after"),
        "t.jsonl:4": ("only words",),
        "t.jsonl:5": ("an absolute path", png(1)),
    }
    found = [found for found in read(source) if isinstance(found, Sample)]
    assert [one.interleaved for one in found] == [False, True, True, True, False]
    assert found[0].facts == Provenance("here", "CC0-1.0", "me")


def test_what_is_wrong_in_jsonl_is_named_by_its_line(root: Path, monkeypatch: pytest.MonkeyPatch):
    rows: list[tuple[str, str]] = [
        ('{"image": "p0.png", "text": "good"}', ""),
        ('{"image": "p0.png", "te', "broken JSON: line, Invalid"),
        ("[1, 2]", "broken JSON: line is [1, 2], want an object"),
        ("{}", "neither text nor image"),
        ('{"text": "x"}', "no image: only text"),
        ('{"image": "p0.png"}', "no caption"),
        ('{"image": "p0.png", "text": 7}', "broken row: the caption is 7, want text"),
        ('{"image": "gone.png", "text": "x"}', "missing file: gone.png"),
        ('{"image": "https://x.org/a.png", "text": "x"}', "not downloaded: https://x.org/a.png; fetch it first"),
        (json.dumps({"image": "n" * 5000, "text": "x"}), "missing file: nnn"),
        ('{"image": "\\u0000", "text": "x"}', "missing file"),
        ('{"items": [{"video": "a.mp4"}]}', "broken row: item 0 is"),
        ('{"items": []}', "neither text nor image"),
        ('{"items": "x"}', "broken row: items is 'x', want a list"),
        ('{"image": {"path": ""}, "text": "x"}', "no image"),
    ]
    lines = [row.encode() for row, _ in rows] + [b'{"text": "caf\xe9"}', b"", b'{"image": "p1.png", "text": "last"}']
    (root / "t.jsonl").write_bytes(b"\n".join(lines))
    source = open_source(root / "t.jsonl")
    assert list(good(source)) == ["t.jsonl:1", f"t.jsonl:{len(lines)}"]
    reasons = bad(source)
    for number, (_, reason) in list(enumerate(rows, 1))[1:]:
        assert reasons[f"t.jsonl:{number}"].startswith(reason), number
    assert reasons[f"t.jsonl:{len(rows) + 1}"].startswith("not UTF-8")
    (root / "t.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match="has no rows"):
        open_source(root / "t.jsonl")


def test_csv_and_tsv_have_open_clips_columns_or_named_ones(root: Path):
    (root / "a.csv").write_text('filepath,title,license\np0.png,"one, and\nmore",MIT\np1.png,two,\n', encoding="utf-8")
    (root / "b.tsv").write_text('\ufeffimage\tcaption\np2.png\t"three"\n', encoding="utf-8")
    source = open_source(root)
    assert good(source) == {
        "a.csv:1": ("one, and\nmore", png(0)),
        "a.csv:2": ("two", png(1)),
        "b.tsv:1": ("three", png(2)),
    }
    assert [one.facts.licence for one in read(source) if isinstance(one, Sample)] == ["MIT", "", ""]
    (root / "c.csv").write_text("where,caption,alt\np0.png,no,yes\n")
    assert good(open_source(root / "c.csv", Columns("where", "alt"))) == {"c.csv:1": ("yes", png(0))}


def test_what_is_wrong_in_csv_is_named(root: Path):
    rows = (
        b"filepath,title",
        b"p0.png,good",
        b"p1.png",
        b",only words",
        b"p1.png,",
        b"gone.png,x",
        b"p1.png,caf\xe9",
        b"http://x/a.png,x",
        b"p2.png," + b"x" * 200_000,
        b"p2.png,last",
        b"",
    )
    (root / "a.csv").write_bytes(b"\n".join(rows))
    source = open_source(root / "a.csv")
    assert [pieces[0] for pieces in good(source).values()] == ["good", "last"]
    reasons = list(bad(source).values())
    starts = [
        "broken row: 1 cells, the header has 2",
        "no image: only text",
        "no caption",
        "missing file: gone.png",
        "not UTF-8",
        "not downloaded",
        "broken row: field larger",
    ]
    assert all(reason.startswith(start) for reason, start in zip(reasons, starts, strict=True)), reasons


@pytest.mark.parametrize(
    ("text", "columns", "match"),
    [
        ("a,b\n1,2\n", Columns(), "none of the image columns filepath, image, .*, but 'a', 'b': name its image column"),
        ("image,b\n1,2\n", Columns(), "none of the text columns .*--text-column"),
        ("image,caption\n1,2\n", Columns(text="words"), "no column 'words', but 'image', 'caption'"),
        ("", Columns(), "no line that names the columns"),
        ("image,caption\n", Columns(), "has no rows"),
    ],
)
def test_csv_without_the_columns_is_refused(tmp_path: Path, text: str, columns: Columns, match: str):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=match):
        open_source(tmp_path / "a.csv", columns)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("samples", [1, 2, 3, 100])
def test_chunks_of_a_table_have_each_row_once(root: Path, kind: str, samples: int):
    if kind == "jsonl":
        table = write_jsonl(root / "t.jsonl", [{"image": "p0.png", "text": f"{i} é"} for i in range(7)])
    else:
        table = root / "t.csv"
        table.write_text("image,text\n" + "".join(f'p0.png,"{i}\né"\n' for i in range(7)), encoding="utf-8")
    source = open_source(table, samples=samples)
    assert len(source) == -(-7 // samples)
    assert [pieces[0][0] for pieces in good(source).values()] == list("0123456")
    assert list(good(source)) == [f"{table.name}:{i}" for i in range(1, 8)]


def test_the_listing_changes_with_the_content_and_not_with_the_place(root: Path, tmp_path: Path):
    table = write_jsonl(root / "t.jsonl", [{"image": "p0.png", "text": "a"}])
    before = open_source(table).listing
    assert open_source(table).listing == before
    write_jsonl(table, [{"image": "p0.png", "text": "b"}])
    assert open_source(table).listing != before


@pytest.fixture(scope="module")
def arrow():
    pytest.importorskip("pyarrow.parquet")
    import pyarrow
    import pyarrow.parquet

    return pyarrow


@pytest.mark.parametrize("samples", [2, 3, 50])
def test_parquet_has_images_inside_or_by_path(root: Path, arrow: Any, samples: int):
    rows = [
        {"image": {"bytes": png(i) if i % 2 else None, "path": f"p{i % 3}.png"}, "text": f"{i}", "license": "MIT"}
        for i in range(9)
    ]
    arrow.parquet.write_table(arrow.Table.from_pylist(rows), root / "a.parquet", row_group_size=4)
    source = open_source(root / "a.parquet", samples=samples)
    assert good(source) == {f"a.parquet:{i + 1}": (f"{i}", png(i if i % 2 else i % 3)) for i in range(9)}
    assert {one.facts.licence for one in read(source) if isinstance(one, Sample)} == {"MIT"}
    assert len(source) == {2: 5, 3: 5, 50: 1}[samples]


def test_interleaved_parquet_reads_in_order(root: Path, arrow: Any):
    struct = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    schema = arrow.schema(
        [("images", arrow.list_(struct)), ("texts", arrow.list_(arrow.string())), ("general_metadata", arrow.string())]
    )
    image = {"bytes": png(1), "path": None}
    rows = [
        {
            "images": [None, image, None],
            "texts": ["before", None, "after"],
            "general_metadata": '{"url": "https://page"}',
        },
        {"images": [{"bytes": None, "path": "https://x/y.jpg"}, None], "texts": [None, "x"]},
        {"images": [None], "texts": ["a", "b"]},
        {"images": [image], "texts": ["both"]},
        {"images": [], "texts": []},
    ]
    arrow.parquet.write_table(arrow.Table.from_pylist(rows, schema), root / "a.parquet")
    source = open_source(root / "a.parquet")
    assert good(source) == {"a.parquet:1": ("before", png(1), "after")}
    [first, *_] = read(source)
    assert isinstance(first, Sample) and first.interleaved and first.facts.source == "https://page"
    starts = (
        "not downloaded: https://x/y.jpg",
        "broken row: 1 images and 2 texts",
        "broken row: place 0 has both",
        "neither text nor image",
    )
    assert all(reason.startswith(start) for reason, start in zip(bad(source).values(), starts, strict=True))
    arrow.parquet.write_table(arrow.table({"images": [["p0.png", None]], "texts": [[None, "x"]]}), root / "b.parquet")
    assert good(open_source(root / "b.parquet")) == {"b.parquet:1": (png(0), "x")}


def test_damaged_parquet_is_named_and_the_rest_is_read(root: Path, arrow: Any):
    rows = [{"image": png(i), "text": "x"} for i in range(40)]
    for name in ("a", "b", "c"):
        arrow.parquet.write_table(
            arrow.Table.from_pylist(rows),
            root / f"{name}.parquet",
            row_group_size=10,
            compression="none",
            use_dictionary=False,
            write_page_checksum=True,
        )
    data = bytearray((root / "b.parquet").read_bytes())
    (root / "b.parquet").write_bytes(data[:-100])
    data[len(data) // 3 : len(data) // 3 + 40] = b"\xff" * 40
    (root / "c.parquet").write_bytes(data)
    source = open_source(root, samples=10)
    assert sum(name.startswith("a.parquet") for name in good(source)) == 40
    reasons = bad(source)
    assert "not a whole parquet file" in reasons.pop("b.parquet")
    [(name, reason)] = reasons.items()  # one chunk of four
    assert name.startswith("c.parquet:") and reason.startswith("damaged parquet: rows up to ")
    assert sum(name.startswith("c.parquet") for name in good(source)) == 30
    for path in ("a", "b"):
        (root / f"{path}.parquet").unlink()
    (root / "p0.parquet").write_text("nothing")
    with pytest.raises(ValueError, match="has no rows; p0.parquet: not a whole parquet file"):
        open_source(root / "p0.parquet")


def test_parquet_without_the_columns_or_the_library_is_refused(root: Path, arrow: Any, monkeypatch: pytest.MonkeyPatch):
    arrow.parquet.write_table(arrow.table({"a": [1]}), root / "a.parquet")
    with pytest.raises(ValueError, match="none of the image columns"):
        open_source(root / "a.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"pyarrow is missing: pip install pyarrow"):
        open_source(root / "a.parquet")


def test_a_saved_data_set_has_image_columns(root: Path, tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = {"image": [str(root / f"p{i}.png") for i in range(3)], "caption": ["0", "1", ""]}
    data = datasets.Dataset.from_dict(rows, features)
    data.save_to_disk(tmp_path / "saved")
    source = open_source(tmp_path / "saved", samples=2)
    assert good(source) == {"saved:1": ("0", png(0)), "saved:2": ("1", png(1))} and len(source) == 2
    assert bad(source)["saved:3"].startswith("no caption")
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "both")
    with pytest.raises(ValueError, match="several splits of a data set: name one of their folders, test, train"):
        open_source(tmp_path / "both")


def test_entries_are_read_where_they_lie(root: Path):
    (root / "p0.txt").write_text("x")
    [found] = [found for found in read(open_source(root)) if isinstance(found, Sample)]
    assert found.pieces[1] == Entry("p0.png", str(root / "p0.png"), 0, len(png()))
