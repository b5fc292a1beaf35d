"""Keyword arguments from an options class.

A method that is written as `generate(self, prompt, options)` is called as `generate(prompt, n=4, seed=7)`. Type
checkers and editors see the keyword arguments, because the type of the decorated method is built from the constructor
of the options class; `inspect.signature` and `help` see them too. No option is written down twice.
"""

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from cm3.engine.options import about

P = ParamSpec("P")  # the keyword arguments of the options class
O = TypeVar("O")  # the options class  # noqa: E741
S = TypeVar("S")  # self
A = TypeVar("A")  # the first, second and third positional argument
B = TypeVar("B")
C = TypeVar("C")
R = TypeVar("R")


class keywords(Generic[P, O]):  # noqa: N801  # a decorator
    """Decorate a method so that it takes the options of a class as keyword arguments.

    Args:
        options: the options class, a dataclass. The method takes an instance of it as its last argument, `options`.

    Raises:
        TypeError: the decorated method is called with arguments that it does not take; the message lists them all.
    """

    def __init__(self, options: Callable[P, O]) -> None:
        self.options: Callable[..., O] = options

    @overload
    def __call__(self, method: Callable[[S, A, O], R]) -> Callable[Concatenate[S, A, P], R]: ...
    @overload
    def __call__(self, method: Callable[[S, A, B, O], R]) -> Callable[Concatenate[S, A, B, P], R]: ...
    @overload
    def __call__(self, method: Callable[[S, A, B, C, O], R]) -> Callable[Concatenate[S, A, B, C, P], R]: ...
    def __call__(self, method: Callable[..., Any]) -> Callable[..., Any]:
        own = list(inspect.signature(method).parameters.values())[:-1]  # without `options`
        given = inspect.signature(self.options).parameters
        signature = inspect.Signature([*own, *given.values()])

        @wraps(method)
        def call(*args: Any, **named: Any) -> Any:
            try:
                signature.bind_partial(*args, **named)  # names what is unknown before what is missing
                signature.bind(*args, **named)
            except TypeError as error:
                takes = ", ".join([one.name for one in own[1:]] + [*given])
                raise TypeError(f"{method.__name__}: {error}; it takes {takes}") from None
            options = {name: named.pop(name) for name in given if name in named}
            return method(*args, **named, options=self.options(**options))

        call.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
        call.__doc__ = f"{inspect.getdoc(method)}\n\nOptions:\n{listed(self.options)}"
        return call


def listed(options: Any) -> str:
    """The options of a class, a line each: name, default and help text."""
    return "\n".join(f"    {one.name} = {one.default!r}: {about(options, one.name).help}" for one in fields(options))
