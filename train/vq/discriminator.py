"""The adversarial half of a VQGAN: a patch discriminator (Isola et al. 2017) and what keeps it from blowing up."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class PatchDiscriminator(nn.Module):
    """[B, 3, H, W] -> one logit a patch, [B, 1, H', W']; positive = real.

    Spectral norm (Miyato et al. 2018) in place of taming's batch norm: an image's logits do not depend on its batch.

    Args:
        ch: channels of the first convolution, doubled at each further one up to 8 times.
        layers: strided convolutions; the receptive field is 2^layers * 8 - 10 pixels or so (70 for 3, 34 for 2).
    """

    def __init__(self, ch: int = 64, layers: int = 3):
        super().__init__()
        widths = [3] + [ch * min(2**i, 8) for i in range(layers + 1)]
        modules: list[nn.Module] = []
        for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
            stride = 2 if i < layers else 1
            modules += [spectral_norm(nn.Conv2d(a, b, 4, stride, 1)), nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*modules, nn.Conv2d(widths[-1], 1, 4, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.net(pixels)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss on its logits (Lim and Ye 2017)."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def gradient_penalty(logits: Tensor, pixels: Tensor) -> Tensor:
    """R1: mean over images of the squared gradient of the logits at real images (Mescheder et al. 2018, eq. 9).

    Args:
        logits: [B, 1, H', W'] of `pixels`.
        pixels: [B, 3, H, W], asking for gradients.
    """
    (slope,) = torch.autograd.grad(logits.float().mean((1, 2, 3)).sum(), pixels, create_graph=True)
    return slope.square().sum((1, 2, 3)).mean()


class LeCam(nn.Module):
    """Regulariser that ties logits to running means of the other side's (Tseng et al. 2021, eq. 5)."""

    real: Tensor
    fake: Tensor

    def __init__(self, decay: float = 0.99):
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Logits of real and fake images -> scalar; moves the running means."""
        self.real.lerp_(real.detach().float().mean(), 1 - self.decay)
        self.fake.lerp_(fake.detach().float().mean(), 1 - self.decay)
        return (real.float() - self.fake).square().mean() + (fake.float() - self.real).square().mean()


def balance(main: Tensor, other: Tensor, weight: Tensor, most: float = 1e4) -> Tensor:
    """How often the gradient of `other` goes into that of `main` at the parameter `weight` (VQGAN, eq. 7): a scalar to
    multiply `other` with so that both pull alike. Keeps both graphs."""
    (a,) = torch.autograd.grad(main, weight, retain_graph=True)
    (b,) = torch.autograd.grad(other, weight, retain_graph=True)
    return (a.norm() / (b.norm() + 1e-6)).clamp(0, most).detach()
