"""Model folders that lie, and model folders that are written while something goes wrong."""

import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cm3 import CM3
from cm3.hf.model_folder import check_files, find_model, write_checksums
from tokenizer_image import PRESETS, ImageTokenizer, VQConfig
from train.language.config import LMConfig
from train.runtime import config as configs


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A model folder without checksums, as its writer can leave it."""
    copy = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    (copy / "checksums.json").unlink()
    return copy


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(folder: Path, message: str, **options: Any) -> None:
    """In one line, and before anything large is made."""
    before = peak()
    with pytest.raises(ValueError, match=message) as error:
        CM3.from_pretrained(folder, **options)
    assert "\n" not in str(error.value)
    assert peak() - before < 200


def peak() -> float:
    """Megabytes of memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("text", ["null", "[]", "7", '"cm3"', "{", "", "\0", "[" * 100_000])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "image_tokenizer/config.json"])
def test_what_is_no_configuration(folder: Path, file: str, text: str):
    (folder / file).write_text(text)
    refused(folder, str(folder))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "float33"}, "cannot be loaded|damaged"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "has a quantization_config"),
        ({"quantization_config": []}, "has a quantization_config"),
        ({"attn_implementation": "someone/kernel"}, "asks for the attention kernel 'someone/kernel'"),
        ({"_attn_implementation": "someone/kernel:forward"}, "asks for the attention kernel"),
        ({"_attn_implementation": ["a"]}, "asks for the attention kernel"),
        ({"model_type": "llama"}, "model_type is 'llama', but must be 'cm3'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, at most 1,000"),
        ({"num_hidden_layers": 1000}, "the weights lack"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1"),
        ({"num_hidden_layers": "many"}, "damaged"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": 2**30}, "does not fit the weights"),
        ({"intermediate_size": 2**30}, "does not fit the weights"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000"),
        ({"max_position_embeddings": 10**15}, "max_position_embeddings is"),
        ({"image_grid": [0, 0]}, "image_grid"),
        ({"image_grid": 5}, "damaged"),
        ({"rope_theta": "x"}, "damaged"),
    ],
    ids=str,
)
def test_configurations_that_lie(folder: Path, fields: dict[str, Any], message: str):
    change(folder / "config.json", **fields)
    refused(folder, message)


def test_the_caller_may_ask_for_any_attention(folder: Path):
    change(folder / "config.json", _attn_implementation="someone/kernel")
    assert CM3.from_pretrained(folder, attn_implementation="sdpa").caption(torch.zeros(3, 8, 8)) is not None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_res_blocks": 100_000}, "num_res_blocks is 100000"),
        ({"ch": 0}, "ch is 0"),
        ({"ch_mult": []}, "ch_mult has 0 levels"),
        ({"ch_mult": [1] * 40}, "ch_mult has 40 levels"),
        ({"norm_groups": 0}, "norm_groups is 0"),
        ({"n_embed": 2**24}, "in the weights, but config.json wants"),
        ({"ch": 2**20}, "in the weights, but config.json wants"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"resolution": -16}, "resolution is -16"),
        ({"resolution": "large"}, "resolution is 'large'"),
        ({"embed_dim": 1.5}, "embed_dim is 1.5"),
        ({"unknown": 1}, "unknown VQConfig keys"),
    ],
    ids=str,
)
def test_image_tokenizers_that_lie(folder: Path, fields: dict[str, Any], message: str):
    change(folder / "image_tokenizer" / "config.json", **fields)
    refused(folder, message)


@pytest.mark.parametrize("file", ["model.safetensors", "image_tokenizer/model.safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_loaded(folder: Path, file: str, value: float):
    weights = load_file(folder / file)
    weights[sorted(weights)[-1]].view(-1)[0] = value
    save_file(weights, folder / file, metadata={"format": "pt"})
    refused(folder, "not finite|no numbers")


def test_weights_that_are_no_numbers_are_not_saved(tiny_folder: Path, tmp_path: Path):
    model = CM3.from_pretrained(tiny_folder)
    with torch.no_grad():
        next(model.model.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(ValueError, match="the model: .* not finite"):
        model.save_pretrained(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "setting",
    ["optim.lr=nan", "optim.muon_lr=inf", "optim.betas=[0.9, nan]", "optim.grad_clip=-inf", "model.norm_eps=nan"],
)
def test_settings_that_are_no_numbers(setting: str):
    with pytest.raises(ValueError, match="want numbers, no nan or infinity"):
        configs.load(LMConfig, None, [setting])


def test_an_image_tokenizer_comes_from_the_folder_or_is_embedded_or_the_callers(folder: Path, tmp_path: Path):
    own = tmp_path / "elsewhere"
    (folder / "image_tokenizer").rename(own)
    for name in (str(own), "../elsewhere", "elsewhere", "someone/tokenizer", 5, None):
        change(folder / "config.json", image_tokenizer=name)
        refused(folder, "which is not embedded .*: say which with image_tokenizer=")
    assert CM3.from_pretrained(folder, image_tokenizer=own).grid == (4, 4)
    change(folder / "config.json", image_tokenizer_fingerprint="0" * 12)
    refused(folder, "is not the one that .* was trained with", image_tokenizer=own)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_what_a_model_folder_held_besides_stays_and_does_not_count(tiny_folder: Path, tmp_path: Path):
    model = CM3.from_pretrained(tiny_folder)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    written = names(folder)
    (folder / "notes").mkdir()
    (folder / "notes" / "run.json").write_text("{}")
    (folder / "README.md").write_text("mine")
    (folder / "scorer").mkdir()
    (folder / "scorer" / "config.json").write_text("{}")  # of the model that was there before
    model.save_pretrained(folder)
    assert names(folder) == sorted([*written, "README.md", "notes/run.json"])
    assert set(json.loads((folder / "checksums.json").read_text())) == set(written) - {"checksums.json"}
    (folder / "notes" / "run.json").write_text("changed")
    write_checksums(folder)
    assert set(json.loads((folder / "checksums.json").read_text())) == set(written) - {"checksums.json"}
    CM3.from_pretrained(folder)


def test_a_model_is_not_saved_over_the_current_folder(tiny: CM3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="save into a folder of its own"):
        tiny.save_pretrained(".")


def killed_at(moment: int, work: Callable[[], None], folder: Path) -> bool:
    """Do it in a child that is killed at so many accesses to the folder. Whether it came so far."""
    child = os.fork()
    if child == 0:
        left, events = moment, ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")

        def count(event: str, args: tuple[Any, ...]) -> None:
            nonlocal left
            if event in events and str(args[0]).startswith(str(folder)):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(count)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status != 0


@pytest.mark.slow
def test_a_save_that_is_killed_at_any_moment_leaves_a_whole_model(tiny: CM3, tiny_folder: Path, tmp_path: Path):
    folder, moments = tmp_path / "model", 0
    shutil.copytree(tiny_folder, folder)
    for moment in range(200):
        killed = killed_at(moment, lambda: tiny.save_pretrained(folder), folder)
        found = find_model(folder)
        check_files(found)
        assert CM3.from_pretrained(folder).grid == (4, 4)
        if not killed:
            break
        moments += 1
    assert moments >= 12
    assert sorted(os.listdir(tmp_path)) == ["model"]


def test_a_folder_that_was_left_aside_is_found(tiny_folder: Path, tmp_path: Path):
    shutil.copytree(tiny_folder, tmp_path / "model.old")
    assert find_model(tmp_path / "model") == tmp_path / "model.old"
    CM3.from_pretrained(tiny_folder).save_pretrained(tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"]


def test_presets_and_saved_shapes_pass_the_limits():
    for preset in (*PRESETS.values(), ImageTokenizer.from_pretrained("emoji").model.config):
        assert VQConfig.from_dict(vars(preset)) == preset


def test_every_file_of_a_saved_model_has_the_mode_that_the_umask_asks_for(tiny: CM3, tmp_path: Path):
    for mask in (0o022, 0o077, 0o002):
        before = os.umask(mask)
        try:
            tiny.save_pretrained(tmp_path / "model")
            tiny.image_tokenizer.save_pretrained(tmp_path / f"image_tokenizer-{mask}")
        finally:
            os.umask(before)
        for folder in (tmp_path / "model", tmp_path / f"image_tokenizer-{mask}"):
            files = [path for path in folder.rglob("*") if path.is_file()]
            assert any(path.suffix == ".safetensors" for path in files)
            assert {oct(path.stat().st_mode & 0o777) for path in files} == {oct(0o666 & ~mask)}
