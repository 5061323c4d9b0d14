"""The ledger: everything that waits for a person, and everything that has an effect.

Requests go ``pending → approved | denied | expired | withdrawn`` and effects ``claimed → done | unknown``; every
transition is a compare-and-set in the database, so of two that race one wins (casebook B9). State in a graph holds
handles at most: the rows here decide.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from .principal import Principal
from .sealing import RowKeys, row_context
from .sessions import Place
from .store import Database

__all__ = ["Claim", "Kind", "Ledger", "Outcome", "Request", "RequestState", "effect_id"]

Kind = Literal["login", "approval"]
RequestState = Literal["pending", "approved", "denied", "expired", "withdrawn"]

_COLUMNS = (
    "id, tenant, kind, state, owner, issuer, subject, graph, thread, message_id, tool_call_id, digest, url, code, payload,"
    " handle, evidence, reason, interval, next_poll_at, created_at, expires_at, decided_at"
)


@dataclass(frozen=True, slots=True)
class Request:
    """Something that was asked of a person.

    Args:
        owner: ``key`` of the caller who caused it; empty when nobody was known.
        issuer, subject: who is asked; empty for a login of somebody not known yet.
        message_id, tool_call_id: the call that it is about; empty for a login.
        digest: of the binding (an approval); empty for a login.
        url, code: what the person is shown: the page, and the code to type or to compare.
        interval: seconds between polls.
        expires_at, decided_at: unix seconds.
    """

    id: str
    place: Place
    kind: Kind
    state: RequestState
    owner: str
    issuer: str
    subject: str
    message_id: str
    tool_call_id: str
    digest: str
    url: str
    code: str
    reason: str
    interval: float
    next_poll_at: float
    created_at: float
    expires_at: float
    decided_at: float | None
    sealed_payload: str
    sealed_handle: str
    sealed_evidence: str | None

    @property
    def short_id(self) -> str:
        """What people call it."""
        return self.id[:6]

    def shown(self) -> dict[str, Any]:
        """What a client may see of it: no arguments, no handle, no evidence."""
        return {"kind": self.kind, "id": self.id, "url": self.url, "code": self.code, "expires_at": self.expires_at}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call came to: the text of its ``ToolMessage``."""

    content: str
    status: Literal["success", "error"]


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer to a claim. ``first``: this caller may now cause the effect; nobody else will.

    ``digest``: of the call that the row was claimed for. An outcome answers no other one.
    """

    id: str
    first: bool
    state: Literal["claimed", "unknown", "done"]
    digest: str
    outcome: Outcome | None = None


def effect_id(tenant: str, message_id: str, tool_call_id: str) -> str:
    """The id of an effect's row and its idempotency key downstream.

    Computed, not random: whoever deletes the row gets the same key again, and the API still recognizes it (B20).
    """
    place = json.dumps([tenant, message_id, tool_call_id]).encode()
    return hashlib.sha256(b"deputize effect\0" + place).hexdigest()[:40]


class Ledger:
    """Requests and effects of one database.

    Args:
        rows: seals arguments, handles, evidence and outcomes, each for its own row and field.
    """

    def __init__(self, database: Database, rows: RowKeys) -> None:
        self._db = database
        self._rows = rows

    # -- requests ----------------------------------------------------------------------------------------------------

    def open(
        self,
        *,
        place: Place,
        kind: Kind,
        owner: str,
        issuer: str = "",
        subject: str = "",
        message_id: str = "",
        tool_call_id: str = "",
        digest: str = "",
        url: str,
        code: str,
        payload: Mapping[str, Any],
        handle: Mapping[str, Any],
        interval: float,
        expires_at: float,
        now: float,
    ) -> Request:
        """Record what was asked. If the same was asked meanwhile, that request is returned and this one is dropped.

        ``payload`` and ``handle`` are JSON values and are sealed.
        """
        id_ = secrets.token_hex(16)
        values = {
            "id": id_,
            "tenant": place.tenant,
            "kind": kind,
            "state": "pending",
            "owner": owner,
            "issuer": issuer,
            "subject": subject,
            "graph": place.graph,
            "thread": place.thread,
            "message_id": message_id,
            "tool_call_id": tool_call_id,
            "digest": digest,
            "url": url,
            "code": code,
            "payload": self._seal(place.tenant, id_, "payload", digest, payload),
            "handle": self._seal(place.tenant, id_, "handle", digest, handle),
            "interval": interval,
            "next_poll_at": now + interval,
            "leased_until": 0.0,
            "created_at": now,
            "expires_at": expires_at,
        }
        with self._db.write() as db:
            # The look-up and the insert are one transaction: two runs of one step ask once (casebook B11).
            existing = (
                self._select(
                    db, "tenant = ? AND message_id = ? AND tool_call_id = ?", (place.tenant, message_id, tool_call_id)
                )
                if kind == "approval"
                else self._select(db, *_pending_login(place, owner))
            )
            if existing:
                return existing[0]
            names = ", ".join(values)
            marks = ", ".join("?" * len(values))
            db.execute(f"INSERT INTO requests ({names}) VALUES ({marks})", tuple(values.values()))  # noqa: S608
            return self._select(db, "id = ?", (id_,))[0]

    def request(self, id_: str) -> Request | None:
        """One request by its id."""
        return _first(self._read("id = ?", (id_,)))

    def of_calls(self, tenant: str, message_id: str) -> dict[str, Request]:
        """The approval requests of one turn, by ``tool_call_id``."""
        found = self._read("tenant = ? AND message_id = ? AND kind = 'approval'", (tenant, message_id))
        return {request.tool_call_id: request for request in found}

    def pending_login(self, place: Place, owner: str) -> Request | None:
        """The login that ``owner`` is being asked for in this place."""
        return _first(self._read(*_pending_login(place, owner)))

    def last_login(self, place: Place, owner: str) -> Request | None:
        """The login that ``owner`` was asked for last in this place, decided or not."""
        return _first(
            self._read(
                "tenant = ? AND graph = ? AND thread = ? AND kind = 'login' AND owner = ?"
                " ORDER BY created_at DESC, rowid DESC LIMIT 1",
                (place.tenant, place.graph, place.thread, owner),
            )
        )

    def login_by_digest(self, tenant: str, digest: str) -> Request | None:
        """The pending browser login that a redirect's ``state`` belongs to."""
        return _first(
            self._read("tenant = ? AND kind = 'login' AND state = 'pending' AND digest = ?", (tenant, digest))
        )

    def pending(self, place: Place) -> list[Request]:
        """What waits in one place, oldest first."""
        return self._read(
            "tenant = ? AND graph = ? AND thread = ? AND state = 'pending' ORDER BY created_at",
            (place.tenant, place.graph, place.thread),
        )

    def pending_of(self, principal: Principal, now: float) -> list[Request]:
        """The approvals that a person is being asked for at ``now``, in whatever thread, oldest first."""
        return self._read(
            "tenant = ? AND issuer = ? AND subject = ? AND kind = 'approval' AND state = 'pending' AND expires_at > ?"
            " ORDER BY created_at",
            (principal.tenant, principal.issuer, principal.subject, now),
        )

    def due(self, tenant: str, now: float, limit: int = 50) -> list[Request]:
        """A tenant's pending requests whose next poll has come and that nobody holds a lease on."""
        return self._read(
            "tenant = ? AND state = 'pending' AND next_poll_at <= ? AND leased_until <= ? ORDER BY next_poll_at LIMIT ?",
            (tenant, now, now, limit),
        )

    def lease(self, request: Request, until: float, now: float) -> bool:
        """Take a pending request for one poll; false if another process has it."""
        with self._db.write(durable=False) as db:
            changed = db.execute(
                "UPDATE requests SET leased_until = ? WHERE id = ? AND state = 'pending' AND leased_until <= ?",
                (until, request.id, now),
            )
            return changed.rowcount == 1

    def postpone(self, request: Request, *, interval: float, next_poll_at: float) -> None:
        """Give a lease back: still pending, polled again at ``next_poll_at`` and every ``interval`` seconds (B3)."""
        with self._db.write(durable=False) as db:
            db.execute(
                "UPDATE requests SET interval = ?, next_poll_at = ?, leased_until = 0 WHERE id = ? AND state = 'pending'",
                (interval, next_poll_at, request.id),
            )

    def decide(
        self,
        request: Request,
        state: Literal["approved", "denied", "expired", "withdrawn"],
        *,
        now: float,
        reason: str = "",
        evidence: Mapping[str, Any] | None = None,
    ) -> bool:
        """End a pending request. False when it had ended already: the first decision stands (casebook B9)."""
        sealed = (
            None
            if evidence is None
            else self._seal(request.place.tenant, request.id, "evidence", request.digest, evidence)
        )
        with self._db.write() as db:
            changed = db.execute(
                "UPDATE requests SET state = ?, evidence = ?, reason = ?, decided_at = ?, leased_until = 0"
                " WHERE id = ? AND state = 'pending'",
                (state, sealed, reason, now, request.id),
            )
            return changed.rowcount == 1

    def unwoken(self, tenant: str, now: float, limit: int = 50) -> list[Request]:
        """A tenant's requests that were decided within a day and whose threads have not been told: also those whose
        process died in between."""
        return self._read(
            "tenant = ? AND state NOT IN ('pending', 'withdrawn') AND woken_at IS NULL AND decided_at > ?"
            " ORDER BY decided_at LIMIT ?",
            (tenant, now - 86_400, limit),
        )

    def woken(self, request: Request, now: float) -> bool:
        """Take over the wake of a decided request; false if somebody else has."""
        with self._db.write(durable=False) as db:
            changed = db.execute(
                "UPDATE requests SET woken_at = ? WHERE id = ? AND woken_at IS NULL", (now, request.id)
            )
            return changed.rowcount == 1

    def payload(self, request: Request) -> dict[str, Any]:
        """What was asked: the call as it was validated, and its binding."""
        return self._open(request.place.tenant, request.id, "payload", request.digest, request.sealed_payload)

    def handle(self, request: Request) -> dict[str, Any]:
        """What the authorization server knows the request by (``auth_req_id``, ``device_code``)."""
        return self._open(request.place.tenant, request.id, "handle", request.digest, request.sealed_handle)

    def evidence(self, request: Request) -> dict[str, Any] | None:
        """What the authorization server returned; the seal names this request and its digest (casebook B17, B20)."""
        if request.state != "approved" or request.sealed_evidence is None:
            return None
        return self._open(request.place.tenant, request.id, "evidence", request.digest, request.sealed_evidence)

    # -- effects -----------------------------------------------------------------------------------------------------

    def effects(self, tenant: str, message_id: str) -> dict[str, Claim]:
        """What the calls of one turn came to, by ``tool_call_id``."""
        rows = self._db.read(
            "SELECT tool_call_id, id, state, digest, outcome FROM effects WHERE tenant = ? AND message_id = ?",
            (tenant, message_id),
        )
        return {row[0]: self._claim(tenant, *row[1:]) for row in rows}

    def claim(
        self, *, tenant: str, message_id: str, tool_call_id: str, digest: str, request_id: str, now: float
    ) -> Claim:
        """Claim an effect *before* it is caused; durable when this returns.

        One row per (tenant, message, call), whatever thread, copy, checkpoint or process asks: one of them is first
        (casebook E4-E7, E24). What was claimed and never finished is ``unknown`` from the second claim on: nobody saw
        its outcome, and it is not tried again.
        """
        id_ = effect_id(tenant, message_id, tool_call_id)
        with self._db.write() as db:
            inserted = db.execute(
                "INSERT INTO effects (id, tenant, message_id, tool_call_id, digest, request_id, state, claimed_at)"
                " VALUES (?, ?, ?, ?, ?, ?, 'claimed', ?) ON CONFLICT DO NOTHING",
                (id_, tenant, message_id, tool_call_id, digest, request_id, now),
            )
            if inserted.rowcount == 1:
                return Claim(id_, True, "claimed", digest)
            db.execute("UPDATE effects SET state = 'unknown' WHERE id = ? AND state = 'claimed'", (id_,))
            row = db.execute("SELECT id, state, digest, outcome FROM effects WHERE id = ?", (id_,)).fetchone()
        return self._claim(tenant, *row)

    def finish(self, tenant: str, claim: Claim, outcome: Outcome, now: float) -> None:
        """Store what a claimed effect came to.

        Not forced to the disk: after a power cut the row reads ``claimed``, which is treated as ``unknown``.
        """
        sealed = self._seal(tenant, claim.id, "outcome", "", {"content": outcome.content, "status": outcome.status})
        with self._db.write(durable=False) as db:
            db.execute(
                "UPDATE effects SET state = 'done', outcome = ?, done_at = ? WHERE id = ? AND state != 'done'",
                (sealed, now, claim.id),
            )

    def _claim(self, tenant: str, id_: str, state: str, digest: str, sealed: str | None) -> Claim:
        outcome = Outcome(**self._open(tenant, id_, "outcome", "", sealed)) if sealed is not None else None
        return Claim(id_, False, cast("Literal['claimed', 'unknown', 'done']", state), digest, outcome)

    # -- rows and seals ----------------------------------------------------------------------------------------------

    def _read(self, where: str, parameters: Sequence[object]) -> list[Request]:
        return _requests(self._db.read(f"SELECT {_COLUMNS} FROM requests WHERE {where}", parameters))  # noqa: S608

    @staticmethod
    def _select(db: Any, where: str, parameters: Sequence[object]) -> list[Request]:
        return _requests(db.execute(f"SELECT {_COLUMNS} FROM requests WHERE {where}", parameters).fetchall())  # noqa: S608

    def _seal(self, tenant: str, id_: str, field: str, digest: str, value: Mapping[str, Any]) -> str:
        return self._rows.seal(json.dumps(value), self._context(tenant, id_, field, digest))

    def _open(self, tenant: str, id_: str, field: str, digest: str, sealed: str) -> dict[str, Any]:
        return cast(
            "dict[str, Any]", json.loads(self._rows.open(sealed, self._context(tenant, id_, field, digest)).reveal())
        )

    @staticmethod
    def _context(tenant: str, id_: str, field: str, digest: str) -> Any:
        return row_context(table="ledger", tenant=tenant, row=id_, field=field, digest=digest)


def _pending_login(place: Place, owner: str) -> tuple[str, tuple[object, ...]]:
    return (
        "tenant = ? AND graph = ? AND thread = ? AND kind = 'login' AND owner = ? AND state = 'pending'",
        (place.tenant, place.graph, place.thread, owner),
    )


def _first(requests: list[Request]) -> Request | None:
    return requests[0] if requests else None


def _requests(rows: Iterable[Any]) -> list[Request]:
    return [
        Request(
            id=id_,
            place=Place(tenant, graph, thread),
            kind=kind,
            state=state,
            owner=owner,
            issuer=issuer,
            subject=subject,
            message_id=message_id,
            tool_call_id=tool_call_id,
            digest=digest,
            url=url,
            code=code,
            reason=reason or "",
            interval=interval,
            next_poll_at=next_poll_at,
            created_at=created_at,
            expires_at=expires_at,
            decided_at=decided_at,
            sealed_payload=payload,
            sealed_handle=handle,
            sealed_evidence=evidence,
        )
        for (
            id_, tenant, kind, state, owner, issuer, subject, graph, thread, message_id, tool_call_id, digest, url, code,
            payload, handle, evidence, reason, interval, next_poll_at, created_at, expires_at, decided_at,
        ) in rows
    ]  # fmt: skip
