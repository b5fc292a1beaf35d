"""Checkpoints of other people: a safetensors file, a folder of them, or a pickle that the user named -> tensors by key.

No code of a checkpoint runs. safetensors are read tensor by tensor, so one part of a large model costs no more than
that part. A pickle is read by torch with weights_only; what trainers leave beside the weights becomes `Leftover`.
"""

# A checkpoint holds anything.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import json
import pickle
import secrets
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

MAX_GIGABYTES = 8.0
SINGLE = ("diffusion_pytorch_model.safetensors", "model.safetensors")
INDEX = ("diffusion_pytorch_model.safetensors.index.json", "model.safetensors.index.json")
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
WRAPPERS = ("ema", "model", "state_dict")  # keys that trainers put the weights under, the best first

# Classes that trainers store beside the weights (options, callbacks, best scores): replaced, never imported.
LEFTOVERS = ("argparse.Namespace", "builtins.dict", "builtins.int", "builtins.list", "collections.defaultdict")
LEFTOVER_PACKAGES = {"lightning", "lightning_fabric", "numpy", "omegaconf", "pytorch_lightning", "typing"}


def make_readable(*files: Path) -> None:
    """Give files the mode of any new file: those that safetensors' save_file writes nobody but their owner can read."""
    for file in files:
        probe = file.with_name(f".{secrets.token_hex(8)}")
        probe.touch()  # the umask, and what else the folder asks for
        file.chmod(probe.stat().st_mode)
        probe.unlink()


class Leftover:
    """Stands in for a class that is not wanted: takes anything, does nothing."""

    def __new__(cls, *args: Any) -> "Leftover":
        return super().__new__(cls)

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class SafetensorsWeights(Mapping[str, Tensor]):
    """Tensors of one or more safetensors files, each read when it is asked for."""

    def __init__(self, files: list[Path]):
        self._file: dict[str, Path] = {}
        for file in files:
            with _open(file) as tensors:
                self._file |= dict.fromkeys(tensors.keys(), file)

    def shapes(self) -> dict[str, list[int]]:
        """Of every tensor, from the files' headers: nothing else is read."""
        found: dict[str, list[int]] = {}
        for file in dict.fromkeys(self._file.values()):
            with _open(file) as tensors:
                found |= {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118
        return found

    def dtypes(self) -> dict[str, torch.dtype]:
        """Of every tensor, likewise."""
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
    """Tensors by key.

    Args:
        source: a .safetensors file, its index (.json), a folder with either, or a pickle (.ckpt, .pt, .pth, .bin).
            Pickles are not searched for in folders: name the file.
        max_gigabytes: larger pickles are not opened.

    Raises:
        ValueError: nothing there, no weights in it, too large, damaged, or code in a pickle.
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
    """The files that an index names, all in its folder. Raises ValueError for what is no index."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: not an index of safetensors files ({error!r}): fetch it again") from error
    if foreign := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{index} names files outside its folder: {foreign[0]}")
    return [index.parent / name for name in names]


def _dtype(name: str) -> torch.dtype:
    """torch's for safetensors' name."""
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
        zipped = zipfile.is_zipfile(file)  # since torch 1.6; older files can neither be searched nor mapped
        stand_ins = _stand_ins(file) if zipped else []
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        cause = lines[-2:][0].split(". ")[0]  # torch puts advice around it
        raise ValueError(f"{file}: damaged, or a pickle with more than weights in it ({cause})") from error
    except (RuntimeError, EOFError, OSError, LookupError, AttributeError, TypeError, struct.error) as error:
        cause = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        raise ValueError(f"{file}: damaged or cut off ({cause}): fetch it again") from error
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    items = content.items() if isinstance(content, Mapping) else ()
    tensors = {str(key): value for key, value in items if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{file}: no weights in it; they are looked for at the top or under {', '.join(WRAPPERS)}")
    return tensors


def _stand_ins(file: Path) -> list[Any]:
    """(Leftover, name) for each class of a trainer's in the pickle. Errors: ValueError if it calls anything else."""
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
