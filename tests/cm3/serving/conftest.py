"""What the tests of the server share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from cm3 import CM3
from cm3.serving.admission import Limits
from cm3.serving.app import make_app
from serving import KEY, SAFETY, Live, client_of


@pytest.fixture
def fresh(tiny_folder: Path) -> CM3:
    """A model of its own: tests slow it down."""
    return CM3.from_pretrained(tiny_folder, device="cpu")


@pytest.fixture
def http(tiny: CM3) -> TestClient:
    return client_of(tiny)


@pytest.fixture
def live(fresh: CM3) -> Iterator[tuple[Live, CM3]]:
    server = Live(make_app(fresh, "tiny", Limits(queue=4, seconds=20), SAFETY, [KEY]))
    yield server, fresh
    server.stop()
