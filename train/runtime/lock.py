"""A lock on the folder of a run: one run at a time.

It is a POSIX record lock on a file that names the process. The system releases it when the process ends, however it
ends, and a forked loader worker that outlives its run does not hold it (filelock's flock is inherited by such a worker,
and its soft lock outlives a kill).
"""

import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from accelerate import Accelerator

from train.runtime.distributed import together

LOCK = "run.lock"
CANNOT = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of file systems without locks


@contextmanager
def one_run(folder: Path, accelerator: Accelerator) -> Generator[None, None, None]:
    """Hold the lock of an OUT folder: the main process holds it for all processes of the run.

    Raises:
        ValueError: another run holds it; in each process, and naming the owner.
    """
    with ExitStack() as stack:
        refused = ""
        if accelerator.is_main_process:
            try:
                stack.enter_context(locked(folder))
            except (OSError, ValueError) as error:
                refused = str(error)
        if refused := together(accelerator, refused)[0]:
            raise ValueError(refused)
        yield


@contextmanager
def locked(folder: Path) -> Generator[None, None, None]:
    """Hold the lock of a folder. The folder is made if it is missing, and removed again if it stays empty.

    A file system without locks gives a warning.

    Raises:
        ValueError: another process holds it; the message names it.
    """
    made = not folder.exists()
    path = folder / LOCK
    try:
        with opened(path) as file:
            file.truncate()
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            try:
                yield
            finally:
                path.unlink(
                    missing_ok=True
                )  # before the lock is released: a process that then gets it on this file tries again
    finally:
        if made:
            with suppress(OSError):
                folder.rmdir()


def opened(path: Path) -> IO[str]:
    """Open and lock the file.

    Raises:
        ValueError: as `locked`.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
        file.seek(0)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in CANNOT:
                warnings.warn(f"{path} cannot be locked ({error.strerror}): start no other run there", stacklevel=4)
                return file
            with file:
                owner = file.read().strip() or "another process"
            raise ValueError(
                f"{path.parent} is in use by {owner}: wait until that run has ended, or take another --out"
            ) from error
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # the owner before has removed it meanwhile
