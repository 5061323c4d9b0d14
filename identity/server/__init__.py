"""deputize on the LangGraph server: who calls, what clients may ask for, and threads that go on by themselves.

::

    identity = Identity()
    auth = server_auth(identity)                    # langgraph.json: "auth": {"path": "app:auth", …}
    app = server_app(identity, routes=[…])          # langgraph.json: "http": {"app": "app:app", …}
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from .auth import protect, server_auth
from .guard import Guard
from .ping import ping_route
from .waker import Waker

if TYPE_CHECKING:
    from ..identity import Identity

__all__ = ["Guard", "Waker", "ping_route", "protect", "server_app", "server_auth"]


def server_app(
    identity: Identity,
    routes: Sequence[BaseRoute] = (),
    lifespan: Callable[[Any], AbstractAsyncContextManager[Any]] | None = None,
    middleware: Sequence[Middleware] = (),
) -> Starlette:
    """An ``http.app`` with the guard around it, the waker beside it, and the CIBA notification endpoint in it.

    Args:
        routes: the application's own. No catch-all: what is not yours stays the server's.
        lifespan, middleware: the application's own; its middleware is outside of the guard.
    """
    waker = Waker(identity)
    own = [*routes, ping_route(identity, lambda request: waker.wake([request]))]

    @asynccontextmanager
    async def both(app: Any) -> AsyncIterator[None]:
        async with waker.lifespan():
            if lifespan is None:
                yield
            else:
                async with lifespan(app):
                    yield

    return Starlette(
        routes=own, lifespan=both, middleware=[*middleware, Middleware(Guard, identity=identity, routes=own)]
    )
