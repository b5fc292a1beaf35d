"""Model folders: where they are found, whether they are whole, the weights in them, and how they are written.

A folder holds config.json, model.safetensors, tokenizer.json (text) and image_tokenizer/, or in its place the field
"image_tokenizer" of config.json naming one that tokenizer_image embeds. scorer/ re-ranks drawings, where there is one.
checksums.json is checked if present, and says what is fetched from the hub. Nothing in a folder is believed before it
is looked at: what config.json claims is compared with the header of the weights before memory is taken for it.
"""

# huggingface_hub and transformers are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import json
import math
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from fnmatch import fnmatch
from glob import escape
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError
from torch import nn
from transformers.utils import logging

from cm3.files import sha256
from cm3.model.config import CM3Config
from cm3.tasks.known_words import KNOWN_NAMES, KNOWN_WORDS
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
    "image_tokenizer",  # with all that lies in it
    "scorer",
    KNOWN_WORDS,
    KNOWN_NAMES,
)
UNFINISHED, OLD = ".unfinished", ".old"
ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")  # no code from elsewhere
ASKED_FOR = ("attn_implementation", "_attn_implementation")
LIMITS = {"num_hidden_layers": 1_000}
LARGEST = 2**31  # of any other whole number


def device_of(name: str | torch.device) -> torch.device:
    """ "auto" is a GPU if there is one. Errors: ValueError for a device that torch does not know or does not find."""
    if not isinstance(name, str | torch.device):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"device must be a string or a torch.device, but is {name!r:.60}")
    found = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        torch.empty(1, device=found).cpu()  # of "meta" nothing can be copied
    except Exception as error:  # torch raises almost anything
        reason = str(error).splitlines()[0]
        raise ValueError(
            f'device is {str(name)!r}, which cannot be used ({reason:.80}): give "cpu" or "auto"'
        ) from error
    return torch.device(found)


def find_model(name: str | Path) -> Path:
    """The folder of an embedded model, of a local one, or of one fetched from the hub."""
    embedded = sorted(path.parent.name for path in EMBEDDED.glob("*/config.json"))
    if str(name) in embedded:
        return EMBEDDED / name
    if name and Path(name).is_dir():
        return Path(name)
    if name and (left := left_of(Path(name))) is not None:
        return left
    none = f"there is no model {str(name)!r}: it is neither embedded ({', '.join(embedded) or 'none is'}) nor a folder"
    if "/" not in str(name):
        raise ValueError(none)
    try:
        return fetch(str(name))
    except (OSError, HFValidationError) as error:
        raise ValueError(f"{none}, and the hub does not give it ({error})") from error


def fetch(name: str) -> Path:
    """The files of a model in a repository of the hub, on this machine: those that checksums.json lists, or all that a
    model folder may hold where there is no such list."""
    folder = Path(snapshot_download(name, allow_patterns=[CHECKSUMS, "config.json"]))
    listed = [CHECKSUMS, *map(escape, read_checksums(folder))]
    patterns = listed if (folder / CHECKSUMS).is_file() else [*OURS, *(f"{one}/*" for one in OURS)]
    # The snapshot's folder has the commit's name: what is listed and what is fetched are of one commit.
    return Path(snapshot_download(name, revision=folder.name, allow_patterns=patterns))


def upload(folder: Path, name: str, private: bool | None, token: str | bool | None) -> str:
    """Write a model folder to a repository of the hub, which is made where there is none. Returns its address.
    Errors: ValueError for what is no name of a repository, OSError where the hub refuses."""
    hub = HfApi(token=token)
    address = hub.create_repo(name, private=private, exist_ok=True)
    hub.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message="Upload the model")
    return str(address)


def left_of(folder: Path) -> Path | None:
    """The whole folder that a write_folder left aside that was killed in the moment between two renames."""
    old = folder.with_name(folder.name + OLD)
    return old if not folder.exists() and old.is_dir() else None


@contextmanager
def write_folder(folder: Path) -> Generator[Path, None, None]:
    """A new folder to write a model into, which takes this one's place when it is whole: who is killed leaves the old
    model or the new one. What else lies in the folder stays. Errors: ValueError for the current folder."""
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
    before = folder if folder.exists() else left_of(folder)
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
    """Whether a model folder is whole and, where it has checksums, unchanged. Errors: ValueError naming the file."""
    checksums = read_checksums(folder)
    for name in ("config.json", "tokenizer.json", *checksums):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is no whole model folder: {name} is missing; fetch the model again")
    for name, digest in checksums.items():
        if sha256(folder / name) != digest:
            raise ValueError(f"{folder / name} was changed or damaged: its checksum differs; fetch the model again")


def read_checksums(folder: Path) -> dict[str, str]:
    """SHA-256 by file name; {} where the folder has no checksums. Errors: ValueError for what is no such list, or
    names what lies elsewhere."""
    path = folder / CHECKSUMS
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        assert isinstance(values, dict), f"it holds {type(values).__name__}"
        for name, digest in values.items():
            assert isinstance(digest, str), f"the checksum of {name!r:.60} is {digest!r:.60}"
            inside = PurePosixPath(name)
            assert not inside.is_absolute() and ".." not in inside.parts, f"{name!r:.60} is outside the folder"
    except (ValueError, AssertionError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); fetch the model again") from error
    return values


def write_checksums(folder: Path) -> None:
    """Note the SHA-256 of every file that the model is loaded from, and of no other."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    ours = [path.relative_to(folder) for path in files if path != folder / CHECKSUMS]
    names = [name.as_posix() for name in ours if is_ours(folder / name.parts[0])]
    (folder / CHECKSUMS).write_text(json.dumps({name: sha256(folder / name) for name in names}, indent=1) + "\n")


@contextmanager
def no_bar() -> Generator[None, None, None]:
    """transformers shows no progress bar: reading and writing weights takes a moment."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def read_config(folder: Path, attention: bool = False) -> CM3Config:
    """config.json, as far as it can be true. attention: the caller says which implementation is taken.

    Errors: ValueError for what is no configuration of this model, asks for code from elsewhere, or has sizes that no
    model has."""
    path = folder / "config.json"
    broken = f"{path} is damaged or belongs to another model"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(values, dict), f"it holds {type(values).__name__}"
        kind = values.get("model_type")
        assert kind == CM3Config.model_type, f"model_type is {kind!r:.60}, but must be {CM3Config.model_type!r}"
    except (OSError, ValueError, AssertionError, RecursionError) as error:
        raise ValueError(f"{broken} ({error}): fetch it again") from error
    for name in ASKED_FOR:
        if not attention and (asked := values.get(name)) is not None and asked not in ATTENTION:
            raise ValueError(
                f"{path} asks for the attention kernel {asked!r:.60}, which may be anyone's code: "
                "where you trust it, pass attn_implementation yourself"
            )
    if values.get("quantization_config") is not None:
        raise ValueError(f"{path} has a quantization_config: quantised weights are not read; save the model without")
    for name, value in values.items():
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > LIMITS.get(name, LARGEST):
            raise ValueError(f"{broken} ({name} is {value}, at most {LIMITS.get(name, LARGEST):,}): fetch it again")
    try:
        return CM3Config.from_dict({name: value for name, value in values.items() if name not in ASKED_FOR})
    except Exception as error:  # a broken file makes transformers raise almost anything
        raise ValueError(f"{broken} ({first_line(error)}): fetch it again") from error


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def weight_shapes(folder: Path) -> dict[str, list[int]]:
    """Of every tensor of a model folder, from the headers of its files. Errors: ValueError."""
    index = folder / INDEX
    return SafetensorsWeights(shards_of(index) if index.is_file() else [folder / WEIGHTS]).shapes()


def load_transformer(folder: Path, options: dict[str, Any]) -> "CM3ForCausalLM":
    """The weights of a model folder, none missing, each a number. Errors: ValueError."""
    from cm3.model.transformer import CM3ForCausalLM  # takes seconds, and `cm3 info` looks at the files alone

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
            model: Any = CM3ForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True, **options)
    except Exception as error:  # as above
        raise ValueError(f"{folder}: the model cannot be loaded ({first_line(error)}); fetch it again") from error
    check_finite(model, str(folder))
    return model


def check_finite(model: nn.Module, what: str) -> None:
    """Errors: ValueError for weights that are no numbers."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not math.isfinite(tensor.sum(dtype=torch.float32).item()):
            raise ValueError(f"{what}: {name} holds what is no number (nan or infinity): the training went wrong")


def image_tokenizer_name(folder: Path, config: CM3Config, given: str | Path | None = None) -> str:
    """Where a model folder's image tokenizer is found: the caller's, its own, or the embedded one that config.json
    names; nothing else, so that a folder can make nobody read other folders, or fetch anything. Errors: ValueError."""
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
    """The one that image_tokenizer_name finds. Errors: ValueError, also where it is not the one that the model was
    trained with."""
    name = image_tokenizer_name(folder, config, given)
    tokenizer = ImageTokenizer.from_pretrained(name)
    if getattr(config, "image_tokenizer_fingerprint", None) not in (None, tokenizer.fingerprint()):
        raise ValueError(
            f"the image tokenizer {name!r} is not the one that {folder} was trained with: it was changed or damaged; "
            "fetch the model again"
        )
    return tokenizer
