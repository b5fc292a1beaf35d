"""Devices, models and model folders that are not there, are damaged or lie: one clear error."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cm3 import CM3
from cm3.hf.model_folder import find_model
from tokenizer_image import PRESETS, ImageTokenizer, VQModel

APPLE = "a red apple"


@pytest.mark.parametrize("device", ["tpu9", "", "cuda:99", "meta", "hpu", "mps:7", "xla", "CPU", "a\0b"])
def test_devices_that_are_not_there(tiny: CM3, tiny_folder: Path, device: str):
    for task in (tiny.to, lambda device: CM3.from_pretrained(tiny_folder, device=device)):
        with pytest.raises(ValueError, match=f"device is {re.escape(repr(device))}, which cannot be used"):
            task(device)
    assert tiny.generate(APPLE)  # nothing has moved


@pytest.mark.parametrize("device", [None, 0, True, ["cpu"]])
def test_devices_of_a_wrong_type(tiny: CM3, tiny_folder: Path, device: Any):
    for task in (tiny.to, lambda device: CM3.from_pretrained(tiny_folder, device=device)):
        with pytest.raises(TypeError, match="device must be a string or a torch.device, but is"):
            task(device)


@pytest.mark.parametrize("name", ["nothing", "no/such/folder", "../..nothing", "", "someone/nothing", "a\0b"])
def test_unknown_model(name: str):
    with pytest.raises(ValueError, match="there is no model"):
        CM3.from_pretrained(name)


def test_a_folder_that_is_no_model(tmp_path: Path):
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        CM3.from_pretrained(tmp_path)


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


FILES = [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "image_tokenizer/config.json",
    "image_tokenizer/model.safetensors",
]


def test_missing_image_tokenizer_is_named(folder: Path):
    shutil.rmtree(folder / "image_tokenizer")
    (folder / "checksums.json").unlink()
    with pytest.raises(ValueError, match="image_tokenizer"):
        CM3.from_pretrained(folder)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("checked", [True, False])
def test_missing_file_is_named(folder: Path, file: str, checked: bool):
    (folder / file).unlink()
    if not checked:
        (folder / "checksums.json").unlink()
    with pytest.raises(ValueError, match=Path(file).name):
        CM3.from_pretrained(folder)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", [flip_a_bit, cut, empty])
def test_tampered_file_is_named(folder: Path, file: str, harm: Callable[[Path], None]):
    harm(folder / file)
    with pytest.raises(ValueError, match=f"{file} was changed or damaged"):
        CM3.from_pretrained(folder)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", [cut, empty])
def test_damaged_file_is_refused_without_checksums_too(folder: Path, file: str, harm: Callable[[Path], None]):
    (folder / "checksums.json").unlink()
    harm(folder / file)
    with pytest.raises(ValueError, match=str(folder)):
        CM3.from_pretrained(folder)


@pytest.mark.parametrize("text", ["{", "[1]", "7", ""])
def test_damaged_checksums(folder: Path, text: str):
    (folder / "checksums.json").write_text(text)
    with pytest.raises(ValueError, match=r"checksums\.json is damaged"):
        CM3.from_pretrained(folder)


def edit_config(folder: Path, **changes: object) -> None:
    (folder / "checksums.json").unlink()
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


WRONG_CONFIGS = [
    {"num_hidden_layers": 3},
    {"hidden_size": 64},
    {"image_vocab_size": 16, "vocab_size": None},
    {"text_vocab_size": 9},
    {"image_grid": [2, 2]},
    {"hidden_size": "wide"},
    {"activation": "magic"},
]


@pytest.mark.parametrize("changes", WRONG_CONFIGS)
def test_config_and_weights_that_do_not_belong_together(folder: Path, changes: dict):
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match="."):
        CM3.from_pretrained(folder)


def test_image_tokenizer_of_another_model(tiny: CM3):
    larger = VQModel(replace(PRESETS["tiny"], n_embed=64))
    with pytest.raises(ValueError, match="codes are 64, but the model knows 32"):
        CM3(tiny.model, tiny.text_tokenizer, ImageTokenizer(larger))
    wider = VQModel(replace(PRESETS["tiny"], resolution=32))
    with pytest.raises(ValueError, match=r"grid is \(8, 8\), but the model's \(4, 4\)"):
        CM3(tiny.model, tiny.text_tokenizer, ImageTokenizer(wider))


def test_a_local_folder_is_found_by_its_path(folder: Path):
    assert find_model(str(folder)) == folder


def test_another_image_tokenizer_than_the_model_was_trained_with(folder: Path):
    (folder / "checksums.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    right = ImageTokenizer.from_pretrained(folder / "image_tokenizer").fingerprint()
    (folder / "config.json").write_text(json.dumps(config | {"image_tokenizer_fingerprint": right}))
    CM3.from_pretrained(folder, device="cpu")
    ImageTokenizer(VQModel(PRESETS["tiny"])).save_pretrained(folder / "image_tokenizer")
    with pytest.raises(ValueError, match="not the one"):
        CM3.from_pretrained(folder, device="cpu")
