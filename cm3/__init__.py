"""CM3leon: one transformer that reads and writes text and images as one sequence of tokens.

The names below are imported on first use: torch and transformers take seconds, `import cm3` takes none.
`import cm3.hf.auto` registers the model with transformers' Auto classes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cm3.model.config import CM3Config
    from cm3.model.transformer import CM3ForCausalLM, CM3Model
    from cm3.pipeline import CM3

__all__ = ["CM3", "CM3Config", "CM3ForCausalLM", "CM3Model"]
__version__ = "0.1.0"

HOMES = {
    "CM3": "cm3.pipeline",
    "CM3Config": "cm3.model.config",
    "CM3ForCausalLM": "cm3.model.transformer",
    "CM3Model": "cm3.model.transformer",
}


def __getattr__(name: str) -> Any:
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
