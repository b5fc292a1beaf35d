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
def whole(path: Path) -> Generator[Path]:
    """Where to write what becomes the file when all went well, and nothing otherwise: a name that no other run has."""
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
