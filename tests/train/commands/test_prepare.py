"""A person's own data become token shards: documents that read back, the same files however the work is shared."""

import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PIL_Image

from captioned import CAPTIONS, documents, noise
from cm3.pipeline import CM3
from cm3.tokens.document import Document, Image, Text
from cm3.tokens.encoding import to_ids
from cm3.tokens.text_tokenizer import TextTokenizer
from cm3.tokens.vocab import Vocab
from tokenizer_image import ImageTokenizer
from train import prepare as module
from train.documents.shards import Shards
from train.documents.worker import PrepareOptions, ShardBuilder, cut
from train.prepare import prepare
from train.runtime import workers as crew

FILES = ("*.safetensors", "*.jsonl", "tokenizer.json")


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for pattern in FILES for path in out.glob(pattern)}


def skipped(out: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in (out / "skipped.jsonl").read_text(encoding="utf-8").splitlines()]
    return {row["name"]: row["reason"] for row in rows}


def as_folder(folder: Path, out: Path) -> Path:
    return folder


def as_tar(folder: Path, out: Path) -> Path:
    with tarfile.open(out / "x.tar", "w") as tar:
        for path in sorted(folder.rglob("*.*")):
            tar.add(path, path.name)
    return out / "x.tar"


def rows(folder: Path) -> list[dict[str, Any]]:
    return [
        {"image": path, "caption": path.with_suffix(".txt").read_text(encoding="utf-8").strip()}
        for path in sorted(folder.rglob("*.png"))
    ]


def as_jsonl(folder: Path, out: Path) -> Path:
    lines = [json.dumps(row | {"image": str(row["image"].relative_to(folder))}) for row in rows(folder)]
    (folder / "table.jsonl").write_text("\n".join(lines))
    for path in folder.rglob("*.txt"):
        path.unlink()
    return folder


def as_csv(folder: Path, out: Path) -> Path:
    lines = [f'{row["image"]},"{row["caption"]}"' for row in rows(folder)]
    (out / "table.csv").write_text("\n".join(["filepath,title", *lines]), encoding="utf-8")
    return out / "table.csv"


def as_parquet(folder: Path, out: Path) -> Path:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist([row | {"image": {"bytes": row["image"].read_bytes()}} for row in rows(folder)])
    parquet.write_table(table, out / "x.parquet", row_group_size=5)
    return out / "x.parquet"


def as_dataset(folder: Path, out: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    found = [row | {"image": str(row["image"])} for row in rows(folder)]
    datasets.Dataset.from_list(found, features).save_to_disk(out / "saved")
    return out / "saved"


@pytest.mark.parametrize("layout", [as_folder, as_tar, as_jsonl, as_csv, as_parquet, as_dataset])
def test_every_layout_gives_a_drawing_and_a_caption_of_every_image(
    layout: Any, folder: Path, options: PrepareOptions, image: ImageTokenizer, tmp_path: Path
):
    (tmp_path / "source").mkdir()
    meta = prepare(layout(folder, tmp_path / "source"), tmp_path / "out", options)
    assert meta["images"] == 9 and meta["documents"] == 18 and meta["skipped"] == {}
    read = documents(tmp_path / "out")
    for i, words in enumerate(CAPTIONS):
        codes = Image(image.encode(noise(i)))
        assert read[2 * i] == Document((Text(words), codes))
        assert read[2 * i + 1] == Document((Text(f"Caption: {words}"), codes))
    shards = Shards(tmp_path / "out")
    ids, [(start, end)] = shards.document(5)
    assert shards.text_tokenizer().decode(shards.vocab().ids_to_text(ids[start:end])) == CAPTIONS[2]
    assert shards.sample(4)["documents"] == 2 and len(shards.sample(4)["sha256"]) == 64


def test_interleaved_samples_read_as_a_document_does(
    folder: Path, options: PrepareOptions, image: ImageTokenizer, tmp_path: Path
):
    items = [{"text": "before "}, {"text": "it"}, {"image": "0.png"}, {"image": "1.png"}, {"text": "after"}]
    rows = [{"items": items, "licence": "MIT"}, {"images": ["2.png", "3.png"], "text": "two"}]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepare(folder / "t.jsonl", tmp_path / "out", replace(options, owner="me", licence="not said"))
    shards = Shards(tmp_path / "out")
    codes = [Image(image.encode(noise(i))) for i in range(4)]
    whole = Document((Text("before it"), codes[0], codes[1], Text("after")))
    assert shards.document(0).ids == to_ids(whole, shards.vocab(), shards.text_tokenizer())
    assert documents(tmp_path / "out") == [whole, Document((Text("two"), *codes[2:]))]
    assert shards.spans.sum() == 0 and shards.texts.tolist() == [2, 1]
    assert shards.sample(0) | {"sha256": ""} == {
        "name": "t.jsonl:1",
        "source": "",
        "licence": "MIT",
        "owner": "me",
        "sha256": "",
        "documents": 1,
    }
    assert shards.sample(1)["licence"] == "not said"


VOCAB = Vocab(64, 100, 8)
IMAGE = [VOCAB.image, *range(164, 168), VOCAB.end_image]


@pytest.mark.parametrize("limit", range(8, 60, 3))
def test_a_cut_document_loses_nothing_and_never_cuts_an_image(limit: int):
    texts = [list(range(64, 64 + n)) for n in (3, 40, 1)]
    body = [
        *texts[0],
        VOCAB.break_,
        *IMAGE,
        *IMAGE,
        VOCAB.break_,
        *texts[1],
        VOCAB.break_,
        *IMAGE,
        VOCAB.break_,
        *texts[2],
    ]
    whole = cut([VOCAB.eos, *body, VOCAB.eos], limit, VOCAB)
    assert all(part[0] == part[-1] == VOCAB.eos for part in whole)
    parts = [part[1:-1] for part in whole]
    assert all(0 < len(part) <= limit - 2 for part in parts)
    assert [id for part in parts for id in part if id != VOCAB.break_] == [id for id in body if id != VOCAB.break_]
    for part in parts:
        assert part[0] != VOCAB.break_ != part[-1]
        assert "".join(map(str, part)).count("".join(map(str, IMAGE))) == part.count(VOCAB.image)
        assert part.count(VOCAB.image) == part.count(VOCAB.end_image)


def test_a_document_that_fits_stays_whole():
    ids = [VOCAB.eos, 70, 71, VOCAB.break_, *IMAGE, VOCAB.eos]
    assert cut(ids, len(ids), VOCAB) == [ids]
    assert cut([VOCAB.eos, VOCAB.eos], 10, VOCAB) == []


def test_ranks_and_a_killed_run_give_the_same_files_as_one_process(
    folder: Path, options: PrepareOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (folder / "2.png").write_bytes(b"broken")
    options = replace(options, samples=2, held_out=0.3)
    whole = prepare(folder, tmp_path / "one", options)
    with ThreadPoolExecutor(3) as pool:
        ranks = [pool.submit(prepare, folder, tmp_path / "three", options, 1, rank, 3) for rank in range(3)]
        shared = ranks[0].result()
    assert [rank.result()["shards"] for rank in ranks[1:]] == [2, 1]

    write, written = ShardBuilder.write, []

    def dies(self: ShardBuilder, number: int, tick: Any) -> None:
        if len(written) == 2:
            (tmp_path / "killed" / f"train-{number:05}.unfinished").write_bytes(b"half of it")
            raise KeyboardInterrupt
        written.append(number)
        write(self, number, tick)

    with monkeypatch.context() as patch:
        patch.setattr(ShardBuilder, "write", dies)
        with pytest.raises(KeyboardInterrupt):
            prepare(folder, tmp_path / "killed", options)
    before = (tmp_path / "killed" / "train-00000.safetensors").stat().st_mtime_ns
    (tmp_path / "killed" / "train-00001.safetensors").write_bytes(b"torn by a full disk")
    resumed = prepare(folder, tmp_path / "killed", options)
    assert (tmp_path / "killed" / "train-00000.safetensors").stat().st_mtime_ns == before

    assert content(tmp_path / "one") == content(tmp_path / "three") == content(tmp_path / "killed")
    assert whole["splits"]["held_out"]["documents"] > 0 and whole["skipped"] == {"not an image": 1}
    for meta in (shared, resumed):
        assert {key: meta[key] for key in whole if key not in ("seconds", "images_per_second")} == {
            key: whole[key] for key in whole if key not in ("seconds", "images_per_second")
        }
    assert not list((tmp_path / "killed").glob("*.unfinished"))


@pytest.mark.slow  # each process imports torch
def test_processes_give_the_same_files(folder: Path, options: PrepareOptions, tmp_path: Path):
    prepare(folder, tmp_path / "one", replace(options, samples=5))
    prepare(folder, tmp_path / "two", replace(options, samples=5), processes=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_what_cannot_be_used_is_named_and_counted(folder: Path, options: PrepareOptions, tmp_path: Path):
    good = (folder / "0.png").read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 255
    bomb = io.BytesIO()
    PIL_Image.new("1", (20_000, 20_000)).save(bomb, "PNG")  # 400 million pixels in 50 kB
    wrong = {
        "cut": good[: len(good) // 2],
        "flipped": bytes(flipped),
        "empty": b"",
        "words": b"no image",
        "bomb": bomb.getvalue(),
        "same": good,
    }
    for name, data in wrong.items():
        (folder / f"{name}.png").write_bytes(data)
        (folder / f"{name}.txt").write_text("a red field" if name == "same" else name)
    (folder / "long.png").write_bytes(noise(20))
    (folder / "long.txt").write_text("word " * 3000)
    (folder / "long.jpg").write_bytes(noise(21))
    meta = prepare(folder, tmp_path / "out", replace(options, samples=100, max_tokens=2000))
    reasons = skipped(tmp_path / "out")
    assert reasons.pop("same.png") == "duplicate: of 0.png"
    assert reasons.pop("long.png").startswith("second image of one name")
    assert reasons.pop("long.jpg") == "too long: 3029 tokens, the limit is 2000"
    assert reasons.pop("bomb.png").startswith("too large: over 178 million pixels")
    assert {name: reason.split(" (")[0].split(":")[0].split(";")[0] for name, reason in reasons.items()} == {
        "cut.png": "damaged or cut off",
        "flipped.png": "damaged or cut off",
        "empty.png": "the file is empty",
        "words.png": "not an image",
    }
    assert meta["skipped"]["damaged or cut off"] == 2 and meta["skipped"]["too large"] == 1
    assert sum(meta["skipped"].values()) == 8 and meta["images"] == 9


def test_the_same_content_is_always_held_out(folder: Path, options: PrepareOptions, tmp_path: Path):
    prepare(folder, tmp_path / "out", replace(options, held_out=0.4))
    held, kept = documents(tmp_path / "out", "held_out"), documents(tmp_path / "out")
    assert len(held) + len(kept) == 18 and not set(map(str, held)) & set(map(str, kept))
    for path in folder.glob("*.txt"):
        path.rename(path.with_name("x" + path.name))
        path.with_suffix(".png").rename(path.with_name("x" + path.name).with_suffix(".png"))
    prepare(folder, tmp_path / "renamed", replace(options, held_out=0.4))
    assert sorted(map(str, documents(tmp_path / "renamed", "held_out"))) == sorted(map(str, held))


def test_a_language_chooses_the_prompt(folder: Path, options: PrepareOptions, tmp_path: Path):
    (folder / "0.json").write_text('{"language": "en"}')
    prepare(folder, tmp_path / "out", replace(options, language="ar"))
    said = [document[0] for document in documents(tmp_path / "out")]
    assert said[1] == Text("Caption: a red field") and said[5] == Text("الوصف: تفاحة حمراء")


def test_a_model_gives_its_tokenizers_and_vocabulary(
    folder: Path, tiny: CM3, tiny_folder: Path, options: PrepareOptions, tmp_path: Path
):
    settings = replace(options, image_tokenizer="", model=str(tiny_folder))
    meta = prepare(folder, tmp_path / "out", settings)
    assert meta["config"]["max_tokens"] == tiny.context
    assert meta["vocab"] == {
        **{key: getattr(tiny.model.config, key) for key in meta["vocab"]},
        "image_grid": list(tiny.grid),
        "image_grids": [],
    }
    shards = Shards(tmp_path / "out")
    shards.check_image_tokenizer(tiny.image_tokenizer)
    assert shards.text_tokenizer().tokenizer.to_str() == tiny.text_tokenizer.tokenizer.to_str()
    assert documents(tmp_path / "out")[0][0] == Text(CAPTIONS[0])
    for wrong, match in (
        (replace(settings, image_tokenizer="emoji"), "leave out --image-tokenizer"),
        (replace(settings, max_tokens=10**6), "more than the model's context"),
        (replace(settings, model="no-such-model"), "there is no model"),
    ):
        with pytest.raises(ValueError, match=match):
            prepare(folder, tmp_path / "other", wrong)


def test_another_runs_shards_are_not_mixed_in(folder: Path, options: PrepareOptions, tmp_path: Path):
    out = tmp_path / "out"
    prepare(folder, out, options)
    with pytest.raises(ValueError, match=r"another run \(max_tokens was 4096, now 100\): delete it"):
        prepare(folder, out, replace(options, max_tokens=100))
    with pytest.raises(ValueError, match="another run .*image_tokenizer"):
        prepare(folder, out, replace(options, image_tokenizer="emoji"))
    (folder / "new.png").write_bytes(noise(9))
    with pytest.raises(ValueError, match="another run .*data"):
        prepare(folder, out, options)
    (folder / "new.png").unlink()
    TextTokenizer.train(["quite other words"], 260).save(out)
    with pytest.raises(ValueError, match="made with another text tokenizer"):
        prepare(folder, out, options)
    (out / "prepare.json").write_text("{")
    with pytest.raises(ValueError, match=r"prepare\.json is damaged"):
        prepare(folder, out, options)
    (out / "prepare.json").unlink()
    with pytest.raises(ValueError, match=r"shards that train\.prepare did not write"):
        prepare(folder, out, options)


def test_where_nothing_can_be_used_the_reasons_are_said_and_nothing_is_left(
    folder: Path, options: PrepareOptions, tmp_path: Path
):
    for path in folder.rglob("*.txt"):
        path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"every sample was skipped; 0\.png: not UTF-8.*; 1\.png"):
        prepare(folder, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()
    for path in folder.rglob("*.txt"):
        path.write_text("words")
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"every sample was skipped: 0\.png: the file is empty"):
        prepare(folder, tmp_path / "out", options)
    for path in folder.rglob("*.txt"):
        path.unlink()
    with pytest.raises(ValueError, match="has 9 images and no caption"):
        prepare(folder, tmp_path / "other", options)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"max_tokens": 19}, "--max-tokens 19: an image of 4 x 4 codes alone takes 20"),
        ({"held_out": 1.0}, "--held-out 1.0: want a share"),
        ({"language": "fr"}, "--language 'fr': want one of en, ar"),
        ({"samples": 0}, "samples is 0: want at least 1"),
        ({"text_vocab": 3}, "vocab_size must be at least 256"),
        ({"image_tokenizer": "no-such"}, "no image tokenizer 'no-such'"),
        ({"held_out": 0.9999999}, "all samples of .* were held out"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    folder: Path, options: PrepareOptions, tmp_path: Path, changes: dict, match: str
):
    with pytest.raises(ValueError, match=match):
        prepare(folder, tmp_path / "out", replace(options, **changes))


def test_an_out_inside_the_source_is_refused(folder: Path, options: PrepareOptions):
    with pytest.raises(ValueError, match="choose a folder outside"):
        prepare(folder, folder / "out", options)


def test_a_rank_that_does_not_come_is_not_waited_for_for_ever(tmp_path: Path):
    with pytest.raises(ValueError, match=r"x\.safetensors did not come within 0 s: another rank died"):
        crew.wait_for((tmp_path / "x").exists, tmp_path / "x.safetensors", 0.0)


def test_the_command_reports_and_fails_with_one_line(
    folder: Path, vq_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (folder / "alone.txt").write_text("x")
    module.main(folder, tmp_path / "out", str(vq_folder), held_out=0, text_vocab=300)
    printed = capsys.readouterr().out
    assert "skipped 1: caption without an image" in printed
    assert "9 images, 18 documents, " in printed and "1 skipped (named in " in printed
    with pytest.raises(SystemExit, match="^prepare: .*none does not exist") as error:
        module.main(tmp_path / "none", tmp_path / "other", str(vq_folder))
    assert "\n" not in str(error.value.code)
