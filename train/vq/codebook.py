"""Measures that keep a codebook in use during training; none changes the architecture of the saved model."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tokenizer_image import VQConfig, VQModel
from tokenizer_image.quantizer import VectorQuantizer
from tokenizer_image.tokenizer import CODE_PARTS


class Projection(nn.Module):
    """A codebook that is a learned linear map of fixed random vectors."""

    def __init__(self, dim: int):
        super().__init__()
        self.map = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.map.weight)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.map(vectors)


def use_simvq(quantizer: VectorQuantizer) -> None:
    """Train one matrix that moves all codes together, so that none stays unused (SimVQ, Zhu et al. 2024, eq. 5)."""
    embedding = quantizer.embedding
    nn.init.normal_(embedding.weight, std=embedding.embedding_dim**-0.5)
    projection = Projection(embedding.embedding_dim).to(embedding.weight.device)
    parametrize.register_parametrization(embedding, "weight", projection)
    embedding.parametrizations.weight.original.requires_grad_(False)  # pyright: ignore


def freeze_codes(model: VQModel) -> None:
    """Freeze all but the decoder, so that codes keep their meaning."""
    for name in CODE_PARTS:
        model.get_submodule(name).requires_grad_(False)


def with_codes_of(model: VQModel, shape: VQConfig) -> VQModel:
    """Return a model of another shape with the same codes and a new decoder.

    Raises:
        ValueError: the encoders or codebooks have different shapes.
    """
    out = VQModel(shape)
    for name in CODE_PARTS:
        old, new = model.get_submodule(name).state_dict(), out.get_submodule(name).state_dict()
        for key in old.keys() | new.keys():
            if key not in old or key not in new or old[key].shape != new[key].shape:
                raise ValueError(f"the preset's {name} is not that of start: {key} differs, so codes would too")
        out.get_submodule(name).load_state_dict(old)
    return out


def baked(model: VQModel, frozen: VQModel | None = None) -> VQModel:
    """Return a copy of the model with the same codes in an ordinary codebook.

    PyTorch's remove_parametrizations would remove them from every copy of the model.

    Args:
        model: with or without SimVQ.
        frozen: model from which CODE_PARTS are copied, bit for bit: averaging turns -0 into 0, and shards identify
            their tokenizer by its bits.
    """
    weights = {key: value for key, value in model.state_dict().items() if "parametrizations" not in key}
    copy = VQModel(model.config).to(model.quantize.embedding.weight.device)
    copy.load_state_dict(weights | {"quantize.embedding.weight": model.quantize.embedding.weight.detach()})
    if frozen:
        for name in CODE_PARTS:
            copy.get_submodule(name).load_state_dict(frozen.get_submodule(name).state_dict())
    return copy


def entropy_loss(quantizer: VectorQuantizer, latents: Tensor, temperature: float = 0.05) -> Tensor:
    """Return the mean entropy of each latent's choice minus the entropy of the mean choice (MAGVIT-v2, Yu et al. 2023).

    See equation 7 there. It is low where each choice is certain and all codes are chosen equally often.

    Args:
        quantizer: with the codebook.
        latents: [B, Z, h, w], before quantisation.
        temperature: of the softmax over negative squared distances.
    """
    flat = latents.float().movedim(1, -1).flatten(0, -2)  # [N, Z]
    if quantizer.normalize:
        flat = F.normalize(flat, dim=-1)
    logits = -torch.cdist(flat, quantizer.codebook()).square() / temperature  # [N, K]
    log_p = logits.log_softmax(-1)
    mean = log_p.exp().mean(0)
    each = -(log_p.exp() * log_p).sum(-1).mean()
    return each + (mean * (mean + 1e-8).log()).sum()
