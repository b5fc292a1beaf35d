"""What captioning leaves."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet

from cm3 import CM3

COLOURS = ("red", "green", "blue", "yellow", "black")


def said(tiny: CM3, *names: str, **options: Any) -> list[str]:
    return [line(text) for text in tiny.caption([f"in/{name}.png" for name in names], **options)]


def line(text: str) -> str:
    return " ".join(text.split())


def texts(folder: str = "in") -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in Path(folder).rglob("*.txt")}


def read(path: Path) -> list[dict[str, str]]:
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
