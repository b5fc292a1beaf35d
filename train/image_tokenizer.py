"""Train an image tokenizer on webdataset shards of drawings (RGBA), or on a folder of pictures.

    python -m train.image_tokenizer --config train/configs/image_tokenizer_emoji.toml --out runs/image_tokenizer

OUT receives config.json, log.jsonl, samples-*.png, checkpoint.pt (to resume: run the same command again) and model/,
which `ImageTokenizer.from_pretrained` reads.
"""

import json
import math
import time
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import torch
import typer
from PIL import Image, ImageOps
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from tokenizer_image import PRESETS, ImageTokenizer, VQModel
from tokenizer_image.pixels import open_image, to_pil
from train import config as configs
from train.precision import autocast
from train.views import PLAIN, Augmentation, place, read_folder, read_split


@dataclass(frozen=True)
class Config:
    """One run.

    Attributes:
        data: folder of the data set, with train/ and the split to evaluate on; or of pictures, every twentieth of
            which is then held out.
        evaluate_on: the split whose PSNR is logged.
        preset: key of tokenizer_image.PRESETS.
        start: folder or name of a tokenizer to start from; empty = from nothing.
        decoder_only: leave encoder and codebook as they are, so that shards and models keep their codes.
        steps: optimiser steps.
        batch_size: pictures a step.
        lr: peak of AdamW's rate; linear warm-up, then half a cosine to 0.
        warmup: steps of warm-up.
        betas: of AdamW.
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        l1: weight of the absolute error.
        l2: weight of the squared error.
        ema: decay of the averaged weights that are evaluated and saved.
        restart_every: steps between looks for dead codes; none in the last fifth of the run.
        precision: "fp32", "bf16" or "auto": bf16 where the device computes it fast.
        seed: of everything random.
        log_every: steps between log lines.
        evaluate_every: steps between evaluations, samples and checkpoints.
        white: share of white grounds among the views.
        scale: smallest scale of a view.
        shift: largest shift of a view, in pixels.
        mirror: share of mirrored views.
    """

    data: str = "data/emoji"
    evaluate_on: str = "unseen_cell"
    preset: str = "emoji-64"
    start: str = ""
    decoder_only: bool = False
    steps: int = 6000
    batch_size: int = 32
    lr: float = 1.5e-3
    warmup: int = 200
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip: float = 1.0
    l1: float = 1.0
    l2: float = 1.0
    ema: float = 0.998
    restart_every: int = 10
    precision: str = "auto"
    seed: int = 0
    log_every: int = 20
    evaluate_every: int = 500
    white: float = 0.6
    scale: float = 0.85
    shift: int = 2
    mirror: float = 0.5


def learning_rate(step: int, config: Config) -> float:
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def to_pixels(pictures: list[np.ndarray]) -> Tensor:
    """Pictures [H, W, 3] uint8 -> [B, 3, H, W] float in [-1, 1], channels last."""
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return batch.contiguous(memory_format=torch.channels_last)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB. Args: [B, 3, H, W] in [-1, 1]. Returns: [B]."""
    return 10 * torch.log10(4 / (a - b).square().mean((1, 2, 3)).clamp_min(1e-10))


@torch.inference_mode()
def evaluate(model: VQModel, pictures: Tensor) -> tuple[dict[str, float], Tensor]:
    """Mean PSNR and the share of codes in use; reconstructions [N, 3, H, W]."""
    outs, codes = [], []
    for batch in pictures.split(64):
        codes.append(model.encode(batch))
        outs.append(model.decode(codes[-1]))
    out = torch.cat(outs)
    used = torch.cat(codes).unique().numel() / model.config.n_embed
    return {"psnr": psnr(out, pictures).mean().item(), "code_use": used}, out


def sample_sheet(pictures: Tensor, out: Tensor, count: int = 48, columns: int = 16) -> Image.Image:
    """Rows of pictures, each above its reconstruction."""
    rows = []
    for i in range(0, min(count, len(pictures)), columns):
        rows += [torch.cat(list(pictures[i : i + columns]), 2), torch.cat(list(out[i : i + columns]), 2)]
    return to_pil(torch.cat([row for row in rows if row.shape == rows[0].shape], 1))


def read_drawings(config: Config) -> tuple[list[Image.Image], list[Image.Image]]:
    """The drawings to train on and those to evaluate on, in RGBa. Raises ValueError where there are too few."""
    folder = Path(config.data)
    if (folder / "train").is_dir():
        held = [drawing for _, drawing, _ in read_split(folder / config.evaluate_on)]
        return [drawing for _, drawing, _ in read_split(folder / "train")], held
    side = 2 * PRESETS[config.preset].resolution
    squares = (ImageOps.fit(open_image(path), (side, side)) for path, _ in read_folder(folder))
    drawings = [square.convert("RGBA").convert("RGBa") for square in squares]
    if len(drawings) < 2:
        raise ValueError(f"{folder} has {len(drawings)} pictures: give a data set or a folder with at least two")
    return [d for i, d in enumerate(drawings) if i % 20], drawings[::20]


def starting_model(config: Config) -> VQModel:
    """The model before the first step, with what is to be trained asking for gradients."""
    model = ImageTokenizer.from_pretrained(config.start).model if config.start else VQModel(PRESETS[config.preset])
    model.train().requires_grad_(True)
    if config.decoder_only:
        for frozen in (model.encoder, model.quant_conv, model.quantize):
            frozen.requires_grad_(False)
    return model


def train(config: Config, out: Path) -> ImageTokenizer:
    """The whole run; continues from OUT/checkpoint.pt where there is one."""
    if config.preset not in PRESETS:
        raise ValueError(f"preset {config.preset!r}: choose one of {', '.join(PRESETS)}")
    out.mkdir(parents=True, exist_ok=True)
    configs.save(config, out / "config.json")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    model = starting_model(config).to(device)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema)
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), config.lr, config.betas, weight_decay=config.weight_decay, fused=True
    )
    size = model.config.resolution
    views = Augmentation(config.white, config.scale, config.shift, config.mirror)

    drawings, held_out = read_drawings(config)
    held = to_pixels([place(drawing, PLAIN, size) for drawing in held_out])
    held = held.to(device)

    first = 0
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        model.quantize.usage.copy_(state["usage"])
        generator.set_state(state["generator"])
        rng.bit_generator.state = json.loads(state["rng"])
        first = state["step"]

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, (out / "log.jsonl").open("a") as log:
        bar = progress.add_task("image tokenizer", total=config.steps, completed=first)
        clock, moved = time.perf_counter(), 0
        for step in range(first, config.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config)
            picks = rng.integers(len(drawings), size=config.batch_size)
            pixels = to_pixels([place(drawings[i], views.sample(rng, size), size) for i in picks]).to(device)
            with autocast(config.precision, device):
                result = model(pixels)
            error = result.pixels.float() - pixels
            reconstruction = config.l1 * error.abs().mean() + config.l2 * error.square().mean()
            loss = reconstruction + result.loss
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            if not torch.isfinite(norm):
                raise ValueError(f"the gradient is {norm.item()} at step {step}: lower lr (now {config.lr})")
            optimizer.step()
            optimizer.zero_grad()
            model.quantize.count(result.codes)
            if step % config.restart_every == 0 and step < 0.8 * config.steps and not config.decoder_only:
                moved += model.quantize.restart_dead(result.latents, generator)
            average.update_parameters(model)
            progress.update(bar, completed=step + 1)
            if (step + 1) % config.log_every == 0:
                seconds, clock = time.perf_counter() - clock, time.perf_counter()
                row = {"step": step + 1, "loss": loss.item(), "psnr": psnr(result.pixels.float(), pixels).mean().item(),
                       "quantizer": result.loss.item(), "restarted": moved, "gradient": norm.item(),
                       "images_per_second": config.log_every * config.batch_size / seconds}  # fmt: skip
                moved = 0
                log.write(json.dumps(row) + "\n")
                log.flush()
                progress.update(bar, description=f"psnr {row['psnr']:.2f} dB, {row['images_per_second']:.0f} images/s")
            if (step + 1) % config.evaluate_every == 0 or step + 1 == config.steps:
                shadow = cast(VQModel, average.module)
                figures, reconstructed = evaluate(shadow, held)
                log.write(json.dumps({"step": step + 1, "split": config.evaluate_on, **figures}) + "\n")
                log.flush()
                progress.console.print(f"step {step + 1}: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items()))
                sample_sheet(held, reconstructed).save(out / f"samples-{step + 1:06d}.png")
                state = {
                    "model": model.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "usage": model.quantize.usage,
                    "generator": generator.get_state(),
                    "rng": json.dumps(rng.bit_generator.state),
                    "step": step + 1,
                }
                torch.save(state, checkpoint.with_suffix(".part"))
                checkpoint.with_suffix(".part").replace(checkpoint)
                # Halves, so that whoever loads the model later computes the very codes that the shards hold.
                ImageTokenizer(deepcopy(shadow)).save_pretrained(out / "model", torch.float16)
                clock = time.perf_counter()
    return ImageTokenizer.from_pretrained(out / "model")


def main(
    out: Annotated[Path, typer.Option(help="folder of the run")] = Path("runs/image_tokenizer"),
    config: Annotated[Path | None, typer.Option(help="TOML file")] = None,
    data: Annotated[str | None, typer.Option(help="folder of the data set")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value")] = None,
) -> None:
    try:
        settings = configs.load(Config, config, overrides)
        train(replace(settings, data=data) if data else settings, out)
    except (OSError, ValueError) as error:
        raise SystemExit(f"image_tokenizer: {error}") from None


if __name__ == "__main__":
    typer.run(main)
