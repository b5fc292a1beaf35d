"""Shards of captioned images for the tests of packing."""

from pathlib import Path

import pytest

from packing import captioned_shards
from train.documents.shards import Shards


@pytest.fixture(scope="module")
def folder(vq_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captioned_shards(tmp_path_factory.mktemp("tokens"), vq_folder)


@pytest.fixture(scope="module")
def shards(folder: Path) -> Shards:
    return Shards(folder)
