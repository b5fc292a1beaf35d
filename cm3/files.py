"""Files that are written whole or not at all, and their checksums."""

import hashlib
import os
import secrets
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


def check_writable(path: Path, overwrite: bool = True) -> None:
    """Whether a file can be written at `path`; overwrite: also where there is one. Errors: ValueError."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file")
    target = followed(path)
    if not target.parent.is_dir():
        raise ValueError(
            f"{path}: there is no folder {path.parent if target == path else target.parent}; make it first"
        )
    try:
        if overwrite and target.exists():
            target.open("ab").close()
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror}); name another file") from error


def followed(path: Path) -> Path:
    """Where a path leads that may be a link."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextmanager
def whole(path: Path, part: str = "") -> Generator[Path]:
    """Give a path to write to, which becomes the file when all went well, and is removed otherwise.

    Args:
        path: the file.
        part: name of the unfinished file, where only one process writes it: a later run then replaces what a killed one
            left. "" = a name that no other run has.
    """
    unfinished = path.with_name(part or f".{secrets.token_hex(8)}.part")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(path: Path, text: str, part: str = "", errors: str = "strict") -> None:
    """Write a text file in UTF-8, whole or not at all.

    Args:
        path: the file.
        text: its content.
        part: as in `whole`.
        errors: what to do where UTF-8 cannot encode the text, as in `str.encode`.
    """
    with whole(path, part) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors=errors)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
