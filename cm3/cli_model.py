"""The model of the command: loaded last, for it takes seconds."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cm3.pipeline import CM3

MAX_PIXELS = 16_000_000  # tokenizer_image's


def load(name: str, max_pixels: int = MAX_PIXELS, device: str = "auto", compile: bool = False) -> "CM3":
    """The model; libraries say nothing while it is loaded and runs."""
    from transformers.utils import logging

    from cm3.pipeline import CM3

    logging.set_verbosity_error()
    return CM3.from_pretrained(name, device, max_pixels=max_pixels, compile=compile)
