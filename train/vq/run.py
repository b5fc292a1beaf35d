"""A training run of the image tokenizer: its data, model, losses, checkpoints and log."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
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
from train.runtime.curves import draw_curves
from train.runtime.optim import lr_factor
from train.runtime.precision import autocast
from train.runtime.run import checkpoints_of, open_run
from train.runtime.runlog import RunLog
from train.runtime.seeds import generator
from train.vq.adversarial import Adversary, adversarial_share
from train.vq.auxiliary_losses import mask_blocks
from train.vq.codebook import baked, entropy_loss, freeze_codes, use_simvq, with_codes_of
from train.vq.config import ImageTokenizerConfig
from train.vq.discriminator import balance
from train.vq.learner import VQLearner, VQLosses, evaluate, sample_sheet

ALIGN_SIZE = 96  # pixels: smaller images are scaled up before the features for alignment are computed
JEPA_FRACTION = 0.5  # share of a batch on which the JEPA loss is computed


def train(config: ImageTokenizerConfig, out: Path) -> ImageTokenizer:
    """Train, from the newest checkpoint in OUT where there is one.

    Args:
        config: of the run.
        out: folder of the run.

    Returns:
        The trained tokenizer.

    Raises:
        ValueError: bad data or settings; the codebook, the reconstruction or the gradient has collapsed.
        OSError: a checkpoint cannot be written.
    """
    with open_run(out, trackers=config.log.trackers) as accelerator:
        run = ImageTokenizerRun(config, out, accelerator)
        with RunLog("image tokenizer", out, run.first, config.steps, accelerator) as log, run.checkpoints:
            for step, pixels in run.batches():
                run.step(step, pixels.to(run.device))
                log.show(step + 1)
                last = step + 1 == config.steps
                if (step + 1) % config.log.every == 0:
                    run.report(step, log)
                if (step + 1) % config.eval.every == 0 or last:
                    run.evaluate(step, log)
                if (step + 1) % config.checkpoint.every == 0 or last:
                    run.checkpoints.save(step + 1, run.parts)
            run.log_skipped(log)
    return ImageTokenizer.from_pretrained(out / "model")


def starting_model(config: ImageTokenizerConfig) -> VQModel:
    """Return the model before the first step. The parameters that are trained require gradients."""
    shape = VQConfig.from_dict({**vars(PRESETS[config.preset]), **config.model})
    model = ImageTokenizer.from_pretrained(config.start).model if config.start else VQModel(shape)
    if config.new_decoder:
        model = with_codes_of(model, shape)
    model.train().requires_grad_(True)
    rotation = config.codebook.gradient_estimator == "rotation"
    model.quantize.estimator = rotation_trick if rotation else straight_through
    if config.codebook.simvq:
        use_simvq(model.quantize)
    if config.decoder_only:
        freeze_codes(model)
    return model


class ImageTokenizerRun:
    """Data, model, losses, optimizers and their state, from the newest checkpoint in OUT where there is one.

    Args:
        config: of the run.
        out: folder of the run.
        accelerator: its processes.

    Attributes:
        first: the step to start with.
        teacher: the averaged weights, which are evaluated and saved.
        parts: what a checkpoint holds.
    """

    def __init__(self, config: ImageTokenizerConfig, out: Path, accelerator: Accelerator):
        self.config, self.out, self.accelerator = config, out, accelerator
        self.device = accelerator.device
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self._open_losses()
        torch.manual_seed(config.seed)
        self.vq = starting_model(config).to(self.device)
        self.vq.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._open_data()
        self._open_model()
        self._restore()
        self.clock, self.restarted = time.perf_counter(), 0

    def _open_losses(self) -> None:
        config = self.config
        self.features = None
        if config.align.weight:
            self.features = Features(config.align.features, ALIGN_SIZE, last=2).to(self.device)
        self.distance = perceptual(config.loss.perceptual_features) if config.loss.perceptual else None
        if isinstance(self.distance, nn.Module):
            self.distance.to(self.device)

    def _open_data(self) -> None:
        config, shape, augment = self.config, self.vq.config, self.config.augment
        self.source = ImageLoader(
            config.data.folder,
            shape.resolution,
            multiple=shape.downsampling,
            aspects=config.data.aspect_ratios,
            crop=(augment.min_crop_area, 1.0),
            views=Augmentation(augment.white_background, augment.min_scale, augment.max_shift, augment.flip),
            evaluate_on=config.data.eval_split,
            seed=config.seed,
        )
        self.held_out = self.source.held_out_images(config.eval.images)  # [N, 3, H, W]

    def _open_model(self) -> None:
        config, optim = self.config, self.config.optim
        channels = self.features.channels if self.features else ()
        self.learner = VQLearner(self.vq, channels, config.jepa.weight > 0).to(self.device)
        moving = torch.optim.swa_utils.get_ema_multi_avg_fn(optim.ema_decay)
        self.average = torch.optim.swa_utils.AveragedModel(self.vq, multi_avg_fn=moving)
        self.teacher = cast(VQModel, self.average.module)
        self.trained = [p for p in self.learner.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, optim.lr, optim.betas, weight_decay=optim.weight_decay, fused=True
        )
        self.adversary = Adversary(config.gan, self.device)

    def _restore(self) -> None:
        config = self.config
        state: dict[str, Any] = {"balances": {}, "seconds": 0.0, "best": 0.0, "usage": self.vq.quantize.usage}
        self.parts: dict[str, Any] = {
            "learner": ModelAndOptimizers(self.learner, [self.optimizer]),
            "average": self.average,
            "run": state,
            **self.adversary.parts(),
        }
        self.checkpoints = checkpoints_of(self.out, config.checkpoint)
        self.first = self.checkpoints.load(self.parts) or 0
        if self.accelerator.is_main_process:
            self.out.mkdir(parents=True, exist_ok=True)
            configs.save(config, self.out / "config.json")
        self.state: dict[str, Any] = self.parts["run"]
        self.called: nn.Module = self.learner
        if self.world > 1:
            self.called, self.adversary.called = self.accelerator.prepare(self.learner, self.adversary.discriminator)
        if config.compile:
            self.vq.encoder.compile()
            self.vq.decoder.compile()

    def batches(self) -> Iterator[tuple[int, Tensor]]:
        """Return (step, images [B, 3, H, W]) of the remaining steps."""
        config = self.config
        batches = self.source.batches(self.first, config.batch_size, self.rank, self.world, config.data.workers)
        return itertools.islice(batches, config.steps - self.first)

    def step(self, step: int, pixels: Tensor) -> None:
        """Train the tokenizer, the discriminator and the codebook on images [B, 3, H, W].

        Raises:
            ValueError: the gradient is not finite.
        """
        self.pixels = pixels
        self._train_tokenizer(step, pixels)
        loss = self.adversary.step(step, pixels, self.result.pixels, self.accelerator, self.config.precision)
        if loss is not None:
            self.losses["discriminator"] = loss
        self._update_codebook(step)
        self.average.update_parameters(self.vq)

    def _train_tokenizer(self, step: int, pixels: Tensor) -> None:
        config, optim = self.config, self.config.optim
        for group in self.optimizer.param_groups:
            group["lr"] = optim.lr * lr_factor(step, config.steps, "cosine", optim.warmup_steps)
        reconstruction, losses = self._losses(step, pixels)
        self._measure_balances(step, reconstruction, losses)
        loss = reconstruction + self.result.quantizer
        weights = {
            "align": config.align.weight,
            "jepa": config.jepa.weight,
            "adversarial": config.gan.weight * adversarial_share(step, config.gan),
        }
        for name, weight in weights.items():
            if name in losses:
                loss = loss + weight * self.state["balances"][name] * losses[name]
        if config.loss.entropy:
            losses["entropy"] = entropy_loss(self.vq.quantize, self.result.latents)
            loss = loss + config.loss.entropy * losses["entropy"]
        self.accelerator.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self.trained, optim.grad_clip)
        if not torch.isfinite(norm):
            raise ValueError(
                f"the gradient is {norm.item()} at step {step}: lower optim.lr (now {optim.lr})"
                + (f", or gan.weight (now {config.gan.weight})" if self.adversary.counts(step) else "")
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loss, self.losses, self.grad_norm = loss.detach(), losses, norm

    def _losses(self, step: int, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the tokenizer. Return the weighted reconstruction loss, and each loss without its weight."""
        config = self.config
        maps = masked = taught = None
        with autocast(config.precision, self.device), torch.no_grad():
            if self.features is not None:
                maps = self.features(pixels)
            if config.jepa.weight:
                some = pixels[: max(1, round(JEPA_FRACTION * len(pixels)))]
                downsampling = self.vq.config.downsampling
                grid = (some.shape[2] // downsampling, some.shape[3] // downsampling)
                masked = mask_blocks(some, grid, generator(config.seed, step, self.rank), config.jepa.mask_fraction)
                taught = self.teacher.encoder(some)
        with autocast(config.precision, self.device):
            result: VQLosses = self.called(pixels, maps, masked, taught)
            error = result.pixels.float() - pixels
            losses = {"l1": error.abs().mean(), "l2": error.square().mean()}
            if self.distance is not None:
                losses["perceptual"] = self.distance(result.pixels, pixels)
            weighted = [getattr(config.loss, name) * value for name, value in losses.items()]
            reconstruction = torch.stack(weighted).sum()
            if config.align.weight:
                losses["align"] = result.align
            if config.jepa.weight:
                losses["jepa"] = result.jepa
            if self.adversary.counts(step):
                losses["adversarial"] = self.adversary.loss(result.pixels)
        self.result = result
        return reconstruction, losses

    def _measure_balances(self, step: int, reconstruction: Tensor, losses: dict[str, Tensor]) -> None:
        """Measure, now and then, how much stronger the reconstruction's gradient is than that of the other losses."""
        config, balances = self.config, self.state["balances"]
        first_adversarial = self.adversary.counts(step) and step == config.gan.start_step
        if step % config.loss.balance_every and not first_adversarial:
            return
        for name in ("align", "jepa", "adversarial"):
            if name in losses:
                half = self.vq.decoder if name == "adversarial" else self.vq.encoder
                measured = balance(reconstruction, losses[name], half.conv_out.weight)
                measured = float(cast(Tensor, self.accelerator.reduce(measured, "mean")))
                before = balances.get(name, measured)
                balances[name] = before + 0.2 * (measured - before)

    def _update_codebook(self, step: int) -> None:
        """Count the codes of all processes, and restart dead ones now and then."""
        config, quantizer = self.config, self.vq.quantize
        quantizer.count(cast(Tensor, self.accelerator.gather(self.result.codes)))
        every = config.codebook.restart_every
        if every and step % every == 0 and step < 0.8 * config.steps and not config.decoder_only:
            latents = cast(Tensor, self.accelerator.gather(self.result.latents.detach().contiguous()))
            self.restarted += quantizer.restart_dead(latents, generator(config.seed, step, 0))

    def report(self, step: int, log: RunLog) -> None:
        """Write a row of the log.

        Raises:
            ValueError: the codebook has collapsed.
        """
        config, pixels = self.config, self.pixels
        took, self.clock = time.perf_counter() - self.clock, time.perf_counter()
        self.state["seconds"] += took
        usage = self.vq.quantize.usage / self.vq.quantize.usage.sum()
        in_use = (usage > 0.1 / len(usage)).float().mean().item()
        row = {
            "step": step + 1,
            "loss": self.loss.item(),
            "psnr": psnr(self.result.pixels.float(), pixels).mean().item(),
            "quantizer": self.result.quantizer.item(),
            **{name: value.item() for name, value in self.losses.items()},
            "codebook_usage": in_use,
            "perplexity": torch.special.entr(usage).sum().exp().item(),
            "restarted_codes": self.restarted,
            "grad_norm": self.grad_norm.item(),
            "skipped_files": len(self.source.skipped),
            "images_per_second": config.log.every * len(pixels) * self.world / took,
            "seconds": self.state["seconds"],
        }
        self.restarted = 0
        log.write(row)
        log.show(step + 1, f"psnr {row['psnr']:.2f} dB, {row['images_per_second']:.0f} images/s")
        if in_use < config.codebook.min_usage and step > config.optim.warmup_steps + 500:
            raise ValueError(
                f"the codebook has collapsed at step {step}: {in_use:.1%} of {len(usage)} codes are in use; set "
                "codebook.restart_every (10), model.normalize with a small model.embed_dim (8), or codebook.simvq"
            )

    def evaluate(self, step: int, log: RunLog) -> None:
        """Evaluate the averaged weights on held-out images, and write model/, sample images and curves.

        Raises:
            ValueError: the reconstruction has collapsed.
        """
        config = self.config
        self.state["seconds"] += time.perf_counter() - self.clock
        if self.accelerator.is_main_process:
            figures, reconstructed = evaluate(self.teacher.eval(), self.held_out)
            self.teacher.train()
            row = {"step": step + 1, "split": config.data.eval_split, **figures, "seconds": self.state["seconds"]}
            log.write(row)
            log.say(f"step {step + 1}: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items()))
            best = self.state["best"]
            if figures["psnr"] < best - config.eval.max_psnr_drop:
                raise ValueError(
                    f"the reconstruction has collapsed at step {step}: {figures['psnr']:.1f} dB after {best:.1f}; "
                    f"lower optim.lr (now {config.optim.lr}) or gan.weight (now {config.gan.weight}), "
                    "or raise gan.start_step"
                )
            self.state["best"] = max(best, figures["psnr"])
            sample_sheet(self.held_out, reconstructed).save(self.out / f"samples-{step + 1:06d}.png")
            draw_curves(self.out / "log.jsonl", self.out / "curves.png")
            saved = baked(self.teacher, self.vq if config.decoder_only else None)
            # In half precision, so that whoever loads the model later computes the very codes that the shards hold.
            ImageTokenizer(saved).save_pretrained(self.out / "model", torch.float16)
        self.accelerator.wait_for_everyone()
        self.clock = time.perf_counter()

    def log_skipped(self, log: RunLog) -> None:
        """Write the files that could not be read, each with its reason."""
        if self.accelerator.is_main_process and self.source.skipped:
            skipped = {str(path): reason for path, reason in self.source.skipped.items()}
            log.write({"step": self.config.steps, "skipped": skipped})
            log.say(f"{len(skipped)} files were left out; log.jsonl names each with its reason")
