"""On the LangGraph server: threads go on by themselves when something that they wait for is decided.

No worker waits. The runs of a waiting thread have ended; what is pending is rows of the ledger, which are polled here, and
a decision wakes its thread through the server's own queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from .errors import DeputizeError
from .ledger import Request

if TYPE_CHECKING:
    from .identity import Identity

__all__ = ["waking"]

_log = logging.getLogger("deputize")
_ROUND = 0.5
_BACK_OFF = 30.0


@contextlib.asynccontextmanager
async def waking(identity: Identity) -> AsyncIterator[None]:
    """Poll and wake, for the lifespan of the server's ``http.app``."""
    task = asyncio.create_task(_rounds(identity), name="deputize-waker")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _rounds(identity: Identity) -> None:
    from langgraph_sdk import get_client

    client, wait = get_client(), _ROUND
    while True:
        try:
            for request in await identity.poll():
                await _wake(client, identity, request)
            wait = _ROUND
        except DeputizeError as error:
            _log.warning("The waker could not work and tries again: %s", error)
            wait = min(wait * 2, _BACK_OFF)
        except Exception as error:  # whatever it was: threads that wait are not left alone for good
            _log.exception("The waker failed and tries again (%s)", type(error).__name__)
            wait = min(wait * 2, _BACK_OFF)
        await asyncio.sleep(wait)


async def _wake(client: Any, identity: Identity, request: Request) -> None:
    """Queue a run behind whatever runs on the thread. Waking twice is harmless: the ledger decides what is left to do.

    What fails stays unwoken, so the next round tries again; the other threads of this round are woken all the same.
    """
    place = request.place
    try:
        state = await client.threads.get_state(place.thread)
        # A step that was interrupted goes on without input. Where there is none any more, the open calls are looked at anew.
        given: dict[str, Any] | None = None if state["next"] else {"messages": []}
        await client.runs.create(place.thread, place.graph, input=given, multitask_strategy="enqueue")
    except Exception as error:
        # The SDK's connection errors are status errors without a response.
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status not in (404, 422):
            told = f"HTTP {status}" if status else type(error).__name__
            _log.warning("The thread of request %s was not woken (%s)", request.short_id, told)
            return
    # 404: the thread is gone, or never was one of this server's; 422: its id is none that this server gives.
    await asyncio.to_thread(identity.ledger.woken, request, identity.clock())
