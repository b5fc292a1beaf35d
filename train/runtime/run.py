"""A training run in its folder: its processes, alone there, from its first line to its last."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator

from train.runtime.distributed import launched, left
from train.runtime.lock import one_run


@contextmanager
def open_run(out: Path, processes: int = 0, trackers: tuple[str, ...] = ()) -> Generator[Accelerator, None, None]:
    """The processes of a run in OUT, while no other run is there.

    Raises ValueError as `launched` and `one_run` do."""
    accelerator = launched(processes, trackers, str(out))
    with one_run(out, accelerator):
        yield accelerator
    left(accelerator)
