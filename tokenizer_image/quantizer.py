"""Vector quantiser: replaces latents by the nearest entries of a learned codebook.

Shapes: B images, Z latent channels, h x w grid, K codes, N = B * h * w latents.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Quantized(NamedTuple):
    """Quantised latents.

    Attributes:
        quantized: [B, Z, h, w], the chosen code vectors. The estimator passes their gradients to the latents.
        codes: [B, h, w] long, in 0 .. K - 1.
        loss: scalar, codebook and commitment loss (van den Oord et al. 2017, eq. 3).
    """

    quantized: Tensor
    codes: Tensor
    loss: Tensor


def straight_through(z: Tensor, e: Tensor) -> Tensor:
    """Return `e`, and pass its gradient to `z` unchanged (van den Oord et al. 2017, section 3.2).

    Args:
        z: latents, [N, Z].
        e: their code vectors, [N, Z].
    """
    return z + (e - z).detach()


def rotation_trick(z: Tensor, e: Tensor) -> Tensor:
    """Return `e`, and pass its gradient to `z`, rotated and scaled as `e` is from `z` (Fifty et al. 2024, section 4).

    Args:
        z: latents, [N, Z].
        e: their code vectors, [N, Z].
    """
    with torch.no_grad():
        p, q = F.normalize(z, dim=-1), F.normalize(e, dim=-1)
        middle = F.normalize(p + q, dim=-1)
        scale = (e.square().sum(-1, keepdim=True) / z.square().sum(-1, keepdim=True).clamp_min(1e-12)).sqrt()
    along_middle = 2 * (z * middle).sum(-1, keepdim=True) * middle
    along_p = 2 * (z * p).sum(-1, keepdim=True) * q
    return scale * (z - along_middle + along_p)


class VectorQuantizer(nn.Module):
    """Nearest-neighbour quantiser. Its parameter is named `embedding.weight`, as in taming.

    With `normalize`, latents and codes are compared on the unit sphere (ViT-VQGAN, Yu et al. 2021, section 3.2). With
    few latent channels this keeps nearly every code in use. Codes that have not been chosen for long are restarted at
    latents of the current batch (Jukebox, Dhariwal et al. 2020, section 3.1).

    Args:
        num_codes: K.
        dim: Z.
        normalize: compare by angle.
        commitment: weight of the commitment term.

    Attributes:
        estimator: passes gradients from codes to latents: straight_through or rotation_trick.
        usage: running share of each code among the choices, [K].
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
        self.register_buffer("usage", torch.zeros(num_codes), persistent=False)

    @property
    def num_codes(self) -> int:
        return self.embedding.num_embeddings

    def codebook(self) -> Tensor:
        """Return the code vectors as the decoder reads them, [K, Z]."""
        weight = self.embedding.weight
        return F.normalize(weight, dim=-1) if self.normalize else weight

    def look_up(self, codes: Tensor) -> Tensor:
        """Return the code vectors [B, Z, h, w] of codes [B, h, w]."""
        return F.embedding(codes, self.codebook()).movedim(-1, 1)

    def nearest(self, latents: Tensor, distances: int = 2**22) -> Tensor:
        """Find the nearest code of each latent, in chunks of latents.

        Args:
            latents: [N, Z] in fp32, normalised if the quantiser is.
            distances: about how many are in memory at once.

        Returns:
            The codes, [N] long.
        """
        codebook = self.codebook().float()
        offset = -0.5 * codebook.square().sum(1)  # argmin |z - e|^2 = argmax z.e - |e|^2 / 2
        parts = torch.split(latents, max(1, distances // self.num_codes))
        return torch.cat([torch.addmm(offset, part, codebook.T).argmax(1) for part in parts])

    def forward(self, latents: Tensor) -> Quantized:
        """Quantise latents [B, Z, h, w]. Distances are computed in fp32, also under autocast."""
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
        """Update the running usage with the codes [B, h, w] of a step."""
        if self.usage.sum() == 0:  # in the first batch no code counts as dead
            self.usage.fill_(1 / self.num_codes)
        counts = torch.bincount(codes.flatten(), minlength=self.num_codes)
        self.usage.mul_(decay).add_(counts / codes.numel(), alpha=1 - decay)

    @torch.no_grad()
    def restart_dead(self, latents: Tensor, generator: torch.Generator, threshold: float = 0.1) -> int:
        """Move codes that are hardly ever chosen to latents of the batch.

        Args:
            latents: [B, Z, h, w], before quantisation.
            generator: chooses the latents, on the CPU.
            threshold: a code is dead if its usage is below this share of the mean.

        Returns:
            The number of codes that were moved.
        """
        flat = latents.float().movedim(1, -1).reshape(-1, latents.shape[1])
        dead = (self.usage < threshold / self.num_codes).nonzero().flatten()
        picks = torch.randint(len(flat), (len(dead),), generator=generator).to(flat.device)
        self.embedding.weight[dead] = F.normalize(flat[picks], dim=-1) if self.normalize else flat[picks]
        self.usage[dead] = 1 / self.num_codes
        return len(dead)
