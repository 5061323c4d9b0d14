"""Tokens through one door: one request in flight for all who want the same, and nothing sent where it does not belong."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from identity import Identity, Secret, resource
from identity.broker import SignInAgainError
from identity.errors import OAuthError, ProtocolError, TransportError
from identity.needs import Resource
from identity.sessions import Session
from tests.support import (
    URL,
    Inside,
    answered,
    as_caller,
    assistant,
    calls,
    config,
    last,
    signed_in,
)

API = f"{URL}/trading"
PORTFOLIO = resource(API, "portfolio:read")
ORDERS = resource(API, "orders:write")
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"


async def token(
    world: Inside, session: Session, need: Resource = PORTFOLIO, identity: Identity | None = None
) -> dict[str, Any]:
    identity = identity or world.identity
    return await identity.transport.acall(identity.broker.token, session.place, session, need)


def asked(world: Inside, grant: str) -> int:
    return world.network.grants().count(grant)


def sent_refresh_tokens(world: Inside) -> list[str]:
    return [s.form["refresh_token"] for s in world.network.sent if s.form.get("grant_type") == "refresh_token"]


@asynccontextmanager
async def held_back(world: Inside, path: str = "/issuer/token") -> AsyncIterator[Callable[[], None]]:
    """Requests to ``path`` wait until the yielded function is called."""
    send, free, loop = world.network.handle_async_request, asyncio.Event(), await world.identity.transport.acall(_loop)

    async def wait(request: httpx.Request) -> httpx.Response:
        if request.url.path == path:
            await free.wait()
        return await send(request)

    world.network.handle_async_request = wait  # type: ignore[method-assign]
    try:
        yield lambda: loop.call_soon_threadsafe(free.set) and None
    finally:
        loop.call_soon_threadsafe(free.set)
        world.network.handle_async_request = send  # type: ignore[method-assign]


async def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


# -- one request in flight -----------------------------------------------------------------------------------------------


async def test_fifty_threads_of_one_person_cause_one_refresh_and_one_exchange_for_each_need(world: Inside) -> None:
    sessions = [await signed_in(world, thread=f"t{n}") for n in range(50)]
    assert len({session.grant_id for session in sessions}) == 1
    world.network.sent.clear()
    entries = await asyncio.gather(*(token(world, s, need) for s in sessions for need in (PORTFOLIO, ORDERS)))
    assert sorted(world.network.grants()) == sorted(["refresh_token", EXCHANGE, EXCHANGE])
    now, broker = world.clock(), world.identity.broker
    for number, session in enumerate(sessions):
        mine, others = entries[2 * number], entries[2 * number - 2]
        assert broker.open(session.place, session, PORTFOLIO, mine, now) is not None
        assert broker.open(session.place, session, PORTFOLIO, others, now) is None, "sealed for each thread on its own"


class _Crowd:
    """Runs ``broker.token`` for many, and says when all of them have asked."""

    def __init__(self, world: Inside, session: Session, size: int) -> None:
        self._broker, self._session, self._missing = world.identity.broker, session, size
        self._all_there = threading.Event()

    async def token(self) -> dict[str, Any]:
        self._missing -= 1  # on the I/O thread, like everything here
        if not self._missing:
            self._all_there.set()
        return await self._broker.token(self._session.place, self._session, PORTFOLIO)

    async def there(self) -> None:
        assert await asyncio.to_thread(self._all_there.wait, 10)


async def test_threads_and_event_loops_share_the_request_in_flight_too(world: Inside) -> None:
    session, transport = await signed_in(world), world.identity.transport
    crowd = _Crowd(world, session, 8)
    world.network.sent.clear()
    async with held_back(world) as release:
        with ThreadPoolExecutor(8) as threads:
            waiting = [
                *(threads.submit(transport.call, crowd.token) for _ in range(4)),
                *(threads.submit(lambda: asyncio.run(transport.acall(crowd.token))) for _ in range(4)),
            ]
            await crowd.there()
            release()
            await asyncio.gather(*(asyncio.wrap_future(w) for w in waiting))
    assert world.network.grants() == ["refresh_token", EXCHANGE]


async def test_whoever_stops_waiting_leaves_the_others_their_token(world: Inside) -> None:
    session, transport = await signed_in(world), world.identity.transport
    crowd = _Crowd(world, session, 3)
    world.network.sent.clear()
    async with held_back(world) as release:
        waiting = [asyncio.create_task(transport.acall(crowd.token)) for _ in range(3)]
        await crowd.there()
        waiting[0].cancel()  # it had begun the request
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        release()
        entries = await asyncio.gather(*waiting[1:])
    assert all(entry["sealed"] for entry in entries)
    assert world.network.grants() == ["refresh_token", EXCHANGE]


async def test_a_failure_is_told_to_all_who_waited_and_is_not_kept(world: Inside) -> None:
    session = await signed_in(world)
    world.network.fault = lambda request: httpx.Response(503) if request.url.path == "/issuer/token" else None
    results = await asyncio.gather(*(token(world, session) for _ in range(5)), return_exceptions=True)
    assert {type(result) for result in results} == {TransportError}
    world.network.fault = None
    assert (await token(world, session))["sealed"]


async def test_the_subject_token_serves_until_its_last_minute_and_is_refreshed_then(world: Inside) -> None:
    session = await signed_in(world)
    world.network.sent.clear()
    for _ in range(3):
        await token(world, session)
        world.clock.advance(79)
    assert asked(world, "refresh_token") == 1
    world.clock.advance(5)  # 242 of 300 seconds
    await token(world, session)
    assert asked(world, "refresh_token") == 2
    assert len(set(sent_refresh_tokens(world))) == 2, "each refresh token is sent once"


async def test_two_processes_on_one_database_use_each_others_refresh(world: Inside) -> None:
    session, other = await signed_in(world), world.again()
    world.network.sent.clear()
    try:
        await token(world, session)
        await token(world, session, identity=other)
        world.clock.advance(250)
        await token(world, session, identity=other)
        await token(world, session)
    finally:
        await asyncio.to_thread(other.close)
    assert asked(world, "refresh_token") == 2
    assert len(set(sent_refresh_tokens(world))) == 2


# -- answers that leave something out (casebook F9) ------------------------------------------------------------------------


def plain_refresh(world: Inside, username: str, **more: Any) -> Callable[[httpx.Request], httpx.Response | None]:
    """An issuer that does not rotate: its answer to a refresh is an access token and its type, and ``more``."""
    tokens, subject = world.world.issuer.tokens, world.person(username).principal.subject

    def fault(request: httpx.Request) -> httpx.Response | None:
        if b"grant_type=refresh_token" not in request.content:
            return None
        grant = tokens.new_grant("deputize-agent", subject)
        made = tokens.for_agent(subject, "deputize-agent", "portfolio:read orders:write", grant)
        return httpx.Response(200, json={"access_token": made["access_token"], "token_type": "Bearer", **more})

    return fault


@pytest.mark.case("F9")
async def test_a_refresh_answer_with_nothing_but_a_token_is_no_loop_and_the_refresh_token_stays(world: Inside) -> None:
    session = await signed_in(world)
    world.network.sent.clear()
    world.network.fault = plain_refresh(world, "alice")
    for _ in range(20):
        await token(world, session)
    assert asked(world, "refresh_token") == 1
    world.clock.advance(241)  # its assumed lifetime is five minutes, less the last one
    for _ in range(20):
        await token(world, session)
    assert asked(world, "refresh_token") == 2
    assert len(set(sent_refresh_tokens(world))) == 1, "the stored one was kept, and sent again"


async def few_steps(graph: Any) -> dict[str, Any]:
    """A person's message, in a run that fails if it loops."""
    given = {"messages": [{"role": "user", "content": "go"}]}
    state: dict[str, Any] = await graph.ainvoke(given, {**config(), "recursion_limit": 20})
    return state


@pytest.mark.case("F9")
async def test_an_exchange_answer_without_expires_in_and_scope_serves_a_whole_run_with_one_request(
    world: Inside,
) -> None:
    await signed_in(world)
    answered(world, EXCHANGE, lambda body: {k: v for k, v in body.items() if k not in ("expires_in", "scope")})
    world.network.sent.clear()
    with as_caller(world, "alice"):
        state = await few_steps(assistant(world, calls("show_portfolio", "show_portfolio"), "Here it is."))
    assert last(state) == "Here it is."
    assert [m.status for m in state["messages"] if m.type == "tool"] == ["success", "success"]
    assert asked(world, EXCHANGE) == 1


@pytest.mark.case("F9")
@pytest.mark.parametrize("lifetime", [0, 1, 15])
async def test_tokens_that_are_over_before_they_can_be_used_end_the_call_and_not_in_a_loop(
    world: Inside, lifetime: int
) -> None:
    await signed_in(world)
    answered(world, EXCHANGE, lambda body: {**body, "expires_in": lifetime})
    world.network.sent.clear()
    with as_caller(world, "alice"):
        state = await few_steps(assistant(world, calls("show_portfolio"), "It did not work."))
    assert last(state) == "It did not work."
    assert [m.status for m in state["messages"] if m.type == "tool"] == ["error"]
    assert asked(world, EXCHANGE) == 1


@pytest.mark.case("B16")
@pytest.mark.parametrize("scope", ["openid", "portfolio:read-only", "", "PORTFOLIO:READ"])
async def test_an_exchange_that_brings_fewer_scopes_than_asked_is_not_used(world: Inside, scope: str) -> None:
    session = await signed_in(world)
    answered(world, EXCHANGE, lambda body: {**body, "scope": scope})
    with pytest.raises(ProtocolError, match="without the scope portfolio:read"):
        await token(world, session)


# -- grants that do not work any more ----------------------------------------------------------------------------------------


async def test_a_revoked_sign_in_is_told_once_and_the_issuer_is_not_asked_again(world: Inside) -> None:
    session = await signed_in(world)
    world.world.issuer.tokens.disable("user", session.principal.subject)
    for _ in range(5):
        with pytest.raises(SignInAgainError):
            await token(world, session)
    assert asked(world, "refresh_token") == 1
    assert world.identity.vault.live_grant(session.principal, world.clock()) is None


async def test_a_sign_in_ends_at_its_time_and_nothing_is_sent_then(world: Inside) -> None:
    session = await signed_in(world)
    await token(world, session)
    world.clock.advance(session.expires_at - world.clock() - 1)
    world.network.fault = plain_refresh(world, "alice", expires_in=3600)
    await token(world, session)  # a subject token that would serve for an hour
    world.clock.advance(1)
    world.network.sent.clear()
    with pytest.raises(SignInAgainError):
        await token(world, session)
    assert world.network.sent == []


@pytest.mark.parametrize("lifetime", [300.0, 30.0])
async def test_a_token_that_another_process_rotated_meanwhile_is_read_again_before_giving_up(
    world: Inside, lifetime: float
) -> None:
    """The other process's subject token serves; or it is nearly over, and its refresh token is sent."""
    session, vault = await signed_in(world), world.identity.vault
    grant = vault.grant(session.grant_id, session.principal)
    assert grant is not None
    refreshed = plain_refresh(world, "alice", expires_in=300)

    def other_process(request: httpx.Request) -> httpx.Response | None:
        answer = refreshed(request)
        if answer is None or asked(world, "refresh_token") > 1:
            return answer
        won = vault.rotate(
            grant,
            refresh_token=Secret("rt-of-the-other-process"),
            subject_token=Secret(answer.json()["access_token"]),
            subject_token_expires_at=world.clock() + lifetime,
            now=world.clock(),
        )
        assert won
        return httpx.Response(400, json={"error": "invalid_grant"})

    world.network.sent.clear()
    world.network.fault = other_process
    assert (await token(world, session))["sealed"]
    assert sent_refresh_tokens(world)[1:] == ([] if lifetime > 60 else ["rt-of-the-other-process"])
    assert vault.live_grant(session.principal, world.clock()) is not None


@pytest.mark.case("F1")
@pytest.mark.parametrize("column", ["refresh_token", "subject_token"])
async def test_a_grant_that_does_not_open_asks_for_a_new_sign_in_instead_of_failing_for_ever(
    world: Inside, column: str
) -> None:
    session = await signed_in(world)
    bob = await signed_in(world, "bob", "t2")
    await token(world, session)
    with world.identity.database.write() as db:
        db.execute(f"UPDATE grants SET {column} = replace({column}, '.', '.A') WHERE id = ?", (session.grant_id,))
    if column == "refresh_token":
        world.clock.advance(250)
    world.network.sent.clear()
    with pytest.raises(SignInAgainError, match="does not open any more"):
        await token(world, session)
    assert world.network.sent == []
    assert (await token(world, bob))["sealed"], "other people's work"
    again = await signed_in(world)
    assert again.grant_id != session.grant_id
    assert (await token(world, again))["sealed"]


async def test_a_refresh_token_never_goes_to_another_issuer_than_its_own(world: Inside) -> None:
    """Attack: a deployment whose issuer was changed hands the old one's tokens to the new one."""
    session = await signed_in(world)
    moved = world.again(url="http://127.0.0.1:2025")
    world.network.sent.clear()
    try:
        with pytest.raises(SignInAgainError, match="another issuer"):
            await token(world, session, identity=moved)
    finally:
        await asyncio.to_thread(moved.close)
    assert world.network.sent == []
    assert (await token(world, session))["sealed"]


async def test_two_tenants_on_one_database_do_not_use_each_others_sign_in(world: Inside) -> None:
    session = await signed_in(world)
    globex = world.again(tenant="globex")
    theirs = replace(session, principal=replace(session.principal, tenant="globex"))
    world.network.sent.clear()
    try:
        with pytest.raises(SignInAgainError):
            await token(world, theirs, identity=globex)
    finally:
        await asyncio.to_thread(globex.close)
    assert world.network.sent == []


# -- what graph state holds ----------------------------------------------------------------------------------------------------


@pytest.mark.case("E13")
async def test_a_token_in_graph_state_opens_for_its_own_person_thread_graph_and_need_only(world: Inside) -> None:
    session, now = await signed_in(world), world.clock()
    entry = await token(world, session)
    open_, place = world.identity.broker.open, session.place
    opened = open_(place, session, PORTFOLIO, entry, now)
    assert opened is not None
    assert opened.reveal() in world.issued_tokens
    bob = replace(session, principal=world.person("bob").principal)
    assert open_(place, bob, PORTFOLIO, entry, now) is None
    assert open_(replace(place, thread="t2"), session, PORTFOLIO, entry, now) is None
    assert open_(replace(place, graph="watcher"), session, PORTFOLIO, entry, now) is None
    assert open_(replace(place, tenant="globex"), session, PORTFOLIO, entry, now) is None
    assert open_(place, session, ORDERS, entry, now) is None
    assert open_(place, session, resource(f"{API}/", "portfolio:read"), entry, now) is None


async def test_the_expiry_inside_the_seal_counts_and_not_the_one_beside_it(world: Inside) -> None:
    session = await signed_in(world)
    entry, expires_at = await token(world, session), 0.0
    expires_at = entry["expires_at"]
    forged = {**entry, "expires_at": expires_at + 86_400}
    open_ = world.identity.broker.open
    assert open_(session.place, session, PORTFOLIO, forged, expires_at - 16) is not None
    assert open_(session.place, session, PORTFOLIO, forged, expires_at - 15) is None


@pytest.mark.parametrize(
    "entry", [None, "", "a.b.c.d.e", [], {}, {"sealed": "a.b.c.d.e"}, {"sealed": 7, "expires_at": 9e9}, {"expires_at": 9e9}]
    + [{"sealed": sealed, "expires_at": 9e9} for sealed in ("", "....", "a.b.c.d.e", "e30.e30.e30.e30.e30")],
)  # fmt: skip
async def test_whatever_a_client_puts_into_state_opens_to_nothing(world: Inside, entry: object) -> None:
    session = await signed_in(world)
    assert world.identity.broker.open(session.place, session, PORTFOLIO, entry, world.clock()) is None


# -- the issuer ----------------------------------------------------------------------------------------------------------------

DISCOVERY = "/issuer/.well-known/openid-configuration"


def fetched(world: Inside, path: str) -> int:
    return sum(httpx.URL(sent.url).path == path for sent in world.network.sent)


def down(*paths: str, how: httpx.Response | Exception | None = None) -> Callable[[httpx.Request], Any]:
    return lambda request: (how or httpx.Response(500)) if request.url.path in paths else None


async def test_discovery_is_asked_for_once_an_hour_and_its_last_good_answer_serves_an_outage(world: Inside) -> None:
    broker, acall = world.identity.broker, world.identity.transport.acall
    await asyncio.gather(*(acall(broker.server) for _ in range(20)))
    world.clock.advance(3599)
    found = await acall(broker.server)
    assert fetched(world, DISCOVERY) == 1
    world.clock.advance(1)
    world.network.fault = down(DISCOVERY)
    for _ in range(10):
        assert await acall(broker.server) == found
    assert fetched(world, DISCOVERY) == 2, "an outage does not put a failing request before every other one"
    world.clock.advance(60)
    world.network.fault = None
    assert await acall(broker.server) == found
    assert fetched(world, DISCOVERY) == 3


async def test_without_any_good_answer_the_failure_is_told_and_tried_again(world: Inside) -> None:
    broker, acall = world.identity.broker, world.identity.transport.acall
    world.network.fault = down(DISCOVERY)
    with pytest.raises(TransportError):
        await acall(broker.server)
    world.network.fault = None
    assert (await acall(broker.server)).issuer == f"{URL}/issuer"


@pytest.mark.case("A11")
async def test_while_the_keys_cannot_be_had_the_last_good_ones_serve_for_a_day(world: Inside) -> None:
    broker, acall = world.identity.broker, world.identity.transport.acall
    kid = world.world.installation.signing_key.kid
    keys = await acall(broker.keys, kid)
    world.network.fault = down("/issuer/jwks", how=httpx.ConnectError("down"))
    for hours in (2, 12, 9):
        world.clock.advance(hours * 3600)
        assert await acall(broker.keys, kid) is keys
    world.clock.advance(2 * 3600)
    with pytest.raises(TransportError):
        await acall(broker.keys, kid)
    world.clock.advance(61)
    world.network.fault = None
    assert kid in await acall(broker.keys, kid)


@pytest.mark.case("A10")
async def test_a_thousand_tokens_with_unknown_keys_cause_one_request(world: Inside) -> None:
    broker, acall = world.identity.broker, world.identity.transport.acall

    async def unknown(number: int) -> None:
        with pytest.raises(Exception, match="key"):
            await broker.keys(f"../../etc/passwd{number}")

    async def many() -> None:
        await asyncio.gather(*(unknown(n) for n in range(1_000)))

    await acall(many)
    world.clock.advance(59)
    await acall(many)
    assert fetched(world, "/issuer/jwks") == 1


async def test_a_check_says_whether_the_issuer_knows_this_agent(world: Inside) -> None:
    assert (await world.identity.transport.acall(world.identity.broker.check)).issuer == f"{URL}/issuer"
    stranger = world.again(client_id="stranger")
    try:
        with pytest.raises(OAuthError) as refused:
            await stranger.transport.acall(stranger.broker.check)
    finally:
        await asyncio.to_thread(stranger.close)
    assert refused.value.error == "invalid_client"
    assert "DEPUTIZE_CLIENT_ID" in refused.value.hint
