"""Access to a server: with an API key; without keys, for this machine's own programs and pages only.

A page of another site that is open in a browser on this machine can send requests to 127.0.0.1 too, directly or under a
name of its own that resolves to it (DNS rebinding). Browsers send where a request comes from (Origin) and which server
it is for (Host), so that such requests can be told apart.
"""

import hashlib
import ipaddress
import secrets
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

MIN_KEY_LENGTH = 16  # characters
HOW_TO_MAKE_ONE = "make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
WRONG_HOST = "this server answers under 127.0.0.1 and localhost only"
WRONG_ORIGIN = "requests from pages of other sites are refused"


class Keys:
    """API keys, stored as digests. False if there are none.

    Args:
        keys: each of at least 16 printable ASCII characters without blanks.

    Raises:
        TypeError: `keys` is one string.
        ValueError: a key is not valid.
    """

    def __init__(self, keys: Sequence[str] = ()) -> None:
        if isinstance(keys, str):
            raise TypeError("API keys are a list of strings, not one string")
        for number, key in enumerate(keys, 1):
            check_key(f"API key {number}", key)
        self.digests = [digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self.digests)

    def accepts(self, authorization: str) -> bool:
        """Whether the value of an Authorization header, "Bearer KEY", has one of the keys.

        The time taken does not depend on how much of the key is right: digests of equal length are compared, always
        with every key.
        """
        scheme, _, sent = authorization.partition(" ")
        sent_digest = digest(sent.strip().encode("latin-1"))
        matches = [secrets.compare_digest(sent_digest, one) for one in self.digests]
        return any(matches) and scheme.lower() == "bearer"


def digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def check_key(name: str, key: str) -> None:
    """Raise a ValueError for a key that is not valid. The message does not repeat the key."""
    if any(character.isspace() for character in key):
        raise ValueError(f"{name} has a blank inside: one key a line, and # before a comment")
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"{name} has characters that a header cannot carry; {HOW_TO_MAKE_ONE}")
    if len(key) < MIN_KEY_LENGTH:
        raise ValueError(f"{name} has {len(key)} characters, but needs at least {MIN_KEY_LENGTH}: {HOW_TO_MAKE_ONE}")


def read_keys(path: Path) -> list[str]:
    """Read API keys from a file, one a line. Empty lines and lines that begin with # are skipped.

    Raises:
        ValueError: the file is no text or has no keys, or a line is no valid key. The message names the line and does
            not repeat it.
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
        raise ValueError(f"{path}: there are no keys: write one a line; {HOW_TO_MAKE_ONE}")
    return [key for _, key in keys]


def is_local(host: str) -> bool:
    """Whether a host name or an address is localhost or a loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def cross_site_reason(scope: Scope, any_host: bool = False) -> str | None:
    """Why a request is refused that a browser may have sent for a page of another site; None for every other request.

    Args:
        scope: of a request or a websocket.
        any_host: whether the server is reached under other names than this machine's own. Keys or a password have to
            protect it then.
    """
    headers = Headers(scope=scope)
    host, origin = headers.get("host", ""), headers.get("origin")
    if not any_host and not is_local(host_of(f"//{host}")):
        return WRONG_HOST
    if origin is not None and (not host or netloc_of(origin) != host.lower()):
        return WRONG_ORIGIN
    return None


def host_of(url: str) -> str:
    """The host name of a URL without the port, in lower case; "" if there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # unbalanced brackets
        return ""


def netloc_of(url: str) -> str:
    """The host name of a URL with the port, in lower case; "" if there is none."""
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""
