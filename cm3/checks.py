"""What callers pass: something of a wrong type is one clear TypeError, a value outside its limits a ValueError."""

# What is checked comes from callers without types.
# pyright: reportUnnecessaryIsInstance=false

import inspect
from collections.abc import Callable, Collection, Sequence
from functools import wraps
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def is_many(value: Any) -> bool:
    """Whether it stands for several pictures or texts: a list or a tuple, and nothing else, does."""
    return isinstance(value, list | tuple)


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, but is {value!r:.60}")


def check_whole(name: str, value: Any) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):
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
    """Whether it may be a picture at all; opening it says whether it is."""
    if value is None or is_many(value):
        raise TypeError(f"{name} must be one picture, but is {value!r:.60}")


def bound(method: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A method's arguments by name, without self. Errors: TypeError that names the method and all that it takes."""
    takes = inspect.signature(method)
    takes = takes.replace(parameters=list(takes.parameters.values())[1:])
    try:
        return takes.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise TypeError(f"{method.__name__}: {error}; it takes {', '.join(takes.parameters)}") from error


def named(method: Callable[P, R]) -> Callable[P, R]:
    """The method, which names what it takes where it is given something else."""

    @wraps(method)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        bound(method, args[1:], kwargs)
        return method(*args, **kwargs)

    return checked
