"""Who may ask: pages that this server itself has given out, under a name of this machine."""

from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from cm3.server_doors import foreign


class OwnPages:
    """Refuses requests that a browser sends for a page from elsewhere (cm3/server_doors.py)."""

    def __init__(self, app: ASGIApp, any_host: bool) -> None:
        self.app, self.any_host = app, any_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and (reason := foreign(scope, self.any_host)):
            await PlainTextResponse(reason, 403)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def doors(any_host: bool = False) -> list[Middleware]:
    """any_host: whether the page is reached under names that are not this machine's; a password guards it then."""
    return [Middleware(OwnPages, any_host=any_host)]
