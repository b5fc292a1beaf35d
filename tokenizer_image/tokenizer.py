"""ImageTokenizer: PIL images -> codes [h, w] -> PIL images."""

# torch, safetensors and huggingface_hub are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokenizer_image.checkpoint import SafetensorsWeights, make_readable
from tokenizer_image.pixels import MAX_PIXELS, ImageLike, crop_to_multiple, open_image, to_pil, to_tensor
from tokenizer_image.tiles import tiled_decode, tiled_encode
from tokenizer_image.vqgan import VQConfig, VQModel, outline

MODELS = Path(__file__).parent / "pretrained"  # the embedded ones
CONFIG, WEIGHTS = "config.json", "model.safetensors"
CODE_PARTS = ("encoder", "quant_conv", "quantize")  # of the model: what makes the codes
TILE = 512  # side in pixels of what goes through the model at once; a batch of smaller images has as many pixels

Size = tuple[int, int] | Literal["fit", "keep"]


class ImageTokenizer:
    """A VQModel with images on its outside.

    Attributes:
        model: the VQModel, in evaluation mode.
    """

    def __init__(self, model: VQModel):
        self.model = model.eval().requires_grad_(False)
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

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
            config = VQConfig.load(folder / CONFIG)
            _check_shapes(config, folder / WEIGHTS)  # before memory is taken for what the configuration claims
            model = VQModel(config)
            weights = load_file(folder / WEIGHTS)
            model.load_state_dict({key: value.float() for key, value in weights.items()})
            assert all(value.isfinite().all() for value in weights.values()), "weights that are not finite"
        except Exception as error:  # broken files make these libraries raise almost anything
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"{folder} is damaged or holds another model ({reason}): fetch it again") from error
        return cls(model)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write config.json and model.safetensors, the weights as `dtype`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.model.config.save(folder / CONFIG)
        weights = {key: value.to(dtype).contiguous() for key, value in self.model.state_dict().items()}
        save_file(weights, folder / WEIGHTS)
        make_readable(folder / WEIGHTS)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels that images are brought to."""
        return self.model.config.resolution, self.model.config.resolution

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w): codes an image."""
        return self.model.config.grid

    def size_of(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(H, W) in pixels of an image of so many rows and columns of codes."""
        side = self.model.config.downsampling
        return grid[0] * side, grid[1] * side

    @property
    def num_codes(self) -> int:
        return self.model.config.n_embed

    @property
    def device(self) -> torch.device:
        return self.model.quantize.embedding.weight.device

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "ImageTokenizer":
        """Move it; `dtype` bfloat16 is faster where the device computes it, and changes some codes."""
        self.model.to(device, dtype)
        return self

    def fingerprint(self) -> str:
        """Twelve hex digits that change with the codes' meaning, which the decoder has no part in: shards and models
        note them."""
        tile = self.model.config.tile
        digest = hashlib.sha256(f"tile {tile}".encode() if tile else b"")  # the order is a part of the meaning
        for key, value in sorted(self.model.state_dict().items()):
            if key.partition(".")[0] not in CODE_PARTS:
                continue
            digest.update(key.encode())
            digest.update(value.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    def pixels(self, source: ImageLike, size: Size = "fit", max_pixels: int = MAX_PIXELS) -> Tensor:
        """What the model sees of an image, [3, H, W] in [-1, 1]; arguments and errors as for `encode`."""
        wanted = self.size if size == "fit" else size
        image = open_image(source, max_pixels, least=0 if wanted == "keep" else 2 * max(wanted))
        if size == "keep":
            image = crop_to_multiple(image, self.model.config.downsampling)
            return to_tensor(image, (image.height, image.width))
        height, width = self.size if size == "fit" else size
        self.model.check_size(height, width)
        return to_tensor(image, (height, width))

    def encode(
        self,
        images: ImageLike | Sequence[ImageLike],
        size: Size = "fit",
        tile: int = TILE,
        max_pixels: int = MAX_PIXELS,
    ) -> Tensor:
        """Codes of one image, [h, w] long, or of a list of them, [N, h, w], in the order in which they are laid.

        Args:
            images: of any size, and anything that open_image takes; a list or a tuple is several, all else is one.
            size: "fit": the middle, scaled to the tokenizer's own size; (H, W) in pixels: the middle, scaled to that;
                "keep": as it is, cropped to whole codes.
            tile: larger sides, in pixels, are worked in overlapping tiles (tokenizer_image/tiles.py).
            max_pixels: of an image, at most.

        Raises:
            ValueError: a file that is no image, an empty list, a size or tile that does not divide into codes, or
                kept images of unequal sizes.
        """
        if not isinstance(images, list | tuple):
            return self.encode([cast(ImageLike, images)], size, tile, max_pixels)[0]
        if not images:
            raise ValueError("no images to encode: the list is empty")
        pixels = [self.pixels(image, size, max_pixels) for image in images]  # [3, H, W] each
        if sizes := {tuple(part.shape[1:]) for part in pixels[1:] if part.shape != pixels[0].shape}:
            sizes.add(tuple(pixels[0].shape[1:]))
            raise ValueError(
                f"images of unequal sizes {', '.join(f'{h} x {w}' for h, w in sorted(sizes))}: encode them one at a "
                "time, or give a size"
            )
        return self.encode_pixels(torch.stack(pixels), tile)

    def encode_pixels(self, pixels: Tensor, tile: int = TILE) -> Tensor:
        """pixels [N, 3, H, W] in [-1, 1] -> codes [N, h, w] as they are laid, on the CPU; errors as for `encode`."""
        codes, overlap = self._in_codes(tile)
        at_once = _at_once(pixels.shape[2] * pixels.shape[3], tile)
        parts = (tiled_encode(self.model, part.to(self.device), codes, overlap) for part in pixels.split(at_once))
        return self.laid(torch.cat([part.cpu() for part in parts]))

    def laid(self, grid: Tensor) -> Tensor:
        """Values of an image's grid positions, [..., h, w], in the order in which codes are laid (VQConfig.tile)."""
        tile, (h, w) = self._tile(grid), grid.shape[-2:]
        if not tile:
            return grid
        return (
            grid.unflatten(-1, (w // tile, tile)).unflatten(-3, (h // tile, tile)).transpose(-3, -2).reshape(grid.shape)
        )

    def spread(self, laid: Tensor) -> Tensor:
        """The inverse of `laid`: values as they stand in the image, [..., h, w]."""
        tile, (h, w) = self._tile(laid), laid.shape[-2:]
        if not tile:
            return laid
        tiles = laid.reshape(*laid.shape[:-2], h // tile, w // tile, tile, tile)
        return tiles.transpose(-3, -2).reshape(laid.shape)

    def _tile(self, grid: Tensor) -> int:
        """Side of the tiles of a grid [..., h, w]; 0 where it is laid row by row."""
        tile = self.model.config.tile
        return tile if tile and not any(side % tile for side in grid.shape[-2:]) else 0

    def decode(self, codes: Tensor, tile: int = TILE) -> Image.Image | list[Image.Image]:
        """An image from codes [h, w], or a list of them from [N, h, w]; of any h and w.

        Args:
            codes: integers below num_codes.
            tile: larger sides, in pixels, are worked in overlapping tiles (tokenizer_image/tiles.py).

        Raises:
            ValueError: a code outside the codebook, codes of another shape, or a tile that does not divide into codes.
        """
        if codes.ndim not in (2, 3):
            raise ValueError(f"codes of shape {tuple(codes.shape)}: want [h, w] or [N, h, w]")
        batch = self.spread(codes[None] if codes.ndim == 2 else codes)
        size, overlap = self._in_codes(tile)
        at_once = _at_once(batch.shape[1] * batch.shape[2] * self.model.config.downsampling**2, tile)
        images: list[Image.Image] = []
        for part in batch.split(at_once):
            images += [to_pil(pixels) for pixels in tiled_decode(self.model, part.to(self.device), size, overlap)]
        return images[0] if codes.ndim == 2 else images

    def _in_codes(self, tile: int) -> tuple[int, int]:
        """(tile, overlap) in codes for a tile in pixels: an eighth overlaps, at least one code where it can."""
        f = self.model.config.downsampling
        if tile < f or tile % f:
            raise ValueError(f"tile of {tile} pixels: want a multiple of {f}, such as {max(1, TILE // f) * f}")
        codes = tile // f
        return codes, min(codes - 1, max(1, codes // 8))


def _check_shapes(config: VQConfig, weights: Path) -> None:
    """Raises ValueError where a file of weights is not of a model of this shape; only its header is read."""
    wanted = {name: list(tensor.shape) for name, tensor in outline(config).state_dict().items()}
    has = SafetensorsWeights([weights]).shapes()
    if odd := sorted(name for name in wanted.keys() | has.keys() if wanted.get(name) != has.get(name)):
        raise ValueError(f"{odd[0]} is {has.get(odd[0])} in the weights, but {CONFIG} wants {wanted.get(odd[0])}")


def _at_once(pixels: int, tile: int) -> int:
    """How many images of so many pixels go through the model together."""
    return max(1, tile**2 // max(1, pixels))


def embedded() -> list[str]:
    """Names of the embedded tokenizers."""
    return sorted(path.parent.name for path in MODELS.glob(f"*/{CONFIG}"))


def _folder(name: str | Path) -> Path:
    """Where an embedded tokenizer, a local folder, or a hub repository lies on this machine."""
    if str(name) in embedded():
        return MODELS / name
    if name and Path(name).is_dir():
        return Path(name)
    message = (
        f"no image tokenizer {str(name)!r}: neither an embedded one ({', '.join(embedded()) or 'none'}), nor a "
        "folder, nor on the hub"
    )
    try:
        return Path(snapshot_download(str(name), allow_patterns=[CONFIG, WEIGHTS]))
    except (HFValidationError, RepositoryNotFoundError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(message) from error
