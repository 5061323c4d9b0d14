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

from .errors import RefusedError
from .principal import Principal
from .sealing import RowKeys, row_context
from .secret import Secret
from .sessions import Place
from .store import Database

__all__ = ["DECLINED", "Claim", "Kind", "Ledger", "Outcome", "Request", "RequestState", "effect_id"]

Kind = Literal["login", "approval"]
RequestState = Literal["pending", "approved", "denied", "expired", "withdrawn"]

DECLINED = "The person who was asked declined."
"""The reason of a request that a person declined, rather than that it could not be asked or fetched."""

_WAKE_LEASE = 30.0
_WAKE_LIFETIME = 3600.0
_OUTCOME_LIMIT = 1 << 20

_COLUMNS = (
    "id, tenant, kind, state, owner, issuer, subject, graph, thread, message_id, tool_call_id, digest, url, code, payload,"
    " handle, evidence, reason, interval, next_poll_at, created_at, expires_at, decided_at, call, deferred_at, settled_at"
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
        call: digest of what is to be called with what for whom, the same for every equal call; empty for a login.
        deferred_at: when its call was answered with "asked for approval"; unix seconds.
        settled_at: when what became of it since was seen in the conversation.
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
    call: str = ""
    deferred_at: float | None = None
    settled_at: float | None = None

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


def _fingerprint(value: str) -> str:
    """How a token is found without being kept."""
    return hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()


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
        ping: str = "",
        call: str = "",
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
            "ping": _fingerprint(ping) if ping else None,
            "call": call,
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
                return _in(place, existing[0])
            names = ", ".join(values)
            marks = ", ".join("?" * len(values))
            db.execute(f"INSERT INTO requests ({names}) VALUES ({marks})", tuple(values.values()))  # noqa: S608
            return self._select(db, "id = ?", (id_,))[0]

    def request(self, id_: str) -> Request | None:
        """One request by its id."""
        return _first(self._read("id = ?", (id_,)))

    def of_calls(self, place: Place, message_id: str) -> dict[str, Request]:
        """The approval requests of one turn of one thread, by ``tool_call_id``."""
        found = self._read("tenant = ? AND message_id = ? AND kind = 'approval'", (place.tenant, message_id))
        return {request.tool_call_id: request for request in found if request.place == place}

    def of_call(self, place: Place, message_id: str, tool_call_id: str) -> Request | None:
        """The approval request of one call.

        Raises:
            RefusedError: it was asked for in another thread, of which this one is a copy.
        """
        found = self._read(
            "tenant = ? AND message_id = ? AND tool_call_id = ? AND kind = 'approval'",
            (place.tenant, message_id, tool_call_id),
        )
        return _in(place, found[0]) if found else None

    def by_ping(self, tenant: str, token: str) -> Request | None:
        """The request whose ``client_notification_token`` this is (CIBA Core §10.2)."""
        return _first(self._read("tenant = ? AND ping = ?", (tenant, _fingerprint(token))))

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

    def equal_open(self, place: Place, call: str, now: float) -> Request | None:
        """The request of an equal call that waits in one place, or was approved and is still to be carried out (B22)."""
        return _first(
            self._read(
                "tenant = ? AND graph = ? AND thread = ? AND kind = 'approval' AND call = ? AND ("
                "(state = 'pending' AND expires_at > ?)"
                " OR (state = 'approved' AND deferred_at IS NOT NULL AND settled_at IS NULL)) ORDER BY created_at",
                (place.tenant, place.graph, place.thread, call, now),
            )
        )

    def declined(self, principal: Principal, since: float) -> list[Request]:
        """The approvals that a person declined after ``since``, in whatever thread, the latest first."""
        return self._read(
            "tenant = ? AND issuer = ? AND subject = ? AND created_at > ? AND kind = 'approval' AND state = 'denied'"
            " AND reason = ? AND decided_at > ? ORDER BY decided_at DESC",
            # Nothing waits for a day: the index is by when it was asked.
            (principal.tenant, principal.issuer, principal.subject, since - 86_400, DECLINED, since),
        )

    def defer(self, request: Request, now: float) -> None:
        """A call is answered with "asked for approval": what becomes of it is told later."""
        with self._db.write() as db:
            db.execute("UPDATE requests SET deferred_at = ifnull(deferred_at, ?) WHERE id = ?", (now, request.id))

    def deferred(self, place: Place) -> list[Request]:
        """The deferred requests of one place whose outcome has not been seen in its conversation yet, oldest first."""
        return self._read(
            "tenant = ? AND graph = ? AND thread = ? AND deferred_at IS NOT NULL AND settled_at IS NULL"
            " ORDER BY created_at",
            (place.tenant, place.graph, place.thread),
        )

    def settled(self, requests: Sequence[Request], now: float) -> None:
        """What became of these requests stands in the conversation."""
        with self._db.write(durable=False) as db:
            db.executemany("UPDATE requests SET settled_at = ? WHERE id = ?", [(now, r.id) for r in requests])

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
            " AND ifnull(wake_leased_until, 0) <= ? ORDER BY decided_at LIMIT ?",
            (tenant, now - 86_400, now, limit),
        )

    def unwoken_in(self, place: Place, now: float) -> list[Request]:
        """The same in one place."""
        return self._read(
            "tenant = ? AND graph = ? AND thread = ? AND state NOT IN ('pending', 'withdrawn') AND woken_at IS NULL"
            " AND decided_at > ?",
            (place.tenant, place.graph, place.thread, now - 86_400),
        )

    def take_wakes(self, requests: Sequence[Request], now: float) -> bool:
        """Take the wake of one thread's decided requests for half a minute; false if another process has all of them."""
        with self._db.write(durable=False) as db:
            changed = db.execute(
                f"UPDATE requests SET wake_leased_until = ? WHERE id IN ({', '.join('?' * len(requests))})"  # noqa: S608
                " AND woken_at IS NULL AND ifnull(wake_leased_until, 0) <= ?",
                (now + _WAKE_LEASE, *(request.id for request in requests), now),
            )
            return changed.rowcount > 0

    def wake_later(self, requests: Sequence[Request], at: float) -> None:
        """Give the wake back: to be tried again at ``at`` (unix seconds)."""
        with self._db.write(durable=False) as db:
            db.executemany(
                "UPDATE requests SET wake_leased_until = ? WHERE id = ?", [(at, request.id) for request in requests]
            )

    def issue_wake(self, place: Place, now: float) -> Secret:
        """A nonce with which one run goes on for the owner of a thread, without anybody who calls (casebook E19)."""
        nonce = Secret(secrets.token_urlsafe(32))
        with self._db.write(durable=False) as db:
            db.execute("DELETE FROM wakes WHERE expires_at < ?", (now,))
            db.execute(
                "INSERT INTO wakes (id, tenant, graph, thread, run_id, expires_at) VALUES (?, ?, ?, ?, '', ?)",
                (_fingerprint(nonce.reveal()), place.tenant, place.graph, place.thread, now + _WAKE_LIFETIME),
            )
        return nonce

    def redeem_wake(self, nonce: str, place: Place, run_id: str, now: float) -> bool:
        """Whether a run may go on with a nonce: the first one that shows it, in its own thread, and no other."""
        where = (_fingerprint(nonce), place.tenant, place.graph, place.thread, now)
        found = self._db.read(
            "SELECT run_id FROM wakes WHERE id = ? AND tenant = ? AND graph = ? AND thread = ? AND expires_at > ?",
            where,
        )
        if not run_id or not found:
            return False
        if not found[0][0]:
            with self._db.write(durable=False) as db:
                db.execute("UPDATE wakes SET run_id = ? WHERE id = ? AND run_id = ''", (run_id, where[0]))
            return self.redeem_wake(nonce, place, run_id, now)
        return bool(found[0][0] == run_id)

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

    def referred(self, request: Request) -> int:
        """How many other calls were answered by reference to a request."""
        found = self._db.read(
            "SELECT count(*) FROM effects WHERE request_id = ? AND id != ?",
            (request.id, effect_id(request.place.tenant, request.message_id, request.tool_call_id)),
        )
        return int(found[0][0])

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
        content = outcome.content if len(outcome.content) <= _OUTCOME_LIMIT else outcome.content[:_OUTCOME_LIMIT] + "…"
        sealed = self._seal(tenant, claim.id, "outcome", "", {"content": content, "status": outcome.status})
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


def _in(place: Place, request: Request) -> Request:
    if request.place != place:
        raise RefusedError("The same was asked for in another conversation", "Decide it there, or ask anew here")
    return request


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
            call=call or "",
            deferred_at=deferred_at,
            settled_at=settled_at,
        )
        for (
            id_, tenant, kind, state, owner, issuer, subject, graph, thread, message_id, tool_call_id, digest, url, code,
            payload, handle, evidence, reason, interval, next_poll_at, created_at, expires_at, decided_at, call,
            deferred_at, settled_at,
        ) in rows
    ]  # fmt: skip
