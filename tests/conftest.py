"""Tiny models, so that the tests need no real one: with random weights, and one that plans, trained in seconds."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import settings
from PIL import Image

import cm3.hf.auto  # noqa: F401 - the Auto classes know the model in every test
from cm3.model.config import CM3Config
from cm3.model.transformer import CM3ForCausalLM
from cm3.pipeline import CM3
from cm3.tokens.text_tokenizer import TextTokenizer
from planner import planner
from tokenizer_image import PRESETS, ImageTokenizer, VQModel

torch.set_num_threads(1)  # tiny tensors are slower on more
settings.register_profile("any-machine", deadline=None)  # a busy machine is no failure
settings.load_profile("any-machine")

TEXTS = ["a red apple", "Caption: a blue car", "Question: What is this? Answer: a cat", "الوصف: تفاحة حمراء"]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vq = VQModel(PRESETS["tiny"])
        model = CM3ForCausalLM(CM3Config.preset("tiny", image_grid=vq.config.grid))
        for parameter in model.parameters():  # a fresh model's blocks do nothing: they would hide mistakes
            torch.nn.init.normal_(parameter, std=0.4)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    CM3(model, TextTokenizer.train(TEXTS, vocab_size=300), ImageTokenizer(vq)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> CM3:
    return CM3.from_pretrained(tiny_folder, device="cpu")


@pytest.fixture
def images() -> list[Image.Image]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        noise = (torch.rand(3, 24, 32, 3) * 255).byte().numpy()
    return [Image.fromarray(pixels) for pixels in noise]


@pytest.fixture(scope="session")
def sample() -> Path:
    """The committed data sample: 220 images to train on, 9 held out."""
    return Path(__file__).parent.parent / "data" / "sample"


@pytest.fixture(scope="session")
def vq_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny image tokenizer with random weights: 16 pixels, 4 x 4 of 32 codes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vq = VQModel(PRESETS["tiny"])
    folder = tmp_path_factory.mktemp("models") / "image_tokenizer"
    ImageTokenizer(vq).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def token_shards(sample: Path, vq_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data sample in tokens (tests/helpers/sample_shards.py)."""
    from sample_shards import sample_shards  # it imports what only a checkout has

    return sample_shards(sample, vq_folder, tmp_path_factory.mktemp("tokens"))


@pytest.fixture
def dies_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """dies_at(script, schedule, step, config, out): a run of the script that dies as `schedule` is asked for a step."""

    def run(script: Any, schedule: str, last: int, config: Any, out: Path) -> None:
        rate = getattr(script, schedule)

        def dies(step: int, *rest: Any) -> float:
            if step == last:
                raise KeyboardInterrupt
            return rate(step, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(script, schedule, dies)
            with pytest.raises(KeyboardInterrupt):
                script.train(config, out)

    return run


@pytest.fixture(scope="session")
def planning() -> CM3:
    """A tiny model of the form "plan" that knows a small world by heart (tests/helpers/planner.py)."""
    return planner()


@pytest.fixture(scope="session")
def planning_folder(planning: CM3, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "planning"
    planning.save_pretrained(folder)
    return folder
