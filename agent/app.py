"""What ``langgraph.json`` names for the development server: ``auth``, and the ``http.app`` with the embedded world in it."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.middleware import Middleware

from agent.world import Loopback, World, install, seed
from identity import DeputizeError, Identity, UsageError
from identity.server import server_app, server_auth


def _set_up() -> tuple[Identity, World]:
    identity = Identity()
    url, served = identity.settings.url, os.environ.get("LANGGRAPH_API_URL", "")
    if served and urlsplit(served).port != urlsplit(url).port:
        # ``langgraph dev`` takes another port when its own is taken; our links would lead to whoever has that one.
        raise UsageError(
            f"The server is at {served}, not at {url}",
            "Its port is taken: choose another one, PORT=…; without make, set DEPUTIZE_URL too",
        )
    # There ``langgraph dev`` keeps conversations, as pickles: whoever can write them runs code here (casebook E14).
    kept = Path(".langgraph_api")
    kept.mkdir(mode=0o700, exist_ok=True)
    kept.chmod(0o700)
    world = World(install(identity.settings.home / "world", url))
    seed(identity, world.installation)
    return identity, world


try:
    identity, world = _set_up()
except DeputizeError as error:  # one line; as an exception it would come with forty lines of the server's own
    print(f"deputize: {error}", file=sys.stderr, flush=True)  # noqa: T201
    sys.exit(error.exit_code)


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    people = world.installation.people.values()
    listed = "".join(f"\n    {p.username:6} {p.password}" for p in people)
    print(f"deputize: the embedded world is at {world.installation.url}. Sign in as{listed}", flush=True)  # noqa: T201
    yield


auth = server_auth(identity)
app = server_app(identity, world.routes(), _lifespan, [Middleware(Loopback, url=identity.settings.url)])
