"""Which number format "auto" means."""

import pytest
import torch

from train.runtime import precision

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _forget():
    precision.cpu_bf16_is_fast.cache_clear()
    yield
    precision.cpu_bf16_is_fast.cache_clear()


@pytest.mark.parametrize(
    ("supported", "seconds", "fast"), [(True, 0.25, True), (True, 3.0, False), (False, 0.25, False)]
)
def test_auto_is_bf16_where_a_trial_shows_that_it_is_faster(monkeypatch, supported, seconds, fast):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    monkeypatch.setattr(precision, "product_seconds", lambda dtype: seconds if dtype == torch.bfloat16 else 1.0)
    assert precision.bf16_is_fast(CPU) == fast
    assert precision.uses_bf16("auto", CPU) == fast
    with precision.autocast("auto", CPU):
        assert torch.is_autocast_enabled("cpu") == fast


def test_the_trial_takes_the_time_of_a_product():
    small, large = (min(precision.product_seconds(torch.float32, side) for _ in range(3)) for side in (16, 768))
    assert 0 < small < large
