"""Numbered migrations. A migration that has been released is never edited; a change is a new one at the end."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence

from sqlite_utils import Database as Schema

from ..errors import StoreError

__all__ = ["MIGRATIONS", "Migration", "migrate", "require_known", "require_own"]

Migration = Callable[[Schema], None]

_APPLICATION = 0x64657075  # "depu", in the file's header


def _first(db: Schema) -> None:
    db.table("sessions").create(
        {
            "id": str,
            "tenant": str,
            "issuer": str,
            "subject": str,
            "name": str,
            "owner": str,
            "graph": str,
            "thread": str,
            "grant_id": str,
            "created_at": float,
            "expires_at": float,
            "ended_at": float,
        },
        pk="id",
        strict=True,
    )
    db.table("sessions").create_index(["tenant", "graph", "thread", "created_at"])
    db.table("grants").create(
        {
            "id": str,
            "tenant": str,
            "issuer": str,
            "subject": str,
            "generation": int,
            "refresh_token": str,
            "subject_token": str,
            "subject_token_expires_at": float,
            "scope": str,
            "created_at": float,
            "expires_at": float,
            "refreshed_at": float,
            "broken": str,
        },
        pk="id",
        not_null={"refresh_token", "generation"},
        strict=True,
    )
    db.table("grants").create_index(["tenant", "issuer", "subject", "created_at"])
    db.table("requests").create(
        {
            "id": str,
            "tenant": str,
            "kind": str,
            "state": str,
            "owner": str,
            "issuer": str,
            "subject": str,
            "graph": str,
            "thread": str,
            "message_id": str,
            "tool_call_id": str,
            "digest": str,
            "url": str,
            "code": str,
            "payload": str,
            "handle": str,
            "evidence": str,
            "reason": str,
            "interval": float,
            "next_poll_at": float,
            "leased_until": float,
            "created_at": float,
            "expires_at": float,
            "decided_at": float,
            "woken_at": float,
        },
        pk="id",
        not_null={"state", "payload", "handle", "expires_at"},
        strict=True,
    )
    db.table("requests").create_index(["tenant", "message_id", "tool_call_id"])
    db.table("requests").create_index(["tenant", "graph", "thread", "state"])
    db.execute("CREATE INDEX requests_due ON requests (next_poll_at) WHERE state = 'pending'")
    db.execute("CREATE INDEX requests_decided ON requests (decided_at) WHERE state != 'pending' AND woken_at IS NULL")
    # One question per call, whoever asks twice (casebook B11).
    db.execute(
        "CREATE UNIQUE INDEX requests_of_calls ON requests (tenant, message_id, tool_call_id) WHERE kind = 'approval'"
    )
    db.table("effects").create(
        {
            "id": str,
            "tenant": str,
            "message_id": str,
            "tool_call_id": str,
            "digest": str,
            "request_id": str,
            "state": str,
            "outcome": str,
            "claimed_at": float,
            "done_at": float,
        },
        pk="id",
        not_null={"state"},
        strict=True,
    )
    # One effect per call, in whatever thread, copy or process (casebook E4-E7).
    db.table("effects").create_index(["tenant", "message_id", "tool_call_id"], unique=True)
    db.table("marker").create({"id": int, "sealed": str}, pk="id", strict=True)


def _second(db: Schema) -> None:
    # Whose a conversation is, from its first run on (casebook E13, E19).
    db.table("threads").create(
        {"tenant": str, "graph": str, "thread": str, "owner": str, "created_at": float},
        pk=("tenant", "graph", "thread"),
        strict=True,
    )
    db.table("sessions").add_column("seal", str)
    db.table("sessions").create_index(["tenant", "owner"])
    for name, kind in (
        ("ping", str), ("wake_leased_until", float), ("call", str), ("deferred_at", float), ("settled_at", float),
    ):  # fmt: skip
        db.table("requests").add_column(name, kind)
    db.execute("CREATE UNIQUE INDEX requests_ping ON requests (ping) WHERE ping IS NOT NULL")
    db.execute("CREATE INDEX requests_deferred ON requests (tenant, graph, thread) WHERE deferred_at IS NOT NULL")
    db.execute("CREATE INDEX requests_of_people ON requests (tenant, issuer, subject, created_at)")
    db.execute("CREATE INDEX effects_of_requests ON effects (request_id) WHERE request_id != ''")
    db.table("inbound").create(
        {
            "id": str, "thread": str, "tenant": str, "issuer": str, "subject": str, "token": str, "expires_at": float,
            "look_at": float,
        },
        pk="id",
        not_null={"token", "expires_at"},
        strict=True,
    )  # fmt: skip
    db.table("inbound").create_index(["expires_at"])
    db.table("inbound").create_index(["look_at"])
    db.table("wakes").create(
        {"id": str, "tenant": str, "graph": str, "thread": str, "run_id": str, "expires_at": float},
        pk="id",
        strict=True,
    )
    db.table("relations").create(
        {"tenant": str, "object": str, "relation": str, "subject": str},
        pk=("tenant", "object", "relation", "subject"),
        strict=True,
    )
    db.table("relations").create_index(["tenant", "subject", "relation", "object"])


MIGRATIONS: tuple[Migration, ...] = (_first, _second)


def require_own(connection: sqlite3.Connection) -> None:
    """Refuse a file that holds another program's tables, before anything is written to it."""
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    if application != _APPLICATION and connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
        raise StoreError("The database file belongs to another program", "Set DEPUTIZE_DATA_DIR to a folder of its own")


def require_known(connection: sqlite3.Connection, migrations: Sequence[Migration]) -> int:
    """The number of migrations that a database has had; one that has had more than are known here is refused."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(migrations):
        raise StoreError("The database was written by a newer deputize", "Use that version; nothing was changed")
    return version


def migrate(connection: sqlite3.Connection, migrations: Sequence[Migration]) -> None:
    """Bring the schema up to date, each step in a transaction of its own, once however many processes start."""
    while _step(connection, migrations):
        pass


def _step(connection: sqlite3.Connection, migrations: Sequence[Migration]) -> bool:
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = require_known(connection, migrations)
        if version < len(migrations):
            migrations[version](Schema(connection, execute_plugins=False))
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {version + 1}")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    return version < len(migrations)
