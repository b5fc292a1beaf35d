"""The files of a checkpoint: synced to the disk, hashed, and read without running code that they might contain."""

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult

from cm3.files import sha256

DAMAGED = ".damaged"

Facts = dict[str, dict[str, Any]]  # file -> its size and hash


def reason(error: BaseException) -> str:
    """Return the message of the disk's error, which torch's writer wraps in other exceptions."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return str(seen)
        seen = seen.__cause__ or seen.__context__
    return f"{type(error).__name__}: {error}"


def facts(folder: Path, pattern: str) -> Facts:
    """Return size and hash of the files that match the pattern."""
    found = {}
    for path in sorted(folder.glob(pattern)):
        found[path.name] = {"size": path.stat().st_size, "sha256": sha256(path)}
    return found


def write_synced(path: Path, text: str) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names of the folder's files are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_aside(folder: Path) -> None:
    """Rename a damaged checkpoint."""
    aside = folder.with_name(folder.name + DAMAGED)
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(folder, aside)


class Writer(FileSystemWriter):
    """Raises the disk's own error on every rank: the cause of an exception is lost between ranks."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> "torch.futures.Future[list[WriteResult]]":
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            raise OSError(reason(error)) from error


class Reader(FileSystemReader):
    """Reads a checkpoint's index, which is a pickle, without running code that it might contain."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            return IndexUnpickler(file).load()


class IndexUnpickler(pickle.Unpickler):
    """Unpickles nothing but the classes of an index."""

    KNOWN = {
        "torch.distributed.checkpoint.metadata": {
            "Metadata",
            "TensorStorageMetadata",
            "TensorProperties",
            "ChunkStorageMetadata",
            "MetadataIndex",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        },
        "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
        "torch.serialization": {"_get_layout"},
        "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
        "pathlib": {"PosixPath", "WindowsPath"},
    }

    def find_class(self, module: str, name: str) -> Any:
        if name not in self.KNOWN.get(module, ()):
            raise ValueError(
                f"the checkpoint's index asks for {module}.{name}: another PyTorch wrote it, or it is none"
            )
        return super().find_class(module, name)
