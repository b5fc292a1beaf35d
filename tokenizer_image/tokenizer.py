"""ImageTokenizer: PIL pictures -> codes [h, w] -> PIL pictures."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokenizer_image.pixels import Picture, open_image, to_pil, to_tensor
from tokenizer_image.vqgan import VQConfig, VQModel

MODELS = Path(__file__).parent / "models"  # the embedded ones
CONFIG, WEIGHTS = "config.json", "model.safetensors"


class ImageTokenizer:
    """A VQModel with pictures on its outside.

    Attributes:
        model: the VQModel, in evaluation mode.
    """

    def __init__(self, model: VQModel):
        self.model = model.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "ImageTokenizer":
        """Load an embedded tokenizer ("emoji"), a folder, or a repository of the Hugging Face hub.

        Raises:
            ValueError: nothing has that name, or the folder is not a tokenizer.
        """
        folder = _folder(name)
        for file in (CONFIG, WEIGHTS):
            if not (folder / file).is_file():
                raise ValueError(f"{folder} is not an image tokenizer: {file} is missing")
        try:
            model = VQModel(VQConfig.load(folder / CONFIG))
            weights = load_file(folder / WEIGHTS)
            model.load_state_dict({key: value.float() for key, value in weights.items()})
        except (json.JSONDecodeError, SafetensorError, RuntimeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{folder} is damaged or holds another model ({reason}): fetch it again") from error
        return cls(model)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write config.json and model.safetensors, the weights as `dtype`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.model.config.save(folder / CONFIG)
        weights = {key: value.to(dtype).contiguous() for key, value in self.model.state_dict().items()}
        save_file(weights, folder / WEIGHTS)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels that pictures are brought to."""
        return self.model.config.resolution, self.model.config.resolution

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w): codes a picture."""
        return self.model.config.grid

    @property
    def num_codes(self) -> int:
        return self.model.config.n_embed

    @property
    def device(self) -> torch.device:
        return self.model.quantize.embedding.weight.device

    def to(self, device: torch.device | str) -> "ImageTokenizer":
        self.model.to(device)
        return self

    def fingerprint(self) -> str:
        """Twelve hex digits that change with the codes' meaning, which the decoder has no part in: shards and models
        note them."""
        digest = hashlib.sha256()
        for key, value in sorted(self.model.state_dict().items()):
            if not key.startswith(("encoder.", "quant_conv.", "quantize.")):
                continue
            digest.update(key.encode())
            digest.update(value.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    def encode(self, pictures: Picture | Sequence[Picture]) -> Tensor:
        """Codes of one picture, [h, w] long, or of a list of them, [N, h, w]. Any size: the middle is scaled to fit.

        Raises:
            ValueError: a file that is no picture, or an empty list.
        """
        if isinstance(pictures, Image.Image | str | Path | bytes):
            return self.encode([pictures])[0]
        if not pictures:
            raise ValueError("no pictures to encode: the list is empty")
        pixels = torch.stack([to_tensor(open_image(picture), self.size) for picture in pictures])  # [N, 3, H, W]
        return self.model.encode(pixels.to(self.device)).cpu()

    def decode(self, codes: Tensor) -> Image.Image | list[Image.Image]:
        """A picture from codes [h, w], or a list of them from [N, h, w].

        Raises:
            ValueError: a code outside the codebook, or codes of another shape.
        """
        if codes.ndim not in (2, 3):
            raise ValueError(f"codes of shape {tuple(codes.shape)}: want [h, w] or [N, h, w]")
        batch = codes[None] if codes.ndim == 2 else codes
        pictures = [to_pil(pixels) for pixels in self.model.decode(batch.to(self.device))]
        return pictures[0] if codes.ndim == 2 else pictures


def _folder(name: str | Path) -> Path:
    """Where an embedded tokenizer, a local folder, or a hub repository lies on this machine."""
    embedded = sorted(path.parent.name for path in MODELS.glob(f"*/{CONFIG}"))
    if str(name) in embedded:
        return MODELS / name
    if name and Path(name).is_dir():
        return Path(name)
    message = (f"no image tokenizer {str(name)!r}: neither an embedded one ({', '.join(embedded) or 'none'}), nor a "
               "folder, nor on the hub")  # fmt: skip
    try:
        return Path(snapshot_download(str(name), allow_patterns=[CONFIG, WEIGHTS]))
    except (HFValidationError, RepositoryNotFoundError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(message) from error
