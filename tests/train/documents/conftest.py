"""What the tests of sources share."""

from pathlib import Path

import pytest

from samples import png


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with three images, p0.png to p2.png."""
    for i in range(3):
        (tmp_path / f"p{i}.png").write_bytes(png(i))
    return tmp_path
