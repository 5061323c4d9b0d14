"""Requests end once, effects start once, and a row opens for itself only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest

from identity.errors import SealError
from identity.ledger import Claim, Ledger, Outcome, Request, effect_id
from identity.sessions import Place
from identity.store import Database
from tests.support import stored

NOW = 1_800_000_000.0
PLACE = Place("acme", "assistant", "t1")
Decided = Literal["approved", "denied", "expired", "withdrawn"]
DECISIONS: tuple[Decided, ...] = ("approved", "denied", "expired", "withdrawn")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tuple[Database, Ledger]]:
    database, ring = stored(tmp_path)
    yield database, Ledger(database, ring.rows)
    database.close()


@pytest.fixture
def db(store: tuple[Database, Ledger]) -> Database:
    return store[0]


@pytest.fixture
def ledger(store: tuple[Database, Ledger]) -> Ledger:
    return store[1]


def approval(ledger: Ledger, call: str = "call-1", **more: Any) -> Request:
    given: dict[str, Any] = {
        "place": PLACE,
        "kind": "approval",
        "owner": "user:alice",
        "issuer": "https://issuer.example",
        "subject": "alice",
        "message_id": "m1",
        "tool_call_id": call,
        "digest": f"digest of {call}",
        "url": "https://issuer.example/approvals/1",
        "code": "BCD-234",
        "payload": {"scope": "openid", "of": call},
        "handle": {"auth_req_id": f"handle of {call}"},
        "interval": 5.0,
        "expires_at": NOW + 300,
        "now": NOW,
    }
    return ledger.open(**{**given, **more})


def login(ledger: Ledger, owner: str = "visitor:v", **more: Any) -> Request:
    blank = {"issuer": "", "subject": "", "tool_call_id": "", "digest": ""}
    return approval(ledger, **{"kind": "login", "owner": owner, **blank, **more})


def again(ledger: Ledger, request: Request) -> Request:
    found = ledger.request(request.id)
    assert found is not None
    return found


def edit(db: Database, sql: str, *values: object) -> None:
    """What somebody does who can write the file."""
    with db.write() as connection:
        connection.execute(sql, values)


# -- asking ------------------------------------------------------------------------------------------------------------


def test_what_was_asked_is_kept_and_clients_see_no_more_than_where_to_decide(ledger: Ledger) -> None:
    request = approval(ledger)
    assert request.state == "pending"
    assert ledger.payload(request) == {"scope": "openid", "of": "call-1"}
    assert ledger.handle(request) == {"auth_req_id": "handle of call-1"}
    assert ledger.evidence(request) is None
    assert request.shown() == {
        "kind": "approval",
        "id": request.id,
        "url": "https://issuer.example/approvals/1",
        "code": "BCD-234",
        "expires_at": NOW + 300,
    }


def test_the_same_call_is_asked_about_once_however_many_runs_ask(ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as threads:
        asked = list(threads.map(lambda n: approval(ledger, handle={"auth_req_id": str(n)}), range(16)))
    assert len({request.id for request in asked}) == 1
    assert len(ledger.pending(PLACE)) == 1
    ledger.decide(asked[0], "denied", now=NOW)
    assert approval(ledger).state == "denied", "asked again, it is answered by the decision that was made"
    assert approval(ledger, "call-2").state == "pending"


def test_a_login_is_asked_for_once_for_each_caller_and_again_when_it_has_ended(ledger: Ledger) -> None:
    first = login(ledger)
    assert login(ledger).id == first.id
    assert login(ledger, "visitor:w").id != first.id
    assert login(ledger, place=Place("acme", "assistant", "t2")).id != first.id
    ledger.decide(first, "expired", now=NOW)
    second = login(ledger, now=NOW + 1)
    assert second.id != first.id
    assert ledger.last_login(PLACE, "visitor:v") == second
    assert ledger.pending_login(PLACE, "visitor:nobody") is None


# -- deciding ----------------------------------------------------------------------------------------------------------


@pytest.mark.case("B9")
@pytest.mark.parametrize("first", DECISIONS)
@pytest.mark.parametrize("late", DECISIONS)
def test_the_first_decision_stands_and_a_late_one_changes_nothing(
    ledger: Ledger, first: Decided, late: Decided
) -> None:
    request = approval(ledger)
    assert ledger.decide(request, first, reason="first", evidence={"by": "first"}, now=NOW)
    before = again(ledger, request)
    assert not ledger.decide(request, late, reason="late", evidence={"by": "late"}, now=NOW + 400)
    assert again(ledger, request) == before
    assert before.state == first
    assert ledger.evidence(before) == ({"by": "first"} if first == "approved" else None)


@pytest.mark.case("B9")
def test_approve_and_deny_that_race_a_thousand_times_end_in_one_state_each(ledger: Ledger) -> None:
    requests = [approval(ledger, f"call-{n}") for n in range(1_000)]
    won: dict[str, list[Decided]] = {request.id: [] for request in requests}

    def decide(made: tuple[Request, Decided]) -> None:
        request, decision = made
        if ledger.decide(request, decision, evidence={"by": decision}, now=NOW):
            won[request.id].append(decision)

    racing: list[tuple[Request, Decided]] = []
    for number, request in enumerate(requests):
        racing += [(request, "approved"), (request, "denied")][:: 1 if number % 2 else -1]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(decide, racing))
    for request in requests:
        found = again(ledger, request)
        assert won[request.id] == [found.state]
        assert ledger.evidence(found) == ({"by": "approved"} if found.state == "approved" else None)
    assert {decision for decisions in won.values() for decision in decisions} == {"approved", "denied"}


# -- polling -----------------------------------------------------------------------------------------------------------


def test_one_of_many_pollers_has_the_lease_and_after_a_crash_the_next_one_gets_it(ledger: Ledger) -> None:
    request = approval(ledger)
    assert ledger.due("acme", NOW + 4.9) == []
    assert ledger.due("acme", NOW + 5) == [request]
    with ThreadPoolExecutor(8) as threads:
        taken = list(threads.map(lambda _: ledger.lease(request, NOW + 65, NOW + 5), range(16)))
    assert taken.count(True) == 1
    assert ledger.due("acme", NOW + 64) == []  # whoever had it died
    assert [r.id for r in ledger.due("acme", NOW + 65)] == [request.id]
    assert ledger.lease(request, NOW + 125, NOW + 65)


@pytest.mark.case("B3")
def test_a_slower_interval_is_kept_in_the_row(ledger: Ledger) -> None:
    request = approval(ledger)
    ledger.lease(request, NOW + 60, NOW + 5)
    ledger.postpone(request, interval=10.0, next_poll_at=NOW + 15)
    assert ledger.due("acme", NOW + 14.9) == []
    assert [r.interval for r in ledger.due("acme", NOW + 15)] == [10.0]


def test_what_was_decided_is_neither_leased_nor_postponed_nor_due(ledger: Ledger) -> None:
    request = approval(ledger)
    ledger.decide(request, "denied", now=NOW)
    assert not ledger.lease(request, NOW + 60, NOW + 5)
    ledger.postpone(request, interval=1.0, next_poll_at=NOW)
    assert again(ledger, request).interval == 5.0
    assert ledger.due("acme", NOW + 1_000) == []


def test_a_decided_request_wakes_its_thread_once_within_a_day(ledger: Ledger) -> None:
    told, withdrawn, old = (approval(ledger, name) for name in ("told", "withdrawn", "old"))
    approval(ledger, "pending")
    ledger.decide(told, "approved", evidence={}, now=NOW)
    ledger.decide(withdrawn, "withdrawn", now=NOW)  # its thread has gone on already
    ledger.decide(old, "expired", now=NOW - 86_400)
    assert [r.id for r in ledger.unwoken("acme", NOW)] == [told.id]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda _: ledger.woken(told, NOW), range(16))).count(True) == 1
    assert ledger.unwoken("acme", NOW) == []


# -- rows that somebody moved or changed -----------------------------------------------------------------------------------


def approved(ledger: Ledger, call: str) -> Request:
    request = approval(ledger, call)
    ledger.decide(request, "approved", evidence={"access_token": f"token of {call}"}, now=NOW)
    return again(ledger, request)


_COPIED = {
    "evidence": "evidence = (SELECT evidence FROM requests WHERE id = ?2)",
    "evidence and digest": "(evidence, digest) = (SELECT evidence, digest FROM requests WHERE id = ?2)",
    "all that was sealed": "(payload, handle, evidence, digest) ="
    " (SELECT payload, handle, evidence, digest FROM requests WHERE id = ?2)",
}


@pytest.mark.case("B17", "F1")
@pytest.mark.parametrize("what", sorted(_COPIED))
def test_one_approvals_evidence_opens_nothing_in_another_row(ledger: Ledger, db: Database, what: str) -> None:
    """Attack: the token of a small order's approval is put into the row of a large one."""
    large, small = approved(ledger, "large"), approved(ledger, "small")
    edit(db, f"UPDATE requests SET {_COPIED[what]} WHERE id = ?1", large.id, small.id)
    with pytest.raises(SealError):
        ledger.evidence(again(ledger, large))
    assert ledger.evidence(again(ledger, small)) == {"access_token": "token of small"}


@pytest.mark.case("B17")
def test_evidence_is_of_one_digest_and_opens_under_no_other(ledger: Ledger, db: Database) -> None:
    request = approved(ledger, "call-1")
    edit(db, "UPDATE requests SET digest = 'digest of another call' WHERE id = ?", request.id)
    with pytest.raises(SealError):
        ledger.evidence(again(ledger, request))


@pytest.mark.case("F1")
@pytest.mark.parametrize(
    ("sql", "open_"),
    [
        ("UPDATE requests SET handle = payload WHERE id = ?", Ledger.handle),
        ("UPDATE requests SET payload = handle WHERE id = ?", Ledger.payload),
        ("UPDATE requests SET evidence = payload WHERE id = ?", Ledger.evidence),
        ("UPDATE requests SET tenant = 'globex' WHERE id = ?", Ledger.handle),
        ("UPDATE requests SET handle = '' WHERE id = ?", Ledger.handle),
        ("UPDATE requests SET handle = substr(handle, 1, length(handle) - 4) WHERE id = ?", Ledger.handle),
    ],
)
def test_a_field_that_was_moved_or_cut_refuses_and_other_rows_work(
    ledger: Ledger, db: Database, sql: str, open_: Callable[[Ledger, Request], Any]
) -> None:
    victim, other = approved(ledger, "victim"), approved(ledger, "other")
    edit(db, sql, victim.id)
    with pytest.raises(SealError):
        open_(ledger, again(ledger, victim))
    assert ledger.handle(again(ledger, other)) == {"auth_req_id": "handle of other"}
    assert ledger.evidence(again(ledger, other)) == {"access_token": "token of other"}


def test_a_row_that_says_approved_brings_no_evidence_by_saying_so(ledger: Ledger, db: Database) -> None:
    request = approval(ledger)
    edit(db, "UPDATE requests SET state = 'approved', decided_at = ? WHERE id = ?", NOW, request.id)
    assert ledger.evidence(again(ledger, request)) is None


# -- effects -----------------------------------------------------------------------------------------------------------


def claim(ledger: Ledger, tenant: str = "acme", call: str = "call-1", digest: str = "d") -> Claim:
    return ledger.claim(tenant=tenant, message_id="m1", tool_call_id=call, digest=digest, request_id="", now=NOW)


def test_of_many_claims_one_is_first_and_the_others_know_no_outcome(ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as threads:
        claims = list(threads.map(lambda _: claim(ledger), range(32)))
    assert [c.first for c in claims].count(True) == 1
    assert {c.state for c in claims if not c.first} == {"unknown"}
    assert {c.outcome for c in claims} == {None}
    assert {c.id for c in claims} == {effect_id("acme", "m1", "call-1")}


def test_what_an_effect_came_to_answers_every_later_claim(ledger: Ledger) -> None:
    first = claim(ledger)
    ledger.finish("acme", first, Outcome("Bought 5 ACME", "success"), NOW)
    ledger.finish("acme", first, Outcome("something else", "error"), NOW)  # told once
    later = claim(ledger)
    assert (later.first, later.state, later.outcome) == (False, "done", Outcome("Bought 5 ACME", "success"))
    assert ledger.effects("acme", "m1") == {"call-1": later}


def test_an_effect_whose_outcome_came_late_is_known_after_all(ledger: Ledger) -> None:
    first = claim(ledger)
    assert claim(ledger).state == "unknown"  # another run, while the first one was at it
    ledger.finish("acme", first, Outcome("Bought 5 ACME", "success"), NOW)
    assert claim(ledger).outcome == Outcome("Bought 5 ACME", "success")


def test_a_deleted_claim_gets_the_same_key_again_so_that_the_api_knows_it(ledger: Ledger, db: Database) -> None:
    before = claim(ledger)
    edit(db, "DELETE FROM effects")
    assert claim(ledger).id == before.id


def test_no_two_calls_share_a_key_however_their_names_are_cut() -> None:
    names = [("a", "b", "c"), ("ab", "", "c"), ("a", "bc", ""), ("a", "b", "d"), ("b", "a", "c"), ('a","b', "c", "")]
    assert len({effect_id(*name) for name in names}) == len(names)


@pytest.mark.case("F1")
def test_an_outcome_of_another_effect_is_not_shown(ledger: Ledger, db: Database) -> None:
    for call in ("one", "other"):
        ledger.finish("acme", claim(ledger, call=call), Outcome(f"outcome of {call}", "success"), NOW)
    edit(
        db,
        "UPDATE effects SET outcome = (SELECT outcome FROM effects WHERE tool_call_id = 'other')"
        " WHERE tool_call_id = 'one'",
    )
    with pytest.raises(SealError):
        claim(ledger, call="one")
    assert claim(ledger, call="other").outcome == Outcome("outcome of other", "success")


# -- tenants -----------------------------------------------------------------------------------------------------------


@pytest.mark.case("G10")
def test_two_tenants_in_one_database_see_nothing_of_each_other(ledger: Ledger) -> None:
    acme, globex = Place("acme", "assistant", "t1"), Place("globex", "assistant", "t1")
    ours = approval(ledger, place=acme)
    asked = login(ledger, place=acme, digest="state")
    claimed = claim(ledger, "acme")
    assert ledger.pending(globex) == []
    assert ledger.due("globex", NOW + 1_000) == []
    assert ledger.of_calls(globex, "m1") == {}
    assert ledger.login_by_digest("globex", "state") is None
    assert ledger.pending_login(globex, "visitor:v") is None
    assert ledger.last_login(globex, "visitor:v") is None
    assert ledger.effects("globex", "m1") == {}
    ledger.decide(ours, "denied", now=NOW)
    assert ledger.unwoken("globex", NOW) == []
    theirs = approval(ledger, place=globex)
    assert theirs.id != ours.id
    assert theirs.state == "pending"
    assert claim(ledger, "globex").first
    assert claim(ledger, "globex").id != claimed.id
    assert {r.id for r in ledger.due("acme", NOW + 1_000)} == {asked.id}
