"""What was asked of whom, and what they said: ``pending → approved | denied | expired``, redeemed once.

Every transition is a compare-and-set, so of two decisions that race one stands (casebook B9).
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database as Schema

from ..canonical import canonical
from ..errors import DeputizeError
from ..store import Database

__all__ = ["Approval", "Authority", "CibaError", "Opened", "approvals_table"]

GRACE = 30.0
"""Seconds after its end in which an approval that was given in time may still be fetched."""

_COLUMNS = (
    "id, client_id, client_name, subject, scope, resource, details, binding_message, state, interval, polled_at, created_at,"
    " expires_at, decided_at, auth_time, redeemed_jti"
)


class CibaError(DeputizeError):
    """An error of the token endpoint for the CIBA grant (CIBA Core §11); ``code`` is the wire's ``error``."""


def approvals_table(db: Schema) -> None:
    """The authority's table, as a step of the host's migrations."""
    db.table("approvals").create(
        {
            "id": str,
            "handle": str,
            "client_id": str,
            "client_name": str,
            "subject": str,
            "scope": str,
            "resource": str,
            "details": str,
            "binding_message": str,
            "state": str,
            "interval": float,
            "polled_at": float,
            "created_at": float,
            "expires_at": float,
            "decided_at": float,
            "auth_time": float,
            "redeemed_jti": str,
        },
        pk="id",
        not_null={"handle", "state", "expires_at"},
        strict=True,
    )
    db.table("approvals").create_index(["handle"], unique=True)
    db.table("approvals").create_index(["subject", "created_at"])


@dataclass(frozen=True, slots=True)
class Approval:
    """One request for a person's yes.

    Args:
        id: public; names the page. It is not the ``auth_req_id``, and knowing it decides nothing.
        details: RFC 9396 ``authorization_details``, as the client sent them.
        binding_message: the code that the chat shows too.
        interval, polled_at, created_at, expires_at, decided_at: seconds, unix seconds.
        auth_time: when the person who decided had signed in, unix seconds.
        redeemed_jti: the token that it was redeemed for.
    """

    id: str
    client_id: str
    client_name: str
    subject: str
    scope: str
    resource: str
    details: tuple[Mapping[str, Any], ...]
    binding_message: str
    state: str
    interval: float
    polled_at: float | None
    created_at: float
    expires_at: float
    decided_at: float | None
    auth_time: float | None
    redeemed_jti: str | None

    def state_at(self, now: float) -> str:
        """``pending``, ``approved``, ``denied`` or ``expired``."""
        if self.state == "pending" and now >= self.expires_at:
            return "expired"
        if self.state == "approved" and self.redeemed_jti is None and now >= self.expires_at + GRACE:
            # What was approved was for then, and nobody came for it: a handle that was kept does not place the order next
            # week. One that was taken stays, so that its second use is noticed (casebook B2).
            return "expired"
        return self.state


@dataclass(frozen=True, slots=True)
class Opened:
    """What the client gets (CIBA Core §7.3). The handle is kept as a digest only."""

    auth_req_id: str
    approval: Approval


class Authority:
    """The table of approvals.

    Args:
        clock: unix seconds.
        interval: seconds between polls, to begin with.
        decided: told the id of a request once its decision is stored, e.g. to ping the client.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float],
        interval: float = 5.0,
        decided: Callable[[str], None] | None = None,
    ) -> None:
        self._db = database
        self.clock = clock
        self._interval = interval
        self._decided = decided

    def open(
        self,
        *,
        client_id: str,
        client_name: str,
        subject: str,
        scope: str,
        resource: str,
        details: Sequence[Mapping[str, Any]],
        binding_message: str,
        lifetime: float,
    ) -> Opened:
        """Record a request of an authenticated client.

        Raises:
            UsageError: ``details`` are nested too deeply to be shown, or have no one spelling.
        """
        canonical(list(details))
        auth_req_id, id_, now = secrets.token_urlsafe(32), secrets.token_urlsafe(12), self.clock()
        with self._db.write() as db:
            db.execute(
                "INSERT INTO approvals (id, handle, client_id, client_name, subject, scope, resource, details,"
                " binding_message, state, interval, created_at, expires_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'pending', ?, ?, ?)",
                (
                    id_,
                    _digest(auth_req_id),
                    client_id,
                    client_name,
                    subject,
                    scope,
                    resource,
                    json.dumps(list(details)),
                    binding_message,
                    self._interval,
                    now,
                    now + lifetime,
                ),
            )
        found = self.get(id_, subject)
        assert found is not None  # just written
        return Opened(auth_req_id, found)

    def get(self, id_: str, subject: str) -> Approval | None:
        """A request by its public id, for the person who was asked; for anybody else there is none (casebook B8)."""
        return _first(self._db.read(f"SELECT {_COLUMNS} FROM approvals WHERE id = ? AND subject = ?", (id_, subject)))  # noqa: S608

    def inbox(self, subject: str, limit: int = 50) -> list[Approval]:
        """A person's requests: what waits for them first, then newest first."""
        rows = self._db.read(
            f"SELECT {_COLUMNS} FROM approvals WHERE subject = ?"  # noqa: S608
            " ORDER BY state = 'pending' AND expires_at > ? DESC, created_at DESC, rowid DESC LIMIT ?",
            (subject, self.clock(), limit),
        )
        return [_approval(row) for row in rows]

    def decide(self, id_: str, subject: str, *, approve: bool, auth_time: float) -> bool:
        """The decision of the person who was asked. False when it had been decided or has expired: nothing changes."""
        now = self.clock()
        with self._db.write() as db:
            changed = db.execute(
                "UPDATE approvals SET state = ?, decided_at = ?, auth_time = ?"
                " WHERE id = ? AND subject = ? AND state = 'pending' AND expires_at > ?",
                ("approved" if approve else "denied", now, auth_time, id_, subject, now),
            )
        if changed.rowcount == 1 and self._decided is not None:
            self._decided(id_)
        return changed.rowcount == 1

    def poll(self, auth_req_id: str, client_id: str) -> Approval:
        """How a request stands, for the client that opened it: returned when it is approved.

        Raises:
            CibaError: ``authorization_pending``, ``slow_down``, ``access_denied``, ``expired_token``, ``invalid_grant``.
        """
        now = self.clock()
        found = _first(
            self._db.read(
                f"SELECT {_COLUMNS} FROM approvals WHERE handle = ? AND client_id = ?",  # noqa: S608
                (_digest(auth_req_id), client_id),
            )
        )
        if found is None:  # unknown, guessed, or another client's: the same answer (casebook B1)
            raise CibaError("The auth_req_id is not known", code="invalid_grant")
        match found.state_at(now):
            case "denied":
                raise CibaError("The person declined", code="access_denied")
            case "expired":
                raise CibaError("Nobody decided in time, or nobody collected the decision", code="expired_token")
            case "approved":
                return found
        early = found.polled_at is not None and now - found.polled_at < found.interval - 0.05
        with self._db.write(durable=False) as db:
            db.execute(
                "UPDATE approvals SET polled_at = ?, interval = interval + ? WHERE id = ?",
                (now, 5.0 if early else 0.0, found.id),  # slower for good (CIBA Core §11; casebook B3)
            )
        if early:
            raise CibaError(f"Ask every {found.interval + 5:g} seconds", code="slow_down")
        raise CibaError("Nobody has decided yet", code="authorization_pending")

    def redeem(self, approval: Approval, jti: str) -> str | None:
        """Take an approval for the token ``jti``. Returns ``None``, or the token that it had been taken for (B2)."""
        with self._db.write() as db:
            taken = db.execute(
                "UPDATE approvals SET redeemed_jti = ? WHERE id = ? AND state = 'approved' AND redeemed_jti IS NULL",
                (jti, approval.id),
            )
            if taken.rowcount == 1:
                return None
            row = db.execute("SELECT redeemed_jti FROM approvals WHERE id = ?", (approval.id,)).fetchone()
        return str(row[0])


def _digest(handle: str) -> str:
    return hashlib.sha256(handle.encode()).hexdigest()


def _first(rows: list[tuple[Any, ...]]) -> Approval | None:
    return _approval(rows[0]) if rows else None


def _approval(row: tuple[Any, ...]) -> Approval:
    values = list(row)
    values[6] = tuple(json.loads(values[6]))
    return Approval(*values)
