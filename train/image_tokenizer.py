"""Train an image tokenizer on a folder of pictures, or on webdataset shards.

    python -m train.image_tokenizer --data my_pictures --out runs/mine_vq
    torchrun --nproc_per_node 8 -m train.image_tokenizer --config train/configs/image_tokenizer_f16.toml --data photos

OUT receives config.json, log.jsonl, curves.png, samples-*.png, checkpoints/ (to resume: run the same command again)
and model/, which `ImageTokenizer.from_pretrained` reads. Losses: absolute and squared error; distance of frozen
features; a patch discriminator (VQGAN, Esser et al. 2021, section 3.1); alignment or a JEPA objective for codes that
carry meaning.
"""

import itertools
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
from accelerate import Accelerator
from torch import Tensor, nn

from tokenizer_image import PRESETS, ImageTokenizer, VQConfig, VQModel
from tokenizer_image.quantizer import rotation_trick, straight_through
from train.images.features import Features, perceptual
from train.images.loader import ImageLoader
from train.images.metrics import psnr
from train.images.views import Augmentation
from train.runtime import config as configs
from train.runtime.checkpoint_state import ModelAndOptimizers
from train.runtime.checkpoints import Checkpoints
from train.runtime.curves import draw_curves
from train.runtime.optim import lr_factor
from train.runtime.precision import autocast
from train.runtime.run import open_run
from train.runtime.runlog import RunLog
from train.runtime.seeds import generator
from train.vq.auxiliary_losses import hide_blocks
from train.vq.codebook import baked, entropy_loss, freeze_codes, use_simvq
from train.vq.discriminator import LeCam, PatchDiscriminator, balance, gradient_penalty, hinge
from train.vq.learner import VQLearner, VQLosses, evaluate, sample_sheet


@dataclass(frozen=True)
class ImageTokenizerConfig:
    """One run.

    Attributes:
        data: folder of pictures, every twentieth of which is held out; or of a data set of shards, with train/ and the
            split to evaluate on.
        evaluate_on: the split whose PSNR is logged.
        evaluate_at_most: pictures of it.
        preset: key of tokenizer_image.PRESETS.
        model: fields of VQConfig that replace the preset's.
        start: folder or name of a tokenizer to start from; empty = from nothing.
        decoder_only: leave encoder and codebook as they are, so that shards and models keep their codes.
        steps: optimiser steps.
        batch_size: pictures a step on each device.
        lr: peak of AdamW's rate; linear warm-up, then half a cosine to 0.
        warmup: steps of warm-up.
        betas: of AdamW.
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        ema: decay of the averaged weights that are evaluated and saved, and that teach the JEPA objective.
        l1: weight of the absolute error.
        l2: weight of the squared error.
        perceptual: weight of the distance of frozen features.
        perceptual_features: "lite0", "lpips" or "timm:NAME".
        restart_every: steps between looks for dead codes, none in the last fifth of the run; 0 = never.
        estimator: how gradients pass the quantiser: "straight" or "rotation".
        simvq: train one linear map of a fixed codebook in place of the codes; needs restart_every = 0.
        entropy: weight of the entropy loss over the choice of codes.
        adversarial: weight of the discriminator's verdict, in units of the reconstruction's gradient; 0 = none.
        adversarial_from: step at which it begins to count.
        adversarial_warmup: steps over which it grows to its weight; the discriminator trains as long before it counts.
        discriminator_ch: channels of its first convolution.
        discriminator_layers: strided convolutions; 2 for 64 pixels, 3 for 256.
        discriminator_lr: rate of its Adam.
        r1: weight of the gradient penalty, taken every 16th step; 0 = none.
        lecam: weight of the LeCam regulariser; 0 = none.
        align: weight of the alignment to frozen features, in units of the reconstruction's gradient; 0 = none.
        align_features: "lite0" or "timm:NAME".
        align_side: shorter side that pictures are scaled up to before the features are taken.
        jepa: weight of the JEPA objective, likewise; 0 = none.
        jepa_share: share of each batch that it is computed on.
        jepa_hidden: share of each picture that is hidden.
        balance_every: steps between measurements of those units.
        least_codes: stop as collapsed where a smaller share of the codes is in use.
        most_loss: stop as collapsed where the PSNR falls so many dB below its best.
        precision: "fp32", "bf16" or "auto": bf16 where the device computes it fast.
        compile: torch.compile encoder and decoder.
        seed: of everything random.
        workers: threads that read pictures.
        log_every: steps between log lines.
        evaluate_every: steps between evaluations, samples and checkpoints.
        white: share of white grounds under pictures with transparency.
        scale: smallest scale of those.
        shift: largest shift of those, in pixels of a 64-pixel picture.
        crop: smallest share of the area of an opaque picture that a crop shows.
        mirror: share of mirrored pictures; 0 where they hold text.
        aspects: shapes of the crops, such as ["1:1", "3:2", "2:3"]; each picture is cropped to the nearest.
    """

    data: str = "data/emoji"
    evaluate_on: str = "unseen_cell"
    evaluate_at_most: int = 2000
    preset: str = "emoji-64"
    model: dict[str, Any] = field(default_factory=dict)
    start: str = ""
    decoder_only: bool = False
    steps: int = 6000
    batch_size: int = 32
    lr: float = 1.5e-3
    warmup: int = 200
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.998
    l1: float = 1.0
    l2: float = 1.0
    perceptual: float = 0.0
    perceptual_features: str = "lite0"
    restart_every: int = 10
    estimator: str = "straight"
    simvq: bool = False
    entropy: float = 0.0
    adversarial: float = 0.0
    adversarial_from: int = 2000
    adversarial_warmup: int = 500
    discriminator_ch: int = 64
    discriminator_layers: int = 3
    discriminator_lr: float = 2e-4
    r1: float = 1.0
    lecam: float = 0.001
    align: float = 0.0
    align_features: str = "lite0"
    align_side: int = 96
    jepa: float = 0.0
    jepa_share: float = 0.5
    jepa_hidden: float = 0.5
    balance_every: int = 10
    least_codes: float = 0.01
    most_loss: float = 6.0
    precision: str = "auto"
    compile: bool = False
    seed: int = 0
    workers: int = 1
    log_every: int = 20
    evaluate_every: int = 500
    white: float = 0.6
    scale: float = 0.85
    shift: int = 2
    crop: float = 0.6
    mirror: float = 0.5
    aspects: tuple[str, ...] = ("1:1",)

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r}: choose one of {', '.join(PRESETS)}")
        if self.estimator not in ("straight", "rotation"):
            raise ValueError(f"estimator {self.estimator!r}: choose straight or rotation")
        if self.simvq and (self.restart_every or self.start):
            raise ValueError("simvq moves all codes by one matrix: it needs restart_every=0 and no start")
        if self.decoder_only and (self.align or self.jepa or self.entropy):
            raise ValueError("align, jepa and entropy change the codes, which decoder_only keeps: set them to 0")
        if self.decoder_only and not self.start:
            raise ValueError("decoder_only needs a tokenizer to start from: set start")


def adversarial_share(step: int, config: ImageTokenizerConfig) -> float:
    """0 before `adversarial_from`, then a line up to 1."""
    return min(1.0, max(0.0, (step - config.adversarial_from) / max(1, config.adversarial_warmup)))


def starting_model(config: ImageTokenizerConfig) -> VQModel:
    """The model before the first step, with what is to be trained asking for gradients."""
    shape = VQConfig.from_dict({**vars(PRESETS[config.preset]), **config.model})
    model = ImageTokenizer.from_pretrained(config.start).model if config.start else VQModel(shape)
    model.train().requires_grad_(True)
    model.quantize.estimator = rotation_trick if config.estimator == "rotation" else straight_through
    if config.simvq:
        use_simvq(model.quantize)
    if config.decoder_only:
        freeze_codes(model)
    return model


def train(config: ImageTokenizerConfig, out: Path) -> ImageTokenizer:
    """The whole run; goes on from the newest checkpoint in OUT where there is one."""
    with open_run(out) as accelerator:
        return train_opened(config, out, accelerator)


def train_opened(config: ImageTokenizerConfig, out: Path, accelerator: Accelerator) -> ImageTokenizer:
    """What `train` does in a run that is open."""
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    features = Features(config.align_features, config.align_side, last=2).to(device) if config.align else None
    distance = perceptual(config.perceptual_features) if config.perceptual else None
    if isinstance(distance, nn.Module):
        distance.to(device)
    torch.manual_seed(config.seed)
    vq = starting_model(config).to(device)
    vq.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    shape = vq.config
    source = ImageLoader(
        config.data,
        shape.resolution,
        multiple=shape.downsampling,
        aspects=config.aspects,
        crop=(config.crop, 1.0),
        views=Augmentation(config.white, config.scale, config.shift, config.mirror),
        evaluate_on=config.evaluate_on,
        seed=config.seed,
    )
    held = source.held_out_images(config.evaluate_at_most)  # [N, 3, H, W]

    learner = VQLearner(vq, features.channels if features else (), config.jepa > 0).to(device)
    moving = torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema)
    average = torch.optim.swa_utils.AveragedModel(vq, multi_avg_fn=moving)
    teacher = cast(VQModel, average.module)
    trained = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, config.lr, config.betas, weight_decay=config.weight_decay, fused=True)
    judge = PatchDiscriminator(config.discriminator_ch, config.discriminator_layers).to(device)
    judge_optimizer = torch.optim.Adam(judge.parameters(), config.discriminator_lr, (0.5, 0.9))
    lecam = LeCam().to(device)
    run: dict[str, Any] = {"balances": {}, "seconds": 0.0, "best": 0.0, "usage": vq.quantize.usage}
    parts = {
        "learner": ModelAndOptimizers(learner, [optimizer]),
        "judge": ModelAndOptimizers(judge, [judge_optimizer]),
        "average": average,
        "lecam": lecam,
        "run": run,
    }
    checkpoints = Checkpoints(out / "checkpoints")
    first = checkpoints.load(parts) or 0
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        configs.save(config, out / "config.json")
    run = parts["run"]
    balances: dict[str, float] = run["balances"]
    model, critic = accelerator.prepare(learner, judge) if world > 1 else (learner, judge)
    if config.compile:
        vq.encoder.compile()
        vq.decoder.compile()

    main_process = accelerator.is_main_process
    with RunLog("image tokenizer", out, first, config.steps, accelerator) as log, checkpoints:
        clock, moved = time.perf_counter(), 0
        batches = source.batches(first, config.batch_size, rank, world, config.workers)
        for step, pixels in itertools.islice(batches, config.steps - first):
            pixels = pixels.to(device)
            for group in optimizer.param_groups:
                group["lr"] = config.lr * lr_factor(step, config.steps, "cosine", config.warmup)
            maps = masked = taught = None
            with autocast(config.precision, device), torch.no_grad():
                if features is not None:
                    maps = features(pixels)
                if config.jepa:
                    some = pixels[: max(1, round(config.jepa_share * len(pixels)))]
                    grid = (some.shape[2] // shape.downsampling, some.shape[3] // shape.downsampling)
                    masked = hide_blocks(some, grid, generator(config.seed, step, rank), config.jepa_hidden)
                    taught = teacher.encoder(some)
            # 1. The tokenizer.
            with autocast(config.precision, device):
                result: VQLosses = model(pixels, maps, masked, taught)
                error = result.pixels.float() - pixels
                losses = {"l1": error.abs().mean(), "l2": error.square().mean()}
                if distance is not None:
                    losses["perceptual"] = distance(result.pixels, pixels)
                reconstruction = torch.stack([getattr(config, name) * value for name, value in losses.items()]).sum()
                if config.align:
                    losses["align"] = result.align
                if config.jepa:
                    losses["jepa"] = result.jepa
                if counts := config.adversarial > 0 and step >= config.adversarial_from:
                    judge.requires_grad_(False)
                    losses["adversarial"] = -judge(result.pixels).float().mean()
                    judge.requires_grad_(True)
            if step % config.balance_every == 0 or (counts and step == config.adversarial_from):
                for name in losses.keys() & {"adversarial", "align", "jepa"}:
                    half = vq.decoder if name == "adversarial" else vq.encoder
                    measured = balance(reconstruction, losses[name], half.conv_out.weight)
                    measured = float(cast(Tensor, accelerator.reduce(measured, "mean")))
                    before = balances.get(name, measured)
                    balances[name] = before + 0.2 * (measured - before)
            loss = reconstruction + result.quantizer
            for name in ("align", "jepa", "adversarial"):
                if name in losses:
                    ramp = adversarial_share(step, config) if name == "adversarial" else 1.0
                    loss = loss + getattr(config, name) * ramp * balances[name] * losses[name]
            if config.entropy:
                losses["entropy"] = entropy_loss(vq.quantize, result.latents)
                loss = loss + config.entropy * losses["entropy"]
            accelerator.backward(loss)
            norm = torch.nn.utils.clip_grad_norm_(trained, config.clip)
            if not torch.isfinite(norm):
                raise ValueError(
                    f"the gradient is {norm.item()} at step {step}: lower lr (now {config.lr})"
                    + (f", or adversarial (now {config.adversarial})" if counts else "")
                )
            optimizer.step()
            optimizer.zero_grad()
            # 2. The discriminator.
            if config.adversarial and step >= config.adversarial_from - config.adversarial_warmup:
                penalised = config.r1 > 0 and step % 16 == 0
                real = pixels.detach().requires_grad_(penalised)
                with autocast(config.precision, device):
                    on_real, on_fake = critic(torch.cat([real, result.pixels.detach().float()])).float().chunk(2)
                losses["discriminator"] = hinge(on_real, on_fake)
                against = losses["discriminator"] + config.lecam * lecam(on_real, on_fake)
                if penalised:
                    against = against + 16 * config.r1 * gradient_penalty(on_real, real)
                accelerator.backward(against)
                judge_optimizer.step()
                judge_optimizer.zero_grad()
            # 3. The codebook.
            vq.quantize.count(cast(Tensor, accelerator.gather(result.codes)))
            if (
                config.restart_every
                and step % config.restart_every == 0
                and step < 0.8 * config.steps
                and not config.decoder_only
            ):
                latents = cast(Tensor, accelerator.gather(result.latents.detach().contiguous()))
                moved += vq.quantize.restart_dead(latents, generator(config.seed, step, 0))
            average.update_parameters(vq)

            log.show(step + 1)
            if (step + 1) % config.log_every == 0:
                took, clock = time.perf_counter() - clock, time.perf_counter()
                run["seconds"] += took
                usage = vq.quantize.usage / vq.quantize.usage.sum()
                alive = (usage > 0.1 / len(usage)).float().mean().item()
                speed = config.log_every * len(pixels) * world / took
                row = {
                    "step": step + 1,
                    "loss": loss.item(),
                    "psnr": psnr(result.pixels.float(), pixels).mean().item(),
                    "quantizer": result.quantizer.item(),
                    **{name: value.item() for name, value in losses.items()},
                    "codebook_usage": alive,
                    "perplexity": torch.special.entr(usage).sum().exp().item(),
                    "restarted_codes": moved,
                    "grad_norm": norm.item(),
                    "skipped_files": len(source.skipped),
                    "images_per_second": speed,
                    "seconds": run["seconds"],
                }
                moved = 0
                log.write(row)
                log.show(step + 1, f"psnr {row['psnr']:.2f} dB, {row['images_per_second']:.0f} images/s")
                if alive < config.least_codes and step > config.warmup + 500:
                    raise ValueError(
                        f"the codebook has collapsed at step {step}: {alive:.1%} of {len(usage)} codes are in use; set "
                        "restart_every (10), model.normalize with a small model.embed_dim (8), or simvq"
                    )
            if (step + 1) % config.evaluate_every == 0 or step + 1 == config.steps:
                run["seconds"] += time.perf_counter() - clock
                if main_process:
                    figures, reconstructed = evaluate(teacher.eval(), held)
                    teacher.train()
                    log.write({"step": step + 1, "split": config.evaluate_on, **figures, "seconds": run["seconds"]})
                    log.say(f"step {step + 1}: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items()))
                    if figures["psnr"] < run["best"] - config.most_loss:
                        raise ValueError(
                            f"the reconstruction has collapsed at step {step}: {figures['psnr']:.1f} dB after "
                            f"{run['best']:.1f}; lower lr (now {config.lr}) or adversarial (now {config.adversarial}), "
                            "or let that begin later"
                        )
                    run["best"] = max(run["best"], figures["psnr"])
                    sample_sheet(held, reconstructed).save(out / f"samples-{step + 1:06d}.png")
                    draw_curves(out / "log.jsonl", out / "curves.png")
                    saved = baked(teacher, vq if config.decoder_only else None)
                    # Halves, so that whoever loads the model later computes the very codes that the shards hold.
                    ImageTokenizer(saved).save_pretrained(out / "model", torch.float16)
                checkpoints.save(step + 1, parts)
                accelerator.wait_for_everyone()
                clock = time.perf_counter()
        if main_process and source.skipped:
            log.write({"step": config.steps, "skipped": {str(path): reason for path, reason in source.skipped.items()}})
            log.say(f"{len(source.skipped)} files were left out; log.jsonl names each with its reason")
    return ImageTokenizer.from_pretrained(out / "model")


def main(
    out: Annotated[Path, typer.Option(help="folder of the run")] = Path("runs/image_tokenizer"),
    config: Annotated[Path | None, typer.Option(help="TOML file")] = None,
    data: Annotated[str | None, typer.Option(help="folder of pictures or of a data set")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value")] = None,
) -> None:
    try:
        settings = configs.load(ImageTokenizerConfig, config, overrides)
        train(replace(settings, data=data) if data else settings, out)
    except (OSError, ValueError) as error:
        raise SystemExit(f"image_tokenizer: {error}") from None


if __name__ == "__main__":
    typer.run(main)
