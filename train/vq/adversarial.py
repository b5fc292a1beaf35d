"""The adversarial loss of an image tokenizer: a patch discriminator with its optimizer (VQGAN, Esser et al. 2021)."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from train.runtime.checkpoint_state import ModelAndOptimizers
from train.runtime.precision import autocast
from train.vq.config import GANConfig
from train.vq.discriminator import LeCam, PatchDiscriminator, gradient_penalty, hinge

PENALTY_EVERY = 16  # steps; the penalty counts as many times more


def adversarial_share(step: int, config: GANConfig) -> float:
    """Return the share of its weight that the loss has in a step: 0 before `start_step`, then linear up to 1."""
    return min(1.0, max(0.0, (step - config.start_step) / max(1, config.warmup_steps)))


class Adversary:
    """A patch discriminator, its optimizer and its regularisers.

    Args:
        config: its settings.
        device: where it lives.

    Attributes:
        called: the discriminator as it is called in training: itself, or wrapped in DDP.
    """

    def __init__(self, config: GANConfig, device: torch.device):
        self.config = config
        self.discriminator = PatchDiscriminator(config.channels, config.layers).to(device)
        self.called: nn.Module = self.discriminator
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), config.lr, (0.5, 0.9))
        self.lecam = LeCam().to(device)

    def parts(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it."""
        return {"discriminator": ModelAndOptimizers(self.discriminator, [self.optimizer]), "lecam": self.lecam}

    def counts(self, step: int) -> bool:
        """Return whether the tokenizer's loss includes the discriminator's verdict in this step."""
        return self.config.weight > 0 and step >= self.config.start_step

    def loss(self, fake: Tensor) -> Tensor:
        """Return the loss of reconstructions [B, 3, H, W]: how little the discriminator takes them for real."""
        self.discriminator.requires_grad_(False)
        loss = -self.discriminator(fake).float().mean()
        self.discriminator.requires_grad_(True)
        return loss

    def step(self, step: int, real: Tensor, fake: Tensor, accelerator: Accelerator, precision: str) -> Tensor | None:
        """Train the discriminator.

        Args:
            step: of the run.
            real: images, [B, 3, H, W].
            fake: their reconstructions.
            accelerator: the run's processes.
            precision: of the forward pass.

        Returns:
            Its hinge loss; None if it does not train in this step.
        """
        config = self.config
        if not config.weight or step < config.start_step - config.warmup_steps:
            return None
        penalised = config.r1 > 0 and step % PENALTY_EVERY == 0
        real = real.detach().requires_grad_(penalised)
        with autocast(precision, accelerator.device):
            on_real, on_fake = self.called(torch.cat([real, fake.detach().float()])).float().chunk(2)
        loss = hinge(on_real, on_fake)
        total = loss + config.lecam * self.lecam(on_real, on_fake)
        if penalised:
            total = total + PENALTY_EVERY * config.r1 * gradient_penalty(on_real, real)
        accelerator.backward(total)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss
