"""Sessions: who a conversation belongs to.

A session row binds a person to one thread of one graph in one tenant. It is looked up by that place, never by anything
that graph state holds: so there is no handle that a client could forge, swap or erase (casebook E2, E13).
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any

from .errors import RefusedError
from .principal import Caller, Principal
from .store import Database

__all__ = ["Place", "Session", "Sessions"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where something happens: a thread of a graph of a tenant."""

    tenant: str
    graph: str
    thread: str


@dataclass(frozen=True, slots=True)
class Session:
    """A person's session in one place.

    Args:
        id: random, 128 bits.
        principal: who signed in.
        owner: the ``key`` of the caller whose runs may use it: the person, or the visitor that the person was.
        grant_id: the vault's row that holds the refresh token.
        expires_at: unix seconds; a session ends then however much it was used.
    """

    id: str
    place: Place
    principal: Principal
    owner: str
    grant_id: str
    created_at: float
    expires_at: float
    ended_at: float | None = None

    @property
    def short_id(self) -> str:
        """What people call it."""
        return hashlib.sha256(self.id.encode()).hexdigest()[:8]

    def belongs_to(self, caller: Caller | None) -> bool:
        """Whether runs of ``caller`` may use this session. Nobody owns nothing."""
        return caller is not None and (caller.key == self.owner or caller == self.principal)

    def require(self, caller: Caller | None) -> None:
        """Refuse everybody but the owner (casebook E13)."""
        if not self.belongs_to(caller):
            raise RefusedError(
                "This conversation belongs to somebody who signed in",
                "Use a thread of your own; in Python, say who is calling: with identity.caller(principal)",
                code="foreign_thread",
            )

    def live(self, now: float) -> bool:
        """Whether it can still be used at ``now`` (unix seconds)."""
        return self.ended_at is None and now < self.expires_at


class Sessions:
    """The table of sessions."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def start(
        self, place: Place, principal: Principal, *, owner: str, grant_id: str, expires_at: float, now: float
    ) -> Session:
        """Begin a session; the person's earlier one in this place ends. The id is always new (casebook A16).

        Raises:
            RefusedError: the place is somebody else's already: signing in does not take over a conversation (E13).
        """
        session = Session(secrets.token_urlsafe(16), place, principal, owner, grant_id, now, expires_at)
        with self._db.write() as db:
            taken = _newest(db.execute(_NEWEST, (place.tenant, place.graph, place.thread)).fetchall(), place)
            if taken is not None and taken.owner != owner:
                taken.require(principal)
            db.execute(
                "UPDATE sessions SET ended_at = ? WHERE tenant = ? AND graph = ? AND thread = ? AND ended_at IS NULL",
                (now, place.tenant, place.graph, place.thread),
            )
            db.execute(
                "INSERT INTO sessions (id, tenant, issuer, subject, name, owner, graph, thread, grant_id, created_at,"
                " expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    session.id,
                    place.tenant,
                    principal.issuer,
                    principal.subject,
                    principal.name,
                    owner,
                    place.graph,
                    place.thread,
                    grant_id,
                    now,
                    expires_at,
                ),
            )
        return session

    def of(self, place: Place) -> Session | None:
        """The newest session of a place, live or not: it also says whose conversation this is."""
        return _newest(self._db.read(_NEWEST, (place.tenant, place.graph, place.thread)), place)

    def end(self, session: Session, now: float) -> None:
        """End a session: its refresh token does not work any more, or its person signed out."""
        with self._db.write() as db:
            db.execute("UPDATE sessions SET ended_at = ? WHERE id = ? AND ended_at IS NULL", (now, session.id))

    def end_all_of(self, principal: Principal, grant_id: str, now: float) -> int:
        """End every session of a person that uses a grant; how many there were."""
        with self._db.write() as db:
            ended = db.execute(
                "UPDATE sessions SET ended_at = ? WHERE tenant = ? AND issuer = ? AND subject = ? AND grant_id = ?"
                " AND ended_at IS NULL",
                (now, principal.tenant, principal.issuer, principal.subject, grant_id),
            )
            return ended.rowcount

    def live_of(self, principal: Principal, now: float) -> list[Session]:
        """A person's sessions that can still be used at ``now``, wherever they are, oldest first."""
        rows = self._db.read(
            "SELECT id, graph, thread, name, owner, grant_id, created_at, expires_at FROM sessions"
            " WHERE tenant = ? AND issuer = ? AND subject = ? AND ended_at IS NULL AND expires_at > ?"
            " ORDER BY created_at, rowid",
            (principal.tenant, principal.issuer, principal.subject, now),
        )
        return [
            Session(
                id_,
                Place(principal.tenant, graph, thread),
                Principal(principal.tenant, principal.issuer, principal.subject, name),
                owner,
                grant_id,
                created_at,
                expires_at,
            )
            for id_, graph, thread, name, owner, grant_id, created_at, expires_at in rows
        ]


_NEWEST = (
    "SELECT id, issuer, subject, name, owner, grant_id, created_at, expires_at, ended_at FROM sessions"
    " WHERE tenant = ? AND graph = ? AND thread = ? ORDER BY created_at DESC, rowid DESC LIMIT 1"
)


def _newest(rows: list[tuple[Any, ...]], place: Place) -> Session | None:
    if not rows:
        return None
    id_, issuer, subject, name, owner, grant_id, created_at, expires_at, ended_at = rows[0]
    principal = Principal(place.tenant, issuer, subject, name)
    return Session(id_, place, principal, owner, grant_id, created_at, expires_at, ended_at)
