"""Checkpoints of a training run: written whole or not at all, in the background, for any number of ranks.

    FOLDER/step-00000500/                      complete: it has its name
        __0_0.distcp ... .metadata             tensors, by torch.distributed.checkpoint
        values.json                            the other values of each rank
        manifest.json                          size and SHA-256 of every file
        permanent                              an empty file: the checkpoint is kept for ever
    FOLDER/step-00001000.unfinished/           being written, or left by a run that died: removed at the next start
    FOLDER/step-00000400.damaged/              could not be read and was moved aside

A run keeps its whole state in one dict of parts (train/runtime/checkpoint_state.py), to save and to load it:

    parts = {"lm": ModelAndOptimizers(model, optimizers), "ema": average, "random": RandomState(), "data": {"at": 0}}
    with Checkpoints(out / "checkpoints") as checkpoints:
        first = checkpoints.load(parts) or 0  # parts["data"] is now that of the checkpoint
        for step in range(first, steps):
            ...
            checkpoints.save(step + 1, parts)

Every rank has parts of the same names. The name of a part that only one rank has contains an @: "apart@0".
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load as read_tensors
from torch.distributed.checkpoint.state_dict_saver import save as write_tensors
from torch.distributed.checkpoint.stateful import Stateful

from train.runtime.checkpoint_files import (
    DAMAGED,
    Facts,
    Reader,
    Writer,
    facts,
    move_aside,
    reason,
    sync_folder,
    write_synced,
)
from train.runtime.checkpoint_state import merged, rank, ranks, split, state_of, unpacked

MANIFEST, VALUES, PERMANENT = "manifest.json", "values.json", "permanent"
UNFINISHED = ".unfinished"

T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one run. With a process group, every rank makes this object and calls the same methods.

    Args:
        folder: on a file system that all ranks share.
        keep: number of newest checkpoints that are kept; the disk needs room for one more.
        async_save: copy the state to main memory and write it in the background.
        ignore_save_errors: warn when a save fails, instead of raising OSError at the next `save` or `wait`.

    Raises:
        ValueError: keep below 1, or several processes (WORLD_SIZE) without a process group.
    """

    def __init__(self, folder: str | Path, keep: int = 2, async_save: bool = True, ignore_save_errors: bool = False):
        if keep < 1:
            raise ValueError(f"keep is {keep}: at least 1 checkpoint must stay")
        if (expected := int(os.environ.get("WORLD_SIZE", ranks()))) != ranks():
            raise ValueError(
                f"WORLD_SIZE is {expected}, but the process group has {ranks()} ranks: start all of them "
                "with torchrun, or unset WORLD_SIZE"
            )
        self.folder, self.keep, self.async_save, self.ignore_save_errors = (
            Path(folder),
            keep,
            async_save,
            ignore_save_errors,
        )
        # A group of its own: the training's collectives must not meet those of the thread that writes.
        group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._group = cast(dist.ProcessGroup | None, group)
        self._pool = ThreadPoolExecutor(1, "checkpoints")
        self._saving: Future[None] | None = None
        cuda = torch.cuda.is_available()
        self._stager = DefaultStager(StagingOptions(cuda, False, False, cuda))
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for the last save. Its failure does not hide an exception that ended the block."""
        try:
            self.wait()
        except OSError as error:
            if kind is None:
                raise
            warnings.warn(str(error), stacklevel=2)
        finally:
            self._pool.shutdown()
            self._stager.close()

    def save(self, step: int, parts: dict[str, Any], permanent: bool = False) -> None:
        """Save the parts as they are now; they may change once this returns. A checkpoint of the same step is kept.

        Args:
            step: names the checkpoint; the newest is the one of the highest step.
            parts: see the module.
            permanent: keep it for ever.

        Raises:
            OSError: the previous save failed, on any rank; older checkpoints are untouched.
        """
        self.wait()
        tensors, values = split({name: state_of(part) for name, part in parts.items()})
        text = json.dumps(values)
        if self.async_save:
            tensors = cast(dict[str, Tensor], self._stager.stage(tensors))
        self._saving = self._pool.submit(self._write, step, tensors, text, permanent)
        if not self.async_save:
            self.wait()

    def wait(self) -> None:
        """Wait until the last save is complete.

        Raises:
            OSError: it failed on a rank; raised on all ranks.
        """
        if self._saving is None:
            return
        saving, self._saving = self._saving, None
        try:
            saving.result()
        except OSError as error:
            if not self.ignore_save_errors:
                raise
            if rank() == 0:
                warnings.warn(f"{error}; the training goes on", stacklevel=3)

    def load(self, parts: dict[str, Any]) -> int | None:
        """Load the newest checkpoint that can be read into the parts: tensors in place, plain dicts anew.

        Newer checkpoints that are damaged are moved aside with a warning. With another number of ranks,
        a rank without values of its own takes those of rank 0.

        Returns:
            Its step; None if there is no checkpoint.

        Raises:
            ValueError: it is of another architecture (nothing is changed) or version of PyTorch, or no checkpoint can
                be read.
            OSError: it could not be read to its end, though its files are complete.
        """
        self.wait()
        steps: list[int] = sorted(self._first(self._clean), reverse=True)
        for step in steps:
            folder = self._path(step)
            try:
                self._agree(partial(check, folder))
            except OSError as error:
                if rank() == 0:
                    warnings.warn(
                        f"the checkpoint {folder} is damaged ({error}); it is moved to *{DAMAGED}, and the "
                        "one before it is tried",
                        stacklevel=2,
                    )
                self._first(partial(move_aside, folder))
                continue
            values = json.loads((folder / VALUES).read_text(), object_hook=unpacked)
            values = values[rank() if rank() < len(values) else 0]
            template = {name: state_of(part) for name, part in parts.items()}
            tensors, here = split(template)
            if found := differences(Reader(folder).read_metadata(), values, tensors, here):
                more = f" and {len(found) - 3} more" if len(found) > 3 else ""
                raise ValueError(
                    f"{folder} is a checkpoint of another architecture: {'; '.join(found[:3])}{more}; "
                    "start in another folder or delete it"
                )
            planner = DefaultLoadPlanner(flatten_state_dict=False)
            self._agree(
                partial(
                    read_tensors,
                    tensors,
                    storage_reader=Reader(folder),
                    planner=planner,
                    process_group=self._group,
                    no_dist=self._group is None,
                )
            )
            for name, state in merged(template, values).items():
                if isinstance(part := parts[name], Stateful):
                    part.load_state_dict(state)
                else:
                    parts[name] = state
            return step
        if steps:
            raise ValueError(
                f"none of the {len(steps)} checkpoints in {self.folder} can be read: start in another "
                "folder, or delete it to start afresh"
            )
        return None

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08}"

    def _steps(self) -> list[int]:
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted(int(name[5:]) for name in names if re.fullmatch(r"step-\d{8,}", name))

    def _clean(self) -> list[int]:
        for path in self.folder.glob(f"step-*{UNFINISHED}"):
            shutil.rmtree(path)
        return self._steps()

    def _agree(self, work: Callable[[], T]) -> T:
        """Return what `work` returns.

        Raises:
            OSError: it failed on a rank; raised on all ranks, so that none waits for another for ever.
        """
        result: Any = None
        failures: list[str] = []
        try:
            result = work()
        except CheckpointException as error:  # torch's, of all ranks
            failures = [f"rank {rank}: {reason(failure)}" for rank, (failure, _) in error.failures.items()]
        except Exception as error:
            failures = [f"rank {rank()}: {reason(error)}"]
        if every := dict.fromkeys(failure for failed in self._all(failures) for failure in failed):
            raise OSError("; ".join(every))
        return result

    def _first(self, work: Callable[[], T]) -> T:
        """Return what `work` returns on rank 0; the other ranks do not call it, but wait."""
        return self._all(self._agree(lambda: work() if rank() == 0 else None))[0]  # pyright: ignore[reportReturnType]

    def _all(self, value: T) -> list[T]:
        """Return the values of all ranks, by rank."""
        values = [value] * ranks()
        if self._group is not None:
            dist.all_gather_object(values, value, self._group)
        return values

    def _write(self, step: int, tensors: dict[str, Tensor], values: str, permanent: bool) -> None:
        """Write a checkpoint, in the writing thread of each rank."""
        folder = self._path(step)
        unfinished = folder.with_name(folder.name + UNFINISHED)

        def begin() -> bool:
            if folder.is_dir():
                if permanent:
                    (folder / PERMANENT).touch()
                return False
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            return True

        try:
            if not self._first(begin):
                return
            # No copying ahead: the tensors are in main memory, and it would make a context on every rank's first GPU.
            writer = Writer(unfinished, sync_files=True, per_thread_copy_ahead=0)
            planner = DefaultSavePlanner(flatten_state_dict=False)
            self._agree(
                partial(
                    write_tensors,
                    tensors,
                    storage_writer=writer,
                    planner=planner,
                    process_group=self._group,
                    no_dist=self._group is None,
                )
            )
            files = self._all(self._agree(lambda: facts(unfinished, f"__{rank()}_*")))
            texts = self._all(values)
            self._first(lambda: self._finish(folder, unfinished, files, texts, permanent))
        except OSError as error:
            if rank() == 0:
                shutil.rmtree(unfinished, ignore_errors=True)
            raise OSError(
                f"the checkpoint {folder} could not be written ({error}); make room, or see to the disk: "
                "older checkpoints are untouched"
            ) from error

    def _finish(self, folder: Path, unfinished: Path, found: list[Facts], values: list[str], permanent: bool) -> None:
        """Rename a checkpoint to its final name once all of it is on the disk, then remove old ones."""
        write_synced(unfinished / VALUES, f"[{', '.join(values)}]")
        files = facts(unfinished, ".metadata") | facts(unfinished, VALUES)
        for fact in found:
            files |= fact
        for name in files:
            if not (unfinished / name).exists():
                raise OSError(f"rank 0 does not see {name}: the folder must be one that all ranks share")
        write_synced(unfinished / MANIFEST, json.dumps({"ranks": ranks(), "files": files}, indent=1))
        if permanent:
            write_synced(unfinished / PERMANENT, "")
        sync_folder(unfinished)
        os.rename(unfinished, folder)
        sync_folder(folder.parent)
        for step in self._steps()[: -self.keep]:
            old = self._path(step)
            if not (old / PERMANENT).exists():
                os.rename(
                    old, unfinished := old.with_name(old.name + UNFINISHED)
                )  # so that a kill leaves no partial checkpoint under its name
                shutil.rmtree(unfinished, ignore_errors=True)


def check(folder: Path) -> None:
    """Check that this rank's share of the files is as it was written.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file differs.
    """
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, fact in sorted(manifest["files"].items())[rank() :: ranks()]:
        if facts(folder, name) != {name: fact}:
            raise ValueError(f"{name} is not what {MANIFEST} says")


def differences(metadata: Metadata, values: dict[str, Any], tensors: dict[str, Tensor], parts: dict[str, Any]) -> list:
    """List how a checkpoint differs from what is to be loaded, in its tensors and its other parts.

    A part that only another rank has is no difference.
    """
    there = {
        name: f"{list(fact.size)} {fact.properties.dtype}"  # pyright: ignore[reportAttributeAccessIssue]
        for name, fact in metadata.state_dict_metadata.items()
    }
    here = {name: f"{list(tensor.shape)} {tensor.dtype}" for name, tensor in tensors.items()}
    there |= dict.fromkeys(values, "a part")
    here |= dict.fromkeys(parts, "a part")
    return [
        f"{name} is {there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
        for name in [*here, *(there.keys() - here.keys())]
        if there.get(name) != here.get(name) and (name in here or "@" not in name.split(".")[0])
    ]
