"""Checks of arguments: a value of a wrong type is one clear TypeError, an unknown choice a ValueError."""

from collections.abc import Collection
from numbers import Integral, Real
from typing import Any


def is_many(value: Any) -> bool:
    """Whether a value stands for several images or texts: a list or a tuple does, and nothing else."""
    return isinstance(value, list | tuple)


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)  # pyright: ignore[reportUnnecessaryIsInstance]


def check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, but is {value!r:.60}")


def check_whole(name: str, value: Any) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"{name} must be a whole number, but is {value!r:.60}")


def check_number(name: str, value: Any) -> None:
    if not is_number(value):
        raise TypeError(f"{name} must be a number, but is {value!r:.60}")


def check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, but is {value!r:.60}")


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    check_text(name, value)
    if value not in choices:
        raise ValueError(f"{name} is {value!r:.60}, but must be one of {', '.join(choices)}")


def check_single(name: str, value: Any) -> None:
    """Check that a value may be one image. Whether it is one is known once it is opened."""
    if value is None or is_many(value):
        raise TypeError(f"{name} must be one image, but is {value!r:.60}")
