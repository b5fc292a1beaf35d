"""Evaluate image tokenizers, and WebP and JPEG with the same number of bytes, on emoji and on photographs.

    python -m train.evaluate tokenizer emoji FOLDER... --data data/emoji --out runs/tokenizers

OUT receives tokenizers.json, tokenizers.md (the tables) and images.png. The photographs are part of the packages of
scikit-image and scikit-learn; nothing is downloaded. Images are compared at the tokenizer's own resolution, in 8 bits;
drawings have a white background.
"""

import json
import math
import time
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from rich.progress import track
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from tokenizer_image import ImageTokenizer
from tokenizer_image.pixels import open_image, to_tensor
from train.evaluation.judge import Judge
from train.evaluation.options import DATA, Data, Out, Sample
from train.images.codecs import compress
from train.images.codes import decode
from train.images.metrics import frechet, psnr
from train.images.samples import read_split
from train.images.sheet import contact_sheet
from train.images.views import PLAIN, place

SPLITS = ("train", "held_out_pairs", "held_out_concepts")
PHOTOGRAPHS = "photographs"
CODECS = ("WebP", "JPEG")
FILES = {
    "skimage.data": (
        "astronaut.png",
        "camera.png",
        "chelsea.png",
        "coffee.png",
        "coins.png",
        "motorcycle_left.png",
        "rocket.jpg",
    ),
    "sklearn.datasets.images": ("china.jpg", "flower.jpg"),
}
SHOWN = {"held_out_pairs": 4, "held_out_concepts": 4, PHOTOGRAPHS: 6}  # images on the sheet


@dataclass(frozen=True)
class Figures:
    """Results of a tokenizer or codec on a set of images.

    Attributes:
        images: number of images.
        psnr: in dB, mean over the images.
        ssim: mean over the images.
        lite0: mean cosine distance between the EfficientNet-lite0 features of image and reconstruction.
        frechet: lite0 Frechet distance between the two sets; depends on the number of images. It is not FID.
        bits_per_pixel: of the codes, each with log2(K) bits, or of the file.
        entropy_bits_per_pixel: of the codes with an entropy code for their frequencies in the training sample.
        codebook_usage: share of the codes that occur.
    """

    images: int
    psnr: float
    ssim: float
    lite0: float
    frechet: float
    bits_per_pixel: float
    entropy_bits_per_pixel: float | None = None
    codebook_usage: float | None = None


def read_drawings(folder: Path, sample: int) -> list[Image.Image]:
    """Return at most `sample` drawings of a split, in RGBa. The same ones are chosen each time."""
    drawings = [drawing for _, drawing, _ in read_split(folder)]
    picks = np.random.default_rng(0).permutation(len(drawings))[:sample]
    return [drawings[i] for i in sorted(picks)]


def photographs(size: int) -> list[Image.Image]:
    """Return crops of each photograph, scaled to size x size: its centre, and nine squares of half its shorter side.

    Raises:
        ValueError: scikit-image or scikit-learn is not installed.
    """
    crops = []
    for package, names in FILES.items():
        try:
            folder = resources.files(package)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"the photographs are part of scikit-image and scikit-learn ({error}): "
                "pip install scikit-image scikit-learn"
            ) from error
        for name in names:
            photograph = open_image(folder.joinpath(name).read_bytes())
            width, height = photograph.size
            side = min(width, height)
            boxes = [((width - side) // 2, (height - side) // 2, side)]
            half = side // 2
            boxes += [((width - half) * i // 2, (height - half) * j // 2, half) for j in range(3) for i in range(3)]
            crops += [
                photograph.crop((x, y, x + s, y + s)).resize((size, size), Image.Resampling.LANCZOS)
                for x, y, s in boxes
            ]
    return crops


def compare(images: list[Image.Image], back: list[Image.Image], judge: Judge, features: Tensor) -> dict[str, float]:
    """Compare images with their reconstructions.

    Args:
        images: the originals.
        back: the reconstructions.
        judge: with lite0.
        features: lite0 features of the originals, [N, F].

    Returns:
        PSNR, SSIM, and the lite0 distances.
    """
    size = (images[0].height, images[0].width)
    x, y = (torch.stack([to_tensor(image, size) for image in some]) for some in (images, back))
    ssim = structural_similarity_index_measure(y, x, data_range=2.0)
    assert isinstance(ssim, Tensor)
    seen = judge.features(back)
    return {
        "psnr": psnr(y, x).mean().item(),
        "ssim": ssim.item(),
        "lite0": 1 - (seen * features).sum(1).mean().item(),
        "frechet": frechet(seen, features),
    }


def code_lengths(codes: Tensor, num_codes: int) -> Tensor:
    """Return the bits of each code, [K], with an entropy code for its frequency in `codes` plus one."""
    counts = torch.bincount(codes.flatten(), minlength=num_codes) + 1.0
    return -torch.log2(counts / counts.sum())


class TokenizerBench:
    """Sets of images with their features at each resolution, and the results of the codecs, which are kept."""

    def __init__(self, data: Path, sample: int):
        self.drawings = {split: read_drawings(data / split, sample) for split in SPLITS}
        self.judge = Judge()
        self._sets: dict[int, dict[str, list[Image.Image]]] = {}
        self._features: dict[int, dict[str, Tensor]] = {}
        self._squeezed: dict[tuple[int, float], dict[str, dict[str, Figures]]] = {}

    def sets(self, size: int) -> dict[str, list[Image.Image]]:
        """Return the sets of images at size x size pixels."""
        if size not in self._sets:
            placed = {
                split: [Image.fromarray(place(drawing, PLAIN, size)) for drawing in drawings]
                for split, drawings in self.drawings.items()
            }
            self._sets[size] = placed | {PHOTOGRAPHS: photographs(size)}
            self._features[size] = {name: self.judge.features(some) for name, some in self._sets[size].items()}
        return self._sets[size]

    def tokenizer(self, tokenizer: ImageTokenizer) -> dict[str, Figures]:
        """Measure a tokenizer on each set."""
        size, tokens = tokenizer.size[0], math.prod(tokenizer.grid)
        sets = self.sets(size)
        codes = {name: tokenizer.encode(images) for name, images in sets.items()}
        lengths = code_lengths(codes["train"], tokenizer.num_codes)
        out = {}
        for name, images in sets.items():
            same = compare(images, decode(tokenizer, codes[name]), self.judge, self._features[size][name])
            out[name] = Figures(
                len(images),
                **same,
                bits_per_pixel=tokens * math.log2(tokenizer.num_codes) / size**2,
                entropy_bits_per_pixel=lengths[codes[name]].mean().item() * tokens / size**2,
                codebook_usage=codes[name].unique().numel() / tokenizer.num_codes,
            )
        return out

    def codecs(self, size: int, budget: float) -> dict[str, dict[str, Figures]]:
        """Measure each codec on each set, with `budget` bytes for each image."""
        if (size, budget) not in self._squeezed:
            found: dict[str, dict[str, Figures]] = {codec: {} for codec in CODECS}
            for codec in CODECS:
                for name, images in self.sets(size).items():
                    back = [compress(image, codec, budget) for image in track(images, f"{codec}, {name}")]
                    same = compare(images, [one.image for one in back], self.judge, self._features[size][name])
                    bits = 8 * float(np.mean([one.size for one in back])) / size**2
                    found[codec][name] = Figures(len(images), **same, bits_per_pixel=bits)
            self._squeezed[size, budget] = found
        return self._squeezed[size, budget]


def budget(tokenizer: ImageTokenizer) -> float:
    """Return the bytes of an image's codes, each with log2(K) bits."""
    return math.prod(tokenizer.grid) * math.log2(tokenizer.num_codes) / 8


def sheet(bench: TokenizerBench, tokenizers: dict[str, ImageTokenizer]) -> Image.Image:
    """Draw a contact sheet: originals, reconstructions of each tokenizer, and WebP with as many bytes as each."""
    sides = sorted({tokenizer.size[0] for tokenizer in tokenizers.values()}, reverse=True)
    shown = {
        side: [image for name, count in SHOWN.items() for image in spread(bench.sets(side)[name], count)]
        for side in sides
    }
    labels, rows = ["original"], [shown[sides[0]]]
    for name, tokenizer in tokenizers.items():
        labels.append(f"{name}, {budget(tokenizer):.0f} bytes")
        rows.append(decode(tokenizer, tokenizer.encode(shown[tokenizer.size[0]])))
    for side, size in sorted({(tokenizer.size[0], budget(tokenizer)) for tokenizer in tokenizers.values()}):
        labels.append(f"WebP at {side} px, {size:.0f} bytes")
        rows.append([compress(image, "WebP", size).image for image in shown[side]])
    return contact_sheet(labels, rows, max(1, 128 // sides[0]))


def spread(images: list[Image.Image], count: int) -> list[Image.Image]:
    """Return `count` images, spread over all."""
    return images[:: max(1, len(images) // count)][:count]


def tokenizer_table(result: dict[str, Any]) -> str:
    """Return the result as Markdown, with a table for each set."""
    lines = []
    for name in next(iter(result["rows"]))["sets"]:
        count = result["rows"][0]["sets"][name]["images"]
        lines += [
            f"{name} ({count} images)",
            "",
            "| coder | bits per pixel | entropy-coded | PSNR | SSIM | lite0 distance | lite0 Fréchet | code use |",
            "|" + "---|" * 8,
        ]
        for row in result["rows"]:
            f = row["sets"][name]
            entropy = "" if f["entropy_bits_per_pixel"] is None else f"{f['entropy_bits_per_pixel']:.3f}"
            use = "" if f["codebook_usage"] is None else f"{f['codebook_usage']:.1%}"
            lines.append(
                f"| {row['coder']} | {f['bits_per_pixel']:.3f} | {entropy} | {f['psnr']:.2f} dB "
                f"| {f['ssim']:.3f} | {f['lite0']:.3f} | {f['frechet']:.3f} | {use} |"
            )
        lines.append("")
    return "\n".join(lines)


def evaluate(names: list[str], data: Path, out: Path, sample: int = 500) -> dict[str, Any]:
    """Measure all tokenizers and codecs, and write the results to OUT. Returns the content of tokenizers.json."""
    started = time.perf_counter()
    tokenizers = {name: ImageTokenizer.from_pretrained(name) for name in names}
    bench, rows = TokenizerBench(data, sample), []
    out.mkdir(parents=True, exist_ok=True)
    for name, tokenizer in tokenizers.items():
        rows.append({"coder": name, "sets": bench.tokenizer(tokenizer)})
    for side, size in sorted({(tokenizer.size[0], budget(tokenizer)) for tokenizer in tokenizers.values()}):
        for codec, sets in bench.codecs(side, size).items():
            rows.append({"coder": f"{codec}, {side} px, {size:.0f} bytes", "sets": sets})
    plain = [{"coder": row["coder"], "sets": {k: asdict(v) for k, v in row["sets"].items()}} for row in rows]
    result = {"sample": sample, "rows": plain, "seconds": round(time.perf_counter() - started, 1)}
    (out / "tokenizers.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / "tokenizers.md").write_text(tokenizer_table(result), encoding="utf-8")
    sheet(bench, tokenizers).save(out / "images.png")
    return result


def main(
    names: Annotated[list[str], typer.Argument(help="folders or names of image tokenizers")],
    data: Data = DATA,
    out: Out = Path("runs/tokenizers"),
    sample: Sample = 500,
) -> None:
    print(tokenizer_table(evaluate(names, data, out, sample)))
