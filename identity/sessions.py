"""Sessions: who a conversation belongs to.

A session row binds a person to one thread of one graph in one tenant. It is looked up by that place, never by anything
that graph state holds: so there is no handle that a client could forge, swap or erase (casebook E2, E13).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import secrets
from dataclasses import dataclass
from typing import Any

from .canonical import digest
from .errors import RefusedError, SealError
from .principal import Caller, Principal
from .sealing import Context, RowKeys, row_context
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
    """The table of sessions, and of who began each thread.

    Args:
        rows: seals what a session row says, so that one edited in the database is nobody's session (casebook B20).
    """

    def __init__(self, database: Database, rows: RowKeys) -> None:
        self._db = database
        self._rows = rows
        # Rows are read anew each time; the very same row is not opened anew each time.
        self._session = functools.lru_cache(maxsize=4096)(self._opened)

    def began(self, place: Place) -> str | None:
        """``key`` of the caller who began a thread; empty if nobody said who that was, ``None`` if nobody has yet."""
        rows = self._db.read(
            "SELECT owner FROM threads WHERE tenant = ? AND graph = ? AND thread = ?",
            (place.tenant, place.graph, place.thread),
        )
        return rows[0][0] if rows else None

    def places_of(self, tenant: str, thread: str) -> list[tuple[Place, str]]:
        """The places that a thread of the server is, and who began each."""
        rows = self._db.read(
            "SELECT graph, owner FROM threads WHERE tenant = ? AND thread = ? ORDER BY created_at", (tenant, thread)
        )
        return [(Place(tenant, graph, thread), owner) for graph, owner in rows]

    def begin(self, place: Place, owner: str, now: float) -> str:
        """Say who began a thread; of two who say it at once, the first did. Returns who did."""
        with self._db.write(durable=False) as db:
            db.execute(
                "INSERT INTO threads (tenant, graph, thread, owner, created_at) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT DO NOTHING",
                (place.tenant, place.graph, place.thread, owner, now),
            )
        return self.began(place) or ""

    def start(
        self, place: Place, principal: Principal, *, owner: str, grant_id: str, expires_at: float, now: float
    ) -> Session:
        """Begin a session; the person's earlier one in this place ends. The id is always new (casebook A16).

        Raises:
            RefusedError: the place is somebody else's already: signing in does not take over a conversation (E13).
        """
        session = Session(secrets.token_urlsafe(16), place, principal, owner, grant_id, now, expires_at)
        with self._db.write() as db:
            taken = self._newest(db.execute(_NEWEST, (place.tenant, place.graph, place.thread)).fetchall(), place)
            if taken is not None and taken.principal != principal:
                taken.require(None)
            db.execute(
                "UPDATE sessions SET ended_at = ? WHERE tenant = ? AND graph = ? AND thread = ? AND ended_at IS NULL",
                (now, place.tenant, place.graph, place.thread),
            )
            db.execute(
                "INSERT INTO sessions (id, tenant, issuer, subject, name, owner, graph, thread, grant_id, created_at,"
                " expires_at, seal) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
                    self._rows.seal("session", _context(session)),
                ),
            )
        return session

    def of(self, place: Place) -> Session | None:
        """The newest session of a place, live or not: it also says whose conversation this is.

        Raises:
            SealError: the row is not what was stored. Attack: a row that is edited in the database makes somebody else's
                sign-in the session of a thread.
        """
        return self._newest(self._db.read(_NEWEST, (place.tenant, place.graph, place.thread)), place)

    def people_of(self, owner: str, now: float) -> list[Principal]:
        """As whom a visitor is signed in at ``now``, in whatever threads."""
        rows = self._db.read(
            f"SELECT tenant, graph, thread, {_COLUMNS} FROM sessions"  # noqa: S608
            " WHERE owner = ? AND ended_at IS NULL AND expires_at > ?",
            (owner, now),
        )
        found: list[Principal] = []
        for tenant, graph, thread, *row in rows:
            with contextlib.suppress(SealError):  # edited in the database, so nobody's
                person = self._session(tuple(row), Place(tenant, graph, thread)).principal
                found += [person] if person not in found else []
        return found

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
            f"SELECT graph, thread, {_COLUMNS} FROM sessions WHERE tenant = ? AND issuer = ? AND subject = ?"  # noqa: S608
            " AND ended_at IS NULL AND expires_at > ? ORDER BY created_at, rowid",
            (principal.tenant, principal.issuer, principal.subject, now),
        )
        found = []
        for graph, thread, *row in rows:
            with contextlib.suppress(SealError):  # edited in the database, so nobody's
                found.append(self._session(tuple(row), Place(principal.tenant, graph, thread)))
        return found

    def forget_ended(self, place: Place) -> None:
        """Forget who was signed in here, if nobody is: for a place that holds no history, so that it may become anybody's."""
        with self._db.write(durable=False) as db:
            db.execute(
                "DELETE FROM sessions WHERE tenant = ? AND graph = ? AND thread = ? AND ended_at IS NOT NULL",
                (place.tenant, place.graph, place.thread),
            )

    def _newest(self, rows: list[tuple[Any, ...]], place: Place) -> Session | None:
        return self._session(tuple(rows[0]), place) if rows else None

    def _opened(self, row: tuple[Any, ...], place: Place) -> Session:
        id_, issuer, subject, name, owner, grant_id, created_at, expires_at, ended_at, seal = row
        principal = Principal(place.tenant, issuer, subject, name)
        session = Session(id_, place, principal, owner, grant_id, created_at, expires_at, ended_at)
        self._rows.open(seal or "", _context(session))
        return session


_COLUMNS = "id, issuer, subject, name, owner, grant_id, created_at, expires_at, ended_at, seal"
_NEWEST = (
    f"SELECT {_COLUMNS} FROM sessions"  # noqa: S608
    " WHERE tenant = ? AND graph = ? AND thread = ? ORDER BY created_at DESC, rowid DESC LIMIT 1"
)


def _context(session: Session) -> Context:
    """Everything that a session row says but when it ended."""
    place = session.place
    return row_context(
        table="sessions",
        tenant=place.tenant,
        row=session.id,
        field="seal",
        owner=session.principal.key,
        digest=digest([place.graph, place.thread, session.owner, session.grant_id, session.expires_at]),
    )
