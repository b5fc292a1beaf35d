"""One run of train.lm: its settings, and what they make of a model, its optimisers and its attention."""

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
from train.documents.shards import Shards, layout
from train.documents.words import texts_of
from train.language.config import LMConfig
from train.language.lora import add_lora
from train.language.loss import LMLearner
from train.runtime.optim import Rates, optimizers
from train.runtime.precision import bf16_is_fast


def attention_of(config: LMConfig, device: torch.device, head_size: int) -> str:
    """The implementation of attention that a run takes."""
    if config.attention != "auto":
        return config.attention
    if device.type == "cpu":
        return "eager"
    if is_flash_attn_2_available():
        return "flash_attention_2"
    return "flex_attention" if head_size >= 16 and head_size & (head_size - 1) == 0 else "sdpa"


def image_tokenizer_of(config: LMConfig, meta: dict[str, Any]) -> ImageTokenizer:
    """The image tokenizer of a run. Raises ValueError where it is not the one that made the shards."""
    if config.start and not config.image_tokenizer:
        folder, named = find_model(config.start), config.start
        found = load_image_tokenizer(folder, read_config(folder))
    else:
        named = config.image_tokenizer or meta.get("image_tokenizer_name", "")
        if not named:
            raise ValueError(f"{config.data} does not say which image tokenizer made it: set image_tokenizer")
        found = ImageTokenizer.from_pretrained(named)
    if (mark := found.fingerprint()) != meta["image_tokenizer"]:
        raise ValueError(
            f"{config.data} was made by image tokenizer {meta['image_tokenizer']}, not by {named} ({mark})"
        )
    return found


def starting_model(config: LMConfig, meta: dict[str, Any], image_tokenizer: ImageTokenizer) -> CM3ForCausalLM:
    """The model before the first step, without adapters. Raises ValueError for shards of another model."""
    if config.start:
        model = loaded_model(config.start, meta, config.data, config.model)
    else:
        model = fresh_model(config.preset, config.model, meta, image_tokenizer, config.codebook_init, config.seed)
    if config.row > model.config.max_position_embeddings:
        raise ValueError(
            f"row is {config.row}, but the model's positions are "
            f"{model.config.max_position_embeddings}: make row smaller"
        )
    return model


class Trainee(NamedTuple):
    """A run's model with its loss, on its device; and what peft notes of its adapters, where it has any."""

    learner: LMLearner
    adapter: peft.LoraConfig | None


def learner_of(
    config: LMConfig, meta: dict[str, Any], image_tokenizer: ImageTokenizer, device: torch.device
) -> Trainee:
    """What a run trains, before its first step. Raises ValueError as starting_model and add_lora do."""
    model = starting_model(config, meta, image_tokenizer)
    adapter = add_lora(model, config.lora, config.seed) if config.lora.rank else None
    model.set_attn_implementation(attention_of(config, device, model.config.head_dim))
    if config.recompute:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if config.compile:
        for block in model.model.layers:
            block.compile()
    first_code = Vocab.from_config(model.config).first_code if config.softmax == "modality" else 0
    if config.bridged and model.config.tie_word_embeddings:
        raise ValueError("bridged is for a head of its own, but tie_word_embeddings is set: leave bridged out")
    learner = LMLearner(model, config.z_loss, config.chunk, first_code, config.negatives, config.bridged)
    return Trainee(learner.to(device).train(), adapter)


class Beside(NamedTuple):
    """What a model folder holds beside the weights and tokenizers."""

    known_words: KnownWords
    scorer: Scorer | None


def beside(config: LMConfig, shards: Shards) -> Beside:
    """The words of the shards and, where the run goes on from a model, those that this one knows, and its scorer: it is
    not trained on, and says whose it is."""
    if not config.start:
        return Beside(KnownWords.read(texts_of(shards)), None)
    folder, scorer = find_model(config.start), None
    if (folder / "scorer").is_dir():
        scorer = Scorer.from_pretrained(folder / "scorer")
        scorer.config = replace(scorer.config, trained_for=scorer.config.trained_for or config.start)
    known = KnownWords.load(folder)
    return Beside(known.after(texts_of(shards)) if known.words else known, scorer)


def optimizers_of(model: torch.nn.Module, config: LMConfig, device: torch.device) -> list[torch.optim.Optimizer]:
    automatic = "adamw" if config.lora.rank else "muon"
    matrices = automatic if config.matrices == "auto" else config.matrices
    rates = Rates(
        config.muon_lr if matrices == "muon" else config.lr,
        config.embedding_lr or config.lr,
        config.head_lr or config.lr,
        config.lr,
    )
    return optimizers(model, matrices, rates, config.betas, config.weight_decay, bf16_is_fast(device))


def fresh_model(
    preset: str,
    fields: dict[str, Any],
    meta: dict[str, Any],
    image_tokenizer: ImageTokenizer,
    codebook: bool,
    seed: int,
) -> CM3ForCausalLM:
    """A model with random weights and the shards' vocabulary.

    Args:
        preset: key of cm3.model.config.PRESETS.
        fields: of CM3Config, in place of the preset's.
        meta: content of the shards' meta.json.
        image_tokenizer: whose codebook the embeddings of codes start from.
        codebook: whether they do: codes that look alike then start alike.
        seed: of the weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CM3ForCausalLM(CM3Config.preset(preset, **{**meta["vocab"], **fields}))
        if codebook:
            first = Vocab.from_config(model.config).first_code
            codes = image_tokenizer.model.quantize.codebook().float().cpu()  # [K, Z]
            ways = [model.model.embed_tokens.weight]
            ways += [] if model.config.tie_word_embeddings else [model.lm_head.weight]
            for weight in ways:
                likeness = codes @ torch.randn(codes.shape[1], weight.shape[1]) / codes.std() / codes.shape[1] ** 0.5
                rows = weight.data[first:]
                rows.copy_((rows + model.config.init_std * likeness) * 0.5**0.5)  # half its look, half its own
    return model


def loaded_model(start: str, meta: dict[str, Any], data: str, fields: dict[str, Any]) -> CM3ForCausalLM:
    """The model of a folder, to be trained on. Raises ValueError where the shards have another vocabulary."""
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
    """A model of its own with these weights."""
    with torch.random.fork_rng():
        model = CM3ForCausalLM(config)
    if config.tie_word_embeddings:
        state = {**state, "lm_head.weight": state["model.embed_tokens.weight"]}
    model.load_state_dict(state)
    return model.eval()
