"""Folders and tars become code shards: in order, in batches, past bad files, and on from where a run was cut off."""

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from tokenizer_image import ImageTokenizer
from train.encode import main, parse_size
from train.images import codes as module
from train.images.codes import encode_entries, read_codes, write_codes
from train.images.files import index


@pytest.fixture(scope="module")
def tokenizer(vq_folder: Path) -> ImageTokenizer:
    return ImageTokenizer.from_pretrained(vq_folder)


def noise(seed: int, size: tuple[int, int] = (20, 12)) -> Image.Image:
    pixels = torch.randint(256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.byte().numpy())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images in a folder and one below, two bad files, and a tar with one good and one empty image."""
    root = tmp_path / "images"
    (root / "below").mkdir(parents=True)
    for i in range(5):
        noise(i).save(root / f"{i}.png")
    noise(5, (33, 17)).save(root / "below" / "wide.png")
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (root / "text.png").write_text("no image")
    with tarfile.open(root / "more.tar", "w") as tar:
        buffer = io.BytesIO()
        noise(6).save(buffer, "PNG")
        for name, data in (("x.png", buffer.getvalue()), ("empty.png", b"")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return root


def test_codes_are_those_of_each_image_alone(folder: Path, tokenizer: ImageTokenizer, tmp_path: Path):
    facts = write_codes(folder, tmp_path / "out", tokenizer, batch=3, per_shard=4)
    read = dict(read_codes(tmp_path / "out"))
    assert list(read) == ["0.png", "1.png", "2.png", "3.png", "4.png", "below/wide.png", "more.tar:x.png"]
    for i in range(5):
        assert torch.equal(read[f"{i}.png"], tokenizer.encode(folder / f"{i}.png"))
    assert torch.equal(read["more.tar:x.png"], tokenizer.encode(noise(6)))
    assert facts["images"] == 7 and len(list((tmp_path / "out").glob("codes-*.safetensors"))) == 3
    assert facts["images_per_second"] > 0


def test_what_is_skipped_is_named_with_its_reason_in_the_manifest(
    folder: Path, tokenizer: ImageTokenizer, tmp_path: Path
):
    write_codes(folder, tmp_path / "out", tokenizer)
    skipped = json.loads((tmp_path / "out" / "manifest.json").read_text())["skipped"]
    assert sorted(skipped) == ["broken.jpg", "more.tar:empty.png", "text.png"]
    assert "0 bytes" in skipped["more.tar:empty.png"] and "not an image" in skipped["text.png"]


def test_images_kept_as_they_are_have_grids_of_their_own(folder: Path, tokenizer: ImageTokenizer, tmp_path: Path):
    write_codes(folder, tmp_path / "out", tokenizer, size="keep")
    grids = {name: tuple(codes.shape) for name, codes in read_codes(tmp_path / "out")}
    assert grids["0.png"] == (3, 5) and grids["below/wide.png"] == (4, 8)  # 17 x 33 pixels, 4 a code


def test_a_run_that_was_cut_off_goes_on_where_it_was(
    folder: Path, tokenizer: ImageTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_codes(folder, tmp_path / "whole", tokenizer, per_shard=4)
    save, written = module._save, []

    def save_once(path: Path, *rest) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path)
        save(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_save", save_once)
        with pytest.raises(KeyboardInterrupt):
            write_codes(folder, tmp_path / "out", tokenizer, per_shard=4)
    before = written[0].stat().st_mtime_ns
    facts = write_codes(folder, tmp_path / "out", tokenizer, per_shard=4)
    assert written[0].stat().st_mtime_ns == before and facts["images"] == 7
    for a, b in zip(read_codes(tmp_path / "whole"), read_codes(tmp_path / "out"), strict=True):
        assert a[0] == b[0] and torch.equal(a[1], b[1])


def test_shards_of_another_run_are_not_mixed_in(folder: Path, tokenizer: ImageTokenizer, tmp_path: Path):
    write_codes(folder, tmp_path / "out", tokenizer)
    with pytest.raises(ValueError, match=r"another run \(size was 'fit', now \[8, 8\]\): delete it"):
        write_codes(folder, tmp_path / "out", tokenizer, size=(8, 8))
    noise(9).save(folder / "new.png")
    with pytest.raises(ValueError, match="files was 10, now 11"):
        write_codes(folder, tmp_path / "out", tokenizer)


def test_nothing_to_encode_is_an_error(tokenizer: ImageTokenizer, tmp_path: Path, folder: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no images"):
        write_codes(tmp_path / "empty", tmp_path / "out", tokenizer)
    (tmp_path / "empty" / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 1 images can be encoded; the first, a\.png: .*0 bytes"):
        write_codes(tmp_path / "empty", tmp_path / "out", tokenizer)
    with pytest.raises(ValueError, match="not a folder"):
        write_codes(tmp_path / "none", tmp_path / "out", tokenizer)
    with pytest.raises(ValueError, match="multiples of 4"):
        write_codes(folder, tmp_path / "other", tokenizer, size=(10, 8))
    with pytest.raises(ValueError, match=r"train\.encode first"):
        list(read_codes(tmp_path / "other"))


def test_equal_sizes_of_a_batch_go_through_the_model_together(
    folder: Path, tokenizer: ImageTokenizer, monkeypatch: pytest.MonkeyPatch
):
    batches = []
    encode = tokenizer.encode_pixels
    monkeypatch.setattr(tokenizer, "encode_pixels", lambda pixels: batches.append(len(pixels)) or encode(pixels))
    entries, _ = index(folder)
    done = list(encode_entries(entries, tokenizer, "keep", batch=6, workers=3))
    assert [one.entry for one in done] == entries
    assert batches == [5, 1, 1]  # five of one size and one wide one (broken.jpg is the seventh), then the tar's


def test_the_command_reports_and_fails_with_one_line(
    folder: Path, vq_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    main(folder, tmp_path / "out", str(vq_folder), "8x12")
    out = capsys.readouterr().out
    assert "skipped broken.jpg" in out and "7 images, 3 skipped" in out
    assert next(read_codes(tmp_path / "out"))[1].shape == (2, 3)
    for source, size in ((tmp_path / "none", "fit"), (folder, "big")):
        with pytest.raises(SystemExit, match=r"^encode: "):
            main(source, tmp_path / "other", str(vq_folder), size)


def test_sizes_are_read_as_people_write_them():
    assert [parse_size(text) for text in ("fit", "keep", "256", "128x64")] == ["fit", "keep", (256, 256), (128, 64)]
    for text in ("", "big", "x", "12x", "-4", "1.5"):
        with pytest.raises(ValueError, match="want fit, keep"):
            parse_size(text)
