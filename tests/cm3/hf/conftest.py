"""The embedded model as a folder, and what transformers' Auto classes make of it."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForMultimodalLM, AutoProcessor

from cm3 import CM3
from cm3.hf.processing import CM3Processor


@pytest.fixture(scope="module")
def emoji() -> CM3:
    return CM3.from_pretrained("emoji", device="cpu")


@pytest.fixture(scope="module")
def folder(emoji: CM3, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "emoji"
    emoji.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def processor(folder: Path) -> CM3Processor:
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def multimodal(folder: Path) -> Any:
    return AutoModelForMultimodalLM.from_pretrained(folder).eval()
