"""Configs are dataclasses: defaults < TOML file < `key=value` on the command line. Unknown keys fail."""

import dataclasses
import json
import math
import tomllib
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
CONFIGS = Path(__file__).parent.parent / "configs"


def load(kind: type[T], file: Path | None = None, overrides: list[str] | None = None) -> T:
    """Build the dataclass `kind`.

    Args:
        kind: a dataclass whose every field has a default.
        file: TOML, or the name of one in train/configs; tables fill the fields that hold dataclasses or dicts.
        overrides: "key=value" or "table.key=value", the value in TOML ("lr=1e-3", "name='x'"); bare words are strings.

    Raises:
        ValueError: a key that does not exist, a value of another type, a file that cannot be read.
    """
    values: dict[str, Any] = {}
    if file is not None:
        named = CONFIGS / f"{file}.toml"
        file = named if not file.exists() and named.is_file() else file
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ValueError(f"config {file}: {error}") from error
    for override in overrides or []:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"override {override!r}: want key=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        *tables, name = key.split(".")
        target = values
        for table in tables:
            target = target.setdefault(table, {})
            if not isinstance(target, dict):
                raise ValueError(f"override {override!r}: {table} is no table")
        target[name] = value
    return fill(kind, values)


def fill(kind: type[T], values: dict[str, Any]) -> T:
    """The dataclass with these values in place of its defaults. Raises ValueError as `load` does."""
    values = dict(values)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(values.keys() - fields.keys()):
        raise ValueError(f"unknown config keys: {', '.join(unknown)}; known: {', '.join(fields)}")
    for name, value in values.items():
        default = getattr(kind(), name)
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            values[name] = float(value)
        elif isinstance(default, tuple) and isinstance(value, list):
            values[name] = tuple(value)
        elif dataclasses.is_dataclass(default) and isinstance(value, dict):
            values[name] = nested(type(default), value, name)
        elif default is not None and (
            not isinstance(value, type(default)) or isinstance(value, bool) != isinstance(default, bool)
        ):
            raise ValueError(f"config {name} = {value!r}: want {type(default).__name__}, such as {default!r}")
    for name, value in values.items():
        if not is_finite(value):
            raise ValueError(f"config {name} = {value!r}: want numbers, no nan or infinity")
    return kind(**values)


def nested(kind: type[T], values: dict[str, Any], name: str) -> T:
    """The dataclass in a field of that name; what is wrong in it is said with the name."""
    try:
        return fill(kind, values)
    except ValueError as error:
        raise ValueError(f"{error} (in {name})") from error


def is_finite(value: Any) -> bool:
    """Whether a setting holds neither nan nor infinity, at any depth."""
    if isinstance(value, float):
        return math.isfinite(value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return all(is_finite(part) for part in parts)


def changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What `now` has otherwise than `before`, to be told: "key was 1, now 2; ..."; empty where nothing is."""
    return "; ".join(
        f"{key} was {before.get(key)!r}, now {value!r}" for key, value in now.items() if before.get(key) != value
    )


def save(config: Any, path: Path) -> None:
    """The resolved config, as JSON beside the run."""
    path.write_text(json.dumps(dataclasses.asdict(config), indent=1, default=str) + "\n", encoding="utf-8")
