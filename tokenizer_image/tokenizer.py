"""ImageTokenizer: PIL images -> codes [h, w] -> PIL images."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from PIL import Image
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from tokenizer_image.checkpoint import SafetensorsWeights, make_readable
from tokenizer_image.pixels import MAX_PIXELS, ImageLike, crop_to_multiple, open_image, to_pil, to_tensor
from tokenizer_image.tiles import tiled_decode, tiled_encode
from tokenizer_image.vqgan import VQConfig, VQModel, outline

MODELS = Path(__file__).parent / "pretrained"  # the embedded ones
CONFIG, WEIGHTS = "config.json", "model.safetensors"
CODE_PARTS = ("encoder", "quant_conv", "quantize")  # of the model: what makes the codes
TILE = 512  # pixels: side of a tile; a batch of smaller images has at most as many pixels

Size = tuple[int, int] | Literal["fit", "keep"]


class ImageTokenizer:
    """Encodes images to codes and decodes codes to images, with a VQModel.

    Args:
        model: it is set to evaluation mode, and requires no gradients.
    """

    def __init__(self, model: VQModel):
        self.model = model.eval().requires_grad_(False)
        self.model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "ImageTokenizer":
        """Load an embedded tokenizer ("emoji"), a folder, or a repository of the Hugging Face hub.

        Raises:
            ValueError: there is no tokenizer of that name, or its files are damaged.
        """
        folder = _folder(name)
        for file in (CONFIG, WEIGHTS):
            if not (folder / file).is_file():
                raise ValueError(f"{folder} is not an image tokenizer: {file} is missing")
        try:
            config = VQConfig.load(folder / CONFIG)
            _check_shapes(config, folder / WEIGHTS)  # before memory is allocated for the sizes in the configuration
            model = VQModel(config)
            weights = load_file(folder / WEIGHTS)
            model.load_state_dict({key: value.float() for key, value in weights.items()})
            assert all(value.isfinite().all() for value in weights.values()), "weights that are not finite"
        except Exception as error:  # these libraries raise many kinds of errors for broken files
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"{folder} is damaged or holds another model ({reason}): fetch it again") from error
        return cls(model)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write config.json and model.safetensors, with weights of type `dtype`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.model.config.save(folder / CONFIG)
        weights = {key: value.to(dtype).contiguous() for key, value in self.model.state_dict().items()}
        save_file(weights, folder / WEIGHTS)
        make_readable(folder / WEIGHTS)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels to which images are scaled."""
        return self.model.config.resolution, self.model.config.resolution

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes in an image of that size."""
        return self.model.config.grid

    def size_of(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Return height and width in pixels of an image with these rows and columns of codes."""
        side = self.model.config.downsampling
        return grid[0] * side, grid[1] * side

    @property
    def num_codes(self) -> int:
        """Number of codes in the codebook."""
        return self.model.config.n_embed

    @property
    def device(self) -> torch.device:
        return self.model.quantize.embedding.weight.device

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "ImageTokenizer":
        """Move the model. With bfloat16 it is faster on devices that support it, and some codes change."""
        self.model.to(device, dtype)
        return self

    def fingerprint(self) -> str:
        """Return twelve hex digits that identify the meaning of the codes. Shards and models store them.

        They depend on the encoder, the codebook and the order of the codes, but not on the decoder.
        """
        tile = self.model.config.tile
        digest = hashlib.sha256(f"tile {tile}".encode() if tile else b"")
        for key, value in sorted(self.model.state_dict().items()):
            if key.partition(".")[0] not in CODE_PARTS:
                continue
            digest.update(key.encode())
            digest.update(value.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    def pixels(self, source: ImageLike, size: Size = "fit", max_pixels: int = MAX_PIXELS) -> Tensor:
        """Return the pixels of an image as the model reads them, [3, H, W] in [-1, 1].

        Arguments and errors are those of `encode`.
        """
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
        """Encode an image, or a list of images.

        Args:
            images: one image, or a list or tuple of images, of any size and any type that open_image accepts.
            size: "fit" = crop the centre and scale it to the tokenizer's own size; (H, W) in pixels = to that size;
                "keep" = do not scale, crop to whole codes.
            tile: images with a longer side, in pixels, are encoded in overlapping tiles (tokenizer_image/tiles.py).
            max_pixels: largest number of pixels of an image.

        Returns:
            Codes in the order of VQConfig.tile, long: [h, w] for one image, [N, h, w] for a list.

        Raises:
            ValueError: a file is no image, the list is empty, a size or tile is no multiple of the downsampling, or
                images differ in size with "keep".
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
        """Encode pixels [N, 3, H, W] in [-1, 1]. Returns codes [N, h, w] in the order of VQConfig.tile, on the CPU."""
        codes, overlap = self._in_codes(tile)
        at_once = _at_once(pixels.shape[2] * pixels.shape[3], tile)
        parts = torch.split(pixels, at_once)
        grids = [tiled_encode(self.model, part.to(self.device), codes, overlap).cpu() for part in parts]
        return self.to_tile_order(torch.cat(grids))

    def to_tile_order(self, grid: Tensor) -> Tensor:
        """Reorder the values of an image's grid positions, [..., h, w], tile by tile (VQConfig.tile)."""
        tile, (h, w) = self._tile(grid), grid.shape[-2:]
        if not tile:
            return grid
        tiles = grid.reshape(*grid.shape[:-2], h // tile, tile, w // tile, tile)
        return tiles.transpose(-3, -2).reshape(grid.shape)

    def from_tile_order(self, ordered: Tensor) -> Tensor:
        """Undo `to_tile_order`."""
        tile, (h, w) = self._tile(ordered), ordered.shape[-2:]
        if not tile:
            return ordered
        tiles = ordered.reshape(*ordered.shape[:-2], h // tile, w // tile, tile, tile)
        return tiles.transpose(-3, -2).reshape(ordered.shape)

    def _tile(self, grid: Tensor) -> int:
        """Return the side of the tiles of a grid [..., h, w]; 0 if its order is row by row."""
        tile = self.model.config.tile
        return tile if tile and not any(side % tile for side in grid.shape[-2:]) else 0

    def decode(self, codes: Tensor, tile: int = TILE) -> Image.Image | list[Image.Image]:
        """Decode the codes of an image, [h, w], or of several, [N, h, w].

        Args:
            codes: integers below num_codes, in the order of VQConfig.tile, for any h and w.
            tile: images with a longer side, in pixels, are decoded in overlapping tiles (tokenizer_image/tiles.py).

        Returns:
            An image, or a list of images.

        Raises:
            ValueError: a code is outside the codebook, or the shape of the codes or the tile is wrong.
        """
        if codes.ndim not in (2, 3):
            raise ValueError(f"codes of shape {tuple(codes.shape)}: want [h, w] or [N, h, w]")
        batch = self.from_tile_order(codes[None] if codes.ndim == 2 else codes)
        size, overlap = self._in_codes(tile)
        at_once = _at_once(batch.shape[1] * batch.shape[2] * self.model.config.downsampling**2, tile)
        images: list[Image.Image] = []
        for part in torch.split(batch, at_once):
            images += [to_pil(pixels) for pixels in tiled_decode(self.model, part.to(self.device), size, overlap)]
        return images[0] if codes.ndim == 2 else images

    def _in_codes(self, tile: int) -> tuple[int, int]:
        """Return (tile, overlap) in codes for a tile in pixels. The overlap is an eighth, but at least one code."""
        f = self.model.config.downsampling
        if tile < f or tile % f:
            raise ValueError(f"tile of {tile} pixels: want a multiple of {f}, such as {max(1, TILE // f) * f}")
        codes = tile // f
        return codes, min(codes - 1, max(1, codes // 8))


def _check_shapes(config: VQConfig, weights: Path) -> None:
    """Compare the shapes of weights with a configuration. Only the header of the file is read.

    Raises:
        ValueError: they differ.
    """
    wanted = {name: list(tensor.shape) for name, tensor in outline(config).state_dict().items()}
    has = SafetensorsWeights([weights]).shapes()
    if odd := sorted(name for name in wanted.keys() | has.keys() if wanted.get(name) != has.get(name)):
        raise ValueError(f"{odd[0]} is {has.get(odd[0])} in the weights, but {CONFIG} wants {wanted.get(odd[0])}")


def _at_once(pixels: int, tile: int) -> int:
    """Return the number of images of so many pixels that go through the model together."""
    return max(1, tile**2 // max(1, pixels))


def embedded() -> list[str]:
    """Return the names of the embedded tokenizers."""
    return sorted(path.parent.name for path in MODELS.glob(f"*/{CONFIG}"))


def _folder(name: str | Path) -> Path:
    """Return the local folder of an embedded tokenizer, a folder, or a hub repository, which is downloaded."""
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
