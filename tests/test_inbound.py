"""Inbound tokens: one home, sealed, for one run of one person, gone when that has ended (casebook C10)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from identity.errors import SealError
from identity.inbound import LOOK, Inbound
from identity.principal import Principal
from identity.secret import Secret
from identity.store import Database
from tests.support import stored

NOW = 1_800_000_000.0
ALICE = Principal("default", "https://login.example", "alice")
TOKEN = "eyJ.inbound-token-of-alice.sig"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made, _ = stored(tmp_path)
    yield made
    made.close()


@pytest.fixture
def inbound(tmp_path: Path, database: Database) -> Inbound:
    _, ring = stored(tmp_path)
    return Inbound(database, ring.rows)


def keep(inbound: Inbound, run_id: str = "r1", token: str = TOKEN, until: float = NOW + 300) -> None:
    inbound.keep(run_id, "t1", ALICE, Secret(token), until, NOW)


@pytest.mark.case("C10")
def test_a_token_serves_its_own_run_and_person_and_no_other(inbound: Inbound) -> None:
    keep(inbound)
    held = inbound.token("r1", ALICE, NOW)
    assert held is not None
    assert held.reveal() == TOKEN
    assert inbound.token("r2", ALICE, NOW) is None
    assert inbound.token("", ALICE, NOW) is None
    for other in (
        Principal("default", "https://login.example", "bob"),
        Principal("other", "https://login.example", "alice"),
        Principal("default", "https://login.example.com", "alice"),
    ):
        with pytest.raises(SealError):
            inbound.token("r1", other, NOW)


@pytest.mark.case("C10")
def test_a_row_moved_to_another_run_or_person_does_not_open(inbound: Inbound, database: Database) -> None:
    """Attack: whoever can write the database gives somebody's token to a run of their own."""
    keep(inbound)
    mallory = Principal("default", "https://login.example", "mallory")
    for run_id, person in (("r2", mallory), ("r3", ALICE)):
        inbound.keep(run_id, "t2", person, Secret("x"), NOW + 300, NOW)
        with database.write() as db:
            db.execute("UPDATE inbound SET token = (SELECT token FROM inbound WHERE id = 'r1') WHERE id = ?", (run_id,))
        with pytest.raises(SealError):
            inbound.token(run_id, person, NOW)


@pytest.mark.case("C10", "F2")
def test_no_file_of_the_database_holds_a_token_in_clear(inbound: Inbound, database: Database, tmp_path: Path) -> None:
    keep(inbound)
    files = [path for path in (tmp_path / "data").iterdir() if path.is_file()]
    assert any(b"inbound" in path.read_bytes() for path in files)
    assert not any(TOKEN.encode() in path.read_bytes() or b"inbound-token" in path.read_bytes() for path in files)


@pytest.mark.case("C10")
def test_a_token_ends_with_its_own_time_and_its_row_goes(inbound: Inbound, database: Database) -> None:
    keep(inbound)
    keep(inbound, "r2", until=NOW + 900)
    assert inbound.token("r1", ALICE, NOW + 300) is None
    inbound.prune(NOW + 300)
    assert database.read("SELECT id FROM inbound") == [("r2",)]


@pytest.mark.case("C10")
def test_a_run_that_has_ended_leaves_nothing(inbound: Inbound, database: Database) -> None:
    for run_id in ("r1", "r2", "r3"):
        keep(inbound, run_id)
    inbound.forget(["r1", "r3", "unknown"])
    assert database.read("SELECT id FROM inbound") == [("r2",)]


def test_the_first_token_of_a_run_stays(inbound: Inbound) -> None:
    keep(inbound)
    keep(inbound, token="another")
    held = inbound.token("r1", ALICE, NOW)
    assert held is not None
    assert held.reveal() == TOKEN


def test_runs_are_looked_at_in_turns_and_by_one_process_at_a_time(inbound: Inbound) -> None:
    keep(inbound)
    assert inbound.due("default", NOW) == [], "it may not have been created yet"
    assert inbound.due("other", NOW + LOOK) == []
    assert inbound.due("default", NOW + LOOK) == [("r1", "t1")]
    assert inbound.due("default", NOW + LOOK) == []
    assert inbound.due("default", NOW + 2 * LOOK) == [("r1", "t1")]
