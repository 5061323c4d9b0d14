"""Signing out: a grant is given up at its issuer, wiped here, and every session that used it ends (casebook E26, F12)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from .broker import Broker
from .errors import DeputizeError
from .principal import Principal
from .sessions import Session, Sessions
from .vault import Vault

__all__ = ["GivenUp", "end_session", "give_up"]


@dataclass(frozen=True, slots=True)
class GivenUp:
    """What became of a grant. It is wiped here in any case.

    Args:
        revoked: whether the issuer confirmed that it is dead there too.
        reason: why it did not; empty when it did.
        sessions: how many sessions ended with it.
    """

    revoked: bool
    reason: str
    sessions: int


async def give_up(
    principal: Principal, grant_id: str, *, broker: Broker, vault: Vault, sessions: Sessions, now: float
) -> GivenUp:
    """Revoke a person's grant (RFC 7009), wipe it, and end its sessions. Runs on the I/O thread.

    The issuer is asked first: whoever is interrupted before it has answered can do all of it again. Whatever it answers,
    nothing of the grant stays here; what it would not revoke ends there by itself.
    """
    grant = await asyncio.to_thread(vault.grant, grant_id, principal)
    reason = ""
    if grant is None:
        reason = "It had been given up before"
    else:
        try:
            await broker.revoke(grant)
        except DeputizeError as error:
            reason = error.message

    def wipe() -> int:
        if grant is not None:
            vault.delete(grant)
        return sessions.end_all_of(principal, grant_id, now)

    return GivenUp(not reason, reason, await asyncio.to_thread(wipe))


async def end_session(
    session: Session, *, broker: Broker, vault: Vault, sessions: Sessions, now: float
) -> GivenUp | None:
    """End one session. Its grant is given up with the last session that uses it; ``None`` while others do, or without one.

    A grant that stayed would have the person's next call in any thread begin a session anew, without a sign-in.
    """

    def alone() -> bool:
        live = sessions.live_of(session.principal, now)
        shared = any(other.grant_id == session.grant_id and other.id != session.id for other in live)
        if shared or not session.grant_id:
            sessions.end(session, now)
            return False
        return True

    if not await asyncio.to_thread(alone):
        return None
    return await give_up(session.principal, session.grant_id, broker=broker, vault=vault, sessions=sessions, now=now)
