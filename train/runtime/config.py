"""Configurations are dataclasses: defaults < TOML file < `key=value` on the command line. Unknown keys fail.

A field that is a dataclass itself is a group of settings: a table of the TOML file, `group.key=value` on the command
line.
"""

import dataclasses
import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
CONFIGS = Path(__file__).parent.parent / "configs"


def load(kind: type[T], file: Path | None = None, overrides: list[str] | None = None) -> T:
    """Build a configuration.

    Args:
        kind: a dataclass whose every field has a default.
        file: TOML file, or the bare name of one in train/configs.
        overrides: "key=value" or "group.key=value". The value is TOML ("optim.lr=1e-3", "name='x'"); bare words are
            strings.

    Raises:
        ValueError: a key does not exist, a value has another type, the file cannot be read.
    """
    values: dict[str, Any] = {}
    if file is not None:
        named = CONFIGS / f"{file}.toml"
        file = named if not file.exists() and named.is_file() else file
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ValueError(f"config {file}: {error}") from error
    for text in overrides or []:
        key, equals, text_value = text.partition("=")
        if not equals:
            raise ValueError(f"override {text!r}: want key=value")
        try:
            value = tomllib.loads(f"value = {text_value}")["value"]
        except tomllib.TOMLDecodeError:
            value = text_value
        *groups, name = key.split(".")
        target = values
        for group in groups:
            target = target.setdefault(group, {})
            if not isinstance(target, dict):
                raise ValueError(f"override {text!r}: {group} is no group of settings")
        target[name] = value
    return fill(kind, values)


def fill(kind: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Build a configuration from nested values; what is missing has its default.

    Args:
        kind: a dataclass whose every field has a default.
        values: by field name; a dict for a group.
        prefix: name of the group with a dot, for the error messages.

    Raises:
        ValueError: as `load`.
    """
    defaults, found = kind(), dict(values)
    fields = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    if unknown := [prefix + name for name in sorted(found.keys() - set(fields))]:
        known = ", ".join(prefix + name for name in fields)
        raise ValueError(f"unknown config keys: {', '.join(unknown)}; known: {known}")
    for name, value in found.items():
        default = getattr(defaults, name)
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            found[name] = float(value)
        elif isinstance(default, tuple) and isinstance(value, list):
            found[name] = tuple(value)
        elif dataclasses.is_dataclass(default) and isinstance(value, dict):
            found[name] = fill(type(default), value, f"{prefix}{name}.")
        elif default is not None and (
            not isinstance(value, type(default)) or isinstance(value, bool) != isinstance(default, bool)
        ):
            want = "a group of settings" if dataclasses.is_dataclass(default) else type(default).__name__
            raise ValueError(f"config {prefix}{name} = {value!r}: want {want}, such as {default!r}")
    for name, value in found.items():
        if not is_finite(value):
            raise ValueError(f"config {prefix}{name} = {value!r}: want numbers, no nan or infinity")
    return kind(**found)


def override(config: T, values: Mapping[str, Any]) -> T:
    """Return the configuration with other values.

    Args:
        config: a dataclass.
        values: by name; a setting in a group by its dotted name, as in {"optim.lr": 1e-3}.
    """
    changed: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        group, dot, name = key.partition(".")
        if dot:
            groups.setdefault(group, {})[name] = value
        else:
            changed[key] = value
    for group, inner in groups.items():
        changed[group] = override(getattr(config, group), inner)
    return dataclasses.replace(config, **changed)  # type: ignore[type-var]


def is_finite(value: Any) -> bool:
    """Return whether a setting holds neither nan nor infinity, at any depth."""
    if isinstance(value, float):
        return math.isfinite(value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return all(is_finite(part) for part in parts)


def changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """List the values of `now` that differ: "key was 1, now 2; ..."; empty where none does."""
    return "; ".join(
        f"{key} was {before.get(key)!r}, now {value!r}" for key, value in now.items() if before.get(key) != value
    )


def save(config: Any, path: Path) -> None:
    """Write the resolved configuration as JSON."""
    path.write_text(json.dumps(dataclasses.asdict(config), indent=1, default=str) + "\n", encoding="utf-8")
