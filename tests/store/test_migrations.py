"""Numbered steps: each runs once, whole or not at all, however many processes start."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlite_utils import Database as Schema

from identity.errors import StoreError
from identity.store import Database
from identity.store.migrations import MIGRATIONS, Migration


def _people(db: Schema) -> None:
    db.table("people").create({"id": int, "name": str}, pk="id", strict=True)
    db.execute("INSERT INTO people (name) VALUES ('Ada')")


def _with_age(db: Schema) -> None:
    db.execute("ALTER TABLE people ADD COLUMN age INTEGER NOT NULL DEFAULT 36")


def _version(db: Database) -> int:
    return int(db.read("PRAGMA user_version")[0][0])


def opened(path: Path, *steps: Migration) -> Database:
    return Database(path, steps)


def test_an_older_file_is_brought_up_to_date_and_keeps_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "people.db"
    opened(path, _people).close()
    db = opened(path, _people, _with_age)
    assert db.read("SELECT name, age FROM people") == [("Ada", 36)]
    assert _version(db) == 2
    db.close()
    db = opened(path, _people, _with_age)  # and the second start changes nothing
    assert db.read("SELECT name, age FROM people") == [("Ada", 36)]
    db.close()


def test_a_step_that_fails_leaves_nothing_of_itself_and_can_be_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "people.db"

    def breaks(db: Schema) -> None:
        _with_age(db)
        db.execute("UPDATE people SET age = 'old'")  # a strict table takes no text there

    with pytest.raises(StoreError, match="cannot store TEXT value"):
        opened(path, _people, breaks)
    db = opened(path, _people)
    assert _version(db) == 1
    assert db.read("SELECT * FROM people") == [(1, "Ada")]
    db.close()
    db = opened(path, _people, _with_age)
    assert db.read("SELECT age FROM people") == [(36,)]
    db.close()


def test_a_process_that_ends_before_it_notes_a_step_has_not_taken_it(tmp_path: Path) -> None:
    path = tmp_path / "people.db"

    def no_version(action: int, name: str | None, value: str | None, *_: object) -> int:
        noted = action == sqlite3.SQLITE_PRAGMA and name == "user_version" and value is not None
        return sqlite3.SQLITE_DENY if noted else sqlite3.SQLITE_OK

    def ends(db: Schema) -> None:
        _people(db)
        db.conn.set_authorizer(no_version)

    with pytest.raises(StoreError, match="not authorized"):
        opened(path, ends)
    db = opened(path, _people)  # the step is taken now, from the beginning
    assert db.read("SELECT * FROM people") == [(1, "Ada")]
    db.close()


def test_processes_that_start_at_once_run_each_step_once(tmp_path: Path) -> None:
    path, ran, start = tmp_path / "people.db", [], threading.Barrier(6)

    def noted(step: Callable[[Schema], None]) -> Migration:
        def run(db: Schema) -> None:
            ran.append(step.__name__)
            step(db)

        return run

    def process(_: int) -> None:
        start.wait(10)
        opened(path, noted(_people), noted(_with_age)).close()

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(process, range(6)))
    assert ran == ["_people", "_with_age"]


def test_a_file_of_a_newer_version_is_refused_whole(tmp_path: Path) -> None:
    path = tmp_path / "people.db"
    opened(path, _people, _with_age).close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="written by a newer deputize"):
        opened(path, _people)
    assert path.read_bytes() == before


def test_every_row_of_the_schema_names_its_tenant(tmp_path: Path) -> None:
    db = opened(tmp_path / "deputize.db", *MIGRATIONS)
    tables = [row[0] for row in db.read("SELECT name FROM sqlite_master WHERE type = 'table'")]
    assert {"grants", "requests", "effects", "sessions"} <= set(tables)
    for table in set(tables) - {"marker"}:  # the marker is the installation's own
        assert "tenant" in {row[0] for row in db.read("SELECT name FROM pragma_table_info(?)", (table,))}, table
    db.close()
