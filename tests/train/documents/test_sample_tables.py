"""Samples in tables: JSON lines, CSV, Parquet, saved data sets."""

import json
from pathlib import Path
from typing import Any

import pytest

from samples import bad, good, png, read, write_jsonl
from train.documents.sample import Columns, Provenance, Sample
from train.documents.sources import open_source


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
        "broken row: index 0 has both",
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
