"""Open a training run: start its processes, lock its folder, open its checkpoints."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator

from train.runtime.checkpoints import Checkpoints
from train.runtime.distributed import launched, left
from train.runtime.lock import one_run
from train.runtime.settings import CheckpointConfig


@contextmanager
def open_run(out: Path, processes: int = 0, trackers: tuple[str, ...] = ()) -> Generator[Accelerator, None, None]:
    """Start the processes of a run and hold the lock of its folder.

    Args:
        out: folder of the run.
        processes: number of processes that there must be; 0 = any.
        trackers: "tensorboard", "wandb", "trackio".

    Raises:
        ValueError: as `launched` and `one_run`.
    """
    accelerator = launched(processes, trackers, str(out))
    with one_run(out, accelerator):
        yield accelerator
    left(accelerator)


def checkpoints_of(out: Path, config: CheckpointConfig) -> Checkpoints:
    """Return the checkpoints in the folder of a run."""
    return Checkpoints(out / "checkpoints", config.keep, config.async_save, config.ignore_save_errors)
