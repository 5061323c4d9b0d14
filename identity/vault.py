"""The token vault: refresh tokens, sealed in their rows.

A row opens for its own person and generation only. The vault sends nothing; the broker redeems, and comes back with what
it got. Every change is a compare-and-set on ``generation``, so a loser never overwrites the winner's token.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import SealError, SettingsError
from .keyring import KeyRing
from .principal import Principal
from .sealing import Context, RowKeys, row_context
from .secret import Secret
from .store import Database

__all__ = ["Grant", "Vault", "require_ring_of", "verify_keyring"]

EARLY = 60.0
"""A subject token with less than this many seconds left is not used: the refresh happens early, not at the last moment."""

_COLUMNS = (
    "id, tenant, issuer, subject, generation, refresh_token, subject_token, subject_token_expires_at, scope, created_at,"
    " expires_at, broken"
)


@dataclass(frozen=True, slots=True)
class Grant:
    """A person's standing grant to this agent.

    Args:
        generation: counts the rotations of its refresh token.
        scope: as it was asked for; what of it was granted, the issuer says at each exchange.
        expires_at: unix seconds; it ends then, however often it was refreshed.
        broken: why it does not work any more; empty while it does.
    """

    id: str
    principal: Principal
    generation: int
    scope: str
    created_at: float
    expires_at: float
    broken: str
    sealed_refresh_token: str
    sealed_subject_token: str | None
    subject_token_expires_at: float | None


class Vault:
    """The table of grants."""

    def __init__(self, database: Database, rows: RowKeys) -> None:
        self._db = database
        self._rows = rows

    def store_grant(
        self, principal: Principal, *, refresh_token: Secret, scope: str, expires_at: float, now: float
    ) -> Grant:
        """Keep a new grant. ``expires_at`` is absolute, unix seconds."""
        id_ = secrets.token_hex(16)
        sealed = self._rows.seal(refresh_token.reveal(), _context(id_, principal, "refresh_token", 0))
        with self._db.write() as db:
            db.execute(
                "INSERT INTO grants (id, tenant, issuer, subject, generation, refresh_token, scope, created_at, expires_at,"
                " broken) VALUES (?, ?, ?, ?, 0, ?, ?, ?, ?, '')",
                (id_, principal.tenant, principal.issuer, principal.subject, sealed, scope, now, expires_at),
            )
        return Grant(id_, principal, 0, scope, now, expires_at, "", sealed, None, None)

    def grant(self, grant_id: str, principal: Principal) -> Grant | None:
        """A person's grant by its id; nobody else's."""
        return self._one(
            "id = ? AND tenant = ? AND issuer = ? AND subject = ?",
            (grant_id, principal.tenant, principal.issuer, principal.subject),
            principal,
        )

    def live_grant(self, principal: Principal, now: float, scopes: Iterable[str] = ()) -> Grant | None:
        """The newest grant of a person that still works at ``now`` and was asked for with ``scopes``, and maybe more."""
        found = self._all(
            "tenant = ? AND issuer = ? AND subject = ? AND expires_at > ? AND broken = ''"
            " ORDER BY created_at DESC, rowid DESC",
            (principal.tenant, principal.issuer, principal.subject, now),
            principal,
        )
        wanted = set(scopes)
        return next((grant for grant in found if wanted <= set(grant.scope.split())), None)

    def grants_of(self, principal: Principal) -> list[Grant]:
        """Every grant of a person, working or not."""
        return self._all(
            "tenant = ? AND issuer = ? AND subject = ?",
            (principal.tenant, principal.issuer, principal.subject),
            principal,
        )

    def _one(self, where: str, parameters: tuple[object, ...], principal: Principal) -> Grant | None:
        found = self._all(where, parameters, principal)
        return found[0] if found else None

    def _all(self, where: str, parameters: tuple[object, ...], principal: Principal) -> list[Grant]:
        rows = self._db.read(f"SELECT {_COLUMNS} FROM grants WHERE {where}", parameters)  # noqa: S608
        return [
            Grant(id_, principal, generation, scope, created_at, expires_at, broken, refresh, subject, subject_until)
            for id_, _, _, _, generation, refresh, subject, subject_until, scope, created_at, expires_at, broken in rows
        ]

    def refresh_token(self, grant: Grant) -> Secret:
        """The refresh token, to be redeemed and for nothing else."""
        return self._rows.open(
            grant.sealed_refresh_token, _context(grant.id, grant.principal, "refresh_token", grant.generation)
        )

    def subject_token(self, grant: Grant, now: float) -> Secret | None:
        """The access token that stands for the person at the token exchange, while it has a minute left."""
        if grant.sealed_subject_token is None or (grant.subject_token_expires_at or 0) - EARLY <= now:
            return None
        return self._rows.open(
            grant.sealed_subject_token, _context(grant.id, grant.principal, "subject_token", grant.generation)
        )

    def rotate(
        self,
        grant: Grant,
        *,
        refresh_token: Secret | None,
        subject_token: Secret,
        subject_token_expires_at: float,
        now: float,
    ) -> bool:
        """Store what a refresh brought. False if another one was stored meanwhile; that one stays.

        An answer without a refresh token keeps the stored one (RFC 6749 §6; casebook F9), sealed again for the new
        generation.
        """
        kept = refresh_token if refresh_token is not None else self.refresh_token(grant)
        generation = grant.generation + 1
        with self._db.write() as db:
            changed = db.execute(
                "UPDATE grants SET generation = ?, refresh_token = ?, subject_token = ?, subject_token_expires_at = ?,"
                " refreshed_at = ? WHERE id = ? AND generation = ?",
                (
                    generation,
                    self._rows.seal(kept.reveal(), _context(grant.id, grant.principal, "refresh_token", generation)),
                    self._rows.seal(
                        subject_token.reveal(), _context(grant.id, grant.principal, "subject_token", generation)
                    ),
                    subject_token_expires_at,
                    now,
                    grant.id,
                    grant.generation,
                ),
            )
            return changed.rowcount == 1

    def mark_broken(self, grant: Grant, cause: str) -> None:
        """The issuer does not accept the refresh token of this generation any more."""
        with self._db.write() as db:
            db.execute(
                "UPDATE grants SET broken = ? WHERE id = ? AND generation = ?", (cause, grant.id, grant.generation)
            )

    def delete(self, grant: Grant) -> None:
        """Wipe a grant."""
        with self._db.write() as db:
            db.execute("DELETE FROM grants WHERE id = ?", (grant.id,))


def _context(id_: str, principal: Principal, field: str, generation: int) -> Context:
    return row_context(
        table="grants", tenant=principal.tenant, row=id_, field=field, owner=principal.key, generation=generation
    )


def verify_keyring(database: Database, ring: KeyRing) -> None:
    """Refuse a key ring that did not seal this database: a marker row, sealed when the database was new (casebook F3).

    Raises:
        SettingsError: it is another database's ring. Nothing is overwritten.
    """
    if not database.read("SELECT 1 FROM marker"):
        with database.write() as db:
            if db.execute("SELECT EXISTS (SELECT 1 FROM grants) OR EXISTS (SELECT 1 FROM requests)").fetchone()[0]:
                # Not new: whoever removed the marker would have any ring accepted, and the rows locked away.
                raise SettingsError(
                    f"The database {database.path} does not say which key ring it belongs to",
                    "Restore the database from its backup; nothing was changed",
                )
            db.execute(
                "INSERT INTO marker (id, sealed) VALUES (1, ?) ON CONFLICT DO NOTHING",
                (ring.rows.seal("deputize", _MARKER),),
            )
    require_ring_of(database.read("SELECT sealed FROM marker WHERE id = 1")[0][0], ring, database.path)


_MARKER = row_context(table="marker", tenant="", row="1", field="sealed")


def require_ring_of(marker: str, ring: KeyRing, path: Path) -> None:
    """Refuse a key ring that did not seal ``marker``, the marker row of the database at ``path``.

    Raises:
        SettingsError: it is another database's ring.
    """
    try:
        ring.rows.open(marker, _MARKER)
    except SealError:
        raise SettingsError(
            f"The key ring does not belong to the database {path}",
            "Restore the key ring that sealed it; nothing was changed",
        ) from None
