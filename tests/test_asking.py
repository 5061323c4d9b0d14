"""Approvals: followed through failures and restarts, and believed only when what came back is what was asked for."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc import jws

from identity import Identity, approval, resource
from identity.binding import Call
from identity.errors import ProtocolError, SealError, StoreError
from identity.ledger import Ledger, Request
from identity.sessions import Place
from tests.support import URL, Clock, Inside, answered, inside, signed_in

API = f"{URL}/trading"
ORDERS = resource(API, "orders:write")
CIBA = "urn:openid:params:grant-type:ciba"
CALL = Call(
    message_id="lc_run--1",
    id="call_1",
    tool="buy_stock",
    arguments={"symbol": "ACME", "quantity": 50, "limit": Decimal(100)},
    schema_digest="schema",
    audience=API,
)


# -- following an approval ---------------------------------------------------------------------------------------------


async def ask(world: Inside, call: Call = CALL, username: str = "alice", identity: Identity | None = None) -> Request:
    """An approval of a call is asked of one of the people."""
    identity = identity or world.identity
    session = await signed_in(world, username, f"thread of {username}", identity)
    condition = approval(type="stock_order")
    return await identity.transport.acall(identity.asking.approval, session.place, session, call, condition, ORDERS)


async def polled(world: Inside, request: Request, identity: Identity | None = None) -> Request:
    """The request after one poll, as the database has it then."""
    identity = identity or world.identity
    ended = await identity.transport.acall(identity.asking.poll, current(identity, request))
    found = current(identity, request)
    assert ended == (found.state != "pending")
    return found


def current(identity: Identity, request: Request) -> Request:
    found = identity.ledger.request(request.id)
    assert found is not None
    return found


async def decided(identity: Identity) -> list[str]:
    """The approvals that one round of polling decided, and earlier ones whose threads nobody has woken."""
    return [request.id for request in await identity.poll() if request.kind == "approval"]


def redeemed(world: Inside) -> int:
    return world.network.grants().count(CIBA)


async def test_an_approved_request_brings_the_token_of_its_call_and_says_who_decided(world: Inside) -> None:
    alice, request = world.person("alice"), await ask(world)
    assert request.state == "pending"
    assert (await polled(world, request)).state == "pending"
    await alice.approve(request.shown())
    world.clock.advance(1)
    found = await polled(world, request)
    assert found.state == "approved"
    evidence = world.identity.ledger.evidence(found)
    assert evidence is not None
    assert evidence["approver"] == alice.principal.subject
    assert evidence["acr"] == "urn:deputize:password"
    assert evidence["access_token"] in world.issued_tokens
    assert evidence["expires_at"] == world.clock() + 300


@pytest.mark.case("B17")
async def test_the_token_of_an_approval_is_sealed_with_its_request_and_digest(world: Inside) -> None:
    """Attack: the evidence of a small order's approval is put into the row of a large one."""
    alice, ledger = world.person("alice"), world.identity.ledger
    small = await ask(world, replace(CALL, id="call_small", arguments={"symbol": "ACME", "quantity": 11}))
    large = await ask(world, replace(CALL, id="call_large"))
    for request in (small, large):
        await alice.approve(request.shown())
        world.clock.advance(1)
        assert (await polled(world, request)).state == "approved"
    tokens = [(ledger.evidence(current(world.identity, r)) or {})["access_token"] for r in (small, large)]
    assert len(set(tokens)) == 2
    with world.identity.database.write() as db:
        db.execute(
            "UPDATE requests SET (evidence, digest) = (SELECT evidence, digest FROM requests WHERE id = ?) WHERE id = ?",
            (small.id, large.id),
        )
    with pytest.raises(SealError):
        ledger.evidence(current(world.identity, large))
    folder = world.identity.database.path.parent
    assert not any(t.encode() in path.read_bytes() for path in folder.iterdir() for t in tokens)


async def test_a_request_that_was_declined_ends_so(world: Inside) -> None:
    request = await ask(world)
    await world.person("alice").deny(request.shown())
    found = await polled(world, request)
    assert (found.state, found.reason) == ("denied", "The person who was asked declined.")


# -- failures that pass (casebook B15) -----------------------------------------------------------------------------------

_PAGE = {"content-type": "text/html; charset=utf-8"}
_PASSING: dict[str, Callable[[], httpx.Response | Exception]] = {
    "500": lambda: httpx.Response(500),
    "503 with JSON": lambda: httpx.Response(503, json={"error": "invalid_grant"}),
    "502 with a page": lambda: httpx.Response(502, headers=_PAGE, content="<h1>Bad gateway</h1>"),
    "429": lambda: httpx.Response(429, headers={"retry-after": "7"}, json={"error": "invalid_request"}),
    "408": lambda: httpx.Response(408),
    "a timeout": lambda: httpx.ReadTimeout("slow"),
    "a reset": lambda: httpx.ReadError("reset"),
    "no connection": lambda: httpx.ConnectError("refused"),
    "a page": lambda: httpx.Response(200, headers=_PAGE, content="<h1>We are down for maintenance</h1>"),
    "a login wall": lambda: httpx.Response(403, headers=_PAGE, content="<form>"),
}


@pytest.mark.case("B15")
@pytest.mark.parametrize("path", ["/issuer/token", "/issuer/jwks", "/issuer/.well-known/openid-configuration"])
@pytest.mark.parametrize("how", sorted(_PASSING))
async def test_a_failure_while_polling_leaves_the_request_open_and_the_approval_counts_afterwards(
    world: Inside, how: str, path: str
) -> None:
    request = await ask(world)
    later = world.again()  # a process that knows neither the metadata nor the keys yet
    try:
        await world.person("alice").approve(request.shown())
        world.network.fault = lambda sent: _PASSING[how]() if sent.url.path == path else None
        for _ in range(3):
            before = world.clock()
            found = await polled(world, request, later)
            assert found.state == "pending"
            assert found.interval == request.interval
            assert before + request.interval < found.next_poll_at <= before + 10
            world.clock.advance(found.next_poll_at - before)
            assert [r.id for r in later.ledger.due("default", world.clock())] == [request.id]
        world.network.fault = None
        assert (await polled(world, request, later)).state == "approved"
    finally:
        await asyncio.to_thread(later.close)


@pytest.mark.case("B15")
async def test_a_server_that_asks_for_patience_is_given_it_until_the_request_is_over(world: Inside) -> None:
    request = await ask(world)
    waits = iter(["7", "3600"])
    world.network.fault = lambda sent: (
        httpx.Response(429, headers={"retry-after": next(waits)}) if sent.url.path == "/issuer/token" else None
    )
    assert (await polled(world, request)).next_poll_at == world.clock() + 7
    world.clock.advance(7)
    assert (await polled(world, request)).next_poll_at == request.expires_at


async def test_a_request_whose_server_never_comes_back_ends_with_its_time(world: Inside) -> None:
    request = await ask(world)
    world.network.fault = lambda sent: httpx.ConnectError("down") if sent.method == "POST" else None
    rounds = 0
    while (await polled(world, request)).state == "pending":
        rounds += 1
        assert rounds < 400
        world.clock.advance(current(world.identity, request).next_poll_at - world.clock())
    assert current(world.identity, request).state == "expired"
    assert world.clock() == request.expires_at


@pytest.mark.case("B9")
async def test_a_request_that_nobody_decides_expires_and_a_late_yes_changes_nothing(world: Inside) -> None:
    request = await ask(world)
    world.clock.advance(request.expires_at - world.clock())
    page = await world.person("alice").read(request.url)
    assert "Approve" not in page.splitlines(), "the page offers no late decision"
    assert (await polled(world, request)).state == "expired"
    assert not world.identity.ledger.decide(request, "approved", evidence={"access_token": "late"}, now=world.clock())
    assert world.identity.ledger.evidence(current(world.identity, request)) is None


@pytest.mark.case("B3")
async def test_slow_down_makes_polling_slower_for_good_and_across_restarts(world: Inside) -> None:
    request = await ask(world)
    assert (await polled(world, request)).interval == 1.0
    assert (await polled(world, request)).interval == 6.0  # at once: too fast
    assert (await polled(world, request)).interval == 11.0
    again = world.again()
    try:
        found = current(again, request)
        assert (found.interval, found.next_poll_at) == (11.0, world.clock() + 11)
        assert again.ledger.due("default", world.clock() + 10.9) == []
        world.clock.advance(11)
        assert (await polled(world, request, again)).interval == 11.0
        world.clock.advance(11)
        assert (await polled(world, request, again)).interval == 11.0, "and not faster again"
    finally:
        await asyncio.to_thread(again.close)


# -- answers that are not what was asked for (casebook B16) ----------------------------------------------------------------


def _details(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Inside, dict[str, Any]], dict[str, Any]]:
    return lambda world, body: {**body, "authorization_details": change(body["authorization_details"])}


def _id_token(username: str = "alice", **claims: Any) -> Callable[[Inside, dict[str, Any]], dict[str, Any]]:
    def change(world: Inside, body: dict[str, Any]) -> dict[str, Any]:
        subject = world.person(username).principal.subject
        given = {"subject": subject, "client_id": "deputize-agent", "auth_time": world.clock(), **claims}
        return {**body, "id_token": world.world.issuer.tokens.identity(**given)}

    return change


def _without(name: str) -> Callable[[Inside, dict[str, Any]], dict[str, Any]]:
    return lambda world, body: {k: v for k, v in body.items() if k != name}


_ANOTHER_ANSWER: dict[str, Callable[[Inside, dict[str, Any]], dict[str, Any]]] = {
    "fewer scopes": lambda world, body: {**body, "scope": "openid"},
    "no scope": lambda world, body: {**body, "scope": ""},
    "another scope": lambda world, body: {**body, "scope": "openid orders:read"},
    "no details": _without("authorization_details"),
    "empty details": _details(lambda details: []),
    "details twice": _details(lambda details: details * 2),
    "a larger order": _details(
        lambda details: [{**details[0], "arguments": {**details[0]["arguments"], "quantity": 51}}]
    ),
    "another digest": _details(lambda details: [{**details[0], "digest": "A" * 43}]),
    "another API": _details(lambda details: [{**details[0], "locations": ["https://evil.example"]}]),
    "another type": _details(lambda details: [{**details[0], "type": "tool_call"}]),
    "details that are no objects": _details(lambda details: ["stock_order"]),
    "more in the details": _details(lambda details: [{**details[0], "privileges": ["admin"]}]),
    "somebody else's ID token": _id_token("bob"),
    "no ID token": _without("id_token"),
    "an ID token for another client": _id_token(client_id="another-agent"),
    "an ID token that is over": lambda world, body: {
        **body,
        "id_token": _at(world, world.clock() - 3600, lambda: _id_token()(world, body)["id_token"]),
    },
    "an ID token that nobody signed": lambda world, body: {**body, "id_token": body["id_token"][:-8] + "AAAAAAAA"},
    "an access token as the ID token": lambda world, body: {**body, "id_token": body["access_token"]},
    "no access token": _without("access_token"),
    "a token that is no bearer token": lambda world, body: {**body, "token_type": "N_A"},
}


def _at(world: Inside, moment: float, make: Callable[[], Any]) -> Any:
    now, world.clock.now = world.clock.now, moment
    try:
        return make()
    finally:
        world.clock.now = now


@pytest.mark.case("B16")
@pytest.mark.parametrize("how", sorted(_ANOTHER_ANSWER))
async def test_nothing_of_an_answer_that_is_not_what_was_asked_for_is_used(world: Inside, how: str) -> None:
    request = await ask(world)
    await world.person("alice").approve(request.shown())
    answered(world, CIBA, lambda body: _ANOTHER_ANSWER[how](world, body))
    world.clock.advance(1)
    found = await polled(world, request)
    assert found.state == "denied"
    assert found.reason
    assert found.sealed_evidence is None
    assert world.identity.ledger.due("default", world.clock() + 1_000) == [], "and it is not asked for again"


@pytest.mark.case("B16")
async def test_the_same_details_in_another_order_of_their_members_are_the_same(world: Inside) -> None:
    request = await ask(world)
    await world.person("alice").approve(request.shown())
    answered(
        world,
        CIBA,
        lambda body: {
            **body,
            "authorization_details": [dict(reversed(d.items())) for d in body["authorization_details"]],
        },
    )
    world.clock.advance(1)
    assert (await polled(world, request)).state == "approved"


# -- what happens around a poll ------------------------------------------------------------------------------------------


async def test_an_answer_that_was_lost_on_the_way_ends_the_request_and_its_token_is_dead(world: Inside) -> None:
    """The approval was redeemed and nobody got the token: a second one is not had, so the request must end, visibly."""
    request = await ask(world)
    await world.person("alice").approve(request.shown())
    send = world.network.handle_async_request

    async def lost(sent: httpx.Request) -> httpx.Response:
        answer = await send(sent)
        if b"ciba" in sent.content:
            raise httpx.ReadError("reset")
        return answer

    world.network.handle_async_request = lost  # type: ignore[method-assign]
    world.clock.advance(1)
    assert (await polled(world, request)).state == "pending"
    token = world.issued_tokens[-2]
    world.network.handle_async_request = send  # type: ignore[method-assign]
    world.clock.advance(2)
    found = await polled(world, request)
    assert found.state == "denied"
    assert "invalid_grant" in found.reason
    assert not world.world.issuer.tokens.active(json.loads(jws.extract_compact(token.encode()).payload)["jti"])


async def test_a_process_that_dies_between_the_answer_and_the_record_leaves_a_request_that_ends(
    world: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = await ask(world)
    await world.person("alice").approve(request.shown())

    def dies(*args: object, **kwargs: object) -> bool:
        raise StoreError("The database cannot grow, the disk is full")

    world.clock.advance(1)
    with monkeypatch.context() as crash:
        crash.setattr(Ledger, "decide", dies)
        with pytest.raises(StoreError):
            await world.identity.transport.acall(world.identity.asking.poll, request)
    assert world.identity.ledger.due("default", world.clock() + 59) == [], "its lease is left behind"
    world.clock.advance(60)
    (due,) = world.identity.ledger.due("default", world.clock())
    assert (await polled(world, due)).state == "denied"


async def test_whoever_stops_waiting_while_an_approval_is_redeemed_does_not_lose_it(world: Inside) -> None:
    """``asyncio.wait_for(identity.resume(…), 10)`` must not cost anybody their approval."""
    request, identity = await ask(world), world.identity
    await world.person("alice").approve(request.shown())
    arrived, loop = threading.Event(), asyncio.get_running_loop()
    go_on = asyncio.Event()
    send = world.network.handle_async_request

    async def slow(sent: httpx.Request) -> httpx.Response:
        answer = await send(sent)
        if b"ciba" in sent.content:
            arrived.set()
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(go_on.wait(), loop))
        return answer

    world.network.handle_async_request = slow  # type: ignore[method-assign]
    world.clock.advance(1)
    waiting = asyncio.create_task(identity.transport.acall(identity.asking.wait, request.place))
    assert await asyncio.to_thread(arrived.wait, 10)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    go_on.set()

    async def polls_end() -> None:
        await asyncio.gather(*identity.asking._polls)

    await identity.transport.acall(polls_end)
    assert current(identity, request).state == "approved"
    assert redeemed(world) == 1


async def test_one_request_that_cannot_be_polled_keeps_no_other_waiting(
    world: Inside, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alice, identity = world.person("alice"), world.identity
    names = ("fine", "changed", "strange", "locked")
    asked = [replace(CALL, id=name, arguments={**CALL.arguments, "quantity": 50 + i}) for i, name in enumerate(names)]
    requests = {call.id: await ask(world, call) for call in asked}
    for request in requests.values():
        await alice.approve(request.shown())
    with identity.database.write() as db:
        db.execute("UPDATE requests SET handle = payload WHERE id = ?", (requests["changed"].id,))
    handle = Ledger.handle

    def fails(self: Ledger, request: Request) -> dict[str, Any]:
        if request.id == requests["strange"].id:
            raise RuntimeError("a bug")
        if request.id == requests["locked"].id:
            raise StoreError("The database is locked by another process")
        return handle(self, request)

    monkeypatch.setattr(Ledger, "handle", fails)
    world.clock.advance(2)
    with caplog.at_level(logging.ERROR, "deputize"):
        ended = await identity.transport.acall(identity.asking.poll_due)
    assert {r.id for r in ended} == {requests["fine"].id, requests["changed"].id}
    states = {name: current(identity, request).state for name, request in requests.items()}
    assert states == {"fine": "approved", "changed": "denied", "strange": "pending", "locked": "pending"}
    told = sorted(record.getMessage() for record in caplog.records)
    assert told == sorted(
        [
            f"Request {requests['strange'].short_id} cannot be polled (RuntimeError)",
            f"Request {requests['locked'].short_id} cannot be polled: The database is locked by another process",
        ]
    )
    assert identity.ledger.due("default", world.clock() + 59) == [], "not again in every round"
    world.clock.now = requests["strange"].expires_at + 60
    await identity.transport.acall(identity.asking.poll_due)
    assert current(identity, requests["strange"]).state == "expired", "but no thread waits for it for ever"


async def test_waiting_behind_a_lease_that_a_dead_process_left_does_not_spin(tmp_path: Path, clock: Clock) -> None:
    async with inside(tmp_path, clock) as world:
        request, identity = await ask(world), world.identity
        await world.person("alice").approve(request.shown())
        clock.advance(1)
        assert identity.ledger.lease(request, clock() + 60, clock())
        pauses: list[float] = []

        async def pause(seconds: float) -> None:
            pauses.append(seconds)
            await clock.pause(seconds)

        identity.asking._pause = pause
        await identity.transport.acall(identity.asking.wait, request.place)
        assert current(identity, request).state == "approved"
        assert len(pauses) <= 61
        assert max(pauses) <= 1.0


async def test_waiting_returns_at_once_where_nothing_waits_and_after_the_first_decision_of_several(
    world: Inside,
) -> None:
    identity = world.identity
    await identity.transport.acall(identity.asking.wait, Place("default", "assistant", "nothing here"))
    one, other = (
        await ask(world),
        await ask(world, replace(CALL, id="call_2", arguments={**CALL.arguments, "quantity": 51})),
    )
    await world.person("alice").approve(one.shown())
    await identity.transport.acall(identity.asking.wait, one.place)
    assert current(identity, one).state == "approved"
    assert current(identity, other).state == "pending"


async def test_waiting_notices_a_decision_that_somebody_else_recorded(world: Inside) -> None:
    request, identity = await ask(world), world.identity

    async def pause(seconds: float) -> None:
        await asyncio.to_thread(identity.ledger.decide, request, "withdrawn", now=world.clock())

    identity.asking._pause = pause
    await identity.transport.acall(identity.asking.wait, request.place)
    assert current(identity, request).state == "withdrawn"


# -- restarts, tenants, issuers --------------------------------------------------------------------------------------------


@pytest.mark.case("E18")
async def test_an_approval_that_waited_through_a_restart_is_followed_by_the_next_process(world: Inside) -> None:
    request = await ask(world)
    await asyncio.to_thread(world.identity.close)
    next_process = world.again()
    try:
        world.clock.advance(1)
        assert await decided(next_process) == []
        await world.person("alice").approve(request.shown())
        world.clock.advance(1)
        assert await decided(next_process) == [request.id]
        evidence = next_process.ledger.evidence(current(next_process, request))
        assert evidence is not None
        assert evidence["access_token"] in world.issued_tokens
    finally:
        await asyncio.to_thread(next_process.close)


async def test_a_tenant_polls_and_wakes_its_own_requests_only(world: Inside) -> None:
    request, globex = await ask(world), world.again(tenant="globex")
    await world.person("alice").approve(request.shown())
    world.clock.advance(2)
    world.network.sent.clear()
    try:
        assert await globex.poll() == []
        assert world.network.sent == []
        assert current(globex, request).state == "pending"
        assert await decided(world.identity) == [request.id]
        assert await globex.poll() == []
    finally:
        await asyncio.to_thread(globex.close)


async def test_a_request_is_never_followed_at_another_issuer_than_the_one_that_was_asked(world: Inside) -> None:
    """Attack: a deployment whose issuer was changed hands the handles of the old one to the new one."""
    request = await ask(world)
    moved = world.again(url="http://127.0.0.1:2025")
    world.clock.advance(2)
    world.network.sent.clear()
    try:
        assert await decided(moved) == [request.id]
    finally:
        await asyncio.to_thread(moved.close)
    assert world.network.sent == []
    found = current(world.identity, request)
    assert found.state == "denied"
    assert "another issuer" in found.reason


@pytest.mark.case("C9")
@pytest.mark.parametrize("url", ["http://127.0.0.1:2025/a", "http://evil.example/a", "javascript:alert(1)", "data:,a"])
async def test_an_approval_page_that_is_not_https_is_not_shown(world: Inside, url: str) -> None:
    await signed_in(world, "alice", "thread of alice")
    answered(world, "", lambda body: {**body, "approval_uri": url}, path="/issuer/bc-authorize")
    with pytest.raises(ProtocolError, match="approval_uri is not an https URL"):
        await ask(world)
    assert world.identity.ledger.pending(Place("default", "assistant", "thread of alice")) == []
