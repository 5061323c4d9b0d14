"""Inbound tokens: the access token that a caller came with, kept sealed for one run and no longer (casebook C10).

It has this one home. The server's run record holds who the caller is, and no token. The waker looks every few seconds which
runs have ended, however they did, and deletes their rows; a row never outlives its token either.
"""

from __future__ import annotations

from collections.abc import Sequence

from .principal import Principal
from .sealing import Context, RowKeys, row_context
from .secret import Secret
from .store import Database

__all__ = ["LOOK", "Inbound"]

LOOK = 5.0
"""Seconds between two looks at whether a run has ended; the first one gives its creation time to be committed."""


class Inbound:
    """The table of inbound tokens, by run."""

    def __init__(self, database: Database, rows: RowKeys) -> None:
        self._db = database
        self._rows = rows

    def keep(
        self, run_id: str, thread_id: str, principal: Principal, token: Secret, expires_at: float, now: float
    ) -> None:
        """Keep a verified token for a run that is about to be created. ``expires_at`` is the token's own, unix seconds."""
        sealed = self._rows.seal(token.reveal(), _context(run_id, principal))
        person = (principal.tenant, principal.issuer, principal.subject)
        with self._db.write(durable=False) as db:
            db.execute(
                "INSERT INTO inbound (id, thread, tenant, issuer, subject, token, expires_at, look_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (run_id, thread_id, *person, sealed, expires_at, now + LOOK),
            )

    def token(self, run_id: str, principal: Principal, now: float) -> Secret | None:
        """The token of a run, for the person who came with it and nobody else; ``None`` when it is gone or has expired."""
        if not run_id:
            return None
        rows = self._db.read("SELECT token FROM inbound WHERE id = ? AND expires_at > ?", (run_id, now))
        return self._rows.open(rows[0][0], _context(run_id, principal)) if rows else None

    def due(self, tenant: str, now: float, limit: int = 100) -> list[tuple[str, str]]:
        """``(run_id, thread_id)`` of the runs of a tenant that should be looked at: do they still go on?

        They are due again in :data:`LOOK` seconds, so that several processes share the looking.
        """
        rows = self._db.read(
            "SELECT id, thread FROM inbound WHERE look_at <= ? AND tenant = ? ORDER BY look_at LIMIT ?",
            (now, tenant, limit),
        )
        if rows:
            with self._db.write(durable=False) as db:
                db.executemany("UPDATE inbound SET look_at = ? WHERE id = ?", [(now + LOOK, row[0]) for row in rows])
        return [(run_id, thread_id) for run_id, thread_id in rows]

    def forget(self, run_ids: Sequence[str]) -> None:
        """The runs have ended: nothing of their tokens stays."""
        with self._db.write(durable=False) as db:
            db.executemany("DELETE FROM inbound WHERE id = ?", [(run_id,) for run_id in run_ids])

    def prune(self, now: float) -> None:
        """Delete what has expired, whether its run has ended or not: it serves for nothing any more."""
        if self._db.read("SELECT 1 FROM inbound WHERE expires_at <= ? LIMIT 1", (now,)):
            with self._db.write(durable=False) as db:
                db.execute("DELETE FROM inbound WHERE expires_at <= ?", (now,))


def _context(run_id: str, principal: Principal) -> Context:
    return row_context(table="inbound", tenant=principal.tenant, row=run_id, field="token", owner=principal.key)
