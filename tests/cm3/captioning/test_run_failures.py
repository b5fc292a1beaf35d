"""Captions where something goes wrong: files that cannot be read or written, names, encodings, full disks."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from captions import read, said, texts
from cm3 import CM3
from cm3.captioning import sinks as caption_sinks


def test_a_text_that_cannot_be_written_is_told(tiny: CM3, cm3, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caption_sinks, "write_whole", full)
    code, out, err = cm3("in/red.png", "in/blue.png", "--extension", "txt")
    assert (code, out) == (1, "")
    assert err == "".join(
        f"cm3: in/{name}.png: its text cannot be written (No space left on device)\n" for name in ("red", "blue")
    )


@pytest.mark.parametrize("existing", ["skip", "overwrite", "append"])
@pytest.mark.parametrize("ending", [".png", "JPG", ".webp"])
def test_an_ending_of_images_is_refused_and_the_images_stay(cm3, ending: str, existing: str):
    Path("in/red.jpg").write_bytes(Path("in/red.png").read_bytes())
    before = {path: path.read_bytes() for path in Path("in").rglob("*.*")}
    code, out, err = cm3("in", "--extension", ending, "--existing", existing)
    assert (code, out) == (2, "") and err.count("\n") == 1 and "images are never written over" in err
    assert {path: path.read_bytes() for path in Path("in").rglob("*.*")} == before


@pytest.mark.parametrize("existing", ["overwrite", "append", "prepend"])
def test_a_list_and_an_image_under_the_name_of_a_text_are_not_written_over(cm3, existing: str):
    Path("in/red.txt").write_text("in/red.png\nin/blue.png\nin/green.png\n")
    Path("in/blue.txt").write_bytes(Path("in/blue.png").read_bytes())
    code, out, err = cm3("@in/red.txt", "--existing", existing)
    assert code == 1 and out.startswith("in/green.png: ") and out.count("\n") == 1
    assert "cm3: in/red.png: its text cannot be written (in/red.txt is a file that this run reads" in err
    assert "cm3: in/blue.png: its text cannot be written (in/blue.txt is an image" in err
    assert err.endswith("1 captioned, 0 skipped, 2 failed\n")
    assert Path("in/red.txt").read_text() == "in/red.png\nin/blue.png\nin/green.png\n"
    assert Path("in/blue.txt").read_bytes() == Path("in/blue.png").read_bytes()
    Path("list.csv").write_text("in/red.png\n")
    code, _, err = cm3("@list.csv", "--out", "list.csv", "--existing", "overwrite")
    assert code == 2 and "list.csv is a file that this run reads" in err
    assert Path("list.csv").read_text() == "in/red.png\n"


def test_the_files_of_the_model_are_not_written_over(cm3, tiny_folder: Path, tmp_path: Path):
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    for name in ("config", "image_tokenizer/config"):
        shutil.copy("in/red.png", model / f"{name}.png")
    before = {path: path.read_bytes() for path in model.rglob("*.json")}
    code, _, err = cm3("model", "-r", "--extension", ".json", "--existing", "overwrite", "--model", "model")
    assert code == 1 and err.endswith("0 captioned, 0 skipped, 2 failed\n")
    assert {path: path.read_bytes() for path in model.rglob("*.json")} == before


def unnamed(folder: str = "in") -> Path:
    """An image whose name is in Latin-1."""
    path = Path(folder, os.fsdecode("café.png".encode("latin-1")))
    shutil.copy("in/red.png", path)
    return path


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_name_that_is_not_utf_8_is_counted_and_the_others_are_written(cm3, ending: str):
    unnamed()
    code, out, err = cm3("in", "-r", "--out", f"in/metadata.{ending}")
    assert code == 1 and out.count("\n") == 5
    assert "caf\\udce9.png: its text cannot be written (its name is not in UTF-8" in escaped(err)
    assert err.endswith("5 captioned, 0 skipped, 1 failed\n")
    assert len(read(Path(f"in/metadata.{ending}"))) == 5


def escaped(words: str) -> str:
    """As the command's streams write it."""
    return words.encode(errors="backslashreplace").decode()


def test_names_that_are_not_utf_8_come_from_lists_and_stdin(cm3):
    path = unnamed()
    Path("list.txt").write_bytes(os.fsencode(path) + b"\nin/blue.png\n")
    assert cm3("@list.txt")[0] == 0
    assert path.with_suffix(".txt").exists() and "blue" in texts()
    code, _, err = cm3("-", "--existing", "overwrite", stdin=f"{path}\nin/blue.png\n")
    assert (code, err) == (0, "2 captioned, 0 skipped, 0 failed\n")


@pytest.mark.parametrize("existing", ["append", "prepend"])
def test_a_text_in_another_encoding_is_counted_and_the_others_go_on(cm3, existing: str):
    Path("in/green.txt").write_bytes("café".encode("latin-1"))
    code, out, err = cm3("in", "--existing", existing)
    assert code == 1 and out.count("\n") == 3
    assert "cm3: in/green.png: its text cannot be written (green.txt is not in UTF-8" in err
    assert err.endswith("3 captioned, 0 skipped, 1 failed\n")
    assert Path("in/green.txt").read_bytes() == "café".encode("latin-1")


def test_two_images_that_would_share_a_text_are_told_and_a_table_has_both(cm3, tiny: CM3):
    Path("in/red.jpg").write_bytes(Path("in/blue.png").read_bytes())
    for skipped in (0, 4):
        code, _, err = cm3("in")
        assert code == 1 and err.endswith(f"{4 - skipped} captioned, {skipped} skipped, 1 failed\n")
        assert "in/red.png: its text cannot be written (red.txt is the text of red.jpg already: rename one" in err
        assert "or write a table with --out" in err
    assert texts()["red"] == said(tiny, "blue")[0] + "\n"
    assert cm3("in", "--out", "a.jsonl")[0] == 0
    assert {"in/red.jpg", "in/red.png"} <= {row["file_name"] for row in read(Path("a.jsonl"))}


def test_a_full_disk_ends_the_run_in_one_line(cm3, monkeypatch: pytest.MonkeyPatch):
    def full(path: Path, _: str) -> None:
        tried.append(path.name)
        raise OSError(28, "No space left on device")

    tried: list[str] = []
    for i in range(20):
        shutil.copy("in/red.png", f"in/{i:02}.png")
    monkeypatch.setattr(caption_sinks, "write_whole", full)
    code, out, err = cm3("in", "--batch", "2")
    assert (code, out, tried) == (2, "", ["00.txt", "01.txt", "02.txt"])
    assert err.splitlines()[-1] == (
        "cm3: in/02.png: its text cannot be written (No space left on device), nor could the 2 before it: the run "
        "stops; make room, and run the same command again"
    )


def test_failures_to_write_that_are_not_in_a_row_end_nothing(cm3, monkeypatch: pytest.MonkeyPatch):
    def now_and_then(path: Path, text: str) -> None:
        if path.stem != "03":
            raise OSError(28, "No space left on device")

    for i in range(6):
        shutil.copy("in/red.png", f"{i:02}.png")
    monkeypatch.setattr(caption_sinks, "write_whole", now_and_then)
    code, _, err = cm3("01.png", "02.png", "03.png", "04.png", "05.png", "--extension", "txt")
    assert code == 1 and err.count("cannot be written") == 4


def test_a_name_of_several_lines_is_printed_in_one(cm3):
    shutil.copy("in/red.png", "in/a\nb\x1b[2Jc.png")
    Path("in/d\ne.png").write_bytes(b"no image")
    code, out, err = cm3("in")
    assert code == 1 and out.count("\n") == 5 and err.count("\n") == 2
    assert "in/a\\nb\\x1b[2Jc.png: " in out and "cm3: in/d\\ne.png: not an image" in err


def test_a_model_that_is_not_there_costs_no_table(cm3):
    assert cm3("in", "--out", "a.jsonl")[0] == 0
    before = Path("a.jsonl").read_text()
    assert cm3("in", "--out", "a.jsonl", "--existing", "overwrite", "--model", "none")[0] == 2
    assert Path("a.jsonl").read_text() == before


def test_a_prefix_that_is_no_text_is_refused(cm3):
    code, out, err = cm3("in", "--prefix", "\udcff")
    assert (code, out) == (2, "") and "is not in UTF-8, as texts must be" in err
