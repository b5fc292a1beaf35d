"""`import cm3.hf.auto` registers the model with transformers' Auto classes.

    import cm3.hf.auto
    from transformers import AutoModelForMultimodalLM, AutoProcessor

Without this import, or without this package, `trust_remote_code=True` loads a saved folder with the code in it
(remote_code.py). `import cm3` does not register, because importing the Auto classes takes seconds.
"""

from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from cm3.hf.modeling import CM3ForConditionalGeneration
from cm3.hf.processing import CM3ImageProcessor, CM3Processor
from cm3.model.config import CM3Config
from cm3.model.transformer import CM3ForCausalLM, CM3Model

REGISTERED: dict[Any, tuple[Any, Any]] = {  # Auto class -> key, class
    AutoConfig: (CM3Config.model_type, CM3Config),
    AutoModel: (CM3Config, CM3Model),
    AutoModelForCausalLM: (CM3Config, CM3ForCausalLM),
    AutoModelForMultimodalLM: (CM3Config, CM3ForConditionalGeneration),
    AutoModelForImageTextToText: (CM3Config, CM3ForConditionalGeneration),
    AutoImageProcessor: (CM3Config, CM3ImageProcessor),
    AutoProcessor: (CM3Config, CM3Processor),
}

for auto, (key, registered) in REGISTERED.items():
    auto.register(key, registered)
