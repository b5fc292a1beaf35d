"""Who may ask: pages that this server itself has given out, under a name of this machine.

A page from elsewhere that is open in the same browser can send requests to 127.0.0.1 too, or bring a name of its own to
lead there (DNS rebinding). Browsers say where a request comes from (Origin) and whom it asks (Host).
"""

from urllib.parse import urlsplit

from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

HOSTS = ["127.0.0.1", "localhost"]


class SameOrigin:
    """Refuses requests that a browser sends for a page of another origin."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            headers = dict(scope["headers"])
            origin = headers.get(b"origin")
            if origin is not None and urlsplit(origin.decode("latin-1")).netloc != headers[b"host"].decode("latin-1"):
                await PlainTextResponse("requests from other pages are refused", 403)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def doors(any_host: bool = False) -> list[Middleware]:
    """any_host: whether the page is reached under names that are not this machine's; a password guards it then."""
    named = [] if any_host else [Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False)]
    return [*named, Middleware(SameOrigin)]
