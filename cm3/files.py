"""Model folders: where they are found, whether they are whole, and the weights in them.

A folder holds config.json, model.safetensors, tokenizer.json (text) and image_tokenizer/, or in its place the field
"image_tokenizer" of config.json naming one that tokenizer_image knows. scorer/ re-ranks drawings, where there is one.
checksums.json is checked if present.
"""

# huggingface_hub and transformers are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import hashlib
import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError
from transformers.utils import logging

from cm3.transformer import CM3ForCausalLM

EMBEDDED = Path(__file__).parent / "models"
CHECKSUMS = "checksums.json"


def find_model(name: str | Path) -> Path:
    """The folder of an embedded model, of a local one, or of one fetched from the hub."""
    embedded = sorted(path.parent.name for path in EMBEDDED.glob("*/config.json"))
    if str(name) in embedded:
        return EMBEDDED / name
    if name and Path(name).is_dir():
        return Path(name)
    none = f"there is no model {str(name)!r}: it is neither embedded ({', '.join(embedded) or 'none is'}) nor a folder"
    if "/" not in str(name):
        raise ValueError(none)
    try:
        return Path(snapshot_download(str(name), allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, HFValidationError) as error:
        raise ValueError(f"{none}, and the hub does not give it ({error})") from error


def check_files(folder: Path) -> None:
    """Whether a model folder is whole and, where it has checksums, unchanged. Errors: ValueError naming the file."""
    path = folder / CHECKSUMS
    try:
        checksums: dict[str, str] = dict(json.loads(path.read_text())) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); fetch the model again") from error
    for name in ("config.json", "tokenizer.json", *checksums):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is no whole model folder: {name} is missing; fetch the model again")
    for name, digest in checksums.items():
        if sha256(folder / name) != digest:
            raise ValueError(f"{folder / name} was changed or damaged: its checksum differs; fetch the model again")


def write_checksums(folder: Path) -> None:
    """Note the SHA-256 of every file that a model is loaded from."""
    files = sorted(path for suffix in ("json", "safetensors") for path in folder.rglob(f"*.{suffix}"))
    names = [path.relative_to(folder).as_posix() for path in files if path != folder / CHECKSUMS]
    (folder / CHECKSUMS).write_text(json.dumps({name: sha256(folder / name) for name in names}, indent=1) + "\n")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def no_bar() -> Generator[None, None, None]:
    """transformers shows no progress bar: reading weights takes a moment."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_transformer(folder: Path, options: dict[str, Any]) -> CM3ForCausalLM:
    """The weights of a model folder, none missing. Errors: ValueError."""
    try:
        with no_bar():
            loaded: Any = CM3ForCausalLM.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
            )
    except (OSError, RuntimeError, ValueError, SafetensorError, StrictDataclassError) as error:
        raise ValueError(f"{folder}: the model cannot be loaded ({error}); fetch it again") from error
    model, report = loaded
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ValueError(f"{folder}: the weights lack {missing}; fetch the model again")
    return model
