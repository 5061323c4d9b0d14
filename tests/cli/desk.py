"""A terminal in the embedded world: runs the command line in this process, with surroundings of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from click.testing import CliRunner, Result

from identity.cli import main
from identity.cli.surroundings import Surroundings
from identity.ledger import Request
from identity.sessions import Place, Session
from tests.support import Inside, say

__all__ = ["Desk"]


@dataclass
class Desk:
    """Where somebody sits.

    Args:
        user: what the operating system calls them.
        meanwhile: done while a command waits, with the login that it waits for.
    """

    world: Inside
    user: str = "sam"
    meanwhile: Callable[[Request], Awaitable[Any]] | None = None
    opened: list[str] = field(default_factory=list)

    @property
    def place(self) -> Place:
        return Place("default", "terminal", self.user)

    async def run(self, *args: str, **given: Any) -> Result:
        """Run a command; nothing but its own errors may come out of it."""
        around = Surroundings(
            folder=self.world.home,
            clock=self.world.clock,
            user=lambda: self.user,
            browse=self._browse,
            pause=self._pause,
            mount=self.world.network,
            given={"embedded": True, "url": self.world.url, "home": self.world.home, **given},
        )
        result = await asyncio.to_thread(CliRunner().invoke, main, args, obj=around)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    async def facts(self, *args: str, **given: Any) -> dict[str, Any]:
        """The document that a command prints with ``--json``."""
        found: dict[str, Any] = json.loads((await self.run(*args, "--json", **given)).stdout)
        return found

    async def sign_in(self, username: str = "alice", *more: str) -> Result:
        """Sign in with a typed code, as one of the people."""
        self.meanwhile = lambda request: self.world.person(username).sign_in(request.shown())
        return await self.run("login", "--device", *more)

    def session(self) -> Session | None:
        """The newest session of this terminal."""
        return self.world.identity.sessions.of(self.place)

    def _browse(self, url: str) -> bool:
        self.opened.append(url)
        return True

    async def _pause(self, seconds: float) -> None:
        waits = self.world.identity.ledger.pending(self.place)
        if waits and self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile(waits[0])
        await self.world.clock.pause(seconds)


async def ask_for(world: Inside, graph: Any, username: str, thread: str) -> None:
    """Have one of the people say something in a thread."""
    with world.identity.caller(world.person(username).principal):
        await say(graph, thread=thread)
