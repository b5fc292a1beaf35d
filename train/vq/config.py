"""The settings of a run of the image tokenizer."""

from dataclasses import dataclass, field
from typing import Any

from tokenizer_image import PRESETS
from train.runtime.settings import CheckpointConfig, LogConfig, OptimConfig


@dataclass(frozen=True)
class ImageDataConfig:
    """The training data.

    Attributes:
        folder: folder of images, of which every twentieth is held out; or of a data set of shards, with train/ and the
            split `eval_split`.
        eval_split: split of a data set that is evaluated on.
        aspect_ratios: shapes of the crops, such as ["1:1", "3:2", "2:3"]; each image is cropped to the nearest.
        workers: threads that read images.
    """

    folder: str = "data/emoji"
    eval_split: str = "held_out_pairs"
    aspect_ratios: tuple[str, ...] = ("1:1",)
    workers: int = 1


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation: the first three are for images with transparency, `min_crop_area` is for opaque ones.

    Attributes:
        white_background: share of images that get a white background; the others get a colour.
        min_scale: smallest scale.
        max_shift: largest shift, in pixels of a 64-pixel image.
        min_crop_area: smallest share of the image's area that a crop shows.
        flip: share of images that are mirrored; 0 where images contain text.
    """

    white_background: float = 0.6
    min_scale: float = 0.85
    max_shift: int = 2
    min_crop_area: float = 0.6
    flip: float = 0.5


@dataclass(frozen=True)
class VQOptimConfig(OptimConfig):
    """AdamW, with linear warmup and half a cosine to 0.

    Attributes:
        ema_decay: decay of the averaged weights, which are evaluated and saved, and teach the JEPA loss.
    """

    lr: float = 1.5e-3
    warmup_steps: int = 200
    ema_decay: float = 0.998


@dataclass(frozen=True)
class VQLossConfig:
    """Weights of the reconstruction losses.

    Attributes:
        l1: of the absolute error.
        l2: of the squared error.
        perceptual: of the distance between features of a frozen network.
        perceptual_features: "lite0", "lpips" or "timm:NAME".
        entropy: of the entropy loss over the choice of codes.
        balance_every: steps between measurements of the gradients that the weights of the discriminator, the alignment
            and the JEPA loss are relative to.
    """

    l1: float = 1.0
    l2: float = 1.0
    perceptual: float = 0.0
    perceptual_features: str = "lite0"
    entropy: float = 0.0
    balance_every: int = 10


@dataclass(frozen=True)
class CodebookConfig:
    """The codebook.

    Attributes:
        restart_every: steps between searches for dead codes, none in the last fifth of the run; 0 = never.
        gradient_estimator: how gradients pass the quantizer: "straight" (straight-through) or "rotation".
        simvq: train a linear map of a fixed codebook in place of the codes (SimVQ); needs restart_every = 0.
        min_usage: the run stops as collapsed if a smaller share of the codes is in use.
    """

    restart_every: int = 10
    gradient_estimator: str = "straight"
    simvq: bool = False
    min_usage: float = 0.01


@dataclass(frozen=True)
class GANConfig:
    """The patch discriminator.

    Attributes:
        weight: weight of its loss, in units of the reconstruction's gradient; 0 = no discriminator.
        start_step: step at which its loss begins to count.
        warmup_steps: steps over which the loss grows to its weight. The discriminator begins to train this many steps
            before start_step.
        channels: channels of its first convolution.
        layers: strided convolutions: 2 for 64 pixels, 3 for 256.
        lr: learning rate of its Adam.
        r1: weight of the gradient penalty, computed every 16th step; 0 = none.
        lecam: weight of the LeCam regulariser; 0 = none.
    """

    weight: float = 0.0
    start_step: int = 2000
    warmup_steps: int = 500
    channels: int = 64
    layers: int = 3
    lr: float = 2e-4
    r1: float = 1.0
    lecam: float = 0.001


@dataclass(frozen=True)
class AlignConfig:
    """Alignment of the codes with features of a frozen network.

    Attributes:
        weight: in units of the reconstruction's gradient; 0 = no alignment.
        features: "lite0" or "timm:NAME".
    """

    weight: float = 0.0
    features: str = "lite0"


@dataclass(frozen=True)
class JEPAConfig:
    """Prediction of masked blocks in latent space (JEPA).

    Attributes:
        weight: in units of the reconstruction's gradient; 0 = none.
        mask_fraction: share of each image that is masked.
    """

    weight: float = 0.0
    mask_fraction: float = 0.5


@dataclass(frozen=True)
class VQEvalConfig:
    """Evaluation on held-out images; each also writes model/, curves.png and sample images.

    Attributes:
        every: steps between evaluations.
        images: largest number of images.
        max_psnr_drop: the run stops as collapsed if the PSNR falls more than this below its best, in dB.
    """

    every: int = 500
    images: int = 2000
    max_psnr_drop: float = 6.0


@dataclass(frozen=True)
class ImageTokenizerConfig:
    """One run.

    Attributes:
        preset: key of tokenizer_image.PRESETS.
        model: fields of VQConfig that replace the preset's.
        start: folder or name of a tokenizer to start from; empty = train from scratch.
        decoder_only: freeze encoder and codebook, so that shards and models keep their codes.
        new_decoder: with decoder_only, train a new decoder, of the preset's shape, for the codes of `start`.
        steps: optimizer steps.
        batch_size: images in a step on each device.
        precision: "fp32", "bf16" or "auto": bf16 where the device computes it fast.
        compile: compile encoder and decoder with torch.compile.
        seed: of everything random.
        data: the training data.
        augment: augmentation.
        optim: the optimizer.
        loss: the reconstruction losses.
        codebook: the codebook.
        gan: the discriminator.
        align: the alignment loss.
        jepa: the JEPA loss.
        checkpoint: checkpoints.
        eval: evaluations.
        log: the log.
    """

    preset: str = "emoji-64"
    model: dict[str, Any] = field(default_factory=dict)
    start: str = ""
    decoder_only: bool = False
    new_decoder: bool = False
    steps: int = 6000
    batch_size: int = 32
    precision: str = "auto"
    compile: bool = False
    seed: int = 0
    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: VQOptimConfig = field(default_factory=VQOptimConfig)
    loss: VQLossConfig = field(default_factory=VQLossConfig)
    codebook: CodebookConfig = field(default_factory=CodebookConfig)
    gan: GANConfig = field(default_factory=GANConfig)
    align: AlignConfig = field(default_factory=AlignConfig)
    jepa: JEPAConfig = field(default_factory=JEPAConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: VQEvalConfig = field(default_factory=VQEvalConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r}: choose one of {', '.join(PRESETS)}")
        if (estimator := self.codebook.gradient_estimator) not in ("straight", "rotation"):
            raise ValueError(f"codebook.gradient_estimator {estimator!r}: choose straight or rotation")
        if self.codebook.simvq and (self.codebook.restart_every or self.start):
            raise ValueError(
                "codebook.simvq moves all codes by one matrix: it needs codebook.restart_every=0 and no start"
            )
        if self.decoder_only and (self.align.weight or self.jepa.weight or self.loss.entropy):
            raise ValueError(
                "align.weight, jepa.weight and loss.entropy change the codes, which decoder_only keeps: set them to 0"
            )
        if self.decoder_only and not self.start:
            raise ValueError("decoder_only needs a tokenizer to start from: set start")
        if self.new_decoder and not self.decoder_only:
            raise ValueError("new_decoder keeps the codes of start: set decoder_only")
