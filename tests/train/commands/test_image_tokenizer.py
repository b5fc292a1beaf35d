"""Training the image tokenizer: a few steps, an exact resume, and clear errors."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from checkpoint_files import newest, same_tensors, tensors_of, values_of
from tokenizer_image import PRESETS, ImageTokenizer
from train import image_tokenizer
from train.images.metrics import psnr
from train.images.samples import read_split, write_shards
from train.runtime.config import override
from train.runtime.optim import lr_factor
from train.runtime.precision import autocast
from train.vq import run as vq_run
from train.vq.adversarial import adversarial_share
from train.vq.config import ImageTokenizerConfig
from train.vq.learner import sample_sheet
from train.vq.run import train


@pytest.fixture(scope="module", autouse=True)
def no_curves():
    """Drawing them takes longer than a tiny run; tests/test_curves.py does it once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vq_run, "draw_curves", lambda log, out: out.touch())
        yield


@pytest.fixture(scope="module")
def config(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> ImageTokenizerConfig:
    """A run of four steps on the six images of a concept."""
    data = tmp_path_factory.mktemp("data")
    samples = []
    for key, drawing, facts in read_split(sample / "held_out_concepts"):
        out = io.BytesIO()
        drawing.convert("RGBA").save(out, "PNG")
        samples.append((key, out.getvalue(), facts))
    for split in ("train", "held_out_pairs"):
        write_shards(data / split, samples)
    return override(
        ImageTokenizerConfig(),
        {
            "data.folder": str(data),
            "preset": "tiny",
            "steps": 4,
            "batch_size": 4,
            "optim.warmup_steps": 2,
            "codebook.restart_every": 1,
            "precision": "fp32",
            "log.every": 1,
            "checkpoint.every": 2,
            "eval.every": 2,
        },
    )


@pytest.fixture(scope="module")
def run(config: ImageTokenizerConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("run")
    train(config, out)
    return out


@pytest.fixture
def killed_at(dies_at: Callable[..., None]) -> Callable[..., None]:
    """killed_at(step, config, out): a run that dies in a step."""
    return partial(dies_at, vq_run, "lr_factor")


def logged(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_run_logs_samples_and_saves_a_tokenizer(config: ImageTokenizerConfig, run: Path):
    assert {path.name for path in run.iterdir()} == {
        "config.json",
        "log.jsonl",
        "curves.png",
        "checkpoints",
        "model",
        "samples-000002.png",
        "samples-000004.png",
    }
    assert json.loads((run / "config.json").read_text())["preset"] == "tiny"
    steps = [row for row in logged(run) if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert all(row["images_per_second"] > 0 for row in steps)
    evaluations = [row for row in logged(run) if "split" in row]
    assert [(row["step"], row["split"]) for row in evaluations] == [(2, "held_out_pairs"), (4, "held_out_pairs")]
    tokenizer = ImageTokenizer.from_pretrained(run / "model")
    assert tokenizer.model.config == PRESETS["tiny"]


def test_a_run_of_another_length_learns(config: ImageTokenizerConfig, tmp_path: Path):
    train(
        override(config, {"steps": 60, "optim.lr": 1e-2, "eval.every": 60, "checkpoint.every": 60, "log.every": 5}),
        tmp_path,
    )
    errors = [row["loss"] - row["quantizer"] for row in logged(tmp_path) if "loss" in row]
    assert errors[-1] < 0.7 * errors[0]


ALL_LOSSES = {
    "loss.perceptual": 0.1,
    "align.weight": 0.5,
    "jepa.weight": 0.5,
    "loss.entropy": 0.01,
    "gan.weight": 0.5,
    "gan.start_step": 1,
    "gan.warmup_steps": 2,
    "gan.channels": 8,
    "gan.layers": 1,
    "loss.balance_every": 2,
}


@pytest.mark.parametrize("losses", [{}, ALL_LOSSES], ids=["plain", "all losses"])
def test_a_killed_run_goes_on_to_the_same_bits(config: ImageTokenizerConfig, tmp_path: Path, killed_at, losses: dict):
    config = override(config, losses)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(config, whole)
    killed_at(3, config, broken)
    assert newest(broken).name == "step-00000002"
    train(config, broken)
    one, two = (load_file(out / "model" / "model.safetensors") for out in (whole, broken))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert same_tensors(whole, broken)  # the optimisers' too
    assert values_of(whole)["run"]["balances"] == values_of(broken)["run"]["balances"]
    assert [(row["step"], row["loss"]) for row in logged(broken) if "loss" in row] == [
        (row["step"], row["loss"]) for row in logged(whole) if "loss" in row
    ]


def test_every_loss_is_logged_and_reaches_the_weights(config: ImageTokenizerConfig, run: Path, tmp_path: Path):
    train(override(config, ALL_LOSSES), tmp_path)
    rows = [row for row in logged(tmp_path) if "loss" in row]
    assert {"l1", "l2", "perceptual", "align", "jepa", "entropy", "quantizer", "discriminator"} <= rows[0].keys()
    assert "adversarial" not in rows[0] and "adversarial" in rows[1]
    names = [{key for key in tensors_of(out) if key.startswith("learner.")} for out in (tmp_path, run)]
    assert names[0] > names[1]  # the heads of alignment and prediction
    assert values_of(tmp_path)["run"]["balances"].keys() == {"adversarial", "align", "jepa"}
    assert (
        load_file(tmp_path / "model" / "model.safetensors").keys()
        == load_file(run / "model" / "model.safetensors").keys()
    )


@pytest.mark.parametrize(
    "loss",
    [
        {"loss.perceptual": 1.0},
        {"align.weight": 1.0},
        {"jepa.weight": 1.0},
        {"loss.entropy": 1.0},
        {"codebook.gradient_estimator": "rotation"},
        {
            "gan.weight": 1.0,
            "gan.start_step": 0,
            "gan.warmup_steps": 1,
            "gan.channels": 8,
            "gan.layers": 1,
            "steps": 3,
        },
    ],
    ids=lambda loss: next(iter(loss)),
)
def test_each_loss_changes_what_is_learnt(config: ImageTokenizerConfig, tmp_path: Path, loss: dict):
    config = replace(config, steps=2)
    train(replace(config, steps=loss.get("steps", 2)), tmp_path / "plain")
    train(override(config, loss), tmp_path / "other")
    one, two = (load_file(tmp_path / out / "model" / "model.safetensors") for out in ("plain", "other"))
    assert not torch.equal(one["encoder.conv_in.weight"], two["encoder.conv_in.weight"])


def test_simvq_is_saved_as_an_ordinary_codebook(config: ImageTokenizerConfig, tmp_path: Path):
    tokenizer = train(override(config, {"codebook.simvq": True, "codebook.restart_every": 0}), tmp_path)
    assert load_file(tmp_path / "model" / "model.safetensors")["quantize.embedding.weight"].shape == (32, 4)
    assert any("parametrizations" in key for key in tensors_of(tmp_path))
    assert tokenizer.num_codes == 32


def test_the_adversarial_loss_begins_late_and_grows():
    config = override(ImageTokenizerConfig(), {"gan.start_step": 10, "gan.warmup_steps": 5})
    assert [adversarial_share(step, config.gan) for step in (0, 10, 11, 15, 99)] == pytest.approx([0, 0, 0.2, 1, 1])


def test_a_finished_run_is_not_trained_again(config: ImageTokenizerConfig, run: Path):
    before = (run / "model" / "model.safetensors").read_bytes()
    train(config, run)
    assert (run / "model" / "model.safetensors").read_bytes() == before


def test_a_gradient_that_is_not_finite_stops_the_run(config: ImageTokenizerConfig, tmp_path: Path):
    with pytest.raises(ValueError, match=r"the gradient is (nan|inf) at step \d: lower optim.lr \(now 1e\+30\)"):
        train(override(config, {"optim.lr": 1e30, "optim.warmup_steps": 1}), tmp_path)


def test_a_collapsed_codebook_stops_the_run(config: ImageTokenizerConfig, tmp_path: Path):
    """All images grey: one code is enough for them."""
    for i in range(4):
        Image.new("RGB", (16, 16), "grey").save(tmp_path / f"{i}.png")
    config = override(
        config,
        {
            "data.folder": str(tmp_path),
            "codebook.restart_every": 0,
            "steps": 600,
            "batch_size": 1,
            "optim.warmup_steps": 1,
            "log.every": 520,
            "eval.every": 600,
            "checkpoint.every": 600,
            "codebook.min_usage": 0.5,
        },
    )
    with pytest.raises(ValueError, match=r"the codebook has collapsed at step 519: .*% of 32 codes .*restart_every"):
        train(config, tmp_path / "run")


def test_a_collapsed_reconstruction_stops_the_run(
    config: ImageTokenizerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    falling = iter([20.0, 13.9])
    images = torch.zeros(1, 3, 16, 16)
    monkeypatch.setattr(vq_run, "evaluate", lambda *_: ({"psnr": next(falling)}, images))
    with pytest.raises(
        ValueError, match=r"collapsed at step 3: 13.9 dB after 20.0; lower optim.lr \(now .* or gan.weight"
    ):
        train(config, tmp_path)
    assert newest(tmp_path).name == "step-00000002"  # the good one stays


def test_bad_files_are_counted_and_training_goes_on(config: ImageTokenizerConfig, tmp_path: Path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(40):
        Image.new("RGB", (20, 24), (6 * i, 90, 200)).save(folder / f"{i:02}.png")
    (folder / "07.png").write_bytes((folder / "08.png").read_bytes()[:40])
    train(override(config, {"data.folder": str(folder), "steps": 12}), tmp_path / "run")
    rows = logged(tmp_path / "run")
    assert [list(row["skipped"]) for row in rows if "skipped" in row] == [[str(folder / "07.png")]]
    assert rows[-2 if "skipped" in rows[-1] else -1]["step"] == 12
    assert max(row["skipped_files"] for row in rows if "loss" in row) == 1


def test_the_rate_warms_up_and_falls_to_nothing():
    rates = [lr_factor(step, 100, "cosine", 10) for step in range(100)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[55] == pytest.approx(0.5) and 0 < rates[-1] < 1e-3


@pytest.mark.parametrize(("difference", "decibels"), [(0.2, 20.0), (0.02, 40.0), (2.0, 0.0)])
def test_psnr_of_known_differences(difference: float, decibels: float):
    a = torch.full((2, 3, 4, 4), -1.0)
    assert psnr(a, a + difference).tolist() == pytest.approx([decibels] * 2, abs=1e-3)


def test_precision_chooses_the_type_of_a_product():
    a = torch.ones(2, 2)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(precision, torch.device("cpu")):
            assert (a @ a).dtype == dtype


def test_a_sheet_shows_each_image_above_its_reconstruction():
    images = torch.ones(3, 3, 16, 16)
    sheet = sample_sheet(images, -images, columns=2)  # the third has no full row
    assert isinstance(sheet, Image.Image) and sheet.size == (32, 32)
    assert sheet.getpixel((20, 5)) == (255, 255, 255) and sheet.getpixel((20, 20)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["preset=huge"], "preset 'huge': choose one of .*tiny"),
        (["stepz=3"], "unknown config keys: stepz"),
        (["data.folder=nowhere", "preset=tiny"], "nowhere"),
        (["codebook.gradient_estimator=gumbel"], "codebook.gradient_estimator 'gumbel': choose straight or rotation"),
        (["codebook.simvq=true"], "codebook.simvq moves all codes by one matrix: it needs codebook.restart_every=0"),
        (["decoder_only=true"], "decoder_only needs a tokenizer to start from: set start"),
        (
            ["decoder_only=true", "start=emoji", "align.weight=1.0"],
            "align.weight, jepa.weight and loss.entropy change the codes",
        ),
        (["new_decoder=true"], "new_decoder keeps the codes of start: set decoder_only"),
        (["model.chh=3", "preset=tiny"], "unknown VQConfig keys: chh"),
        (["preset=tiny", "align.weight=1.0", "align.features=vgg"], "features 'vgg': give lite0 or timm:NAME"),
    ],
)
def test_mistakes_end_the_script_with_one_line(tmp_path: Path, overrides: list[str], match: str):
    with pytest.raises(SystemExit, match=f"image_tokenizer: {match}") as error:
        image_tokenizer.main(tmp_path, None, None, overrides)
    assert "\n" not in str(error.value.code)


def test_the_data_folder_of_the_command_line_counts(tmp_path: Path):
    with pytest.raises(SystemExit, match="it's here is not a folder"):
        image_tokenizer.main(tmp_path, None, "it's here", ["preset=tiny"])


def test_the_decoder_alone_learns_on_and_the_codes_stay(config: ImageTokenizerConfig, run: Path, tmp_path: Path):
    first = ImageTokenizer.from_pretrained(run / "model")
    first.model.encoder.conv_in.weight.data[0, 0, 0, 0] = -0.0  # which averaging makes 0
    first.save_pretrained(tmp_path / "first")
    second = train(
        override(config, {"start": str(tmp_path / "first"), "decoder_only": True, "optim.lr": 0.01}),
        tmp_path / "second",
    )
    pixels = torch.rand(3, 3, 16, 16) * 2 - 1
    codes = first.model.encode(pixels)
    assert torch.equal(second.model.encode(pixels), codes)
    assert second.fingerprint() == first.fingerprint()
    assert not torch.equal(second.model.decode(codes), first.model.decode(codes))


def test_a_new_decoder_of_another_shape_keeps_the_codes(config: ImageTokenizerConfig, run: Path, tmp_path: Path):
    first = ImageTokenizer.from_pretrained(run / "model")
    changes = {"start": str(run / "model"), "decoder_only": True, "new_decoder": True, "model": {"decoder_ch": 16}}
    second = train(override(config, changes), tmp_path / "second")
    assert second.model.config.decoder_ch == 16 and second.fingerprint() == first.fingerprint()
    with pytest.raises(ValueError, match=r"the preset's encoder is not that of start: .* differs"):
        vq_run.starting_model(override(config, {**changes, "model": {"ch": 16}}))
