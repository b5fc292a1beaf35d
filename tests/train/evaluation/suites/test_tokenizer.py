"""The evaluation of image tokenizers: its measures, its photographs, and a whole run on the data sample."""

import json
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tokenizer_image import ImageTokenizer
from train import evaluate as train_evaluate
from train.evaluation.suites import tokenizer as module
from train.evaluation.suites.tokenizer import (
    FILES,
    budget,
    code_lengths,
    compare,
    photographs,
    read_drawings,
    tokenizer_table,
)
from train.images.metrics import frechet


class FakeJudge:
    """Mean colours for features."""

    def features(self, images: list[Image.Image]) -> Tensor:
        colours = [torch.tensor(image.resize((1, 1)).getpixel((0, 0))).float() + 1 for image in images]
        return torch.nn.functional.normalize(torch.stack(colours), dim=-1)


def gaussian(size: tuple[int, int], seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_frechet_distance_is_that_of_the_gaussians():
    a = gaussian((400, 5), 0)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet(a, a + 2) == pytest.approx(5 * 4)
    assert frechet(a, 3 * a) == pytest.approx(4 * a.mean(0).square().sum() + 4 * a.var(0).sum())
    b = gaussian((300, 5), 1) @ gaussian((5, 5), 2)
    values = torch.linalg.eigvals(torch.cov(a.T) @ torch.cov(b.T)).real.clamp_min(0)
    direct = (a.mean(0) - b.mean(0)).square().sum() + a.var(0).sum() + b.var(0).sum() - 2 * values.sqrt().sum()
    assert frechet(a, b) == pytest.approx(direct.item()) == pytest.approx(frechet(b, a))


def test_an_image_that_comes_back_as_it_was_has_no_distance(images: list[Image.Image]):
    judge: Any = FakeJudge()
    same = compare(images, images, judge, judge.features(images))
    assert same["psnr"] > 90 and same["ssim"] == pytest.approx(1)
    assert same["lite0"] == pytest.approx(0, abs=1e-6) and same["frechet"] == pytest.approx(0, abs=1e-6)
    other = compare(images, [p.rotate(180) for p in images], judge, judge.features(images))
    assert other["psnr"] < 12 and other["ssim"] < 0.5


def test_frequent_codes_are_short_and_none_is_infinite():
    lengths = code_lengths(torch.tensor([[0, 0, 0], [0, 0, 1]]), 4)
    assert lengths.tolist() == pytest.approx((-torch.log2(torch.tensor([6, 2, 1, 1]) / 10)).tolist())
    assert code_lengths(torch.arange(4), 4).tolist() == pytest.approx([2.0] * 4)


def test_the_budget_is_the_bytes_of_the_codes(vq_folder: Path):
    assert budget(ImageTokenizer.from_pretrained(vq_folder)) == 4 * 4 * 5 / 8


def test_a_sample_of_a_split_is_always_the_same(sample: Path):
    few = read_drawings(sample / "train", 7)
    assert len(few) == 7 and [d.tobytes() for d in few] == [d.tobytes() for d in read_drawings(sample / "train", 7)]
    assert len(read_drawings(sample / "train", 10**6)) == 220


def test_photographs_come_from_the_packages_ten_crops_of_each():
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    crops = photographs(32)
    assert len(crops) == 10 * sum(map(len, FILES.values()))
    assert all(crop.size == (32, 32) and crop.mode == "RGB" for crop in crops)
    assert len({crop.tobytes() for crop in crops}) == len(crops)


@pytest.fixture
def one_photograph(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, images: list[Image.Image]) -> None:
    """A photograph of our own in place of the packages'."""
    images[0].save(tmp_path / "noise.png")
    monkeypatch.setattr(module, "FILES", {"some.package": ("noise.png",)})
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "FILES", {"no_such_package.data": ("a.png",)})
    with pytest.raises(ValueError, match="no_such_package.*pip install scikit-image scikit-learn"):
        photographs(8)


@pytest.mark.usefixtures("one_photograph")
def test_each_tokenizer_stands_beside_both_codecs_on_every_set(
    sample: Path, vq_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "Judge", FakeJudge)
    result = module.evaluate([str(vq_folder)], sample, tmp_path / "out", sample=4)
    assert json.loads((tmp_path / "out" / "tokenizers.json").read_text()) == result
    assert [row["coder"] for row in result["rows"]] == [
        str(vq_folder),
        "WebP, 16 px, 10 bytes",
        "JPEG, 16 px, 10 bytes",
    ]
    for row in result["rows"]:
        assert {name: figures["images"] for name, figures in row["sets"].items()} == {
            "train": 4,
            "held_out_pairs": 3,
            "held_out_concepts": 4,
            "photographs": 10,
        }
    tokenizer, webp, _ = (row["sets"]["held_out_pairs"] for row in result["rows"])
    assert tokenizer["bits_per_pixel"] == 16 * 5 / 16**2 and 0 < tokenizer["codebook_usage"] <= 1
    assert 0 < tokenizer["entropy_bits_per_pixel"] and webp["entropy_bits_per_pixel"] is webp["codebook_usage"] is None
    words = tokenizer_table(result)
    assert words.count("| WebP, 16 px, 10 bytes |") == 4 and "photographs (10 images)" in words
    assert Image.open(tmp_path / "out" / "images.png").size[1] == 3 * (128 + 2)


@pytest.mark.parametrize(("name", "match"), [("no-such-tokenizer", "no-such-tokenizer"), ("emoji", "no shards")])
def test_a_missing_tokenizer_or_data_set_ends_the_script_with_one_line(
    name: str, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--sample", "2"]
    monkeypatch.setattr(sys, "argv", ["evaluate", "tokenizer", name, *options])
    with pytest.raises(SystemExit, match=f"evaluate tokenizer: .*{match}") as error:
        train_evaluate.main()
    assert "\n" not in str(error.value.code)
