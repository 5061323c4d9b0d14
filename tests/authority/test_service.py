"""The authority's table: one decision of the person who was asked, one redemption, whoever races."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from identity.authority import Authority, CibaError, approvals_table
from identity.authority.service import GRACE, Opened
from identity.errors import UsageError
from identity.store import Database
from tests.support import Clock

ORDER = [{"type": "stock_order", "actions": ["buy_stock"], "arguments": {"symbol": "ACME", "quantity": 50}}]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "authority.db", (approvals_table,))
    yield made
    made.close()


@pytest.fixture
def authority(database: Database, clock: Clock) -> Authority:
    return Authority(database, clock)


def asked(authority: Authority, subject: str = "alice", **changes: Any) -> Opened:
    given: dict[str, Any] = {
        "client_id": "agent",
        "client_name": "Agent",
        "subject": subject,
        "scope": "openid orders:write",
        "resource": "https://api.example",
        "details": ORDER,
        "binding_message": "BCD-234",
        "lifetime": 300.0,
    }
    return authority.open(**{**given, **changes})


def told(authority: Authority, opened: Opened, client_id: str = "agent") -> str:
    """How a poll ends: the error's code, or ``approved``."""
    try:
        return authority.poll(opened.auth_req_id, client_id).state
    except CibaError as error:
        return error.code


def say(authority: Authority, opened: Opened, subject: str = "alice", *, approve: bool = True) -> bool:
    return authority.decide(opened.approval.id, subject, approve=approve, auth_time=1.0)


def test_what_was_asked_is_kept_as_it_was(authority: Authority, clock: Clock) -> None:
    approval = asked(authority).approval
    assert approval.details == tuple(ORDER)
    assert (approval.state, approval.expires_at) == ("pending", clock.now + 300)
    assert authority.get(approval.id, "alice") == approval


@pytest.mark.case("B1")
def test_the_handle_is_not_kept_and_not_the_pages_id(authority: Authority, database: Database) -> None:
    opened = asked(authority)
    database.close()
    stored = b"".join(path.read_bytes() for path in database.path.parent.iterdir())
    assert opened.auth_req_id.encode() not in stored
    assert opened.approval.id.encode() in stored
    assert len(opened.auth_req_id) >= 43


@pytest.mark.case("B1")
def test_a_guessed_handle_or_another_clients_is_answered_alike(authority: Authority) -> None:
    opened = asked(authority)
    say(authority, opened)
    found = []
    for handle, client_id in [("guessed", "agent"), (opened.auth_req_id, "other"), (opened.approval.id, "agent")]:
        with pytest.raises(CibaError) as caught:
            authority.poll(handle, client_id)
        found.append((caught.value.code, str(caught.value)))
    assert set(found) == {("invalid_grant", "The auth_req_id is not known")}


def test_only_the_person_who_was_asked_sees_it_and_decides(authority: Authority) -> None:
    opened = asked(authority)
    assert authority.get(opened.approval.id, "bob") is None
    assert authority.inbox("bob") == []
    assert not say(authority, opened, "bob")
    assert told(authority, opened) == "authorization_pending"


@pytest.mark.case("B9")
@pytest.mark.parametrize("first", [True, False], ids=["approved", "denied"])
@pytest.mark.parametrize("second", [True, False], ids=["then approved", "then denied"])
def test_the_first_decision_stands(authority: Authority, clock: Clock, first: bool, second: bool) -> None:
    opened = asked(authority)
    assert say(authority, opened, approve=first)
    before = authority.get(opened.approval.id, "alice")
    clock.advance(1)
    assert not say(authority, opened, approve=second)
    assert authority.get(opened.approval.id, "alice") == before
    assert told(authority, opened) == ("approved" if first else "access_denied")


@pytest.mark.case("B9")
def test_a_decision_in_the_moment_of_the_expiry_or_later_is_none(authority: Authority, clock: Clock) -> None:
    in_time, late, later = asked(authority), asked(authority), asked(authority)
    clock.advance(299.9)
    assert say(authority, in_time)
    clock.advance(0.1)
    assert not say(authority, late)
    clock.advance(29)
    assert not say(authority, later, approve=False)
    assert [told(authority, opened) for opened in (late, later)] == ["expired_token"] * 2
    assert [approval.state_at(clock.now) for approval in authority.inbox("alice")] == ["expired", "expired", "approved"]


@pytest.mark.case("B9")
def test_of_approve_and_deny_racing_a_thousand_times_one_stands_each_time(tmp_path: Path, clock: Clock) -> None:
    """Two threads with databases of their own, as two processes have them: no lock of ours is between them."""
    databases = [Database(tmp_path / "authority.db", (approvals_table,)) for _ in range(2)]
    authorities = [Authority(database, clock) for database in databases]
    opened = [asked(authorities[0]) for _ in range(1_000)]
    won: list[list[bool]] = [[], []]
    start = threading.Barrier(2)

    def decide(side: int) -> None:
        for each in opened:
            start.wait(timeout=60)
            won[side].append(say(authorities[side], each, approve=side == 0))

    threads = [threading.Thread(target=decide, args=(side,)) for side in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [approved + denied for approved, denied in zip(*won, strict=True)] == [1] * 1_000
    for each, approved in zip(opened, won[0], strict=True):
        assert told(authorities[1], each) == ("approved" if approved else "access_denied")
    for database in databases:
        database.close()


@pytest.mark.case("B2")
def test_an_approval_is_taken_once_and_the_second_learns_for_which_token(authority: Authority) -> None:
    opened = asked(authority)
    say(authority, opened)
    approval = authority.poll(opened.auth_req_id, "agent")
    assert authority.redeem(approval, "first") is None
    assert authority.redeem(approval, "second") == "first"
    assert authority.redeem(authority.poll(opened.auth_req_id, "agent"), "third") == "first"


@pytest.mark.case("B2")
def test_of_many_who_redeem_at_once_one_gets_it(authority: Authority) -> None:
    opened = asked(authority)
    say(authority, opened)
    approval = authority.poll(opened.auth_req_id, "agent")
    found: list[str | None] = []
    start = threading.Barrier(20)

    def redeem(jti: str) -> None:
        start.wait(timeout=60)
        found.append(authority.redeem(approval, jti))

    threads = [threading.Thread(target=redeem, args=(f"token-{i}",)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.count(None) == 1
    assert len(set(found)) == 2  # all others are told of the same one


@pytest.mark.parametrize("state", ["pending", "denied", "expired"])
def test_what_is_not_approved_cannot_be_taken(
    authority: Authority, database: Database, clock: Clock, state: str
) -> None:
    opened = asked(authority)
    if state == "denied":
        say(authority, opened, approve=False)
    if state == "expired":
        clock.advance(300)
    authority.redeem(opened.approval, "token")
    assert database.read("SELECT redeemed_jti FROM approvals") == [(None,)]


@pytest.mark.case("B3")
def test_polling_faster_than_the_interval_slows_down_by_five_seconds_for_good(
    authority: Authority, clock: Clock
) -> None:
    opened = asked(authority)
    assert opened.approval.interval == 5.0
    seen = []
    for wait in (0, 5, 4, 9, 15, 14, 20, 20):
        clock.advance(wait)
        seen.append(told(authority, opened))
    assert seen == [
        "authorization_pending",
        "authorization_pending",
        "slow_down",  # 10 from now on
        "slow_down",  # 15
        "authorization_pending",
        "slow_down",  # 20
        "authorization_pending",
        "authorization_pending",
    ]


def test_an_approval_that_nobody_collected_runs_out(authority: Authority, clock: Clock) -> None:
    opened, taken = asked(authority), asked(authority)
    for each in (opened, taken):
        say(authority, each)
    authority.redeem(authority.poll(taken.auth_req_id, "agent"), "token")
    clock.advance(300 + GRACE - 1)
    assert told(authority, opened) == "approved"
    clock.advance(1)
    assert told(authority, opened) == "expired_token"
    assert told(authority, taken) == "approved"  # it is spent; a second use has to reach redeem() to be noticed


def test_the_inbox_shows_what_waits_first_and_then_the_newest(authority: Authority, clock: Clock) -> None:
    names = {}
    for name in ("expired", "approved", "older", "denied", "newer"):
        names[asked(authority, lifetime=1.0 if name == "expired" else 300.0).approval.id] = name
        clock.advance(1)
    by_name = {name: id_ for id_, name in names.items()}
    authority.decide(by_name["approved"], "alice", approve=True, auth_time=1.0)
    authority.decide(by_name["denied"], "alice", approve=False, auth_time=1.0)
    found = [names[approval.id] for approval in authority.inbox("alice")]
    assert found == ["newer", "older", "denied", "approved", "expired"]
    assert [names[approval.id] for approval in authority.inbox("alice", limit=2)] == ["newer", "older"]


def test_of_requests_of_the_same_moment_the_last_comes_first(authority: Authority) -> None:
    ids = [asked(authority).approval.id for _ in range(5)]
    assert [approval.id for approval in authority.inbox("alice")] == ids[::-1]


@pytest.mark.case("B10")
@pytest.mark.parametrize(
    "value", ["\ud800", float("nan"), json.loads("[" * 40 + "]" * 40)], ids=["surrogate", "nan", "deep"]
)
def test_details_that_cannot_be_shown_are_not_taken(authority: Authority, value: object) -> None:
    with pytest.raises(UsageError):
        asked(authority, details=[{"type": "stock_order", "arguments": {"a": value}}])
    assert authority.inbox("alice") == []


@pytest.mark.case("B5")
@pytest.mark.parametrize("text", ["'; DROP TABLE approvals; --", 'alice" OR "1"="1', "%", "alice' OR '1'='1"])
def test_quotes_in_a_name_stay_text(authority: Authority, text: str) -> None:
    opened = asked(authority, binding_message=text, client_name=text, subject=text)
    assert authority.get(opened.approval.id, text) == opened.approval
    assert authority.inbox("alice") == []
    assert not authority.decide(text, "alice", approve=True, auth_time=1.0)
    assert [approval.state for approval in authority.inbox(text)] == ["pending"]
