"""Removal of the type stubs that gradio generates.

When a component class is defined, gradio writes a .pyi file next to its module. Type checkers would read that file in
place of the module.
"""

from contextlib import suppress
from pathlib import Path

MODULES_WITH_COMPONENTS = ("uploads", "boxes")


def remove_generated_stubs() -> None:
    """Delete the stubs. Does nothing where they are missing or the folder is read-only."""
    for module in MODULES_WITH_COMPONENTS:
        with suppress(OSError):
            (Path(__file__).parent / f"{module}.pyi").unlink(missing_ok=True)
