"""LoRA adapters: put into a model, merged into its weights, saved for peft."""

from dataclasses import dataclass
from pathlib import Path

import peft
import torch
from safetensors.torch import save_file
from torch import Tensor

from cm3.model.transformer import CM3ForCausalLM
from tokenizer_image.checkpoint import make_readable

ADAPTER = "default"
WEIGHTS = "adapter_model.safetensors"
EMBEDDINGS = {"embed_tokens": "model.embed_tokens.weight", "lm_head": "lm_head.weight"}


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), through peft.

    Attributes:
        rank: of the adapters; 0 = no adapters, all weights are trained.
        alpha: the adapters' outputs are scaled by alpha / rank.
        targets: linear layers inside the blocks that get an adapter; empty = all of them.
        embeddings: train embeddings and output layer too, for shards with words or codes that are new to the model.
    """

    rank: int = 0
    alpha: int = 32
    targets: tuple[str, ...] = ()
    embeddings: bool = False


def add_lora(model: CM3ForCausalLM, lora: Lora, seed: int) -> peft.LoraConfig:
    """Put adapters into the blocks, and freeze all else but what `lora.embeddings` trains.

    Args:
        model: is changed in place.
        lora: the settings.
        seed: of the adapters' weights.

    Returns:
        peft's configuration of the adapters.

    Raises:
        ValueError: the blocks do not have the targets.
    """
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
    """Return the weights with the adapters merged: W + alpha / rank * B A."""
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
    """Write the adapters, and embeddings that were trained with them, as files that PeftModel.from_pretrained reads."""
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
    save_file(adapters, folder / WEIGHTS)
    make_readable(folder / WEIGHTS)
