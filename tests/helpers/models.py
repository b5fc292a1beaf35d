"""Tiny models whose every weight is random: fresh output layers are 0 and would hide mistakes."""

from typing import Any

import torch

from cm3.model.config import CM3Config
from cm3.model.transformer import CM3ForCausalLM


def build(std: float = 0.3, **overrides: Any) -> Any:
    """A CM3ForCausalLM of the preset "tiny", the same each time. (transformers types its models in part only.)"""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CM3ForCausalLM(CM3Config.preset("tiny", **overrides))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=std)
    return model.eval()
