"""One SQLite file, shared by threads and processes.

Reads have a connection per thread; writes have one connection behind a lock, each write one ``BEGIN IMMEDIATE``
transaction. A damaged, foreign or newer file is refused and left as it is.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..files import private_folder
from .migrations import MIGRATIONS, Migration, migrate

__all__ = ["Database"]

_BUSY_SECONDS = 10.0


class Database:
    """An open database.

    Args:
        path: the file; it and its folder are made (0600, 0700) if they are missing.
        migrations: the steps of its schema.
    """

    def __init__(self, path: Path, migrations: Sequence[Migration] = MIGRATIONS) -> None:
        self.path = path
        self._local = threading.local()
        self._lock = threading.Lock()
        self._opened: list[sqlite3.Connection] = []
        private_folder(path.parent)
        with _explained(path):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._writer = self._connect()
            self._writer.execute("PRAGMA journal_mode = WAL").fetchone()
            migrate(self._writer, migrations)

    def _connect(self) -> sqlite3.Connection:
        # Used by one thread at a time, and closed by whoever closes the database.
        connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")  # what was deleted is not left in free pages
        connection.execute("PRAGMA trusted_schema = OFF")
        self._opened.append(connection)
        return connection

    def read(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        with _explained(self.path):
            connection = getattr(self._local, "connection", None)
            if connection is None:
                with self._lock:
                    connection = self._local.connection = self._connect()
            rows: list[tuple[Any, ...]] = connection.execute(sql, parameters).fetchall()
            return rows

    @contextmanager
    def write(self, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """One write transaction, committed at the end of the block.

        Args:
            durable: wait until it is on the disk. ``False`` for what may be lost in a power cut (never in a crash of the
                process) without harm.
        """
        with _explained(self.path), self._lock:
            if not durable:
                self._writer.execute("PRAGMA synchronous = NORMAL")
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    yield self._writer
                except BaseException:
                    self._writer.execute("ROLLBACK")
                    raise
                self._writer.execute("COMMIT")
            finally:
                if self._writer.in_transaction:  # COMMIT itself failed: disk full
                    self._writer.execute("ROLLBACK")
                if not durable:
                    self._writer.execute("PRAGMA synchronous = FULL")

    def close(self) -> None:
        """Close every connection. Nobody may be using the database."""
        with self._lock:
            for connection in self._opened:
                connection.close()
            self._opened.clear()
            self._local = threading.local()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ones that say what to do."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "") or ""
        told, hint = {
            "SQLITE_NOTADB": ("is not a database, or is encrypted", "Restore it from a backup; it was left as it is"),
            "SQLITE_CORRUPT": ("is damaged", "Restore it from a backup; it was left as it is"),
            "SQLITE_FULL": ("cannot grow, the disk is full", "Free some space; what was stored before is intact"),
            "SQLITE_READONLY": ("is read-only", "Check the owner and mode of the file and its folder"),
            "SQLITE_CANTOPEN": ("cannot be opened", "Check the owner and mode of the file and its folder"),
            "SQLITE_BUSY": ("is locked by another process", "Try again; if it lasts, see which process holds it"),
        }.get("_".join(name.split("_")[:2]), (f"reported {name or type(error).__name__}", "See docs/settings.md"))
        raise StoreError(f"The database {path} {told}", hint) from None
    except OSError as error:
        raise StoreError(
            f"The database {path} cannot be opened ({error.strerror})", "Check its owner and mode"
        ) from None
