"""The scorer: how well images, as codes, fit a text. Two small encoders share one space (CLIP, Radford et al. 2021).

    scorer = Scorer.from_pretrained("runs/scorer/model")
    scorer.check(text_tokenizer.fingerprint(), image_tokenizer.fingerprint())
    scorer.score([text_tokenizer.encode("a red apple")], codes)  # codes [N, h, w] -> [N], higher is better

A folder has config.json and model.safetensors. Weights are stored in half and computed in single precision. `python -m
train.scorer` trains a scorer.

Shapes: N texts or images, T tokens, L patches of an image, E size of an embedding, D width, P size of the shared space.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

CONFIG, WEIGHTS = "config.json", "model.safetensors"
MAX_SCALE = 100.0  # of the similarities in the loss (CLIP 2.5)


@dataclass(frozen=True)
class ScorerConfig:
    """Configuration of a Scorer.

    Attributes:
        text_vocab_size: number of text ids.
        image_vocab_size: number of image codes.
        image_grid: rows and columns of codes in an image.
        embedding_size: size of the embeddings of text ids and codes.
        hidden_size: width of both towers.
        image_layers: blocks of the image tower.
        text_layers: blocks of the text tower.
        heads: attention heads.
        intermediate_size: width of the feed-forward layers.
        space: size of the vectors that are compared.
        merge: patches of merge x merge codes are one position of the image tower.
        max_text: tokens of a text that are read; the rest is cut off.
        text_tokenizer: fingerprint of the text tokenizer that it was trained with.
        image_tokenizer: fingerprint of the image tokenizer that it was trained with.
        trained_for: the model that it was trained for, if that is another one, which this model was trained from.

    Raises:
        ValueError: sizes do not fit together.
    """

    text_vocab_size: int = 4096
    image_vocab_size: int = 2048
    image_grid: tuple[int, int] = (8, 8)
    embedding_size: int = 64
    hidden_size: int = 128
    image_layers: int = 3
    text_layers: int = 2
    heads: int = 4
    intermediate_size: int = 256
    space: int = 128
    merge: int = 2
    max_text: int = 48
    text_tokenizer: str = ""
    image_tokenizer: str = ""
    trained_for: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_grid", tuple(self.image_grid))
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of heads = {self.heads}")
        if any(side % self.merge for side in self.image_grid):
            raise ValueError(f"merge {self.merge} does not divide a grid of {self.image_grid} codes")


class Texts(NamedTuple):
    """Padded texts.

    Attributes:
        ids: [N, T].
        real: [N, T], False for padding.
    """

    ids: Tensor
    real: Tensor


def padded(texts: Sequence[Sequence[int]], longest: int) -> Texts:
    """A batch of texts, each cut off after `longest` ids.

    Raises:
        ValueError: an empty text.
    """
    if not all(texts):
        raise ValueError("a text to score is empty: say what the image should show")
    rows = [torch.tensor(text[:longest]) for text in texts]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)  # [N, T]
    return Texts(ids.clamp(min=0), ids >= 0)


class TowerBlock(nn.Module):
    """Pre-norm block with bidirectional attention and a feed-forward layer."""

    def __init__(self, config: ScorerConfig) -> None:
        super().__init__()
        width, self.heads = config.hidden_size, config.heads
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, width, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # x [N, T, D], mask [N, 1, 1, T] or [1, 1, 1, 1] -> x's shape
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # [N, H, T, T]; too short for a kernel
        weights = scores.masked_fill(~mask, -1e4).softmax(-1).to(v.dtype)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.feed_norm(x))))


class Tower(nn.Module):
    """An encoder: blocks, the mean over all positions, and a projection to a unit vector of the shared space."""

    def __init__(self, config: ScorerConfig, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([TowerBlock(config) for _ in range(layers)])
        self.norm = nn.LayerNorm(config.hidden_size)
        self.project = nn.Linear(config.hidden_size, config.space, bias=False)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:  # x [N, T, D], real [N, T] or [1, 1] -> [N, P]
        for block in self.layers:
            x = block(x, real[:, None, None])
        real = real[..., None].expand(len(x), x.shape[1], 1)
        mean = (self.norm(x) * real).sum(1) / real.sum(1)
        return F.normalize(self.project(mean), dim=-1)


class Scorer(nn.Module):
    """Encodes texts and images as unit vectors, which are near each other if text and image fit."""

    def __init__(self, config: ScorerConfig) -> None:
        super().__init__()
        self.config = config
        size, width, (h, w), side = config.embedding_size, config.hidden_size, config.image_grid, config.merge
        self.embed_text = nn.Embedding(config.text_vocab_size, size)
        self.embed_codes = nn.Embedding(config.image_vocab_size, size)
        self.widen_text = nn.Linear(size, width, bias=False)
        self.widen_codes = nn.Linear(side * side * size, width, bias=False)
        self.places = nn.Parameter(torch.randn(config.max_text, width) * 0.02)
        self.rows = nn.Parameter(torch.randn(h // side, 1, width) * 0.02)
        self.columns = nn.Parameter(torch.randn(w // side, width) * 0.02)
        self.text_tower = Tower(config, config.text_layers)
        self.image_tower = Tower(config, config.image_layers)
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())  # CLIP 2.5
        for table in (self.embed_text, self.embed_codes):
            nn.init.normal_(table.weight, std=0.02**0.5)
        for tower in (self.text_tower, self.image_tower):
            for block in tower.layers:  # each starts near the identity
                for last in (block.out, block.down):
                    nn.init.normal_(last.weight, std=0.02 / len(tower.layers) ** 0.5)  # pyright: ignore

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load a scorer.

        Raises:
            ValueError: the folder has none, or it is damaged.
        """
        folder = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise ValueError(f"{folder} is no scorer: {name} is missing; train one with python -m train.scorer")
        try:
            with torch.random.fork_rng(devices=()):  # pyright: ignore[reportUnknownMemberType]
                scorer = cls(ScorerConfig(**json.loads((folder / CONFIG).read_text(encoding="utf-8"))))
            weights = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
            if bad := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
                raise ValueError(f"{bad[0]} has values that are not finite")
            scorer.load_state_dict(weights)
        except (TypeError, ValueError, RuntimeError, ZeroDivisionError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{folder} is damaged or holds another model ({reason}): fetch it again") from error
        return scorer.eval().requires_grad_(False)

    def save_pretrained(self, folder: str | Path) -> None:
        """Save configuration and weights."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(asdict(self.config), indent=1) + "\n", encoding="utf-8")
        weights = {name: tensor.half().contiguous() for name, tensor in self.state_dict().items()}
        (folder / WEIGHTS).write_bytes(save(weights))  # save_file would make a file that only its owner may read

    def check(self, text: str, image: str) -> None:
        """Raise a ValueError unless the scorer was trained with the tokenizers of these fingerprints."""
        for what, mine, given in (
            ("text", self.config.text_tokenizer, text),
            ("image", self.config.image_tokenizer, image),
        ):
            if mine != given:
                raise ValueError(
                    f"the scorer was trained with another {what} tokenizer ({mine}, this one is {given}): "
                    "train one for this model with python -m train.scorer"
                )

    @torch.inference_mode()
    def score(self, texts: Sequence[Sequence[int]], codes: Tensor) -> Tensor:
        """Cosine similarity of each image with its text, [N].

        Args:
            texts: ids of the text tokenizer, from 0, of N texts, or of one text for all images.
            codes: [N, h, w].

        Raises:
            ValueError: the number of texts does not fit, a text is empty, or the images have another grid.
        """
        if len(texts) not in (1, len(codes)):
            raise ValueError(f"{len(texts)} texts and {len(codes)} images to score: give one text, or as many")
        return (self.encode_texts(texts) * self.encode_codes(codes)).sum(-1)

    def encode_texts(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Encode N texts, [N, P]. Raises as `score`."""
        ids, real = (array.to(self.places.device) for array in padded(texts, self.config.max_text))
        x = self.widen_text(self.embed_text(ids)) + self.places[: ids.shape[1]]  # [N, T, D]
        return self.text_tower(x, real)

    def encode_codes(self, codes: Tensor) -> Tensor:
        """Encode images, [N, h, w] -> [N, P]. Raises as `score`."""
        return self.encode_patches(self.patches(codes))

    def patches(self, codes: Tensor) -> Tensor:
        """The inputs of the image tower, [N, h, w] -> [N, L, D], one for each patch, in any order."""
        if tuple(codes.shape[1:]) != self.config.image_grid:
            raise ValueError(f"images of {tuple(codes.shape[1:])} codes: the scorer's have {self.config.image_grid}")
        side = self.config.merge
        x = self.embed_codes(codes.to(self.places.device))  # [N, h, w, E]
        x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)  # [N, h/s, w/s, s, s, E]
        return (self.widen_codes(x.flatten(3)) + self.rows + self.columns).flatten(1, 2)

    def encode_patches(self, x: Tensor) -> Tensor:  # [N, L, D] -> [N, P]
        """Encode patches."""
        return self.image_tower(x, torch.ones(1, 1, dtype=torch.bool, device=x.device))

    def scale(self) -> Tensor:
        """The factor of the similarities in the loss, a scalar tensor."""
        return self.log_scale.exp().clamp(max=MAX_SCALE)
