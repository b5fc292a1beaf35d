"""Chunks of work for several processes and torchrun's ranks, which share a folder and nothing else."""

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PATIENCE = 2 * 3600  # seconds to wait for a file of another rank


class ChunkWorker(Protocol):
    """Processes chunks; it can be pickled before `start`."""

    def start(self, device: str) -> None: ...

    def write(self, number: int, tick: Callable[[int], None]) -> None: ...


def chunks_of(numbers: Sequence[int], rank: int, world: int) -> list[int]:
    """Return the chunks of a rank: every world-th, whether they are done already or not."""
    return [number for number in numbers if number % world == rank]


def wait_for(ready: Callable[[], bool], path: Path, patience: float = PATIENCE) -> None:
    """Wait until another rank has written a file.

    Raises:
        ValueError: it has not come after `patience` seconds.
    """
    end = time.monotonic() + patience
    while not ready():
        if time.monotonic() > end:
            raise ValueError(f"{path} did not come within {patience:.0f} s: another rank died; run the same again")
        time.sleep(0.1)


def work(worker: ChunkWorker, numbers: Sequence[int], processes: int, show: bool) -> None:
    """Process the chunks, in this process or in several.

    Args:
        worker: not yet started.
        numbers: the chunks.
        processes: largest number of processes; 1 = this one.
        show: whether to show progress.

    Raises:
        ValueError: a worker raised it, or a process was killed; chunks that are done stay done.
    """
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    if not numbers:
        return
    started = time.perf_counter()
    with Progress(*columns, disable=not show) as bar:
        task = bar.add_task("encoding, shards", total=len(numbers))

        def report(finished: int, samples: int) -> None:
            speed = samples / (time.perf_counter() - started)
            bar.update(task, completed=finished, description=f"encoding {speed:.1f} samples/s, shards")

        if processes > 1 and len(numbers) > 1:
            _in_processes(worker, numbers, min(processes, len(numbers)), report)
            return
        worker.start(device_of(0))
        samples = 0

        def tick(count: int) -> None:
            nonlocal samples
            samples += count
            report(finished, samples)

        for finished, number in enumerate(numbers):  # noqa: B007  # tick reads it
            worker.write(number, tick)
        report(len(numbers), samples)


def _in_processes(
    worker: ChunkWorker, numbers: Sequence[int], processes: int, report: Callable[[int, int], None]
) -> None:
    context = multiprocessing.get_context("spawn")
    places, samples = context.Value("q", 0), context.Value("q", 0)
    threads = max(1, torch.get_num_threads() // processes)
    pool = ProcessPoolExecutor(processes, context, _start, (worker, places, samples, processes, threads))
    futures = [pool.submit(_write, number) for number in numbers]
    try:
        pending = set(futures)
        while pending:
            finished, pending = wait(pending, 0.3, FIRST_EXCEPTION)
            for future in finished:
                future.result()
            report(len(futures) - len(pending), samples.value)
    except BrokenProcessPool as error:
        raise ValueError(
            "a process ended before its work was done, perhaps for want of memory: run the same again, "
            "with fewer --processes"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_worker: ChunkWorker
_samples: Any


def _start(worker: ChunkWorker, places: Any, samples: Any, processes: int, threads: int) -> None:
    """Start a new process."""
    global _worker, _samples
    torch.set_num_threads(threads)
    with places.get_lock():
        place = places.value
        places.value += 1
    _worker, _samples = worker, samples
    _worker.start(device_of(place, processes))


def _write(number: int) -> None:
    def tick(count: int) -> None:
        with _samples.get_lock():
            _samples.value += count

    _worker.write(number, tick)


def device_of(place: int, processes: int = 1) -> str:
    """Return the device of a process of this rank: the processes are distributed over the GPUs."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{(int(os.environ.get('LOCAL_RANK', 0)) * processes + place) % count}" if count else "cpu"
