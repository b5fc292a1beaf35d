"""A patch discriminator (Isola et al. 2017), its loss and its regularisers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class PatchDiscriminator(nn.Module):
    """Computes a logit for each patch of an image; positive = real.

    It has spectral norm (Miyato et al. 2018) instead of taming's batch norm, so that the logits of an image do not
    depend on the other images of the batch.

    Args:
        ch: channels of the first convolution; each further one has twice as many, up to 8 times.
        layers: strided convolutions. The receptive field is 34 pixels for 2, 70 for 3.
    """

    def __init__(self, ch: int = 64, layers: int = 3):
        super().__init__()
        widths = [3] + [ch * min(2**i, 8) for i in range(layers + 1)]
        modules: list[nn.Module] = []
        for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
            stride = 2 if i < layers else 1
            modules += [spectral_norm(nn.Conv2d(a, b, 4, stride, 1)), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*modules, nn.Conv2d(widths[-1], 1, 4, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:  # [B, 3, H, W] -> [B, 1, H', W']
        return self.net(pixels)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Compute the hinge loss of the discriminator from its logits (Lim and Ye 2017)."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def gradient_penalty(logits: Tensor, pixels: Tensor) -> Tensor:
    """Compute R1, the mean squared gradient of the logits with respect to real images (Mescheder et al. 2018, eq. 9).

    Args:
        logits: of the images, [B, 1, H', W'].
        pixels: real images, [B, 3, H, W], which require gradients.
    """
    (slope,) = torch.autograd.grad(logits.float().mean((1, 2, 3)).sum(), pixels, create_graph=True)
    return slope.square().sum((1, 2, 3)).mean()


class LeCam(nn.Module):
    """LeCam: keeps real logits near the running mean of fake ones, and vice versa (Tseng et al. 2021, eq. 5)."""

    real: Tensor
    fake: Tensor

    def __init__(self, decay: float = 0.99):
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Compute the loss, a scalar, from logits of real and fake images, and update the running means."""
        self.real.lerp_(real.detach().float().mean(), 1 - self.decay)
        self.fake.lerp_(fake.detach().float().mean(), 1 - self.decay)
        return (real.float() - self.fake).square().mean() + (fake.float() - self.real).square().mean()


def balance(main: Tensor, other: Tensor, weight: Tensor, most: float = 1e4) -> Tensor:
    """Compute the factor that gives a second loss the same gradient norm as the first (VQGAN, eq. 7), a scalar.

    Args:
        main: the first loss. Its graph is kept.
        other: the second loss. Its graph is kept.
        weight: the parameter at which the gradients are compared.
        most: largest factor.
    """
    (a,) = torch.autograd.grad(main, weight, retain_graph=True)
    (b,) = torch.autograd.grad(other, weight, retain_graph=True)
    return (a.norm() / (b.norm() + 1e-6)).clamp(0, most).detach()
