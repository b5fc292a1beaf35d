"""Vector quantisers: latents -> the nearest entries of a learned codebook.

Shapes: B images, Z latent channels, h x w grid, K codes, N = B * h * w latents.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Quantized(NamedTuple):
    """What a quantiser makes of latents.

    Attributes:
        quantized: [B, Z, h, w], the chosen code vectors; gradients pass to the latents as the estimator has it.
        codes: [B, h, w] long, in 0 .. K - 1.
        loss: scalar, codebook and commitment loss (van den Oord et al. 2017, eq. 3).
    """

    quantized: Tensor
    codes: Tensor
    loss: Tensor


def straight_through(z: Tensor, e: Tensor) -> Tensor:
    """`e` whose gradient goes to `z` as it is (van den Oord et al. 2017, section 3.2). Args: [N, Z] each."""
    return z + (e - z).detach()


def rotation_trick(z: Tensor, e: Tensor) -> Tensor:
    """`e` whose gradient is rotated and scaled onto `z` as `z` is onto `e` (Fifty et al. 2024, section 4).

    Args:
        z: [N, Z] latents.
        e: [N, Z] their codes.
    """
    with torch.no_grad():
        p, q = F.normalize(z, dim=-1), F.normalize(e, dim=-1)
        middle = F.normalize(p + q, dim=-1)
        scale = (e.square().sum(-1, keepdim=True) / z.square().sum(-1, keepdim=True).clamp_min(1e-12)).sqrt()
    along_middle = 2 * (z * middle).sum(-1, keepdim=True) * middle
    along_p = 2 * (z * p).sum(-1, keepdim=True) * q
    return scale * (z - along_middle + along_p)


class VectorQuantizer(nn.Module):
    """Nearest-neighbour quantiser, key name `embedding.weight` as in taming.

    With `normalize`, latents and codes are compared on the unit sphere (ViT-VQGAN, Yu et al. 2021, section 3.2), which
    with few latent channels keeps nearly every code in use. Codes that training has not chosen for long are restarted
    at latents of the current batch (Jukebox, Dhariwal et al. 2020, section 3.1).

    Args:
        num_codes: K.
        dim: Z.
        normalize: compare by angle.
        commitment: weight of the commitment term.

    Attributes:
        estimator: how gradients pass from codes to latents: straight_through or rotation_trick.
    """

    usage: Tensor

    def __init__(self, num_codes: int, dim: int, normalize: bool = False, commitment: float = 0.25):
        super().__init__()
        self.normalize = normalize
        self.commitment = commitment
        self.estimator: Callable[[Tensor, Tensor], Tensor] = straight_through
        self.embedding = nn.Embedding(num_codes, dim)
        nn.init.uniform_(self.embedding.weight, -1 / num_codes, 1 / num_codes)
        if normalize:
            nn.init.normal_(self.embedding.weight)
        self.register_buffer("usage", torch.zeros(num_codes), persistent=False)  # running share of the choices

    @property
    def num_codes(self) -> int:
        return self.embedding.num_embeddings

    def codebook(self) -> Tensor:
        """The code vectors as the decoder sees them, [K, Z]."""
        weight = self.embedding.weight
        return F.normalize(weight, dim=-1) if self.normalize else weight

    def look_up(self, codes: Tensor) -> Tensor:
        """codes [B, h, w] -> code vectors [B, Z, h, w]."""
        return F.embedding(codes, self.codebook()).movedim(-1, 1)

    def nearest(self, latents: Tensor, room: int = 2**22) -> Tensor:
        """Index of the nearest code of each latent, without ever holding N x K distances.

        Args:
            latents: [N, Z] in fp32, normalised if the quantiser is.
            room: distances held at a time, at least K: a chunk of the latents is compared with all codes.

        Returns:
            [N] long.
        """
        codebook = self.codebook().float()
        offset = -0.5 * codebook.square().sum(1)  # argmin |z - e|^2 = argmax z.e - |e|^2 / 2
        parts = torch.split(latents, max(1, room // self.num_codes))
        return torch.cat([torch.addmm(offset, part, codebook.T).argmax(1) for part in parts])

    def forward(self, latents: Tensor) -> Quantized:
        """latents [B, Z, h, w] -> Quantized. Distances are taken in fp32 whatever the autocast."""
        with torch.autocast(latents.device.type, enabled=False):
            z = latents.float().movedim(1, -1)  # [B, h, w, Z]
            if self.normalize:
                z = F.normalize(z, dim=-1)
            flat = z.reshape(-1, z.shape[-1])  # [N, Z]
            with torch.no_grad():
                codes = self.nearest(flat)
            chosen = F.embedding(codes, self.codebook())  # [N, Z]
            loss = F.mse_loss(chosen, flat.detach()) + self.commitment * F.mse_loss(flat, chosen.detach())
            passed = self.estimator(flat, chosen)
        return Quantized(passed.view_as(z).movedim(-1, 1), codes.view(z.shape[:-1]), loss)

    @torch.no_grad()
    def count(self, codes: Tensor, decay: float = 0.98) -> None:
        """Keep the running share of each code among the choices [B, h, w]; call once a step."""
        if self.usage.sum() == 0:  # the first batch: nothing is known to be dead
            self.usage.fill_(1 / self.num_codes)
        counts = torch.bincount(codes.flatten(), minlength=self.num_codes)
        self.usage.mul_(decay).add_(counts / codes.numel(), alpha=1 - decay)

    @torch.no_grad()
    def restart_dead(self, latents: Tensor, generator: torch.Generator, threshold: float = 0.1) -> int:
        """Move codes that are hardly ever chosen onto latents of the batch.

        Args:
            latents: [B, Z, h, w], before quantisation.
            generator: picks the latents (on the CPU).
            threshold: a code is dead below this share of an even usage.

        Returns:
            how many codes were moved.
        """
        flat = latents.float().movedim(1, -1).reshape(-1, latents.shape[1])
        dead = (self.usage < threshold / self.num_codes).nonzero().flatten()
        picks = torch.randint(len(flat), (len(dead),), generator=generator).to(flat.device)
        self.embedding.weight[dead] = F.normalize(flat[picks], dim=-1) if self.normalize else flat[picks]
        self.usage[dead] = 1 / self.num_codes
        return len(dead)
