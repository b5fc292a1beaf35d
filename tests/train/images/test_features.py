"""Frozen features and the distances made of them."""

import sys
import types

import pytest
import torch

from train.images.features import FeatureDistance, Features, perceptual


@pytest.fixture(scope="module")
def features() -> Features:
    return Features("lite0")


def images(seed: int, side: int = 64) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_maps_have_the_channels_and_strides_that_are_told(features: Features):
    maps = features(images(0))
    assert [m.shape[1] for m in maps] == list(features.channels)
    assert [tuple(m.shape[2:]) for m in maps] == [(16, 16), (8, 8), (4, 4), (2, 2)]


def test_small_images_are_scaled_up(features: Features):
    scaled = Features("lite0", side=128)
    assert scaled(images(0))[0].shape[-1] == 32
    wide = images(1)[:, :, :32]  # 32 x 64: the shorter side becomes 128
    assert scaled(wide)[0].shape[-2:] == (32, 64)


def test_the_last_maps_can_be_had_alone(features: Features):
    coarse = Features("lite0", last=2)
    assert coarse.channels == features.channels[-2:]
    assert all(torch.equal(a, b) for a, b in zip(coarse(images(0)), features(images(0))[-2:], strict=True))


def test_features_stay_frozen_in_training_mode(features: Features):
    features.train()
    assert not features.training and not any(p.requires_grad for p in features.parameters())
    assert not any(module.training for module in features.modules())


def test_the_distance_is_zero_for_the_same_and_grows_with_noise(features: Features):
    distance, a = FeatureDistance(features), images(0)
    noise = images(2)
    values = [distance(a + share * noise, a).item() for share in (0.0, 0.05, 0.5)]
    assert values[0] == pytest.approx(0, abs=1e-6) and values[0] < values[1] < values[2]


def test_the_gradient_of_the_distance_reaches_the_first_image(features: Features):
    a = images(0).requires_grad_()
    FeatureDistance(features)(a, images(1)).backward()
    assert a.grad is not None and a.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("vgg", "features 'vgg': give lite0 or timm:NAME"),
        ("timm:resnet18", "timm is not installed"),
        ("lpips", "pip install lpips"),
    ],
)
def test_what_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch, name: str, match: str):
    for package in ("timm", "lpips"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=match):
        perceptual(name)


def test_lpips_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch):
    class LPIPS(torch.nn.Module):
        def __init__(self, net: str, verbose: bool):
            super().__init__()
            assert net == "vgg"

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return (a - b).abs().mean((1, 2, 3), keepdim=True)

    package = types.ModuleType("lpips")
    package.LPIPS = LPIPS  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", package)
    assert perceptual("lpips")(torch.ones(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)).item() == 1


def test_timm_models_are_taken_by_name(monkeypatch: pytest.MonkeyPatch):
    class Network(torch.nn.Module):
        feature_info = types.SimpleNamespace(channels=lambda: [3])

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [x[..., ::2, ::2]]

    package = types.ModuleType("timm")
    package.is_model = lambda name: name == "known"  # type: ignore[attr-defined]
    package.create_model = lambda name, pretrained, features_only: Network()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", package)
    assert Features("timm:known").channels == (3,)
    with pytest.raises(ValueError, match="timm has no model of that name"):
        Features("timm:unknown")
