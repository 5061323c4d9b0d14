"""One SQLite file, shared by threads and processes.

Reads take a connection from a pool; writes have one connection behind a lock, each write one ``BEGIN IMMEDIATE``
transaction. A damaged, foreign or newer file is refused and left as it is.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from ..errors import StoreError
from ..files import private_folder
from .migrations import MIGRATIONS, Migration, migrate, require_known, require_own

__all__ = ["Database", "marker_of"]

_BUSY_SECONDS = 10.0
_IDLE_LIMIT = 16


class Database:
    """An open database.

    Args:
        path: the file; it and its folder are made (0600, 0700) if they are missing.
        migrations: the steps of its schema.
    """

    def __init__(self, path: Path, migrations: Sequence[Migration] = MIGRATIONS) -> None:
        self.path = path
        self._pid = os.getpid()
        self._closed = False
        self._lock = threading.Lock()
        # Idle readers. Not one per thread: threads come and go by the run, and each would leave its connection open.
        self._idle: list[sqlite3.Connection] = []
        private_folder(path.parent)
        with _explained(path):
            try:
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            except OSError as error:
                raise StoreError(
                    f"The database {path} cannot be opened ({error.strerror})", "Check its owner and mode"
                ) from None
            self._writer = self._connect()
            try:
                require_own(self._writer)  # before the first write, and choosing the journal is one
                self._writer.execute("PRAGMA journal_mode = WAL").fetchone()
                migrate(self._writer, migrations)
            except BaseException:
                self._writer.close()
                raise

    def _connect(self) -> sqlite3.Connection:
        # Used by one thread at a time, and closed by whoever closes the database.
        connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA secure_delete = ON")  # what was deleted is not left in free pages
            connection.execute("PRAGMA trusted_schema = OFF")
        except BaseException:
            connection.close()
            raise
        return connection

    def read(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        with _explained(self.path):
            self._require_usable()
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._connect()
            try:
                rows: list[tuple[Any, ...]] = connection.execute(sql, parameters).fetchall()
                return rows
            finally:
                if self._closed or len(self._idle) >= _IDLE_LIMIT:
                    connection.close()
                else:
                    self._idle.append(connection)

    @contextmanager
    def write(self, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """One write transaction, committed at the end of the block.

        Args:
            durable: wait until it is on the disk. ``False`` for what may be lost in a power cut (never in a crash of the
                process) without harm.
        """
        self._require_usable()
        with _explained(self.path), self._lock:
            if not durable:
                self._writer.execute("PRAGMA synchronous = NORMAL")
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:  # not when SQLite has rolled it back itself: a full disk
                    self._writer.execute("ROLLBACK")
                raise
            finally:
                if not durable:
                    self._writer.execute("PRAGMA synchronous = FULL")

    def _require_usable(self) -> None:
        if self._pid != os.getpid():
            # Two processes on one connection undo each other's locks, and so damage the file (SQLite's documentation).
            raise StoreError(
                f"The database {self.path} was opened before this process was forked",
                "Make the Identity in the process that uses it",
            )
        if self._closed:
            raise StoreError(f"The database {self.path} was closed", "An Identity opens it again when it is used again")

    def close(self) -> None:
        """Close every connection. Nobody may be using the database."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._idle.pop().close()
            self._writer.close()


def marker_of(path: Path, migrations: Sequence[Migration] = MIGRATIONS) -> str | None:
    """The marker row of a database that exists, which is neither written to nor brought up to date; ``None`` if it has none.

    Raises:
        StoreError: it is damaged, another program's, or a newer deputize's.
    """
    with _explained(path), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        require_own(connection)
        require_known(connection, migrations)
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'marker'").fetchone():
            return None
        row = connection.execute("SELECT sealed FROM marker").fetchone()
        return None if row is None else str(row[0])


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ones that say what to do."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "") or type(error).__name__
        told, hint = {
            "SQLITE_NOTADB": ("is not a database, or is encrypted", "Restore it from a backup; it was left as it is"),
            "SQLITE_CORRUPT": ("is damaged", "Restore it from a backup; it was left as it is"),
            "SQLITE_FULL": ("cannot grow, the disk is full", "Free some space; what was stored before is intact"),
            "SQLITE_IOERR": ("cannot be read or written", "Check its disk; what was stored before is intact"),
            "SQLITE_READONLY": ("is read-only", "Check the owner and mode of the file and its folder"),
            "SQLITE_CANTOPEN": ("cannot be opened", "Check the owner and mode of the file and its folder"),
            "SQLITE_BUSY": ("is locked by another process", "Try again; if it lasts, see which process holds it"),
        }.get("_".join(name.split("_")[:2]), (f"reported {name}: {error}", "See docs/settings.md"))
        raise StoreError(f"The database {path} {told}", hint) from error
