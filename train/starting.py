"""The model before the first step, from nothing or from another one, with or without LoRA; and what leaves a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import save_file
from torch import Tensor

from cm3.config import CM3Config
from cm3.pipeline import CM3
from cm3.transformer import CM3ForCausalLM
from cm3.vocab import Vocab
from tokenizer_image import ImageTokenizer
from train.shards import layout

ADAPTER = "default"
EMBEDDINGS = {"embed_tokens": "model.embed_tokens.weight", "lm_head": "lm_head.weight"}


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), through peft.

    Attributes:
        rank: of the two matrices; 0 = no adapters, all weights are trained.
        alpha: the adapters' outputs count alpha / rank.
        targets: linear layers inside the blocks that get one; none = all of them.
        embeddings: train embeddings and head as well, for shards with words or codes the model hardly knows.
    """

    rank: int = 0
    alpha: int = 32
    targets: tuple[str, ...] = ()
    embeddings: bool = False


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
        preset: key of cm3.config.PRESETS.
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


def add_lora(model: CM3ForCausalLM, lora: Lora, seed: int) -> peft.LoraConfig:
    """Put adapters into the blocks; besides them only embeddings and head are trained, where they are asked for.

    Raises ValueError for targets that the blocks do not have (the loss reads the head's weights alone)."""
    inside = {
        name.split(".")[-1]
        for name, module in model.model.layers.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    if lacking := sorted(set(lora.targets) - inside):
        raise ValueError(
            f"lora.targets {', '.join(lacking)}: the model's blocks have no such layers, but "
            f"{', '.join(sorted(inside))}"
        )
    config = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets) or sorted(inside))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.requires_grad_(False)
        peft.inject_adapter_in_model(config, model, ADAPTER)
    if lora.embeddings:
        model.model.embed_tokens.requires_grad_(True)
        model.lm_head.requires_grad_(True)
        config.modules_to_save = [*EMBEDDINGS]
    return config


def merged(state: dict[str, Tensor], lora: Lora) -> dict[str, Tensor]:
    """The weights of a model without adapters that does the same: W + alpha / rank * B A."""
    out = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        if ".base_layer." in name:
            stem = name.split(".base_layer.")[0]
            a, b = (state[f"{stem}.lora_{side}.{ADAPTER}.weight"].float() for side in "AB")
            tensor = tensor + (lora.alpha / lora.rank) * (b @ a)
        out[name.replace(".base_layer.", ".")] = tensor
    return out


def save_adapter(state: dict[str, Tensor], config: peft.LoraConfig, folder: Path) -> None:
    """The adapters, and embeddings that were trained with them, as peft's own files, which PeftModel.from_pretrained
    reads."""
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    adapters = {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": tensor.contiguous()
        for name, tensor in state.items()
        if ".lora_" in name
    }
    for module in config.modules_to_save or ():
        tensor = state.get(EMBEDDINGS[module], state[EMBEDDINGS["embed_tokens"]])  # a tied head has one name
        adapters[f"base_model.model.{EMBEDDINGS[module]}"] = tensor.clone(memory_format=torch.contiguous_format)
    save_file(adapters, folder / "adapter_model.safetensors")


def rebuilt(config: CM3Config, state: dict[str, Tensor]) -> CM3ForCausalLM:
    """A model of its own with these weights."""
    with torch.random.fork_rng():
        model = CM3ForCausalLM(config)
    if config.tie_word_embeddings:
        state = {**state, "lm_head.weight": state["model.embed_tokens.weight"]}
    model.load_state_dict(state)
    return model.eval()
