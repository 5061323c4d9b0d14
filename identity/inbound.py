"""Inbound tokens: the access token that a caller came with, kept sealed for one run and no longer (casebook C10).

It has this one home. The server's run record holds who the caller is, and no token.
"""

from __future__ import annotations

from .principal import Principal
from .sealing import Context, RowKeys, row_context
from .secret import Secret
from .store import Database

__all__ = ["Inbound"]


class Inbound:
    """The table of inbound tokens, by run."""

    def __init__(self, database: Database, rows: RowKeys) -> None:
        self._db = database
        self._rows = rows

    def keep(self, run_id: str, principal: Principal, token: Secret, expires_at: float) -> None:
        """Keep a verified token for a run that is about to be created. ``expires_at`` is the token's own, unix seconds."""
        sealed = self._rows.seal(token.reveal(), _context(run_id, principal))
        with self._db.write(durable=False) as db:
            db.execute(
                "INSERT INTO inbound (id, tenant, issuer, subject, token, expires_at) VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT DO NOTHING",
                (run_id, principal.tenant, principal.issuer, principal.subject, sealed, expires_at),
            )

    def token(self, run_id: str, principal: Principal, now: float) -> Secret | None:
        """The token of a run, for the person who came with it and nobody else; ``None`` when it is gone or has expired."""
        if not run_id:
            return None
        rows = self._db.read("SELECT token FROM inbound WHERE id = ? AND expires_at > ?", (run_id, now))
        return self._rows.open(rows[0][0], _context(run_id, principal)) if rows else None

    def forget(self, run_id: str) -> None:
        """The run has ended: nothing of the token stays."""
        if run_id and self._db.read("SELECT 1 FROM inbound WHERE id = ?", (run_id,)):
            with self._db.write(durable=False) as db:
                db.execute("DELETE FROM inbound WHERE id = ?", (run_id,))

    def prune(self, now: float) -> None:
        """Delete what has expired: the rows of runs that ended without saying so."""
        if self._db.read("SELECT 1 FROM inbound WHERE expires_at <= ? LIMIT 1", (now,)):
            with self._db.write(durable=False) as db:
                db.execute("DELETE FROM inbound WHERE expires_at <= ?", (now,))


def _context(run_id: str, principal: Principal) -> Context:
    return row_context(table="inbound", tenant=principal.tenant, row=run_id, field="token", owner=principal.key)
