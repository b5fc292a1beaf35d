"""Copies code into a model folder, so that transformers loads it without this package (trust_remote_code=True).

The folder gets the code of the model, the image tokenizer and the processor, and the entries that refer to it. The
code is this package's own, file by file, with its imports rewritten, because transformers reads modules from one flat
folder: cm3/tokens/grammar.py becomes cm3_tokens_grammar.py, and `from cm3.tokens.vocab import` becomes `from
.cm3_tokens_vocab import`. Nothing here runs code of a folder.
"""

import ast
import json
import re
from importlib.util import find_spec
from pathlib import Path

from cm3.hf.processing import CHAT_TEMPLATE
from cm3.model.config import CM3Config

ENTRIES = {  # Auto class -> module and class
    "AutoConfig": "cm3.model.config.CM3Config",
    "AutoModel": "cm3.model.transformer.CM3Model",
    "AutoModelForCausalLM": "cm3.model.transformer.CM3ForCausalLM",
    "AutoModelForMultimodalLM": "cm3.hf.modeling.CM3ForConditionalGeneration",
    "AutoModelForImageTextToText": "cm3.hf.modeling.CM3ForConditionalGeneration",
    "AutoProcessor": "cm3.hf.processing.CM3Processor",
    "AutoImageProcessor": "cm3.hf.processing.CM3ImageProcessor",
}
# Names that transformers gives to such files.
NAMES = {
    "cm3.model.config": "configuration_cm3",
    "cm3.model.transformer": "modeling_cm3",
    "cm3.hf.modeling": "modeling_cm3_multimodal",
    "cm3.hf.processing": "processing_cm3",
    "tokenizer_image": "tokenizer_image",
}
PACKAGES = ("cm3", "tokenizer_image")
PROCESSOR, TEMPLATE = "processor_config.json", "chat_template.jinja"


def flat_name(module: str) -> str:
    """The name of a module's file in a model folder, without its ending."""
    return NAMES.get(module, module.replace(".", "_"))


def source_of(module: str) -> str:
    """The source code of a module."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return Path(spec.origin).read_text(encoding="utf-8")


def imported(source: str) -> set[str]:
    """The modules of the packages that a source imports. Such imports have to be `from module import names`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            found.add(str(node.module))
        elif isinstance(node, ast.Import):
            assert not any(name.name.split(".")[0] in PACKAGES for name in node.names), ast.unparse(node)
    return found


def code() -> dict[str, str]:
    """The files that the entries need, by name."""
    waiting = {entry.rpartition(".")[0] for entry in ENTRIES.values()}
    files: dict[str, str] = {}
    while waiting:
        module = waiting.pop()
        source = source_of(module)
        files[f"{flat_name(module)}.py"] = re.sub(
            r"^(\s*)from ((?:cm3|tokenizer_image)[\w.]*) import",
            lambda match: f"{match[1]}from .{flat_name(match[2])} import",
            source,
            flags=re.MULTILINE,
        )
        waiting |= {name for name in imported(source) if f"{flat_name(name)}.py" not in files}
    return files


def auto_map(*classes: str) -> dict[str, dict[str, str]]:
    """The entry of a configuration that refers to the code of these Auto classes."""
    entries = {name: ENTRIES[name].rpartition(".") for name in classes}
    return {"auto_map": {name: f"{flat_name(module)}.{kind}" for name, (module, _, kind) in entries.items()}}


def write_processor(folder: Path, config: CM3Config, resolution: int, code: bool = False) -> None:
    """Write the files that AutoProcessor reads.

    Args:
        folder: the model folder.
        config: of the model.
        resolution: side of the image tokenizer's images, in pixels.
        code: whether the folder has the code.
    """
    image = {"image_processor_type": "CM3ImageProcessor", "resolution": resolution}
    processor = {
        "processor_class": "CM3Processor",
        "vocabulary": [config.num_special_tokens, config.text_vocab_size, config.image_vocab_size],
        "grid": list(config.grid),
        "form": config.document_form,
        "image_processor": {**image, **(auto_map("AutoImageProcessor") if code else {})},
        **(auto_map("AutoProcessor") if code else {}),
    }
    (folder / PROCESSOR).write_text(json.dumps(processor, indent=1) + "\n", encoding="utf-8")
    (folder / TEMPLATE).write_text(CHAT_TEMPLATE, encoding="utf-8")


def add_code(folder: Path, resolution: int) -> None:
    """Add the code to a folder with config.json. `resolution` is as for write_processor."""
    for name, content in code().items():
        (folder / name).write_text(content, encoding="utf-8")
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    config = CM3Config.from_dict(values)  # pyright: ignore[reportUnknownMemberType]
    write_processor(folder, config, resolution, code=True)
    models = auto_map(*(name for name in ENTRIES if "Processor" not in name))
    path.write_text(json.dumps({**values, **models}, indent=2) + "\n", encoding="utf-8")
