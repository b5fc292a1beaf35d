"""What the commands share: the model, which is loaded last because that takes seconds, and common options."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_origin

import typer

from cm3.engine.options import Options, about

if TYPE_CHECKING:
    from cm3.pipeline import CM3

MAX_PIXELS = 16_000_000  # tokenizer_image's

ImageFile = Annotated[str, typer.Argument(help="An image file.", metavar="IMAGE")]
Model = Annotated[str, typer.Option(help="An embedded model, a model folder, or a hub id.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
MaxPixels = Annotated[
    int, typer.Option(help="Refuse images with more pixels; four times as many where a JPEG may be shrunk.", min=1)
]


def option_of(options: type[Options], name: str, *flags: str, note: str = "") -> Any:
    """A typer option with the help text and the limits of an options class's field.

    Args:
        options: the class.
        name: of the field.
        flags: its flags; typer's usual ones if none are given.
        note: appended to the help text.
    """
    facts = about(options, name)
    least = facts.above if facts.least is None else facts.least
    return typer.Option(*flags, help=f"{facts.help} {note}".strip(), min=least, max=facts.most)


def with_options(options: type[Options]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for every field of an options class that is a number, a flag or a choice.

    The command receives them as `**options`. A field that the command declares itself is left to it.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command).parameters
        kept = [one for one in own.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        added = [
            inspect.Parameter(
                one.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=one.default,
                annotation=Annotated[one.type, option_of(options, one.name)],
            )
            for one in fields(options)
            if one.name not in own and (one.type in (int, float, bool, float | None) or get_origin(one.type) is Literal)
        ]

        @wraps(command)
        def call(**given: Any) -> None:
            command(**given)

        call.__signature__ = inspect.Signature([*kept, *added])  # pyright: ignore[reportAttributeAccessIssue]
        return call

    return decorate


def load(name: str, max_pixels: int = MAX_PIXELS, device: str = "auto", compile: bool = False) -> "CM3":
    """Load the model; libraries print nothing while it is loaded and runs."""
    from transformers.utils import logging

    from cm3.pipeline import CM3

    logging.set_verbosity_error()
    return CM3.from_pretrained(name, device, max_pixels=max_pixels, compile=compile)


def in_options(message: str) -> str:
    """An error's message, with the limit named as the commands name it."""
    return message.replace("raise max_pixels", "raise --max-pixels")


def check_words(what: str, words: str) -> None:
    if not words.strip():
        raise ValueError(f"the {what} is empty: say something")
