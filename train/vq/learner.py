"""The module that the training of an image tokenizer optimises, its losses, and its evaluation.

Shapes: B images, H x W pixels, h x w codes of Z dimensions, C channels of the encoder's latents.
"""

from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from tokenizer_image import VQModel
from tokenizer_image.pixels import to_pil
from train.images.metrics import psnr
from train.vq.auxiliary_losses import Alignment, Masked, Predictor


@torch.inference_mode()
def evaluate(model: VQModel, images: Tensor, batch: int = 32) -> tuple[dict[str, float], Tensor]:
    """Evaluate a tokenizer on images [N, 3, H, W].

    Returns:
        Mean PSNR in dB and codebook usage; and the reconstructions, [N, 3, H, W], on the CPU.
    """
    outs, codes = [], []
    for part in images.split(batch):
        codes.append(model.encode(part.to(model.quantize.embedding.weight.device)))
        outs.append(model.decode(codes[-1]).cpu())
    out = torch.cat(outs)
    used = torch.cat(codes).unique().numel() / model.config.n_embed
    return {"psnr": psnr(out, images).mean().item(), "codebook_usage": used}, out


def sample_sheet(images: Tensor, out: Tensor, count: int = 48, columns: int = 16) -> Image.Image:
    """Return a sheet with rows of images, each above its reconstruction."""
    rows = []
    for i in range(0, min(count, len(images)), columns):
        rows += [torch.cat(list(images[i : i + columns]), 2), torch.cat(list(out[i : i + columns]), 2)]
    return to_pil(torch.cat([row for row in rows if row.shape == rows[0].shape], 1))


class VQLosses(NamedTuple):
    """One forward pass.

    Attributes:
        pixels: reconstructions, [B, 3, H, W].
        latents: before quantisation, [B, Z, h, w].
        codes: [B, h, w].
        quantizer: codebook and commitment loss, a scalar.
        align: alignment loss; 0 where it is off.
        jepa: JEPA loss; 0 where it is off.
    """

    pixels: Tensor
    latents: Tensor
    codes: Tensor
    quantizer: Tensor
    align: Tensor
    jepa: Tensor


class VQLearner(nn.Module):
    """The image tokenizer with the heads of its auxiliary losses.

    Args:
        vq: the image tokenizer.
        channels: channels of the frozen feature maps to align with; empty = no alignment.
        jepa: whether to predict masked blocks.
    """

    def __init__(self, vq: VQModel, channels: tuple[int, ...] = (), jepa: bool = False):
        super().__init__()
        self.vq = vq
        shape = vq.config
        self.alignment = Alignment(shape.embed_dim, channels) if channels else None
        self.predictor = Predictor(shape.embed_dim, shape.z_channels) if jepa else None

    def forward(
        self,
        pixels: Tensor,
        maps: list[Tensor] | None = None,
        masked: Masked | None = None,
        taught: Tensor | None = None,
    ) -> VQLosses:
        """Encode, quantise and decode a batch, and compute its losses.

        Args:
            pixels: [B, 3, H, W].
            maps: frozen feature maps of the images.
            masked: the first b images with masked blocks.
            taught: the teacher's latents of these images, unmasked, [b, C, h, w].
        """
        out, latents, quantized, codes, loss = self.vq(pixels)
        align = jepa = loss.new_zeros(())
        if self.alignment is not None and maps is not None:
            align = self.alignment(quantized, maps)
        if self.predictor is not None and masked is not None and taught is not None:
            seen = self.vq.quantize(self.vq.latents(masked.pixels)).quantized
            jepa = self.predictor(seen, masked.mask, taught)
        return VQLosses(out, latents, codes, loss, align, jepa)
