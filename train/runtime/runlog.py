"""The log of a run: progress bar, log.jsonl, and TensorBoard, wandb or trackio through accelerate."""

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cm3.files import write_whole


class RunLog:
    """The log of a run. Only the main process writes.

    Args:
        name: kind of run, such as "lm".
        out: folder of the run.
        first: the step to start with. Rows of later steps, from before a kill, are removed.
        steps: number of steps.
        accelerator: the processes, with their trackers.
    """

    def __init__(self, name: str, out: Path, first: int, steps: int, accelerator: Accelerator):
        self.main, self.accelerator = accelerator.is_main_process, accelerator
        self.path = out / "log.jsonl"
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, disable=not self.main)
        self.bar = self.progress.add_task(name, total=steps, completed=first)
        if self.main:
            take_back(self.path, first)
        if accelerator.log_with:
            accelerator.init_trackers(name, init_kwargs={"tensorboard": {"purge_step": first + 1}})

    def __enter__(self) -> "RunLog":
        self.progress.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.progress.stop()
        for tracker in self.accelerator.trackers:  # end_training would also part the processes, which go on
            tracker.finish()

    def write(self, row: dict[str, Any]) -> None:
        """Write a row of the log, with a key "step". Numbers, also in nested dicts, go to the trackers."""
        if not self.main:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rounded(row), ensure_ascii=False) + "\n")
        except OSError as error:  # a missing line does not stop the run; a failed checkpoint may
            self.say(f"step {row['step']} is missing in {self.path}: {error}")
        if self.accelerator.log_with:
            self.accelerator.log(flat(row), step=row["step"])

    def show(self, step: int, words: str = "") -> None:
        """Update the progress bar."""
        self.progress.update(self.bar, completed=step, description=words or None)

    def say(self, words: str) -> None:
        """Print a line above the progress bar."""
        if self.main:
            self.progress.console.print(words, markup=False, highlight=False, soft_wrap=True)


def take_back(path: Path, first: int) -> None:
    """Remove the rows of steps that will run again, and a last line that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row.get("step", 0) <= first:
            kept.append(line + "\n")
    write_whole(path, "".join(kept), f"{path.stem}.unfinished")  # a kill here must not cost the rows before


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    return round(value, 6) if isinstance(value, float) else value


def flat(row: dict[str, Any], stem: str = "") -> dict[str, float]:
    """Flatten {"loss": {"answer": 1.0}} to {"loss/answer": 1.0}; what is no number is left out."""
    out: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            out |= flat(value, f"{stem}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            out[stem + key] = value
    return out
