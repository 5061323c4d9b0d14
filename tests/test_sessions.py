"""Whose conversation it is: one person's, in one thread of one graph of one tenant, and nobody takes it over."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from identity import Principal, RefusedError, Visitor
from identity.principal import Caller
from identity.sessions import Place, Session, Sessions
from tests.support import stored

NOW = 1_800_000_000.0
PLACE = Place("acme", "assistant", "t1")
ALICE = Principal("acme", "https://issuer.example", "alice", "Alice")
BOB = Principal("acme", "https://issuer.example", "bob")
VISITOR = Visitor("v1")


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[Sessions]:
    database, ring = stored(tmp_path)
    yield Sessions(database, ring.rows)
    database.close()


def start(
    sessions: Sessions, person: Principal = ALICE, owner: Caller | None = None, place: Place = PLACE, now: float = NOW
) -> Session:
    return sessions.start(place, person, owner=(owner or person).key, grant_id="grant", expires_at=now + 3600, now=now)


@pytest.mark.case("A16")
def test_every_sign_in_has_a_new_id_and_ends_the_one_before(sessions: Sessions) -> None:
    ids = []
    for number in range(5):
        session = start(sessions, now=NOW + number)
        assert sessions.of(PLACE) == session
        ids.append(session.id)
    assert len(set(ids)) == 5
    assert all(len(id_) >= 22 for id_ in ids), "128 bits in base64"
    sessions.end(session, NOW + 9)
    assert sessions._db.read("SELECT count(*) FROM sessions WHERE ended_at IS NULL") == [(0,)]


@pytest.mark.case("A16")
def test_a_visitor_who_signs_in_gets_another_session_id_than_anything_known_before(sessions: Sessions) -> None:
    before = start(sessions, owner=VISITOR)
    after = start(sessions, owner=VISITOR, now=NOW + 1)
    assert after.id != before.id
    found = sessions.of(PLACE)
    assert found is not None
    assert found.id == after.id
    assert VISITOR.id not in after.id


@pytest.mark.case("E13")
@pytest.mark.parametrize(
    ("caller", "belongs"),
    [
        (ALICE, True),
        (replace(ALICE, name="Somebody"), True),
        (BOB, False),
        (replace(ALICE, tenant="globex"), False),
        (replace(ALICE, issuer="https://other.example"), False),
        (replace(ALICE, subject="Alice"), False),
        (VISITOR, False),
        (Visitor(ALICE.key), False),
        (Visitor(ALICE.key.removeprefix("user:")), False),
        (None, False),
    ],
)
def test_a_persons_conversation_serves_nobody_else(sessions: Sessions, caller: Caller | None, belongs: bool) -> None:
    session = start(sessions)
    assert session.belongs_to(caller) == belongs
    if belongs:
        session.require(caller)
        return
    with pytest.raises(RefusedError, match="belongs to somebody who signed in") as refused:
        session.require(caller)
    assert refused.value.code == "foreign_thread"
    assert "alice" not in str(refused.value).lower(), "who it is, is not told"


@pytest.mark.case("E13")
@pytest.mark.parametrize(
    ("caller", "belongs"),
    [(VISITOR, True), (ALICE, True), (Visitor("v2"), False), (BOB, False), (None, False)],
)
def test_what_a_visitor_began_serves_that_visitor_and_the_person_who_it_was(
    sessions: Sessions, caller: Caller | None, belongs: bool
) -> None:
    assert start(sessions, owner=VISITOR).belongs_to(caller) == belongs


@pytest.mark.case("E13")
@pytest.mark.parametrize("owner", [BOB, VISITOR])
@pytest.mark.parametrize("how", ["live", "ended", "expired"])
def test_signing_in_does_not_take_over_a_conversation_not_even_one_that_has_ended(
    sessions: Sessions, owner: Caller, how: str
) -> None:
    session = start(sessions)
    later = NOW + (7200 if how == "expired" else 1)
    if how == "ended":
        sessions.end(session, NOW)
    before = sessions.of(PLACE)
    with pytest.raises(RefusedError):
        start(sessions, BOB, owner, now=later)
    assert sessions.of(PLACE) == before


def test_its_person_signs_in_again_wherever_they_come_from(sessions: Sessions) -> None:
    start(sessions, owner=VISITOR)
    again = start(sessions, owner=ALICE, now=NOW + 1)
    assert sessions.of(PLACE) == again


def test_of_two_people_who_sign_in_at_once_one_gets_the_conversation(sessions: Sessions) -> None:
    people = [Principal("acme", "https://issuer.example", f"person-{n}") for n in range(12)]

    def sign_in(person: Principal) -> bool:
        try:
            start(sessions, person)
        except RefusedError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(sign_in, people))
    found = sessions.of(PLACE)
    assert won.count(True) == 1
    assert found is not None
    assert found.principal == people[won.index(True)]


@pytest.mark.case("G10")
@pytest.mark.parametrize(
    "place", [Place("globex", "assistant", "t1"), Place("acme", "watcher", "t1"), Place("acme", "assistant", "t2")]
)
def test_a_session_is_of_one_thread_of_one_graph_of_one_tenant(sessions: Sessions, place: Place) -> None:
    here = start(sessions)
    assert sessions.of(place) is None
    there = start(sessions, replace(BOB, tenant=place.tenant), place=place, now=NOW + 1)
    assert sessions.of(PLACE) == here
    assert sessions.of(place) == there


def test_a_session_lives_until_its_end_or_its_time(sessions: Sessions) -> None:
    session = start(sessions)
    assert session.live(NOW + 3599)
    assert not session.live(NOW + 3600)
    sessions.end(session, NOW + 10)
    sessions.end(session, NOW + 20)
    found = sessions.of(PLACE)
    assert found is not None
    assert found.ended_at == NOW + 10
    assert not found.live(NOW + 11)
