"""CM3leon: one transformer that reads and writes text and pictures as one stream of tokens.

After `import cm3` transformers' AutoConfig, AutoModel and AutoModelForCausalLM know the model. torch and transformers
themselves, which take seconds, are imported by what needs them: the names here on their first use, and the registration
with transformers' Auto classes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cm3.registration import register

if TYPE_CHECKING:
    from cm3.config import CM3Config
    from cm3.pipeline import CM3
    from cm3.transformer import CM3ForCausalLM, CM3Model

__all__ = ["CM3", "CM3Config", "CM3ForCausalLM", "CM3Model"]
__version__ = "0.1.0"

HOMES = {"CM3": "pipeline", "CM3Config": "config", "CM3ForCausalLM": "transformer", "CM3Model": "transformer"}

register()


def __getattr__(name: str) -> Any:
    if name in HOMES:
        return getattr(import_module(f"cm3.{HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
