"""What several tests of commands begin with: captioned images to be prepared, and a run of the language model."""

from pathlib import Path

import pytest

from captioned import CAPTIONS, noise
from lm_runs import lm_config
from tokenizer_image import ImageTokenizer
from train.documents.worker import PrepareOptions
from train.language import run as lm
from train.language.config import LMConfig


@pytest.fixture(scope="module")
def options(vq_folder: Path) -> PrepareOptions:
    return PrepareOptions(str(vq_folder), text_vocab=300, held_out=0, samples=4)


@pytest.fixture(scope="module")
def image(vq_folder: Path) -> ImageTokenizer:
    return ImageTokenizer.from_pretrained(vq_folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine captioned images, one of them in a folder below."""
    root = tmp_path / "images"
    (root / "more").mkdir(parents=True)
    for i, words in enumerate(CAPTIONS):
        path = root / ("more" if i == 8 else "") / f"{i}.png"
        path.write_bytes(noise(i))
        path.with_suffix(".txt").write_text(words + "\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def config(token_shards: Path, vq_folder: Path) -> LMConfig:
    return lm_config(token_shards, vq_folder)


@pytest.fixture(scope="module")
def run(config: LMConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("run")
    lm.train(config, out)
    return out
