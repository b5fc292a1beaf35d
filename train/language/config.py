"""The settings of a run of the language model."""

from dataclasses import dataclass, field
from typing import Any

from train.language.lora import Lora
from train.language.objective import Objective
from train.runtime.distributed import KINDS as STRATEGIES
from train.runtime.settings import CheckpointConfig, LogConfig, OptimConfig

PROMPTS = (
    "a red apple",
    "a cat",
    "a yellow taxi",
    "a pizza",
    "a soccer ball",
    "a tulip in the noto style",
    "a guitar on a pink background",
    "a blue fish",
)


@dataclass(frozen=True)
class LMDataConfig:
    """The training data.

    Attributes:
        folder: folder of token shards.
        seq_len: sequence length in tokens; documents that are longer are left out.
        packing_window: number of documents that are packed together.
        workers: data loading processes of each device; 0 = load in the training process.
        verify_hashes: read every shard once at the start and compare its hash.
        max_bad_fraction: largest share of documents that may be in damaged shards, or damaged themselves.
    """

    folder: str = "data/emoji-tokens"
    seq_len: int = 256
    packing_window: int = 4096
    workers: int = 0
    verify_hashes: bool = True
    max_bad_fraction: float = 0.1


@dataclass(frozen=True)
class LMOptimConfig(OptimConfig):
    """The optimizer: Muon or AdamW for the matrices inside the blocks, AdamW for all else.

    Attributes:
        matrix_optimizer: "muon", "adamw" or "auto": AdamW with LoRA, else Muon.
        muon_lr: peak learning rate of Muon.
        weight_decay: of the matrices inside the blocks.
        ema_decay: decay of the exponential moving average of the weights; 0 = no average.
        schedule: "wsd" (warmup, constant, linear decay) or "cosine".
        decay_fraction: share of the run in which "wsd" decays.
        final_lr_fraction: learning rate of the last step, as a fraction of the peak.
        spike_sigmas: a step is skipped if its loss or gradient norm lies this many standard deviations above the
            latest steps; 0 = no step is.
        max_skipped_steps: the run stops after more skipped steps in a row.
    """

    lr: float = 3e-3
    matrix_optimizer: str = "auto"
    muon_lr: float = 0.02
    ema_decay: float = 0.0
    schedule: str = "wsd"
    decay_fraction: float = 0.5
    final_lr_fraction: float = 0.0
    spike_sigmas: float = 6.0
    max_skipped_steps: int = 50


@dataclass(frozen=True)
class LMLossConfig:
    """The loss.

    Attributes:
        softmax: "all": over all ids; "modality": a code competes with codes only, any other id with all other ids.
            That is cheaper, and what the grammar leaves when the model generates.
        full_softmax_fraction: with softmax "modality", share of the steps, the last ones, that have the softmax over
            all ids, so that probabilities are meaningful without the grammar too.
        negatives: with softmax "modality", sampled softmax: a code competes with the codes of its batch and this many
            random others; 0 = all codes. The loss of codes is then an estimate.
        z_loss: weight of the z-loss.
        chunk_size: targets whose logits are in memory at once. On a CPU, with 20,000 ids, 256 are faster than 1024 by
            half.
    """

    softmax: str = "all"
    full_softmax_fraction: float = 0.0
    negatives: int = 0
    z_loss: float = 0.0
    chunk_size: int = 256


@dataclass(frozen=True)
class DistributedConfig:
    """Several processes.

    Attributes:
        strategy: "ddp", or "fsdp" to shard weights, gradients and optimizer state over the devices.
        processes: number of processes that must train together; 0 = as many as were launched.
        local_sgd_steps: steps that each process trains apart before weights are averaged (LocalSGD); 0 = never apart.
    """

    strategy: str = "ddp"
    processes: int = 0
    local_sgd_steps: int = 0


@dataclass(frozen=True)
class LMEvalConfig:
    """Loss on the held-out split.

    Attributes:
        every: steps between evaluations; 0 = never.
        sequences: number of packed sequences that are evaluated.
    """

    every: int = 0
    sequences: int = 64


@dataclass(frozen=True)
class SampleConfig:
    """Sample images.

    Attributes:
        every: steps between contact sheets of generated images; each also writes model/, as the last step does.
        prompts: what is generated; empty = no samples.
    """

    every: int = 500
    prompts: tuple[str, ...] = PROMPTS


@dataclass(frozen=True)
class LMConfig:
    """One run.

    Attributes:
        start: folder or name of a model to fine-tune; empty = train from scratch, as `preset` and `model` say.
        image_tokenizer: folder or name of the image tokenizer that made the shards; empty = where it was then, or the
            one of `start`.
        preset: key of cm3.model.config.PRESETS; the vocabulary's layout comes from the shards.
        model: fields of CM3Config that replace the preset's.
        lora: LoRA adapters in place of all weights, where the rank is not 0.
        objective: shares of the forms, and loss weights of the tokens.
        codebook_init: initialise the embeddings of image codes from the codebook, so that similar codes start alike.
        head_bridge: learn a matrix that adds the embeddings to the output layer, so that copying a code from one image
            to another is learnt for all codes at once. The model that is saved has an ordinary output layer.
        steps: optimizer steps.
        batch_tokens: tokens in a step, padding included, on all devices: a multiple of data.seq_len times the devices.
        micro_batch_size: sequences that go through a device at once; 0 = all of a step's. --find-batch measures it.
        precision: "fp32", "bf16" or "auto": bf16 where the device computes it fast.
        compile: compile the blocks with torch.compile.
        attention: implementation. "auto": on a GPU flash_attention_2 where it is installed, else flex_attention for
            heads that it supports, else sdpa; on a CPU eager, which is faster there for a few hundred tokens.
        activation_checkpointing: recompute the blocks' activations in the backward pass.
        seed: of everything random.
        data: the training data.
        optim: the optimizer.
        loss: the loss.
        distributed: several processes.
        checkpoint: checkpoints.
        eval: evaluations.
        samples: sample images.
        log: the log.
    """

    start: str = ""
    image_tokenizer: str = ""
    preset: str = "emoji"
    model: dict[str, Any] = field(default_factory=dict)
    lora: Lora = field(default_factory=Lora)
    objective: Objective = field(default_factory=Objective)
    codebook_init: bool = True
    head_bridge: bool = False
    steps: int = 5000
    batch_tokens: int = 4096
    micro_batch_size: int = 0
    precision: str = "auto"
    compile: bool = False
    attention: str = "auto"
    activation_checkpointing: bool = False
    seed: int = 0
    data: LMDataConfig = field(default_factory=LMDataConfig)
    optim: LMOptimConfig = field(default_factory=LMOptimConfig)
    loss: LMLossConfig = field(default_factory=LMLossConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: LMEvalConfig = field(default_factory=LMEvalConfig)
    samples: SampleConfig = field(default_factory=SampleConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        for name, value, known in (
            ("optim.schedule", self.optim.schedule, ("wsd", "cosine")),
            ("optim.matrix_optimizer", self.optim.matrix_optimizer, ("auto", "muon", "adamw")),
            ("loss.softmax", self.loss.softmax, ("all", "modality")),
            ("distributed.strategy", self.distributed.strategy, STRATEGIES),
            ("precision", self.precision, ("auto", "bf16", "fp32")),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}: choose {', '.join(known)}")
        for name, value in (
            ("steps", self.steps),
            ("batch_tokens", self.batch_tokens),
            ("data.seq_len", self.data.seq_len),
            ("data.packing_window", self.data.packing_window),
            ("loss.chunk_size", self.loss.chunk_size),
            ("log.every", self.log.every),
            ("checkpoint.every", self.checkpoint.every),
            ("checkpoint.keep", self.checkpoint.keep),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}, but must be at least 1")
        full, negatives = self.loss.full_softmax_fraction, self.loss.negatives
        if not 0 <= full <= 1:
            raise ValueError(f"loss.full_softmax_fraction is {full}, but must be a share of the steps, 0 to 1")
        if full and self.loss.softmax != "modality":
            raise ValueError(f"loss.full_softmax_fraction={full} needs loss.softmax=modality")
        if negatives and self.loss.softmax != "modality":
            raise ValueError(f"loss.negatives={negatives} needs loss.softmax=modality")
        if self.head_bridge and self.lora.rank:
            raise ValueError("head_bridge changes the output layer, which lora leaves as it is: set one of them")
        if (apart := self.distributed.local_sgd_steps) and (
            self.distributed.strategy == "fsdp"
            or self.optim.ema_decay
            or self.checkpoint.every % apart
            or self.steps % apart
        ):
            raise ValueError(
                f"distributed.local_sgd_steps={apart} needs distributed.strategy=ddp, no optim.ema_decay, and steps "
                "and checkpoint.every that are multiples of it, so that checkpoints hold weights that all share"
            )

    def sequences(self, processes: int) -> int:
        """Return the number of sequences in a step on each process.

        Raises:
            ValueError: batch_tokens is no multiple of the sequence length times the processes.
        """
        unit = self.data.seq_len * processes
        count, rest = divmod(self.batch_tokens, unit)
        if rest or not count:
            raise ValueError(
                f"batch_tokens is {self.batch_tokens}, but must be a multiple of data.seq_len x processes = "
                f"{self.data.seq_len} x {processes}: take {max(1, count) * unit}"
            )
        return count
