"""Averages of models, and soups."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cm3.hf.model_folder import write_checksums
from cm3.model.config import CM3Config
from cm3.model.transformer import CM3ForCausalLM
from cm3.pipeline import CM3
from cm3.tokens.text_tokenizer import TextTokenizer
from tokenizer_image import ImageTokenizer
from train import merge
from train.documents.shard_files import read_meta
from train.documents.shards import Shards
from train.merge import average, greedy_soup, next_token_loss

Make = Callable[..., Path]


@pytest.fixture
def make(tiny_folder: Path, tmp_path: Path) -> Make:
    """make(name, change): a copy of the tiny model whose tensors `change` has changed."""

    def make(name: str, change: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor, **config: Any) -> Path:
        folder = shutil.copytree(tiny_folder, tmp_path / name)
        weights = load_file(folder / "model.safetensors")
        save_file(
            {key: change(key, value) for key, value in weights.items()}, folder / "model.safetensors", {"format": "pt"}
        )
        fields = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(fields | config))
        write_checksums(folder)
        return folder

    return make


def shifted(by: float) -> Callable[[str, Tensor], Tensor]:
    return lambda name, tensor: tensor + by


def weights(folder: Path) -> dict[str, Tensor]:
    return {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}


def test_the_average_of_a_model_with_itself_is_itself(tiny_folder: Path, tmp_path: Path):
    average([tiny_folder] * 3, tmp_path / "out")
    before, after = weights(tiny_folder), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    CM3.from_pretrained(tmp_path / "out", device="cpu")  # with checksums that fit
    names = [sorted(path.name for path in folder.rglob("*")) for folder in (tiny_folder, tmp_path / "out")]
    assert names[0] == names[1]


@pytest.mark.parametrize(("shares", "expected"), [((), 2.0), ((0.25, 0.75), 3.0), ((1, 0), 0.0)])
def test_two_models_give_their_mean(make: Make, tmp_path: Path, shares: tuple[float, ...], expected: float):
    a, b = make("a"), make("b", shifted(4.0))
    average([a, b], tmp_path / "out", shares)
    before, after = weights(a), weights(tmp_path / "out")
    for key, value in before.items():
        torch.testing.assert_close(after[key], value + expected)


def test_code_beside_the_weights_makes_no_other_architecture(make: Make, tmp_path: Path):
    a = make("a", auto_map={"AutoModelForCausalLM": "modeling_cm3.CM3ForCausalLM"})
    average([a, make("b", shifted(4.0))], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["auto_map"]


def test_weights_in_several_files_are_averaged_file_by_file(make: Make, tmp_path: Path):
    a, b = make("a"), make("b", shifted(2.0))
    tensors = weights(a)
    (a / "model.safetensors").unlink()
    keys = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": keys[:5], "model-00002-of-00002.safetensors": keys[5:]}
    for name, some in parts.items():
        save_file({key: tensors[key] for key in some}, a / name, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: name for name, some in parts.items() for key in some}}
    (a / "model.safetensors.index.json").write_text(json.dumps(index))
    write_checksums(a)
    average([a, b], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == sorted(parts)
    CM3ForCausalLM.from_pretrained(tmp_path / "out")
    after = weights(tmp_path / "out")
    for key, value in tensors.items():
        torch.testing.assert_close(after[key], value + 1)


def with_other_text(folder: Path) -> None:
    TextTokenizer.train(["quite another text", "and more of it"], vocab_size=290).save(folder)


def with_other_images(folder: Path) -> None:
    tokenizer = ImageTokenizer.from_pretrained(folder / "image_tokenizer")
    with torch.no_grad():
        tokenizer.model.quantize.embedding.weight.add_(1)
    tokenizer.save_pretrained(folder / "image_tokenizer")


@pytest.mark.parametrize(
    ("change", "what"), [(with_other_text, "the text tokenizer"), (with_other_images, "the image tokenizer")]
)
def test_models_of_other_tokenizers_are_refused(make: Make, tmp_path: Path, change: Callable, what: str):
    a, b = make("a"), make("b")
    change(b)
    write_checksums(b)
    with pytest.raises(ValueError, match=f"a and .*b cannot be averaged: {what} is"):
        average([a, b], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_models_that_do_not_fit_are_refused(make: Make, tmp_path: Path):
    a = make("a")
    refused: list[tuple[Path, str]] = [
        (make("b", rope_theta=5.0), "rope_theta is .* in one and 5.0 in the other"),
        (make("c", lambda name, x: x[:1] if name.endswith("norm.weight") else x), r"norm.weight is \[.*and \[1\] in"),
        (make("d", lambda name, x: x * math.nan if "q_proj" in name else x), "q_proj.weight of .*d holds .*finite"),
        (make("e", lambda name, x: x / 0 if "layers.0.mlp.up" in name else x), "up_proj.weight of .*e holds .*finite"),
    ]
    lacking = make("f")
    tensors = weights(lacking)
    del tensors["model.norm.weight"]
    save_file(tensors, lacking / "model.safetensors", {"format": "pt"})
    write_checksums(lacking)
    for other, message in [*refused, (lacking, "only one of .* has the tensor model.norm.weight")]:
        with pytest.raises(ValueError, match=message):
            average([a, other], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == list("abcdef")  # nothing is left behind


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ((0.5,), "1 weights for 2 models"),
        ((0.5, 0.6), "1 together"),
        ((-0.5, 1.5), "0 or more"),
        ((math.nan, 0.5), "0 or more"),
    ],
)
def test_bad_weights_are_refused(tiny_folder: Path, tmp_path: Path, shares: tuple[float, ...], message: str):
    with pytest.raises(ValueError, match=message):
        average([tiny_folder] * 2, tmp_path / "out", shares)
    with pytest.raises(ValueError, match="exists: give another"):
        average([tiny_folder] * 2, tmp_path)


def test_a_soup_takes_the_best_first_and_then_what_does_no_harm(make: Make, tmp_path: Path):
    """The loss is how far the models' shift is from 1."""
    folders = [make(f"at{by}", shifted(by)) for by in (2.0, 0.25, 0.5, 9.0)]
    start = weights(folders[0])["model.norm.weight"].mean().item() - 2
    tried: list[float] = []

    def loss(folder: Path) -> float:
        tried.append(round(weights(folder)["model.norm.weight"].mean().item() - start, 3))
        return abs(tried[-1] - 1)

    lines: list[str] = []
    soup = greedy_soup(folders, loss, lines.append)
    assert [folder.name for folder in soup.folders] == ["at0.5", "at2.0"]
    assert tried == [2.0, 0.25, 0.5, 9.0, 0.375, 1.25, 3.833]
    assert soup.loss == pytest.approx(0.25)
    assert soup.alone[folders[3]] == pytest.approx(8)
    assert [line.split()[-1] for line in lines[1:]] == ["out", "taken", "out"]


def test_a_soup_without_a_loss_is_refused(tiny_folder: Path):
    with pytest.raises(ValueError, match="the loss of .*tiny is nan"):
        greedy_soup([tiny_folder], lambda folder: math.nan)


@pytest.fixture
def models(token_shards: Path, vq_folder: Path, tmp_path: Path) -> list[Path]:
    """Three models of the shards' vocabulary; the last is far worse."""
    text, image = TextTokenizer.load(token_shards), ImageTokenizer.from_pretrained(vq_folder)
    config = CM3Config.preset("tiny", **read_meta(token_shards)["vocab"])
    for i in range(3):
        torch.manual_seed(i)
        model = CM3ForCausalLM(config)
        with torch.no_grad():
            model.lm_head.weight.mul_(1 + 20 * (i == 2))
        CM3(model, text, image).save_pretrained(tmp_path / f"model{i}")
    return [tmp_path / f"model{i}" for i in range(3)]


def test_the_next_token_loss_is_the_mean_over_all_tokens(
    models: list[Path], token_shards: Path, monkeypatch: pytest.MonkeyPatch
):
    shards = Shards(token_shards, "held_out")
    model = CM3ForCausalLM.from_pretrained(models[2]).eval()
    total, count = 0.0, 0
    for i in range(len(shards)):
        ids = torch.tensor([shards.document(i).ids[: model.config.max_position_embeddings]])
        with torch.no_grad():
            total += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    for batch in (1, 100, 10**6):
        monkeypatch.setattr(merge, "BATCH_TOKENS", batch)
        assert next_token_loss(models[2], shards) == pytest.approx(total / count, rel=1e-5)


def test_the_command_makes_a_soup_and_an_average(
    models: list[Path], token_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    merge.main(models, tmp_path / "soup", soup=True, data=token_shards)
    said = capsys.readouterr().out.splitlines()
    assert "model2" in said[-2] and said[-2].endswith("left out")
    CM3.from_pretrained(tmp_path / "soup", device="cpu")
    merge.main(models[:2], tmp_path / "average", weights="0.25,0.75")
    name = "lm_head.weight"
    a, b, c = (weights(folder)[name] for folder in (*models[:2], tmp_path / "average"))
    torch.testing.assert_close(c, 0.25 * a + 0.75 * b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"soup": True}, "--soup and --data go together"),
        ({"weights": "1,x"}, "could not convert"),
        ({"weights": "1", "soup": True, "data": Path("none")}, "leave out --weights"),
        ({"soup": True, "data": Path("none")}, "is missing"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(tiny_folder: Path, tmp_path: Path, options: dict, message: str):
    with pytest.raises(SystemExit, match=f"^merge: .*{message}"):
        merge.main([tiny_folder] * 2, tmp_path / "out", **options)
    with pytest.raises(SystemExit, match="merge: 1 model"):
        merge.main([tiny_folder], tmp_path / "out")


def test_a_model_of_another_vocabulary_than_the_shards_is_refused(tiny_folder: Path, token_shards: Path):
    with pytest.raises(ValueError, match="another vocabulary"):
        next_token_loss(tiny_folder, Shards(token_shards, "held_out"))
