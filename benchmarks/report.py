"""The end of every benchmark: the device and the results as one JSON line."""

import json
import platform
from pathlib import Path
from typing import Any

import torch


def device_name() -> str:
    """The name of the GPU or CPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def finish(benchmark: str, out: Path | None, **figures: Any) -> None:
    """Print the results as one JSON line, and write it to `out` if that is given."""
    line = json.dumps({"benchmark": benchmark, "device": device_name(), "torch": torch.__version__, **figures})
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(line + "\n")
    print(line)
