"""Who may ask a server: those with a key, or, where there are no keys, this machine's own programs and pages.

A web page from elsewhere that is open in a browser on this machine can send requests to 127.0.0.1 too, or bring a name
of its own that leads there (DNS rebinding). Browsers say where a request comes from (Origin) and whom it asks (Host).
"""

import hashlib
import ipaddress
import secrets
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

LEAST_KEY = 16  # characters
HOW = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
FOREIGN_HOST = "this server answers under 127.0.0.1 and localhost only"
FOREIGN_PAGE = "requests from other pages are refused"


class Keys:
    """API keys, kept as digests; none = everybody may come. Errors: TypeError, ValueError for keys that are no good."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        if isinstance(keys, str):
            raise TypeError("API keys are a list of strings, not one string")
        for number, key in enumerate(keys, 1):
            check_key(f"API key {number}", key)
        self.digests = [digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self.digests)

    def open(self, authorization: str) -> bool:
        """Whether a header's value, "Bearer KEY", has one of them. The time does not tell how much of it was right:
        digests are compared, all of equal length, and always with every key."""
        scheme, _, said = authorization.partition(" ")
        came = digest(said.strip().encode("latin-1"))
        right = [secrets.compare_digest(came, one) for one in self.digests]
        return any(right) and scheme.lower() == "bearer"


def digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def check_key(name: str, key: str) -> None:
    """Errors: ValueError, which does not repeat the key."""
    if any(character.isspace() for character in key):
        raise ValueError(f"{name} has a blank inside: one key a line, and # before a comment")
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"{name} has characters that a header cannot carry; {HOW}")
    if len(key) < LEAST_KEY:
        raise ValueError(f"{name} has {len(key)} characters, but needs at least {LEAST_KEY}: {HOW}")


def read_keys(path: Path) -> list[str]:
    """API keys of a file, one a line. Empty lines and those that begin with # are skipped.

    Raises:
        ValueError: a file that is no text or has no keys, or a line that is no key; names the line, not what it says.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: this is no text in UTF-8: write one key a line") from None
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    keys = [(number, key) for number, key in numbered if key and not key.startswith("#")]
    for number, key in keys:
        check_key(f"{path}, line {number}: the key", key)
    if not keys:
        raise ValueError(f"{path}: there are no keys: write one a line; {HOW}")
    return [key for _, key in keys]


def is_local(host: str) -> bool:
    """Whether a name or an address is this machine's own, whoever asks."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def foreign(scope: Scope, any_host: bool = False) -> str | None:
    """Why a request is refused that a browser may have sent for a page from elsewhere; None for all others.

    Args:
        scope: of a request or a websocket.
        any_host: whether the server is reached under names that are not this machine's; keys or a password guard it
            then.
    """
    headers = Headers(scope=scope)
    host, origin = headers.get("host", ""), headers.get("origin")
    if not any_host and not is_local(host_of(f"//{host}")):
        return FOREIGN_HOST
    if origin is not None and (not host or netloc_of(origin) != host.lower()):
        return FOREIGN_PAGE
    return None


def host_of(url: str) -> str:
    """Without the port, in lower case; "" where there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # brackets that do not close
        return ""


def netloc_of(url: str) -> str:
    """With the port, in lower case; "" where there is none."""
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""
