"""Folders of others that cannot be converted: the reason is named and nothing is left."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ChameleonForConditionalGeneration

from cm3.hf.convert import convert
from tests.helpers.chameleons import CODES, code_names, write_chameleon


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chameleon")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> ChameleonForConditionalGeneration:
    return write_chameleon(folder, shard="20KB")


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def eighths(folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(weights | {name: weights[name].to(torch.float8_e4m3fn)}, file, metadata={"format": "pt"})


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without(name: str, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def foreign(folder: Path) -> None:
    names = json.loads((folder / "config.json").read_text())["vocabulary_map"]
    change(folder / "config.json", vocabulary_map={name: id for name, id in names.items() if name not in code_names()})


def gap(folder: Path) -> None:
    names = json.loads((folder / "config.json").read_text())["vocabulary_map"]
    del names[code_names()[3]]
    change(folder / "config.json", vocabulary_map=names)


BROKEN = {
    "another architecture": (lambda at: change(at / "config.json", model_type="llama"), "type 'llama'"),
    "a relative": (lambda at: change(at / "config.json", model_type="janus"), "'janus', which cannot .* SigLIP"),
    "another relative": (
        lambda at: change(at / "config.json", model_type="emu3"),
        "'emu3', which .* each row",
    ),
    "no configuration": (lambda at: (at / "config.json").unlink(), "config.json is missing"),
    "no vocabulary": (lambda at: change(at / "config.json", vocabulary_map=None), "no vocabulary_map"),
    "a foreign vocabulary": (foreign, "not Chameleon's vocabulary: it has 0 names of image codes"),
    "a gap among the codes": (gap, f"has {CODES - 1} names of image codes"),
    "a pickle": (pickled, "pytorch_model.bin is a pickle: save the model as safetensors"),
    "a cut file": (
        lambda at: (at / "model.safetensors").write_bytes((at / "model.safetensors").read_bytes()[:900]),
        "cut off or not safetensors",
    ),
    "a lost weight": (lambda at: without("model.norm.weight", at), "the weights lack model.norm.weight"),
    "eight bits": (eighths, "float8_e4m3fn: give fp32, fp16 or bf16"),
    "biases": (lambda at: change(at / "config.json", attention_bias=True), "attention_bias is True"),
    "stretched positions": (
        lambda at: change(at / "config.json", rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}),
        "rotary positions are scaled",
    ),
    "no tokenizer": (lambda at: (at / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "another's tokenizer": (
        lambda at: build_other(at / "tokenizer.json"),
        "does not belong to the model: it lacks",
    ),
}


def build_other(path: Path) -> None:
    content = json.loads(path.read_text())
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = {word: id for word, id in vocab.items() if id < 200}
    content["model"]["merges"] = []
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("what", BROKEN)
def test_what_cannot_be_converted_is_named_and_nothing_is_left(what: str, tmp_path: Path):
    write_chameleon(tmp_path)
    breaks, message = BROKEN[what]
    breaks(tmp_path / "hf")
    with pytest.raises(ValueError, match=message) as error:
        convert(tmp_path / "hf", tmp_path / "ours", tmp_path / "vqgan.ckpt")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ours").exists()


def test_a_missing_shard_is_named(tmp_path: Path):
    write_chameleon(tmp_path, shard="20KB")
    gone = sorted((tmp_path / "hf").glob("model-*.safetensors"))[2]
    gone.unlink()
    with pytest.raises(ValueError, match=re.escape(f"lacks {gone.name}")):
        convert(tmp_path / "hf", tmp_path / "ours", tmp_path / "vqgan.ckpt")


def test_an_image_tokenizer_is_asked_for_where_the_decoder_is_missing_and_must_have_the_codes(
    folder: Path, theirs: Any, tmp_path: Path, vq_folder: Path
):
    with pytest.raises(ValueError, match="no decoder"):
        convert(folder / "hf", tmp_path / "ours")
    with pytest.raises(ValueError, match=f"has 32 codes, but the model {CODES}"):
        convert(folder / "hf", tmp_path / "ours", vq_folder)
    assert not (tmp_path / "ours").exists()
