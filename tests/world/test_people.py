"""People, their passwords and browsers, beneath the pages."""

from __future__ import annotations

import hashlib
import json

import pytest

from agent.world.people import People
from identity import DeputizeError
from tests.support import Clock, Inside
from tests.world.driver import ISSUER


@pytest.fixture
def people(world: Inside) -> People:
    return world.world.issuer.people


def test_the_three_people_have_subjects_and_passwords_that_nobody_can_guess(world: Inside) -> None:
    people = world.world.installation.people
    assert list(people) == ["alice", "bob", "carol"]
    assert len({person.subject for person in people.values()} | {person.password for person in people.values()}) == 6
    for person in people.values():
        assert len(person.password) >= 12
        assert person.password not in repr(person)
        assert (
            person.subject not in world.world.issuer.server.clients
        )  # sub and client_id never collide (RFC 9700 §4.15)


@pytest.mark.case("B5")
def test_a_hint_is_compared_as_a_whole(people: People, world: Inside) -> None:
    alice = world.world.installation.people["alice"]
    good = {"format": "iss_sub", "iss": ISSUER, "sub": alice.subject}
    assert people.hinted("alice", ISSUER) == alice
    assert people.hinted(json.dumps(good), ISSUER) == alice
    assert people.hinted(json.dumps(good), "https://other.example") is None
    for name in good:
        assert people.hinted(json.dumps({**good, name: ""}), ISSUER) is None
        assert people.hinted(json.dumps({**good, name: [good[name]]}), ISSUER) is None
        assert people.hinted(json.dumps({other: good[other] for other in good if other != name}), ISSUER) is None


@pytest.mark.case("B5")
def test_a_quote_in_a_pasted_user_id_names_nobody_else(people: People, world: Inside) -> None:
    """Attack: a client builds the hint by pasting, and the attacker's user id ends the string early."""
    alice = world.world.installation.people["alice"].subject
    pasted = 'x", "sub": "' + alice
    assert people.hinted(f'{{"format": "iss_sub", "iss": "{ISSUER}", "sub": "{pasted}"}}', ISSUER) is None


def test_five_wrong_guesses_lock_one_name_for_a_minute(people: People, world: Inside, clock: Clock) -> None:
    alice = world.world.installation.people["alice"]
    assert people.check("alice", alice.password) == (alice, False)
    for _ in range(5):
        assert people.check("alice", "wrong") == (None, False)
    assert people.check("alice", alice.password) == (None, True)
    assert people.check("bob", world.world.installation.people["bob"].password)[0] is not None
    clock.advance(59.9)
    assert people.check("alice", alice.password) == (None, True)
    clock.advance(0.1)
    assert people.check("alice", alice.password) == (alice, False)


def test_slow_guessing_is_counted_too(people: People, clock: Clock) -> None:
    found = []
    for _ in range(8):
        found.append(people.check("alice", "wrong")[1])
        clock.advance(30)
    assert True in found


def test_a_name_of_any_length_or_shape_is_only_a_wrong_one(people: People) -> None:
    for name in ("x" * 16_384, "alice\x00", "'; DROP TABLE guesses; --", "", "ALICE", "alice "):
        assert people.check(name, "wrong") == (None, False)


def test_a_browser_is_kept_by_a_digest_of_its_cookie_until_it_is_forgotten(people: People, world: Inside) -> None:
    alice = world.world.installation.people["alice"]
    cookie, other = people.remember(alice.subject), people.remember(alice.subject)
    rows = world.world.installation.database.read("SELECT id FROM browsers")
    assert {row[0] for row in rows} == {hashlib.sha256(value.encode()).hexdigest() for value in (cookie, other)}
    found = people.browser(cookie)
    assert found is not None
    assert (found.subject, found.name, found.auth_time) == (alice.subject, alice.name, world.clock.now)
    again = people.browser(other)
    assert again is not None
    assert found.csrf != again.csrf
    people.forget(cookie)
    assert people.browser(cookie) is None
    assert people.browser(other) is not None


def test_a_browsers_session_ends_and_is_cleared_away(people: People, world: Inside, clock: Clock) -> None:
    cookie = people.remember("")
    clock.advance(8 * 3600)
    assert people.browser(cookie) is None
    clock.advance(1)
    people.remember("")
    assert len(world.world.installation.database.read("SELECT id FROM browsers")) == 1


async def test_a_person_of_the_world_reports_a_page_without_a_form(world: Inside) -> None:
    with pytest.raises(DeputizeError, match=r"no form to fill in|HTTP 404"):
        await world.person("alice").approve({"url": f"{ISSUER}/approvals/unknown"})


@pytest.mark.parametrize("password", ["", "wrong", "x" * 16_384, "é", "\x00"])
def test_a_wrong_password_of_any_shape_is_wrong(people: People, password: str) -> None:
    assert people.check("alice", password) == (None, False)
