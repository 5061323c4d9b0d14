"""Threads go on by themselves when something that they wait for is decided.

No worker waits. The runs of a waiting thread have ended; what is pending is rows of the ledger. A ping of the authorization
server, or a poll of what is due, finds a decision, and the thread is woken through the server's own queue. Several
processes share the work: each request is polled, and each wake is made, by whoever holds its lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

from ..ledger import Request
from ..principal import WAKE

if TYPE_CHECKING:
    from ..identity import Identity

__all__ = ["Waker"]

_log = logging.getLogger("deputize")
_ROUND = 0.5
_BACK_OFF_LIMIT = 30.0


class Waker:
    """Polls and wakes.

    Args:
        client: an in-process client of the server; made at first use.
    """

    def __init__(self, identity: Identity, client: Any = None) -> None:
        self._identity = identity
        self._given = client

    @property
    def _client(self) -> Any:
        if self._given is None:
            from langgraph_sdk import get_client

            self._given = get_client()
        return self._given

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Any = None) -> AsyncIterator[None]:
        """Work in the background for as long as the application runs."""
        task = asyncio.create_task(self._rounds(), name="deputize-waker")
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _rounds(self) -> None:
        wait = _ROUND
        while True:
            try:
                await self.round()
                wait = _ROUND
            except Exception as error:  # whatever it was: threads that wait are not left alone for good
                _log.warning("The waker could not work and tries again: %s: %s", type(error).__name__, error)
                wait = min(wait * 2, _BACK_OFF_LIMIT)
            await asyncio.sleep(wait)

    async def round(self) -> None:
        """One look at everything that is due."""
        await self._forget_inbound()
        await self.wake(await self._identity.poll())

    async def _forget_inbound(self) -> None:
        """Delete the inbound tokens of runs that have ended (casebook C10)."""
        runs = await asyncio.to_thread(self._inbound_due)
        ended = [run_id for run_id, thread_id in runs if await self._has_ended(run_id, thread_id)]
        if ended:
            await asyncio.to_thread(self._identity.inbound.forget, ended)

    def _inbound_due(self) -> list[tuple[str, str]]:
        inbound, now = self._identity.inbound, self._identity.clock()  # the first time, this opens the database
        inbound.prune(now)
        return inbound.due(self._identity.settings.tenant, now)

    async def _has_ended(self, run_id: str, thread_id: str) -> bool:
        try:
            run = await self._client.runs.get(thread_id, run_id)
        except Exception as error:  # when the server does not say, the row stays until it does, or until it expires
            return _status(error) in (404, 422)
        return run["status"] not in ("pending", "running")

    async def wake(self, decided: Iterable[Request]) -> None:
        """Wake the thread of each decided request, once for all that were decided in it."""
        threads: dict[Any, list[Request]] = {}
        for request in decided:
            threads.setdefault(request.place, []).append(request)
        await asyncio.gather(*(self._wake(requests) for requests in threads.values()))

    async def _wake(self, requests: list[Request]) -> None:
        """Queue a run behind whatever runs on the thread. Waking twice is harmless: the ledger decides what is left to do."""
        ledger, place = self._identity.ledger, requests[0].place
        now = self._identity.clock()
        if not await asyncio.to_thread(ledger.take_wakes, requests, now):
            return
        try:
            thread = await self._client.threads.get(place.thread)
            if thread["status"] == "busy":
                # A ping that came before the run's interrupt was committed, or a turn of the person: the next round looks again.
                await asyncio.to_thread(ledger.wake_later, requests, now + _ROUND)
                return
            if any(request.kind == "login" and request.state == "approved" for request in requests):
                await self._move_owner(place)
            state = await self._client.threads.get_state(place.thread)
            # A step that was interrupted goes on without input. Where there is none any more, the graph looks anew.
            given: dict[str, Any] | None = None if state["next"] else {"messages": []}
            nonce = await asyncio.to_thread(ledger.issue_wake, place, now)
            await self._client.runs.create(
                place.thread,
                place.graph,
                input=given,
                config={"configurable": {WAKE: nonce.reveal()}},
                multitask_strategy="enqueue",
            )
        except Exception as error:
            status = _status(error)
            if status not in (404, 422):
                _log.warning(
                    "The thread of request %s was not woken and will be (%s)",
                    requests[0].short_id,
                    f"HTTP {status}" if status else type(error).__name__,
                )
                age = now - (requests[0].decided_at or now)
                await asyncio.to_thread(ledger.wake_later, requests, now + min(max(age, _ROUND), _BACK_OFF_LIMIT))
                return
            # 404: the thread is gone, or never was one of this server's; 422: its id is none that this server gives.
        for request in requests:
            await asyncio.to_thread(ledger.woken, request, now)

    async def _move_owner(self, place: Any) -> None:
        """Who signed in owns the thread from here on; the visitor that they were comes along while the sign-in lives."""
        session = await asyncio.to_thread(self._identity.sessions.of, place)
        if session is None:
            return
        metadata = {"owner": session.principal.key}
        if session.owner != session.principal.key:
            metadata["visitor"] = session.owner
        await self._client.threads.update(place.thread, metadata=metadata)


def _status(error: Exception) -> int | None:
    """The HTTP status that an error of the client stands for."""
    found: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return found
