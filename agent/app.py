"""The ``http.app`` of the development server: the embedded world's routes beside the server's own, and the waker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware

from agent.world import Loopback, World, install
from identity import Identity
from identity.server import waking

identity = Identity()
world = World(install(identity.settings.home / "world", identity.settings.url))


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    people = world.installation.people.values()
    listed = "".join(f"\n    {p.username:6} {p.password}" for p in people)
    print(f"deputize: the embedded world is at {world.installation.url}. Sign in as{listed}", flush=True)  # noqa: T201
    async with waking(identity):
        yield


# No catch-all: everything that is not the world's stays the server's.
app = Starlette(routes=world.routes(), lifespan=_lifespan, middleware=[Middleware(Loopback, url=identity.settings.url)])
