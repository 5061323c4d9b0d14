"""The embedded world: an issuer, a trading API and three people, on loopback, for development only.

Everything in it is real: HTTP, signatures, pages. What it is not: a provider for production (casebook G7).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from identity import Identity, UsageError
from identity.ledger import Request
from identity.principal import Principal
from identity.server import ping_route
from identity.settings import Settings, load_settings

from .installation import Installation, install
from .issuer import Issuer
from .person import Person
from .relations import seed
from .trading import Order, Trading

__all__ = ["Loopback", "Running", "World", "install", "running", "seed"]

Scope = dict[str, Any]
_FORWARDED = (b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip")


class World:
    """One installation's servers, and its ASGI routes.

    Args:
        clock: unix seconds.
        mount: replaces the network between its servers (an in-process ASGI application in tests).
    """

    def __init__(
        self,
        installation: Installation,
        clock: Callable[[], float] = time.time,
        mount: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.installation = installation
        self.issued_tokens: list[str] = []
        self.issuer = Issuer(installation, clock, self.issued_tokens.append, mount)
        self.trading = Trading(installation, clock, mount)

    def routes(self) -> list[Mount | Route]:
        """``/issuer``, ``/trading``, and the metadata where RFC 8414 §3.1 puts it for an issuer with a path."""

        async def metadata(request: Any) -> JSONResponse:
            return JSONResponse(self.issuer.metadata())

        return [
            Route("/.well-known/oauth-authorization-server/issuer", metadata),
            Mount("/issuer", routes=self.issuer.routes()),
            Mount("/trading", routes=self.trading.routes()),
        ]

    def close(self) -> None:
        """Close connections and the database."""
        self.trading.close()
        self.issuer.close()
        self.installation.database.close()


class Loopback:
    """ASGI middleware: answers requests to its own loopback address only (casebook E9, G7).

    Attacks: a public name that resolves to 127.0.0.1 (DNS rebinding), a tunnel or proxy that makes the development world
    public.

    Args:
        url: the only address that a request's ``Host`` may name; ``localhost`` and ``127.0.0.1`` are one.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], url: str) -> None:
        self._app = app
        port = urlsplit(url).port
        self._hosts = {f"{name}:{port}".encode() for name in ("127.0.0.1", "localhost", "[::1]")}

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket") and scope.get("root_path") != "/noauth":
            headers = scope["headers"]
            hosts = [value for name, value in headers if name == b"host"]
            elsewhere = len(hosts) != 1 or hosts[0].lower() not in self._hosts
            if elsewhere or any(name in _FORWARDED for name, _ in headers) or not _is_local(scope.get("client")):
                if scope["type"] == "websocket":
                    await send({"type": "websocket.close", "code": 1008})
                    return
                told = {
                    "error": "invalid_request",
                    "error_description": "The embedded world answers on this machine only",
                }
                await JSONResponse(told, 421)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _is_local(client: tuple[str, int] | None) -> bool:
    """Whether the peer is this machine: what a ``Host`` header says is the peer's own word (a server bound to 0.0.0.0)."""
    try:
        return client is not None and ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False


@dataclass
class Running:
    """An embedded world that is being served.

    Args:
        url: where.
        identity: an identity layer that is a client of it.
        issued_tokens: every token value that the issuer has handed out since it was started.
        mount: replaces the network for the people's browsers (tests).
    """

    url: str
    identity: Identity
    world: World
    mount: httpx.AsyncBaseTransport | None = None
    _people: dict[str, Person] = field(default_factory=dict)

    @property
    def issued_tokens(self) -> list[str]:
        return self.world.issued_tokens

    def person(self, username: str) -> Person:
        """``alice``, ``bob`` or ``carol``, each with a browser of their own."""
        if username not in self._people:
            people = self.world.installation.people
            if username not in people:
                raise UsageError(f"There is no {username!r} in the embedded world", f"There are: {', '.join(people)}")
            record = people[username]
            principal = Principal(
                self.identity.settings.tenant, self.world.installation.issuer, record.subject, record.name
            )
            self._people[username] = Person(record, principal, self.mount)
        return self._people[username]

    def orders(self) -> list[Order]:
        """Every order that was filled."""
        return self.world.trading.orders()

    async def close(self) -> None:
        """Close the browsers and the identity layer."""
        for person in self._people.values():
            await person.close()
        await asyncio.to_thread(self.identity.close)


@contextlib.asynccontextmanager
async def running(
    folder: Path | None = None,
    port: int = 0,
    clock: Callable[[], float] = time.time,
    decided: Callable[[Request], Awaitable[None]] | None = None,
    **settings: Any,
) -> AsyncIterator[Running]:
    """Serve an embedded world on loopback, for the length of the block.

    Args:
        folder: where it keeps its things; a temporary one, removed at the end, when not given.
        port: 0 for any free one.
        decided: told of each request that a ping has found decided, with ``delivery="ping"``.
        settings: more of :class:`identity.settings.Settings` for its ``identity``.

    Raises:
        UsageError: the port is taken.
    """
    home = folder if folder is not None else Path(tempfile.mkdtemp(prefix="deputize-"))
    try:
        listener = _listen(port)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        world = World(install(home / "world", url), clock)
        given: Settings = load_settings(**{"embedded": True, "url": url, "home": home, **settings})
        identity = Identity(given, clock=clock)
        app = Loopback(Starlette(routes=[*world.routes(), ping_route(identity, decided)]), url)
        with _serving(app, listener):
            up = Running(url, identity, world)
            try:
                await asyncio.to_thread(seed, up.identity, world.installation)
                yield up
            finally:
                await up.close()
                await asyncio.to_thread(world.close)
    finally:
        if folder is None:
            shutil.rmtree(home, ignore_errors=True)


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError:
        listener.close()
        raise UsageError(
            f"The port {port} is taken", "Stop what listens there, or choose another one: PORT=…"
        ) from None
    listener.listen(128)
    return listener


@contextlib.contextmanager
def _serving(app: Any, listener: socket.socket) -> Any:
    config = uvicorn.Config(app, log_level="warning", lifespan="off", access_log=False, proxy_headers=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="deputize-world", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()
