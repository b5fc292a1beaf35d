"""Access control: only pages of this server may send requests, under a name of this machine."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from cm3.serving.access import cross_site_reason


class SameSiteOnly:
    """Rejects requests that a browser sends for a page of another site (cm3/serving/access.py)."""

    def __init__(self, app: ASGIApp, any_host: bool) -> None:
        self.app, self.any_host = app, any_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and (reason := cross_site_reason(scope, self.any_host)):
            await PlainTextResponse(reason, 403)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def access_control(any_host: bool = False) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    """A lifespan that adds SameSiteOnly as the outermost middleware.

    It is not given to gradio as a middleware, because gradio's own would come first, and fails for a request with an
    Origin and no Host.

    Args:
        any_host: whether the page is reached under other names than this machine's own. A password has to protect it
            then.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        inner = app.middleware_stack
        assert inner is not None, "it is built before the lifespan begins"
        app.middleware_stack = SameSiteOnly(inner, any_host)
        yield

    return lifespan
