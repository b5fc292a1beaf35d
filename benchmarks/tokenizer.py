"""Encoding and decoding of images, against transformers' ChameleonVQVAE (an encoder) and diffusers' VQModel.

    python -m benchmarks.tokenizer [--repeats 5] [--out benchmarks/results/tokenizer-NAME.json] [--smoke]

All three have the same shape and the same random weights, and run as their libraries create them, in eval() under
torch.inference_mode; ours as ImageTokenizer creates it (channels last). They take turns, so that other load on the
machine affects all of them; a ratio is the median over the turns. Peak memory is measured in a new process for each.
Prints tables, and one JSON line at the end. Needs diffusers.
"""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from torch import Tensor

from benchmarks.report import device_name, finish
from tokenizer_image import PRESETS, ImageTokenizer, VQConfig, VQModel
from tokenizer_image.convert import export_diffusers

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SMOKE = replace(PRESETS["cm3leon-f8"], resolution=32, ch=32, ch_mult=(1, 2), attn_resolutions=(16,), n_embed=64)


class Coder(NamedTuple):
    """One library's tokenizer: pixels [B, 3, H, W] to codes [B, h, w], and back if it can."""

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor] | None


def model(config: VQConfig) -> VQModel:
    """A model with random weights that use the whole codebook and keep the signal's size."""
    torch.manual_seed(0)
    vq = VQModel(config)
    for name, weight in vq.named_parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=1 if "embedding" in name else weight[0].numel() ** -0.5)
    return vq.eval().requires_grad_(False)


def ours(vq: VQModel, device: torch.device, dtype: torch.dtype) -> Coder:
    tokenizer = ImageTokenizer(vq).to(device, dtype)
    return Coder(tokenizer.model.encode, tokenizer.model.decode)


def transformers(vq: VQModel, device: torch.device, dtype: torch.dtype) -> Coder:
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

    c = vq.config
    peer: Any = ChameleonVQVAE(
        ChameleonVQVAEConfig(
            embed_dim=c.embed_dim,
            num_embeddings=c.n_embed,
            latent_channels=c.z_channels,
            resolution=c.resolution,
            base_channels=c.ch,
            channel_multiplier=list(c.ch_mult),
            num_res_blocks=c.num_res_blocks,
            attn_resolutions=list(c.attn_resolutions),
            double_latent=False,
        )
    )
    weights = {key: value for key, value in vq.state_dict().items() if not key.startswith("decoder.")}
    peer.load_state_dict(weights)
    peer = peer.eval().requires_grad_(False).to(device, dtype)
    f = c.downsampling
    return Coder(lambda x: peer.encode(x.to(dtype)).image_tokens.view(-1, x.shape[2] // f, x.shape[3] // f), None)


def diffusers(vq: VQModel, device: torch.device, dtype: torch.dtype) -> Coder:
    from diffusers.models.autoencoders.vq_model import VQModel as Peer

    with tempfile.TemporaryDirectory() as folder:
        export_diffusers(ImageTokenizer(vq), Path(folder) / "peer")
        peer: Any = Peer.from_pretrained(Path(folder) / "peer")
    peer = peer.eval().requires_grad_(False).to(device, dtype)
    f = vq.config.downsampling

    def encode(pixels: Tensor) -> Tensor:
        indices = peer.quantize(peer.encode(pixels.to(dtype)).latents)[2][2]
        return indices.view(-1, pixels.shape[2] // f, pixels.shape[3] // f)

    def decode(codes: Tensor) -> Tensor:
        latents = peer.quantize.get_codebook_entry(codes.flatten(), (*codes.shape, vq.config.embed_dim))
        return peer.decode(latents, force_not_quantize=True).sample.clamp(-1, 1)

    return Coder(encode, decode)


LIBRARIES = {"ours": ours, "transformers ChameleonVQVAE": transformers, "diffusers VQModel": diffusers}


def the_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def inputs(config: VQConfig, batch: int) -> tuple[Tensor, Tensor]:
    """Pixels [B, 3, H, W] in [-1, 1] and codes [B, h, w]."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(batch, 3, config.resolution, config.resolution, generator=generator) * 2 - 1
    codes = torch.randint(config.n_embed, (batch, *config.grid), generator=generator)
    return pixels.to(the_device()), codes.to(the_device())


@torch.inference_mode()
def peak_megabytes(library: str, config: VQConfig, job: str, batch: int, dtype: torch.dtype) -> float:
    """Memory that one call needs beyond the model and its inputs. Call it in a new process."""
    coder = LIBRARIES[library](model(config), the_device(), dtype)
    pixels, codes = inputs(config, batch)
    work = (lambda: coder.encode(pixels)) if job == "encode" else (lambda: coder.decode(codes))  # type: ignore[misc]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the memory in use
    before = _peak_kilobytes()
    work()
    return (_peak_kilobytes() - before) / 2**10


def _peak_kilobytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


@torch.inference_mode()
def compare(name: str, config: VQConfig, batch: int, precision: str, repeats: int, memory: bool) -> list[dict]:
    """A row for each job and library: images/s, ratio to ours, peak memory, agreement with ours in fp32."""
    dtype, device = DTYPES[precision], the_device()
    vq = model(config)
    coders = {
        library: make(vq if library != "ours" else model(config), device, dtype) for library, make in LIBRARIES.items()
    }
    exact = ours(model(config), device, torch.float32)
    pixels, codes = inputs(config, batch)
    right, drawn = exact.encode(pixels), (exact.decode or exact.encode)(codes)
    del exact
    same = {library: (coder.encode(pixels) == right).float().mean().item() for library, coder in coders.items()}
    off = {
        library: (coder.decode(codes).float() - drawn).abs().max().item()
        for library, coder in coders.items()
        if coder.decode
    }
    rows = []
    for job in ("encode", "decode"):
        works = {
            library: (coder.encode, pixels) if job == "encode" else (coder.decode, codes)
            for library, coder in coders.items()
        }
        works = {library: work for library, work in works.items() if work[0]}
        times: dict[str, list[float]] = {library: [] for library in works}
        for _ in range(repeats):  # the calls above were the warm-up
            for library, (run, what) in works.items():
                times[library].append(seconds(lambda run=run, what=what: run(what)))  # type: ignore[misc]
        for library in works:
            ratio = statistics.median(a / b for a, b in zip(times[library], times["ours"], strict=True))
            row = {
                "preset": name,
                "precision": precision,
                "batch": batch,
                "job": job,
                "library": library,
                "images_per_second": round(batch / statistics.median(times[library]), 3),
                "times_ours": round(ratio, 2),
                "codes_as_fp32" if job == "encode" else "largest_difference_to_fp32": float(
                    f"{same[library] if job == 'encode' else off[library]:.3g}"
                ),
            }
            if memory:
                with multiprocessing.get_context("spawn").Pool(1) as fresh:
                    row["peak_mb"] = round(fresh.apply(peak_megabytes, (library, config, job, batch, dtype)))
            rows.append(row)
    return rows


def main(
    repeats: Annotated[int, typer.Option(min=1, help="timed turns; half as many for a batch of 8")] = 5,
    presets: Annotated[str, typer.Option(help="of tokenizer_image.PRESETS")] = "cm3leon-f8,taming-f16-1024",
    precisions: Annotated[str, typer.Option(help="fp32, bf16")] = "fp32,bf16",
    batches: Annotated[str, typer.Option(help="images at a time")] = "1,8",
    memory: Annotated[bool, typer.Option(help="measure peak memory too")] = True,
    smoke: Annotated[bool, typer.Option(help="a tiny shape, to see that it runs")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file")] = None,
) -> None:
    shapes = {"smoke": SMOKE} if smoke else {name: PRESETS[name] for name in presets.split(",")}
    print(f"{device_name()}, torch {torch.__version__}")
    columns = (
        "preset",
        "precision",
        "batch",
        "job",
        "library",
        "images/s",
        "ours is faster by",
        "peak MB",
        "codes or pixels against fp32",
    )
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    rows: list[dict] = []
    for name, config in shapes.items():
        for precision in precisions.split(","):
            for batch in map(int, batches.split(",")):
                turns = repeats if batch < 8 else (repeats + 1) // 2
                for row in compare(name, config, batch, precision, turns, memory and not smoke):
                    rows.append(row)
                    against = row.get("codes_as_fp32", row.get("largest_difference_to_fp32"))
                    shown = [row[key] for key in ("preset", "precision", "batch", "job", "library")]
                    shown += [row["images_per_second"], row["times_ours"], row.get("peak_mb", ""), against]
                    print("| " + " | ".join(str(value) for value in shown) + " |", flush=True)
    finish("tokenizer", out, rows=rows)


if __name__ == "__main__":
    typer.run(main)
