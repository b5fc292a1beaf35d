from pathlib import Path

import pytest
import torch
from PIL import Image

from tokenizer_image import PRESETS, ImageTokenizer, VQModel


@pytest.fixture(scope="module")
def tokenizer() -> ImageTokenizer:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return ImageTokenizer(VQModel(PRESETS["tiny"]))


def test_one_picture_gives_a_grid_and_a_list_gives_a_batch(tokenizer: ImageTokenizer) -> None:
    picture = Image.new("RGB", (40, 30), "red")
    assert tokenizer.encode(picture).shape == tokenizer.grid == (4, 4)
    codes = tokenizer.encode([picture, Image.new("L", (9, 9))])
    assert codes.shape == (2, 4, 4)
    assert isinstance(tokenizer.decode(codes[0]), Image.Image)
    assert [picture.size for picture in tokenizer.decode(codes)] == [(16, 16)] * 2  # pyright: ignore


def test_saved_and_loaded_it_gives_the_same_codes(tokenizer: ImageTokenizer, tmp_path: Path) -> None:
    picture = Image.effect_noise((32, 32), 80).convert("RGB")
    tokenizer.save_pretrained(tmp_path)
    loaded = ImageTokenizer.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(picture), tokenizer.encode(picture))
    assert loaded.fingerprint() == tokenizer.fingerprint()


def test_the_fingerprint_changes_with_the_weights(tokenizer: ImageTokenizer) -> None:
    assert ImageTokenizer(VQModel(PRESETS["tiny"])).fingerprint() != tokenizer.fingerprint()


@pytest.mark.parametrize("codes", [torch.zeros(3), torch.full((4, 4), -1), torch.full((4, 4), 32)])
def test_bad_codes_give_one_clear_error(tokenizer: ImageTokenizer, codes: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="codes"):
        tokenizer.decode(codes.long())


def test_an_empty_list_is_refused(tokenizer: ImageTokenizer) -> None:
    with pytest.raises(ValueError, match="empty"):
        tokenizer.encode([])


@pytest.mark.parametrize("name", ["no-such-tokenizer", "", "../models", "a/b/c"])
def test_a_name_that_is_nothing_gives_one_clear_error(name: str) -> None:
    with pytest.raises(ValueError, match="tokenizer"):
        ImageTokenizer.from_pretrained(name)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_missing_and_damaged_files_are_named(tokenizer: ImageTokenizer, tmp_path: Path, file: str) -> None:
    tokenizer.save_pretrained(tmp_path)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="damaged"):
        ImageTokenizer.from_pretrained(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(ValueError, match=file):
        ImageTokenizer.from_pretrained(tmp_path)
