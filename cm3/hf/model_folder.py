"""Model folders: finding, checking, loading and writing them.

A folder has config.json, model.safetensors, tokenizer.json (text) and image_tokenizer/; in place of the last, the field
"image_tokenizer" of config.json can name an embedded one. scorer/ is optional and is for reranking. checksums.json is
checked if it is there, and lists the files that are fetched from the hub. A folder is not trusted: the sizes in
config.json are compared with the header of the weights before memory is allocated.
"""

import json
import math
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from fnmatch import fnmatch
from glob import escape
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, cast

import torch
from huggingface_hub import HfApi, snapshot_download  # pyright: ignore[reportUnknownVariableType]
from huggingface_hub.errors import HFValidationError
from torch import nn
from transformers.utils import logging

from cm3.files import sha256
from cm3.model.config import CM3Config
from cm3.tasks.confidence import CALIBRATION
from cm3.tasks.known_words import KNOWN_NAMES, KNOWN_WORDS
from cm3.tasks.lexicon import LEXICON
from tokenizer_image import ImageTokenizer
from tokenizer_image.checkpoint import SafetensorsWeights, make_readable, shards_of
from tokenizer_image.tokenizer import embedded as embedded_tokenizers

if TYPE_CHECKING:
    from cm3.model.transformer import CM3ForCausalLM

EMBEDDED = Path(__file__).parents[1] / "pretrained"
CHECKSUMS, WEIGHTS, INDEX = "checksums.json", "model.safetensors", "model.safetensors.index.json"
OURS = (
    CHECKSUMS,
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "processor_config.json",
    "chat_template.jinja",
    "*cm3*.py",  # remote_code.py
    "tokenizer_image*.py",
    "*.safetensors",
    INDEX,
    "image_tokenizer",  # with everything in it
    "scorer",
    KNOWN_WORDS,
    KNOWN_NAMES,
    CALIBRATION,
    LEXICON,
)
UNFINISHED, OLD = ".unfinished", ".old"
ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")  # kernels that fetch no code
ATTENTION_FIELDS = ("attn_implementation", "_attn_implementation")
LIMITS = {"num_hidden_layers": 1_000}
MAX_INTEGER = 2**31  # in other fields


def device_of(name: str | torch.device) -> torch.device:
    """The device of a name; "auto" is a GPU if there is one.

    Raises:
        ValueError: a device that cannot be used.
    """
    if not isinstance(name, str | torch.device):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"device must be a string or a torch.device, but is {name!r:.60}")
    found = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        torch.empty(1, device=found).cpu()  # fails for "meta"
    except Exception as error:  # torch raises many kinds of errors
        reason = str(error).splitlines()[0]
        raise ValueError(
            f'device is {str(name)!r}, which cannot be used ({reason:.80}): give "cpu" or "auto"'
        ) from error
    return torch.device(found)


def find_model(name: str | Path) -> Path:
    """The folder of a model: an embedded one, a local one, or one that is fetched from the hub.

    Raises:
        ValueError: there is no such model.
    """
    embedded = sorted(path.parent.name for path in EMBEDDED.glob("*/config.json"))
    if str(name) in embedded:
        return EMBEDDED / name
    if name and Path(name).is_dir():
        return Path(name)
    if name and (left := left_by_killed_run(Path(name))) is not None:
        return left
    none = f"there is no model {str(name)!r}: it is neither embedded ({', '.join(embedded) or 'none is'}) nor a folder"
    if "/" not in str(name):
        raise ValueError(none)
    try:
        return fetch(str(name))
    except (OSError, HFValidationError) as error:
        raise ValueError(f"{none}, and it cannot be fetched from the hub ({error})") from error


def fetch(name: str) -> Path:
    """Fetch a model from a repository of the hub: the files that checksums.json lists, or without it all files that a
    model folder may have."""
    folder = Path(snapshot_download(name, allow_patterns=[CHECKSUMS, "config.json"]))
    listed = [CHECKSUMS, *map(escape, read_checksums(folder))]
    patterns = listed if (folder / CHECKSUMS).is_file() else [*OURS, *(f"{one}/*" for one in OURS)]
    # The snapshot's folder is named after the commit: the list and the files come from one commit.
    return Path(snapshot_download(name, revision=folder.name, allow_patterns=patterns))


def upload(folder: Path, name: str, private: bool | None, token: str | bool | None) -> str:
    """Upload a model folder to a repository of the hub, which is created if needed.

    Returns:
        The repository's address.

    Raises:
        ValueError: the name is no repository's.
        OSError: the hub refuses.
    """
    hub = HfApi(token=token)
    address = hub.create_repo(name, private=private, exist_ok=True)
    hub.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message="Upload the model")
    return str(address)


def left_by_killed_run(folder: Path) -> Path | None:
    """The old folder, if write_folder was killed between its two renames; None otherwise."""
    old = folder.with_name(folder.name + OLD)
    return old if not folder.exists() and old.is_dir() else None


@contextmanager
def write_folder(folder: Path) -> Generator[Path, None, None]:
    """A new folder to write a model into, which replaces this one at the end. A run that is killed leaves the old model
    or the new one. Files that are not the model's are kept.

    Raises:
        ValueError: the current folder.
    """
    folder = Path(os.path.realpath(folder))
    if Path.cwd() == folder or folder in Path.cwd().parents:
        raise ValueError(f"{folder} is the current folder, or holds it: save into a folder of its own")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (folder.with_name(folder.name + end) for end in (UNFINISHED, OLD))
    shutil.rmtree(fresh, ignore_errors=True)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
    fresh.mkdir()
    yield fresh
    make_readable(*fresh.rglob("*.safetensors"))
    before = folder if folder.exists() else left_by_killed_run(folder)
    for path in before.iterdir() if before else ():
        if not is_ours(path):
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, fresh / path.name, symlinks=True)
            else:
                shutil.copy2(path, fresh / path.name, follow_symlinks=False)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def is_ours(path: Path) -> bool:
    """Whether a file or folder in a model folder is part of the model."""
    return any(fnmatch(path.name, name) for name in OURS)


def check_files(folder: Path) -> None:
    """Raise a ValueError that names the file if a model folder is incomplete, or differs from its checksums."""
    checksums = read_checksums(folder)
    for name in ("config.json", "tokenizer.json", *checksums):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is no whole model folder: {name} is missing; fetch the model again")
    for name, digest in checksums.items():
        if sha256(folder / name) != digest:
            raise ValueError(f"{folder / name} was changed or damaged: its checksum differs; fetch the model again")


def read_checksums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file name; {} if the folder has no checksums.

    Raises:
        ValueError: a file has other content, or a name lies outside the folder.
    """
    path = folder / CHECKSUMS
    try:
        values = json_dict(path) if path.is_file() else {}
        for name, digest in values.items():
            assert isinstance(digest, str), f"the checksum of {name!r:.60} is {digest!r:.60}"
            inside = PurePosixPath(name)
            assert not inside.is_absolute() and ".." not in inside.parts, f"{name!r:.60} is outside the folder"
    except (ValueError, AssertionError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); fetch the model again") from error
    return values


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 of the files that the model is loaded from."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    ours = [path.relative_to(folder) for path in files if path != folder / CHECKSUMS]
    names = [name.as_posix() for name in ours if is_ours(folder / name.parts[0])]
    (folder / CHECKSUMS).write_text(json.dumps({name: sha256(folder / name) for name in names}, indent=1) + "\n")


@contextmanager
def no_bar() -> Generator[None, None, None]:
    """Switch off transformers' progress bar for weights."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def read_config(folder: Path, attention: bool = False) -> CM3Config:
    """Read and check config.json.

    Args:
        folder: the model folder.
        attention: whether the caller chooses the attention implementation.

    Raises:
        ValueError: it is no configuration of this model, asks for other code, or has impossible sizes.
    """
    path = folder / "config.json"
    broken = f"{path} is damaged or belongs to another model"
    try:
        values = json_dict(path)
        kind = values.get("model_type")
        assert kind == CM3Config.model_type, f"model_type is {kind!r:.60}, but must be {CM3Config.model_type!r}"
    except (OSError, ValueError, AssertionError, RecursionError) as error:
        raise ValueError(f"{broken} ({error}): fetch it again") from error
    for name in ATTENTION_FIELDS:
        if not attention and (asked := values.get(name)) is not None and asked not in ATTENTION:
            raise ValueError(
                f"{path} asks for the attention kernel {asked!r:.60}, which may be anyone's code: "
                "where you trust it, pass attn_implementation yourself"
            )
    if values.get("quantization_config") is not None:
        raise ValueError(f"{path} has a quantization_config: quantised weights are not read; save the model without")
    for name, value in values.items():
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > LIMITS.get(name, MAX_INTEGER):
            raise ValueError(f"{broken} ({name} is {value}, at most {LIMITS.get(name, MAX_INTEGER):,}): fetch it again")
    try:
        return CM3Config.from_dict(  # pyright: ignore[reportUnknownMemberType]
            {name: value for name, value in values.items() if name not in ATTENTION_FIELDS}
        )
    except Exception as error:  # transformers raises many kinds of errors
        raise ValueError(f"{broken} ({first_line(error)}): fetch it again") from error


def json_dict(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        AssertionError: other JSON.
    """
    values = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(values, dict), f"it holds {type(values).__name__}"
    return cast(dict[str, Any], values)


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error) or type(error).__name__).splitlines()[0]


def weight_shapes(folder: Path) -> dict[str, list[int]]:
    """The shape of every tensor, from the headers of the files.

    Raises:
        ValueError: damaged files.
    """
    index = folder / INDEX
    return SafetensorsWeights(shards_of(index) if index.is_file() else [folder / WEIGHTS]).shapes()


def load_transformer(folder: Path, options: dict[str, Any]) -> "CM3ForCausalLM":
    """Load the language model of a folder.

    Raises:
        ValueError: weights are missing, do not fit or are not finite.
    """
    from cm3.model.transformer import CM3ForCausalLM  # takes seconds, and `cm3 info` needs the files only

    config = read_config(folder, "attn_implementation" in options)
    shapes = weight_shapes(folder)
    with torch.device("meta"):
        wanted = {name: list(tensor.shape) for name, tensor in CM3ForCausalLM(config).state_dict().items()}
    for name in sorted(wanted.keys() & shapes.keys()):
        if wanted[name] != shapes[name]:
            raise ValueError(
                f"{folder}: config.json does not fit the weights: {name} is {shapes[name]} there, not {wanted[name]}; "
                "fetch the model again"
            )
    if missing := sorted(wanted.keys() - shapes.keys() - ({"lm_head.weight"} if config.tie_word_embeddings else set())):
        raise ValueError(f"{folder}: the weights lack {', '.join(missing[:3])}; fetch the model again")
    try:
        with no_bar():
            model: Any = CM3ForCausalLM.from_pretrained(  # pyright: ignore[reportUnknownMemberType]
                folder, local_files_only=True, use_safetensors=True, **options
            )
    except Exception as error:  # as above
        raise ValueError(f"{folder}: the model cannot be loaded ({first_line(error)}); fetch it again") from error
    check_finite(model, str(folder))
    return model


def check_finite(model: nn.Module, what: str) -> None:
    """Raise a ValueError if weights are not finite."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not math.isfinite(tensor.sum(dtype=torch.float32).item()):
            raise ValueError(f"{what}: {name} has values that are not finite: the training went wrong")


def image_tokenizer_name(folder: Path, config: CM3Config, given: str | Path | None = None) -> str:
    """Name or folder of a model's image tokenizer: `given`, the folder's own, or the embedded one that config.json
    names.

    Nothing else is possible, so that a model folder cannot make the caller read other folders or fetch anything.

    Raises:
        ValueError: there is none.
    """
    own, named = folder / "image_tokenizer", getattr(config, "image_tokenizer", None)
    if given is not None:
        return str(given)
    if own.is_dir():
        return str(own)
    if named not in embedded_tokenizers():
        raise ValueError(
            f"{folder} has no image_tokenizer/, and names {named!r:.60}, which is not embedded "
            f"({', '.join(embedded_tokenizers())}): say which with image_tokenizer="
        )
    return str(named)


def load_image_tokenizer(folder: Path, config: CM3Config, given: str | Path | None = None) -> ImageTokenizer:
    """Load the model's image tokenizer (image_tokenizer_name).

    Raises:
        ValueError: the model was trained with another one.
    """
    name = image_tokenizer_name(folder, config, given)
    tokenizer = ImageTokenizer.from_pretrained(name)
    if getattr(config, "image_tokenizer_fingerprint", None) not in (None, tokenizer.fingerprint()):
        raise ValueError(
            f"the image tokenizer {name!r} is not the one that {folder} was trained with: it was changed or damaged; "
            "fetch the model again"
        )
    return tokenizer
