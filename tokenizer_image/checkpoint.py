"""Read the tensors of checkpoints: a safetensors file, a folder of them, or a pickle.

No code of a checkpoint runs. safetensors are read tensor by tensor, so only the needed part of a large model is read. A
pickle is read by torch with weights_only. Objects that trainers store beside the weights are replaced by `Leftover`.
"""

import json
import pickle
import secrets
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

MAX_GIGABYTES = 8.0
SINGLE = ("diffusion_pytorch_model.safetensors", "model.safetensors")
INDEX = ("diffusion_pytorch_model.safetensors.index.json", "model.safetensors.index.json")
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
WRAPPERS = ("ema", "model", "state_dict")  # keys under which trainers store the weights, the best first

# Classes that trainers store beside the weights (options, callbacks, best scores): replaced, never imported.
LEFTOVERS = ("argparse.Namespace", "builtins.dict", "builtins.int", "builtins.list", "collections.defaultdict")
LEFTOVER_PACKAGES = {"lightning", "lightning_fabric", "numpy", "omegaconf", "pytorch_lightning", "typing"}


def make_readable(*files: Path) -> None:
    """Give files the mode of ordinary new files. Only the owner can read those that safetensors' save_file writes."""
    for file in files:
        probe = file.with_name(f".{secrets.token_hex(8)}")
        probe.touch()  # has the mode by the umask and the folder's defaults
        file.chmod(probe.stat().st_mode)
        probe.unlink()


class Leftover:
    """Replaces a class of a pickle that is not needed. It accepts any arguments and does nothing."""

    def __new__(cls, *args: Any) -> "Leftover":
        return super().__new__(cls)

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class SafetensorsWeights(Mapping[str, Tensor]):
    """The tensors of safetensors files, which are read when they are used.

    Raises:
        ValueError: a file is damaged.
    """

    def __init__(self, files: list[Path]):
        self._file: dict[str, Path] = {}
        for file in files:
            with _open(file) as tensors:
                self._file |= dict.fromkeys(tensors.keys(), file)

    def shapes(self) -> dict[str, list[int]]:
        """Return the shapes of all tensors, from the headers of the files."""
        found: dict[str, list[int]] = {}
        for file in dict.fromkeys(self._file.values()):
            with _open(file) as tensors:
                found |= {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118
        return found

    def dtypes(self) -> dict[str, torch.dtype]:
        """Return the types of all tensors, from the headers of the files."""
        found: dict[str, torch.dtype] = {}
        for file in dict.fromkeys(self._file.values()):
            with _open(file) as tensors:
                found |= {key: _dtype(tensors.get_slice(key).get_dtype()) for key in tensors.keys()}  # noqa: SIM118
        return found

    def __getitem__(self, key: str) -> Tensor:
        with _open(self._file[key]) as tensors:
            return tensors.get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)


def open_checkpoint(source: Path, max_gigabytes: float = MAX_GIGABYTES) -> Mapping[str, Tensor]:
    """Open a checkpoint.

    Args:
        source: a .safetensors file, its index (.json), a folder with either, or a pickle (.ckpt, .pt, .pth, .bin).
            Pickles are not searched for in folders.
        max_gigabytes: larger pickles are not opened.

    Returns:
        Tensors by key.

    Raises:
        ValueError: there is no checkpoint, or it has no weights, is too large or damaged, or is a pickle with code.
    """
    if source.is_dir():
        source = _within(source)
    if not source.is_file():
        raise ValueError(f"{source}: there is no such file")
    if source.name.endswith(".safetensors.index.json"):
        return SafetensorsWeights(shards_of(source))
    if source.suffix == ".safetensors":
        return SafetensorsWeights([source])
    if source.suffix in PICKLES:
        return _unpickle(source, max_gigabytes)
    raise ValueError(f"{source}: not a checkpoint; give a folder, .safetensors, or one of {', '.join(PICKLES)}")


def _within(folder: Path) -> Path:
    for name in (*SINGLE, *INDEX):
        if (folder / name).is_file():
            return folder / name
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    hint = f"; name the file itself: {', '.join(pickles[:3])}" if pickles else ""
    raise ValueError(f"{folder} holds none of {', '.join((*SINGLE, *INDEX))}{hint}")


def shards_of(index: Path) -> list[Path]:
    """Return the files that an index lists.

    Raises:
        ValueError: it is no index, or lists files outside its folder.
    """
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: not an index of safetensors files ({error!r}): fetch it again") from error
    if foreign := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{index} names files outside its folder: {foreign[0]}")
    return [index.parent / name for name in names]


def _dtype(name: str) -> torch.dtype:
    """Return the torch type of a type name of safetensors."""
    named = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn"}
    named |= {"F8_E5M2": "float8_e5m2", "BOOL": "bool", "U8": "uint8"} | {f"I{n}": f"int{n}" for n in (8, 16, 32, 64)}
    return getattr(torch, named.get(name, ""), torch.uint8)


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: missing, cut off or not safetensors ({error}): fetch it again") from error


def _unpickle(file: Path, max_gigabytes: float) -> Mapping[str, Tensor]:
    size = file.stat().st_size / 1e9
    if size > max_gigabytes:
        raise ValueError(f"{file}: {size:.1f} GB, the limit is {max_gigabytes:g} GB; raise it with --max-gb")
    try:
        zipped = zipfile.is_zipfile(file)  # since torch 1.6; older files cannot be inspected or mapped
        stand_ins = _stand_ins(file) if zipped else []
        with torch.serialization.safe_globals(stand_ins):
            content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        cause = lines[-2:][0].split(". ")[0]  # torch puts advice around it
        raise ValueError(f"{file}: damaged, or a pickle with more than weights in it ({cause})") from error
    except (RuntimeError, EOFError, OSError, LookupError, AttributeError, TypeError, struct.error) as error:
        cause = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        raise ValueError(f"{file}: damaged or cut off ({cause}): fetch it again") from error
    values = _as_dict(content)
    for name in WRAPPERS:
        if isinstance(values.get(name), Mapping):
            values = _as_dict(values[name])
            break
    tensors = {str(key): value for key, value in values.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{file}: no weights in it; they are looked for at the top or under {', '.join(WRAPPERS)}")
    return tensors


def _as_dict(value: Any) -> dict[Any, Any]:
    """Return a mapping as a dict; {} for anything else."""
    return dict(cast(Mapping[Any, Any], value)) if isinstance(value, Mapping) else {}


def _stand_ins(file: Path) -> list[Any]:
    """Return (replacement, name) for each class of a trainer in a pickle.

    Raises:
        ValueError: the pickle calls anything else.
    """
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    refused = [name for name in names if name not in LEFTOVERS and name.split(".")[0] not in LEFTOVER_PACKAGES]
    if refused:
        raise ValueError(
            f"{file} is a pickle that calls code: {', '.join(sorted(refused)[:10])}; it was not opened. "
            "Get the weights as safetensors, or save its tensors alone"
        )
    return [(_plain_dict if name == "collections.defaultdict" else Leftover, name) for name in names]


def _plain_dict(*args: Any) -> dict[Any, Any]:
    return {}
