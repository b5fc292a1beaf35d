"""Who may ask: pages that this server itself has given out, under a name of this machine."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from cm3.serving.access import cross_site_reason


class OwnPages:
    """Refuses requests that a browser sends for a page from elsewhere (cm3/serving/access.py)."""

    def __init__(self, app: ASGIApp, any_host: bool) -> None:
        self.app, self.any_host = app, any_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and (reason := cross_site_reason(scope, self.any_host)):
            await PlainTextResponse(reason, 403)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def doors(any_host: bool = False) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    """A lifespan that puts the door before all else: gradio puts its own middleware before any that it is given, and
    its own fails where there is an Origin and no Host.

    Args:
        any_host: whether the page is reached under names that are not this machine's; a password guards it then.
    """

    @asynccontextmanager
    async def life(app: Starlette) -> AsyncGenerator[None]:
        inner = app.middleware_stack
        assert inner is not None, "the lifespan itself came through it"
        app.middleware_stack = OwnPages(inner, any_host)
        yield

    return life
