"""One file, many threads: what is committed stays, what is foreign is left alone, and every failure says what to do."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils import Database as Schema

from identity.errors import StoreError
from identity.store import Database, database

PLAIN = "A line of text.\n" * 1_000


def _notes(db: Schema) -> None:
    db.table("notes").create({"id": int, "text": str}, pk="id", strict=True)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "data" / "notes.db", (_notes,))
    yield opened
    opened.close()


def add(db: Database, text: str, durable: bool = True) -> None:
    with db.write(durable=durable) as connection:
        connection.execute("INSERT INTO notes (text) VALUES (?)", (text,))


def texts(db: Database) -> list[str]:
    return [row[0] for row in db.read("SELECT text FROM notes ORDER BY id")]


def test_a_new_file_and_its_folder_are_readable_by_their_owner_alone(db: Database) -> None:
    add(db, "one")
    assert db.path.parent.stat().st_mode & 0o777 == 0o700
    for path in db.path.parent.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path.name


def test_a_write_is_all_or_nothing(db: Database) -> None:
    add(db, "one")

    def half_a_write() -> None:
        with db.write() as connection:
            connection.execute("DELETE FROM notes")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        half_a_write()
    assert texts(db) == ["one"]
    add(db, "two")
    assert texts(db) == ["one", "two"]


def test_a_reader_sees_committed_writes_only_and_does_not_wait_for_open_ones(db: Database) -> None:
    with db.write() as connection:
        connection.execute("INSERT INTO notes (text) VALUES ('open')")
        assert texts(db) == []
    assert texts(db) == ["open"]


def test_only_the_write_that_may_be_lost_is_not_forced_to_the_disk(db: Database) -> None:
    def synchronous() -> int:
        with db.write() as connection:
            return int(connection.execute("PRAGMA synchronous").fetchone()[0])

    with db.write(durable=False) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 1
    assert synchronous() == 2
    with pytest.raises(RuntimeError), db.write(durable=False):
        raise RuntimeError
    assert synchronous() == 2


def test_threads_and_processes_that_write_at_once_lose_nothing(db: Database) -> None:
    other = Database(db.path, (_notes,))  # as another process has it
    add(db, "0")

    def count(number: int) -> None:
        with (db, other)[number % 2].write(durable=False) as connection:
            now = int(connection.execute("SELECT text FROM notes").fetchone()[0])
            connection.execute("UPDATE notes SET text = ?", (str(now + 1),))

    try:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(count, range(400)))
        assert texts(db) == texts(other) == ["400"]
    finally:
        other.close()


def test_threads_that_come_and_go_leave_no_connections_behind(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, connect = [], sqlite3.connect

    def counted(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        opened.append(connect(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr(database.sqlite3, "connect", counted)
    for _ in range(50):
        thread = threading.Thread(target=texts, args=(db,))
        thread.start()
        thread.join()
    assert len(opened) == 1


def test_after_a_burst_of_readers_only_some_connections_are_kept(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_IDLE_LIMIT", 2)
    met = threading.Barrier(6)
    db._connect = lambda connect=db._connect: (met.wait(10), connect())[1]  # type: ignore[method-assign]
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda _: texts(db), range(6)))
    assert len(db._idle) == 2
    assert texts(db) == []


def test_the_write_ahead_log_does_not_grow_without_end(db: Database) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: texts(db), range(4)))  # readers that stay open and idle
        for _ in range(2_000):
            with db.write(durable=False) as connection:
                connection.execute("INSERT OR REPLACE INTO notes (id, text) VALUES (1, ?)", ("x" * 8_000,))
    assert (db.path.parent / "notes.db-wal").stat().st_size < 8 << 20


def test_a_locked_database_says_so(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.01)
    other = Database(db.path, (_notes,))
    try:
        with (
            db.write(),
            pytest.raises(StoreError, match="is locked by another process"),
            other.write(),
        ):
            pass
        add(other, "afterwards")
    finally:
        other.close()


@pytest.mark.parametrize("durable", [True, False])
def test_a_full_disk_is_told_and_what_was_stored_stays(db: Database, durable: bool) -> None:
    add(db, "before")
    pages = db.read("PRAGMA page_count")[0][0]

    def limit(most: int) -> None:
        db._writer.execute(f"PRAGMA max_page_count = {most}")

    limit(pages + 2)
    with pytest.raises(StoreError, match="the disk is full") as told:
        add(db, "x" * 100_000, durable=durable)
    assert "intact" in told.value.hint
    assert texts(db) == ["before"]
    limit(1_000_000)
    add(db, "after", durable=durable)
    assert texts(db) == ["before", "after"]


def test_an_error_that_nothing_is_known_about_is_told_as_sqlite_told_it(db: Database) -> None:
    with pytest.raises(StoreError, match="no such table: nowhere") as told:
        db.read("SELECT * FROM nowhere")
    assert isinstance(told.value.__cause__, sqlite3.Error)


def test_a_closed_database_is_not_opened_again_by_accident(db: Database) -> None:
    texts(db)
    db.close()
    with pytest.raises(StoreError, match="was closed"):
        texts(db)
    with pytest.raises(StoreError, match="was closed"):
        add(db, "late")


def test_a_forked_process_does_not_use_its_parents_connections(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    texts(db)
    parent = os.getpid()
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: parent + 1)
        with pytest.raises(StoreError, match="before this process was forked"):
            texts(db)
        with pytest.raises(StoreError, match="before this process was forked"):
            add(db, "from the child")
    add(db, "from the parent")
    assert texts(db) == ["from the parent"]


# -- files that are not ours, or not whole -----------------------------------------------------------------------------


def _text(path: Path) -> None:
    path.write_text(PLAIN)


def _foreign(path: Path, version: int = 0) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE songs (title TEXT)")
    connection.execute(f"PRAGMA user_version = {version}")
    connection.commit()
    connection.close()


def _foreign_with_a_version(path: Path) -> None:
    _foreign(path, version=1)


def _newer(path: Path) -> None:
    Database(path, (_notes, _nothing, _nothing)).close()


def _nothing(db: Schema) -> None:
    pass


def _damaged(path: Path) -> None:
    db = Database(path, (_notes,))
    for _ in range(50):
        add(db, PLAIN, durable=False)
    db.close()
    held = bytearray(path.read_bytes())
    held[4096:] = b"\xa5" * (len(held) - 4096)
    path.write_bytes(held)


def _cut_off(path: Path) -> None:
    _damaged(path)
    path.write_bytes(path.read_bytes()[:1_000])


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (_text, "is not a database"),
        (_foreign, "belongs to another program"),
        (_foreign_with_a_version, "belongs to another program"),
        (_newer, "newer deputize"),
        (_damaged, "is damaged"),
        (_cut_off, "is not a database|is damaged"),
    ],
)
def test_a_file_that_is_not_ours_or_not_whole_is_refused_and_left_as_it_is(
    tmp_path: Path, write: Callable[[Path], None], told: str
) -> None:
    path = tmp_path / "notes.db"
    write(path)
    before = path.read_bytes()

    def use() -> None:
        db = Database(path, (_notes,))
        try:
            texts(db)
        finally:
            db.close()

    with pytest.raises(StoreError, match=told) as refused:
        use()
    assert refused.value.hint
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["notes.db"]


def test_a_folder_where_the_file_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.db").mkdir()
    with pytest.raises(StoreError, match="cannot be opened"):
        Database(tmp_path / "notes.db", (_notes,))
