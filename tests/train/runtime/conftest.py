"""What the tests of checkpoints share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from train.runtime.checkpoints import Checkpoints


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Checkpoints]]:
    made: list[Checkpoints] = []

    def make(**options: Any) -> Checkpoints:
        made.append(Checkpoints(tmp_path / "checkpoints", **options))
        return made[-1]

    yield make
    for checkpoints in made:
        checkpoints._saving = None
        checkpoints._pool.shutdown()
