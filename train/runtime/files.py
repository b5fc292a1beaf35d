"""Files that are whole or not there."""

from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file beside its place first, so that what has its name is whole."""
    unfinished = path.with_name(path.name + ".unfinished")
    # A file's name may be no UTF-8: what cannot be written stands as JSON's own escape.
    unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
    unfinished.replace(path)
