"""The vault's rows: each opens for its own person and generation, and a loser never overwrites the winner's token."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from identity import Principal, Secret, SettingsError
from identity.errors import SealError
from identity.keyring import KeyRing
from identity.ledger import Ledger
from identity.sessions import Place
from identity.store import Database
from identity.vault import Grant, Vault, verify_keyring
from tests.support import stored

NOW = 1_800_000_000.0
HOURS = 3600.0
ALICE = Principal("acme", "https://issuer.example", "alice")
BOB = Principal("acme", "https://issuer.example", "bob")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tuple[Database, KeyRing]]:
    opened = stored(tmp_path)
    yield opened
    opened[0].close()


@pytest.fixture
def db(store: tuple[Database, KeyRing]) -> Database:
    return store[0]


@pytest.fixture
def vault(store: tuple[Database, KeyRing]) -> Vault:
    return Vault(store[0], store[1].rows)


def keep(vault: Vault, principal: Principal, refresh_token: str, now: float = NOW) -> Grant:
    return vault.store_grant(
        principal, refresh_token=Secret(refresh_token), scope="openid", expires_at=now + 8 * HOURS, now=now
    )


def rotate(vault: Vault, grant: Grant, refresh_token: str | None, subject_token: str = "subject") -> bool:
    return vault.rotate(
        grant,
        refresh_token=Secret(refresh_token) if refresh_token else None,
        subject_token=Secret(subject_token),
        subject_token_expires_at=NOW + 300,
        now=NOW,
    )


def again(vault: Vault, grant: Grant) -> Grant:
    found = vault.grant(grant.id, grant.principal)
    assert found is not None
    return found


def subject(vault: Vault, grant: Grant, now: float = NOW) -> str | None:
    held = vault.subject_token(grant, now)
    return None if held is None else held.reveal()


def edit(db: Database, sql: str, *values: object) -> None:
    """What somebody does who can write the file."""
    with db.write() as connection:
        connection.execute(sql, values)


# -- whose ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stranger",
    [
        BOB,
        replace(ALICE, tenant="globex"),
        replace(ALICE, issuer="https://other.example"),
        replace(ALICE, subject="alice "),
        replace(ALICE, subject="ALICE"),
    ],
)
def test_a_grant_is_found_by_its_own_person_only(vault: Vault, stranger: Principal) -> None:
    grant = keep(vault, ALICE, "rt-alice")
    assert vault.refresh_token(again(vault, grant)).reveal() == "rt-alice"
    assert vault.grant(grant.id, stranger) is None
    assert vault.live_grant(stranger, NOW) is None


def test_the_newest_grant_that_works_is_the_live_one(vault: Vault) -> None:
    old, new = keep(vault, ALICE, "rt-old"), keep(vault, ALICE, "rt-new")
    assert vault.live_grant(ALICE, NOW) == new
    vault.mark_broken(new, "invalid_grant")
    assert vault.live_grant(ALICE, NOW) == old
    vault.delete(old)
    assert vault.live_grant(ALICE, NOW) is None


def test_a_grant_ends_at_its_time_however_often_it_was_refreshed(vault: Vault) -> None:
    grant = keep(vault, ALICE, "rt")
    end = NOW + 8 * HOURS
    assert rotate(vault, grant, "rt-2")
    found = again(vault, grant)
    assert found.expires_at == end
    assert vault.live_grant(ALICE, end - 1) == found
    assert vault.live_grant(ALICE, end) is None


@pytest.mark.parametrize(("left", "serves"), [(300.0, True), (61.0, True), (60.0, False), (0.0, False), (-1.0, False)])
def test_a_subject_token_in_its_last_minute_is_not_used(vault: Vault, left: float, serves: bool) -> None:
    grant = keep(vault, ALICE, "rt")
    assert subject(vault, grant) is None
    rotate(vault, grant, "rt-2", "st")
    assert subject(vault, again(vault, grant), NOW + 300 - left) == ("st" if serves else None)


# -- generations -------------------------------------------------------------------------------------------------------


def test_of_two_refreshes_the_later_one_changes_nothing(vault: Vault) -> None:
    grant = keep(vault, ALICE, "rt-0")
    assert rotate(vault, grant, "rt-winner", "st-winner")
    assert not rotate(vault, grant, "rt-loser", "st-loser")
    found = again(vault, grant)
    assert found.generation == 1
    assert vault.refresh_token(found).reveal() == "rt-winner"
    assert subject(vault, found) == "st-winner"


def test_of_many_refreshes_at_once_one_is_stored_whole(vault: Vault) -> None:
    grant = keep(vault, ALICE, "rt-0")
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda n: rotate(vault, grant, f"rt-{n}", f"st-{n}"), range(1, 25)))
    assert won.count(True) == 1
    found, winner = again(vault, grant), won.index(True) + 1
    assert vault.refresh_token(found).reveal() == f"rt-{winner}"
    assert subject(vault, found) == f"st-{winner}"


@pytest.mark.case("F9")
def test_an_answer_without_a_refresh_token_keeps_the_stored_one(vault: Vault) -> None:
    grant = keep(vault, ALICE, "rt-0")
    for generation in (1, 2, 3):
        assert rotate(vault, again(vault, grant), None, f"st-{generation}")
        found = again(vault, grant)
        assert found.generation == generation
        assert vault.refresh_token(found).reveal() == "rt-0"


def test_what_broke_an_old_generation_does_not_break_the_new_one(vault: Vault) -> None:
    old = keep(vault, ALICE, "rt-0")
    rotate(vault, old, "rt-1")
    vault.mark_broken(old, "invalid_grant")
    assert again(vault, old).broken == ""
    assert vault.live_grant(ALICE, NOW) is not None
    vault.mark_broken(again(vault, old), "invalid_grant")
    assert again(vault, old).broken == "invalid_grant"
    assert vault.live_grant(ALICE, NOW) is None


# -- rows that somebody moved or changed ---------------------------------------------------------------------------------

_OTHERS_REFRESH = (
    "UPDATE grants SET refresh_token = (SELECT refresh_token FROM grants WHERE id = :other) WHERE id = :id"
)


@pytest.mark.case("F1")
@pytest.mark.parametrize(
    "sql",
    [
        pytest.param(_OTHERS_REFRESH, id="another person's"),
        pytest.param("UPDATE grants SET refresh_token = subject_token WHERE id = :id", id="another field's"),
        pytest.param("UPDATE grants SET refresh_token = :old WHERE id = :id", id="an older generation's"),
        pytest.param("UPDATE grants SET generation = generation + 1 WHERE id = :id", id="a later generation's"),
        pytest.param("UPDATE grants SET refresh_token = '' WHERE id = :id", id="none"),
        pytest.param("UPDATE grants SET refresh_token = 'a.b.c.d.e' WHERE id = :id", id="no seal"),
    ],
)
def test_a_ciphertext_in_another_place_does_not_open_and_the_others_do(vault: Vault, db: Database, sql: str) -> None:
    mine, other = keep(vault, ALICE, "rt-alice"), keep(vault, BOB, "rt-bob")
    rotate(vault, mine, "rt-alice-1", "st-alice")
    with db.write() as connection:
        connection.execute(sql, {"id": mine.id, "other": other.id, "old": mine.sealed_refresh_token})
    with pytest.raises(SealError):
        vault.refresh_token(again(vault, mine))
    assert vault.refresh_token(again(vault, other)).reveal() == "rt-bob"


@pytest.mark.case("F1")
def test_two_rows_of_one_person_do_not_open_for_each_other_either(vault: Vault, db: Database) -> None:
    """Attack: the grant with few scopes gets the ciphertext of the one with many."""
    one, other = keep(vault, ALICE, "rt-one"), keep(vault, ALICE, "rt-other")
    with db.write() as connection:
        connection.execute(_OTHERS_REFRESH, {"id": one.id, "other": other.id})
    with pytest.raises(SealError):
        vault.refresh_token(again(vault, one))
    assert vault.refresh_token(again(vault, other)).reveal() == "rt-other"


@pytest.mark.case("F1")
def test_a_row_that_was_given_to_somebody_else_does_not_open_for_them(vault: Vault, db: Database) -> None:
    grant = keep(vault, ALICE, "rt-alice")
    edit(db, "UPDATE grants SET subject = 'bob' WHERE id = ?", grant.id)
    stolen = vault.grant(grant.id, BOB)
    assert stolen is not None
    with pytest.raises(SealError):
        vault.refresh_token(stolen)


@pytest.mark.case("F1")
def test_any_byte_that_flips_makes_its_row_refuse_and_leaves_the_others(vault: Vault, db: Database) -> None:
    victim, other = keep(vault, ALICE, "rt-alice"), keep(vault, BOB, "rt-bob")
    sealed = victim.sealed_refresh_token
    for part in (0, 2, 3, 4):  # header, nonce, ciphertext, tag
        parts = sealed.split(".")
        parts[part] = parts[part][:2] + ("A" if parts[part][2] != "A" else "B") + parts[part][3:]
        edit(db, "UPDATE grants SET refresh_token = ? WHERE id = ?", ".".join(parts), victim.id)
        with pytest.raises(SealError):
            vault.refresh_token(again(vault, victim))
        assert vault.refresh_token(again(vault, other)).reveal() == "rt-bob"
    edit(db, "UPDATE grants SET refresh_token = ? WHERE id = ?", sealed, victim.id)
    assert vault.refresh_token(again(vault, victim)).reveal() == "rt-alice"


# -- the stolen file ---------------------------------------------------------------------------------------------------

PLANTED = [
    f"planted-{kind}-{'x' * 40}" for kind in ("refresh-0", "refresh-1", "subject", "handle", "evidence", "order")
]


def held(folder: Path, *values: str) -> list[tuple[str, str]]:
    """Which of the values are in which of the files below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"deputize.db"}
    return [(path.name, value) for path in files for value in values if value.encode() in path.read_bytes()]


@pytest.mark.case("F2")
def test_no_file_of_the_database_holds_a_token_in_clear_at_any_time(
    vault: Vault, store: tuple[Database, KeyRing], tmp_path: Path
) -> None:
    refresh_0, refresh_1, subject_token, handle, evidence, order = PLANTED
    db, ring = store
    ledger = Ledger(db, ring.rows)
    grant = keep(vault, ALICE, refresh_0)
    assert held(tmp_path, *PLANTED) == []
    rotate(vault, grant, refresh_1, subject_token)
    request = ledger.open(
        place=Place("acme", "assistant", "t1"),
        kind="approval",
        owner=ALICE.key,
        message_id="m",
        tool_call_id="c",
        digest="d",
        url="https://issuer.example/approvals/1",
        code="ABC-234",
        payload={"authorization_details": [{"arguments": {"note": order}}]},
        handle={"auth_req_id": handle},
        interval=5.0,
        expires_at=NOW + 300,
        now=NOW,
    )
    ledger.decide(request, "approved", evidence={"access_token": evidence}, now=NOW)
    assert held(tmp_path, *PLANTED) == []
    assert (tmp_path / "data" / "deputize.db-wal").stat().st_size > 0, "the write-ahead log was looked at too"
    vault.delete(again(vault, grant))
    db.close()
    assert held(tmp_path, *PLANTED) == []


@pytest.mark.case("F2")
def test_what_was_deleted_or_rotated_is_not_left_behind_even_sealed(vault: Vault, db: Database, tmp_path: Path) -> None:
    """Attack: the file and, later, the key ring. What was wiped before is not in the file's free pages."""
    grants = [keep(vault, ALICE, f"rt-{n}") for n in range(40)]  # pages full of them
    sealed = [grant.sealed_refresh_token for grant in grants]
    for grant in grants[:20]:
        vault.delete(grant)
    for grant in grants[20:]:
        rotate(vault, grant, "rt-new")
    assert any(name == "deputize.db-wal" for name, _ in held(tmp_path, *sealed))
    db.close()  # the log is written back
    assert held(tmp_path, *sealed) == []


# -- the key ring ------------------------------------------------------------------------------------------------------


@pytest.mark.case("F3")
def test_another_key_ring_is_refused_and_neither_file_is_changed(tmp_path: Path) -> None:
    database, ring = stored(tmp_path)
    verify_keyring(database, ring)
    Vault(database, ring.rows).store_grant(ALICE, refresh_token=Secret("rt"), scope="", expires_at=NOW + HOURS, now=NOW)
    database.close()
    before = database.path.read_bytes()
    other, stranger = stored(tmp_path / "other")
    other.close()
    database = Database(database.path)
    with pytest.raises(SettingsError, match="does not belong to the database") as refused:
        verify_keyring(database, stranger)
    assert "nothing was changed" in refused.value.hint
    database.close()
    assert database.path.read_bytes() == before
    database = Database(database.path)
    verify_keyring(database, ring)
    found = Vault(database, ring.rows).live_grant(ALICE, NOW)
    assert found is not None
    assert Vault(database, ring.rows).refresh_token(found).reveal() == "rt"
    database.close()


def _a_grant(vault: Vault, ledger: Ledger) -> None:
    keep(vault, ALICE, "rt")


def _a_request(vault: Vault, ledger: Ledger) -> None:
    ledger.open(
        place=Place("acme", "assistant", "t1"),
        kind="login",
        owner="",
        url="",
        code="",
        payload={},
        handle={},
        interval=1.0,
        expires_at=NOW,
        now=NOW,
    )


@pytest.mark.case("F3")
@pytest.mark.parametrize("fill", [_a_grant, _a_request])
def test_a_database_that_lost_its_marker_takes_no_other_ring(
    tmp_path: Path, fill: Callable[[Vault, Ledger], None]
) -> None:
    """Attack, or an unlucky repair: without the marker any ring would be accepted, and the old rows be locked away."""
    database, ring = stored(tmp_path)
    verify_keyring(database, ring)
    fill(Vault(database, ring.rows), Ledger(database, ring.rows))
    edit(database, "DELETE FROM marker")
    database.close()
    before = database.path.read_bytes()
    other, stranger = stored(tmp_path / "other")
    other.close()
    database = Database(database.path)
    with pytest.raises(SettingsError, match="does not say which key ring it belongs to"):
        verify_keyring(database, stranger)
    database.close()
    assert database.path.read_bytes() == before


def test_two_processes_that_start_at_once_agree_on_the_ring(tmp_path: Path) -> None:
    databases = [stored(tmp_path) for _ in range(6)]
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda opened: verify_keyring(*opened), databases))
    for database, _ in databases:
        database.close()
    connection = sqlite3.connect(databases[0][0].path)
    assert connection.execute("SELECT count(*) FROM marker").fetchone() == (1,)
    connection.close()
