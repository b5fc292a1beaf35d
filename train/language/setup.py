"""What a run of train.lm starts with: its image tokenizer, model, attention, optimizers."""

from dataclasses import replace
from typing import Any, NamedTuple

import peft
import torch
from torch import Tensor
from transformers.utils.import_utils import is_flash_attn_2_available

from cm3.hf.model_folder import find_model, load_image_tokenizer, read_config
from cm3.model.config import CM3Config
from cm3.model.scorer import Scorer
from cm3.model.transformer import CM3ForCausalLM
from cm3.pipeline import CM3
from cm3.tasks.known_words import KnownWords
from cm3.tokens.vocab import Vocab
from tokenizer_image import ImageTokenizer
from train.documents.shard_files import layout
from train.documents.shards import Shards
from train.documents.words import texts_of
from train.language.config import LMConfig
from train.language.lora import add_lora
from train.language.loss import LMLearner
from train.runtime.optim import LearningRates, optimizers
from train.runtime.precision import bf16_is_fast


def attention_of(config: LMConfig, device: torch.device, head_size: int) -> str:
    """Return the attention implementation of a run, as transformers names it."""
    if config.attention != "auto":
        return config.attention
    if device.type == "cpu":
        return "eager"
    if is_flash_attn_2_available():
        return "flash_attention_2"
    return "flex_attention" if head_size >= 16 and head_size & (head_size - 1) == 0 else "sdpa"


def image_tokenizer_of(config: LMConfig, shards: Shards) -> ImageTokenizer:
    """Load the image tokenizer of a run.

    Raises:
        ValueError: it is not the one that made the shards.
    """
    if config.start and not config.image_tokenizer:
        folder = find_model(config.start)
        found = load_image_tokenizer(folder, read_config(folder))
        shards.check_image_tokenizer(found)
        return found
    return shards.image_tokenizer(config.image_tokenizer)


def starting_model(config: LMConfig, meta: dict[str, Any], image_tokenizer: ImageTokenizer) -> CM3ForCausalLM:
    """Return the model before the first step, without adapters.

    Raises:
        ValueError: the shards were made for another model.
    """
    if config.start:
        model = loaded_model(config.start, meta, config.data.folder, config.model)
    else:
        model = fresh_model(config.preset, config.model, meta, image_tokenizer, config.codebook_init, config.seed)
    if config.data.seq_len > model.config.max_position_embeddings:
        raise ValueError(
            f"data.seq_len is {config.data.seq_len}, but the model has {model.config.max_position_embeddings} "
            "positions: lower data.seq_len"
        )
    return model


class Trainee(NamedTuple):
    """A run's model.

    Attributes:
        learner: the model with its loss, on its device.
        adapter: peft's configuration of the adapters, where there are any.
    """

    learner: LMLearner
    adapter: peft.LoraConfig | None


def learner_of(
    config: LMConfig, meta: dict[str, Any], image_tokenizer: ImageTokenizer, device: torch.device
) -> Trainee:
    """Return what a run trains, before its first step.

    Raises:
        ValueError: as `starting_model` and `add_lora`.
    """
    model = starting_model(config, meta, image_tokenizer)
    adapter = add_lora(model, config.lora, config.seed) if config.lora.rank else None
    model.set_attn_implementation(attention_of(config, device, model.config.head_dim))
    if config.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if config.compile:
        for block in model.model.layers:
            block.compile()
    first_code = Vocab.from_config(model.config).first_code if config.loss.softmax == "modality" else 0
    if config.head_bridge and model.config.tie_word_embeddings:
        raise ValueError(
            "head_bridge needs an output layer of its own, but tie_word_embeddings is set: leave one of them out"
        )
    learner = LMLearner(
        model, config.loss.z_loss, config.loss.chunk_size, first_code, config.loss.negatives, config.head_bridge
    )
    return Trainee(learner.to(device).train(), adapter)


class ModelExtras(NamedTuple):
    """What a model folder holds besides weights and tokenizers.

    Attributes:
        known_words: words of the training texts, for prompt normalisation.
        scorer: for reranking, where there is one.
    """

    known_words: KnownWords
    scorer: Scorer | None


def model_extras(config: LMConfig, shards: Shards) -> ModelExtras:
    """Return the words of the shards; and, where the run starts from a model, that model's words and its scorer.

    The scorer is not trained. Its configuration says which model it was trained for.
    """
    if not config.start:
        return ModelExtras(KnownWords.read(texts_of(shards)), None)
    folder, scorer = find_model(config.start), None
    if (folder / "scorer").is_dir():
        scorer = Scorer.from_pretrained(folder / "scorer")
        scorer.config = replace(scorer.config, trained_for=scorer.config.trained_for or config.start)
    known = KnownWords.load(folder)
    return ModelExtras(known.after(texts_of(shards)) if known.words else known, scorer)


def optimizers_of(model: torch.nn.Module, config: LMConfig, device: torch.device) -> list[torch.optim.Optimizer]:
    """Return the optimizers of a run."""
    optim = config.optim
    automatic = "adamw" if config.lora.rank else "muon"
    matrix_optimizer = automatic if optim.matrix_optimizer == "auto" else optim.matrix_optimizer
    peaks = LearningRates(optim.muon_lr if matrix_optimizer == "muon" else optim.lr, optim.lr)
    return optimizers(model, matrix_optimizer, peaks, optim.betas, optim.weight_decay, bf16_is_fast(device))


def fresh_model(
    preset: str,
    fields: dict[str, Any],
    meta: dict[str, Any],
    image_tokenizer: ImageTokenizer,
    codebook_init: bool,
    seed: int,
) -> CM3ForCausalLM:
    """Return a model with random weights and the shards' vocabulary.

    Args:
        preset: key of cm3.model.config.PRESETS.
        fields: fields of CM3Config that replace the preset's.
        meta: content of the shards' meta.json.
        image_tokenizer: with the codebook.
        codebook_init: whether the embeddings of codes start from the codebook, so that similar codes start alike.
        seed: of the weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CM3ForCausalLM(CM3Config.preset(preset, **{**meta["vocab"], **fields}))
        if codebook_init:
            first = Vocab.from_config(model.config).first_code
            codes = image_tokenizer.model.quantize.codebook().float().cpu()  # [K, Z]
            layers = [model.model.embed_tokens.weight]
            layers += [] if model.config.tie_word_embeddings else [model.lm_head.weight]
            for weight in layers:
                projected = codes @ torch.randn(codes.shape[1], weight.shape[1]) / codes.std() / codes.shape[1] ** 0.5
                rows = weight.data[first:]
                rows.copy_((rows + model.config.init_std * projected) * 0.5**0.5)  # half codebook, half random
    return model


def loaded_model(start: str, meta: dict[str, Any], data: str, fields: dict[str, Any]) -> CM3ForCausalLM:
    """Load a model for fine-tuning.

    Args:
        start: folder or name of the model.
        meta: content of the shards' meta.json.
        data: folder of the shards, for the messages.
        fields: settings of a new model; there must be none.

    Raises:
        ValueError: the shards have another vocabulary or other tokenizers.
    """
    pipeline = CM3.from_pretrained(start, device="cpu", dtype=torch.float32)
    if fields:
        raise ValueError(f"model.{next(iter(fields))} cannot change a model that is loaded: leave start or model out")
    mine = {
        **layout(pipeline.vocab, pipeline.grid),
        "image_tokenizer": pipeline.image_tokenizer.fingerprint(),
        "text_tokenizer": pipeline.text_tokenizer.fingerprint(),
    }
    theirs = {**meta["vocab"], **{key: meta[key] for key in ("image_tokenizer", "text_tokenizer")}}
    other = [f"{key} {theirs[key]} is not {start}'s {value}" for key, value in mine.items() if theirs[key] != value]
    if other:
        raise ValueError(f"{data} was made for another model: {'; '.join(other)}; prepare it with --model {start}")
    return pipeline.model.requires_grad_(True)


def rebuilt(config: CM3Config, state: dict[str, Tensor]) -> CM3ForCausalLM:
    """Return a new model with these weights."""
    with torch.random.fork_rng():
        model = CM3ForCausalLM(config)
    if config.tie_word_embeddings:
        state = {**state, "lm_head.weight": state["model.embed_tokens.weight"]}
    model.load_state_dict(state)
    return model.eval()
