"""What the commands share: the model, loaded last, for it takes seconds, and options of the same name."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cm3.pipeline import CM3

MAX_PIXELS = 16_000_000  # tokenizer_image's

Picture = Annotated[str, typer.Argument(help="A picture file.", metavar="IMAGE")]
Model = Annotated[str, typer.Option(help="An embedded model, a model folder, or a hub id.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
MaxPixels = Annotated[
    int, typer.Option(help="Refuse images with more pixels; four times as many where a JPEG may be shrunk.", min=1)
]


def load(name: str, max_pixels: int = MAX_PIXELS, device: str = "auto", compile: bool = False) -> "CM3":
    """The model; libraries say nothing while it is loaded and runs."""
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
