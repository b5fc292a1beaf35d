"""CM3leon: one transformer that reads and writes text and pictures as one stream of tokens.

Importing the package registers the model with transformers, so AutoConfig and AutoModelForCausalLM know it.
"""

from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from cm3.config import CM3Config
from cm3.transformer import CM3ForCausalLM, CM3Model

if TYPE_CHECKING:
    from cm3.pipeline import CM3

__all__ = ["CM3", "CM3Config", "CM3ForCausalLM", "CM3Model"]

AutoConfig.register(CM3Config.model_type, CM3Config)
AutoModel.register(CM3Config, CM3Model)
AutoModelForCausalLM.register(CM3Config, CM3ForCausalLM)


def __getattr__(name: str) -> Any:
    if name == "CM3":  # late: the pipeline brings in the image tokenizer, which training the model does not need
        from cm3.pipeline import CM3

        return CM3
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
