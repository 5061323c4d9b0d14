"""What the world keeps, in one SQLite file. Codes and tokens are kept as SHA-256 only."""

from __future__ import annotations

import hashlib

from sqlite_utils import Database as Schema

from identity.authority import approvals_table
from identity.store.migrations import Migration

__all__ = ["MIGRATIONS", "fingerprint"]


def fingerprint(value: str) -> str:
    """How a code, token or cookie is found without being kept."""
    return hashlib.sha256(value.encode()).hexdigest()


def _first(db: Schema) -> None:
    # Whoever signs in at a client gets a grant; the tokens of one grant are revoked together.
    tables: dict[str, dict[str, type]] = {
        "grants": {"id": str, "client_id": str, "subject": str, "created_at": float, "revoked_at": float},
        "codes": {
            "id": str, "grant_id": str, "client_id": str, "subject": str, "redirect_uri": str, "scope": str, "nonce": str,
            "code_challenge": str, "code_challenge_method": str, "auth_time": float, "expires_at": float, "used_at": float,
        },
        "refresh_tokens": {
            "id": str, "grant_id": str, "client_id": str, "subject": str, "scope": str, "auth_time": float,
            "expires_at": float, "used_at": float,
        },
        "access_tokens": {
            "id": str, "grant_id": str, "client_id": str, "subject": str, "expires_at": float, "revoked_at": float,
        },
        "devices": {
            "id": str, "user_code": str, "client_id": str, "scope": str, "address": str, "state": str, "subject": str,
            "auth_time": float, "interval": float, "polled_at": float, "created_at": float, "expires_at": float,
            "used_at": float,
        },
        "assertions": {"id": str, "expires_at": float},
        "consents": {"id": str, "subject": str, "client_id": str, "created_at": float},
        "browsers": {
            "id": str, "subject": str, "csrf": str, "auth_time": float, "created_at": float, "expires_at": float,
        },
        "disabled": {"id": str},
        "guesses": {"id": str, "count": int, "until": float},
        "prices": {"id": str, "price": str},
        "orders": {
            "id": str, "key": str, "body": str, "details": str, "subject": str, "actor": str, "symbol": str,
            "quantity": int, "price": str, "created_at": float,
        },
    }  # fmt: skip
    for name, columns in tables.items():
        db.table(name).create(columns, pk="id", strict=True)
    db.table("devices").create_index(["user_code"], unique=True)
    # An idempotency key is one order; an approval is one order (casebook B18).
    db.table("orders").create_index(["key"], unique=True)
    db.execute("CREATE UNIQUE INDEX orders_details ON orders (details) WHERE details != ''")
    approvals_table(db)


MIGRATIONS: tuple[Migration, ...] = (_first,)
