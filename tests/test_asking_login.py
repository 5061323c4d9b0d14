"""Logins: for the caller who asked, in the thread where it was asked, and at the issuer that was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
import pytest_asyncio

from identity import Identity, Principal, RefusedError, Secret, UsageError, Visitor, resource
from identity.errors import OAuthError, ProtocolError, TokenError, TransportError
from identity.ledger import Request
from identity.principal import Caller
from identity.sessions import Place
from tests.support import URL, Clock, Inside, answered, inside, signed_in

HERE = Place("default", "assistant", "t1")
SCOPES = ("portfolio:read",)
PORTFOLIO = resource(f"{URL}/trading", "portfolio:read")
CODE = "authorization_code"
DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
VISITOR = Visitor("v1")


async def ask(
    world: Inside, caller: Caller | None, place: Place = HERE, identity: Identity | None = None
) -> Request | None:
    identity = identity or world.identity
    return await identity.transport.acall(identity.asking.login, place, caller, "m1", SCOPES)


async def asked(world: Inside, caller: Caller | None, place: Place = HERE) -> Request:
    request = await ask(world, caller, place)
    assert request is not None
    return request


async def polled(world: Inside, request: Request, identity: Identity | None = None) -> Request:
    identity = identity or world.identity
    world.clock.advance(request.interval)
    await identity.transport.acall(identity.asking.poll, request)
    return current(identity, request)


def current(identity: Identity, request: Request) -> Request:
    found = identity.ledger.request(request.id)
    assert found is not None
    return found


def grants(identity: Identity) -> int:
    return int(identity.database.read("SELECT count(*) FROM grants")[0][0])


# -- by device -----------------------------------------------------------------------------------------------------------


async def test_a_visitor_signs_in_by_typing_the_code_and_keeps_what_the_visitor_began(world: Inside) -> None:
    request = await asked(world, VISITOR)
    assert request.url == f"{URL}/issuer/device"
    assert (await polled(world, request)).state == "pending"
    await world.person("alice").sign_in(request.shown())
    assert (await polled(world, request)).state == "approved"
    session = world.identity.sessions.of(HERE)
    assert session is not None
    assert session.principal == world.person("alice").principal
    assert session.owner == VISITOR.key
    entry = await world.identity.transport.acall(world.identity.broker.token, HERE, session, PORTFOLIO)
    assert entry["sealed"]


@pytest.mark.case("A16")
async def test_every_sign_in_begins_another_session(world: Inside) -> None:
    ids = []
    for _ in range(3):
        request = await asked(world, VISITOR)
        await world.person("alice").sign_in(request.shown())
        assert (await polled(world, request)).state == "approved"
        session = world.identity.sessions.of(HERE)
        assert session is not None
        ids.append(session.id)
    assert len(set(ids)) == 3
    live = world.identity.database.read("SELECT id FROM sessions WHERE ended_at IS NULL")
    assert live == [(ids[-1],)]


async def test_a_caller_who_has_signed_in_is_not_asked_again_in_another_thread(world: Inside) -> None:
    first = await signed_in(world, "alice", "t1")
    world.network.sent.clear()
    assert await ask(world, world.person("alice").principal, replace(HERE, thread="t2")) is None
    assert world.network.sent == []
    second = world.identity.sessions.of(replace(HERE, thread="t2"))
    assert second is not None
    assert second.grant_id == first.grant_id
    assert second.id != first.id
    assert await ask(world, world.person("bob").principal, replace(HERE, thread="t3")) is not None
    assert await ask(world, Visitor("v2"), replace(HERE, thread="t4")) is not None


async def test_the_same_caller_is_asked_once_and_each_caller_for_themselves(world: Inside) -> None:
    first, again = await asked(world, VISITOR), await asked(world, VISITOR)
    assert again.id == first.id
    assert (await asked(world, Visitor("v2"))).code != first.code
    assert (await asked(world, None)).code != first.code


async def test_a_link_that_ran_out_while_nobody_looked_is_not_shown_again(world: Inside) -> None:
    old = await asked(world, VISITOR)
    world.clock.advance(old.expires_at - world.clock())
    new = await asked(world, VISITOR)
    assert new.code != old.code
    assert current(world.identity, old).state == "expired"
    assert "its time is over" in await world.person("alice").sign_in(old.shown())
    await world.person("alice").sign_in(new.shown())
    assert (await polled(world, new)).state == "approved"


async def test_a_sign_in_that_was_declined_or_ran_out_ends_so(world: Inside) -> None:
    declined = await asked(world, VISITOR)
    alice = world.person("alice")
    page = await alice._submit(await alice._open(declined.url), {"user_code": declined.code})
    await alice._submit(page, {"decision": "deny"})
    assert (await polled(world, declined)).state == "denied"
    late = await asked(world, VISITOR)
    world.clock.advance(late.expires_at - world.clock() - 1)
    assert (await polled(world, late)).state == "expired"
    assert grants(world.identity) == 0


@pytest.mark.case("E18")
async def test_a_login_that_waited_through_a_restart_is_finished_by_the_next_process(world: Inside) -> None:
    request = await asked(world, VISITOR)
    await asyncio.to_thread(world.identity.close)
    next_process = world.again()
    try:
        await world.person("alice").sign_in(request.shown())
        world.clock.advance(1)
        assert [r.id for r in await next_process.poll()] == [request.id]
        session = next_process.sessions.of(HERE)
        assert session is not None
        assert session.principal == world.person("alice").principal
    finally:
        await asyncio.to_thread(next_process.close)


# -- whose thread it is ------------------------------------------------------------------------------------------------------


@pytest.mark.case("E13")
@pytest.mark.parametrize("who", ["another person", "a visitor", "nobody", "the same subject of another tenant"])
async def test_nobody_else_is_asked_to_sign_in_on_somebodys_thread(world: Inside, who: str) -> None:
    session = await signed_in(world, "alice")
    callers: dict[str, Caller | None] = {
        "another person": world.person("bob").principal,
        "a visitor": VISITOR,
        "nobody": None,
        "the same subject of another tenant": replace(world.person("alice").principal, tenant="globex"),
    }
    world.identity.sessions.end(session, world.clock())  # it is hers still
    world.network.sent.clear()
    with pytest.raises(RefusedError):
        await ask(world, callers[who])
    assert world.network.sent == []
    assert world.identity.ledger.pending(HERE) == []
    found = world.identity.sessions.of(HERE)
    assert found is not None
    assert found.id == session.id


@pytest.mark.case("E13")
async def test_signing_in_with_an_older_link_does_not_take_over_a_thread_that_is_somebodys_by_now(
    world: Inside,
) -> None:
    older = await asked(world, VISITOR)
    session = await signed_in(world, "alice")
    await world.person("bob").sign_in(older.shown())
    found = await polled(world, older)
    assert found.state == "denied"
    assert "belongs to somebody" in found.reason
    assert world.identity.sessions.of(HERE) == session
    assert world.identity.vault.live_grant(world.person("bob").principal, world.clock()) is None, (
        "nothing of it is left"
    )


async def test_a_link_that_was_made_for_alice_does_not_sign_in_bob(world: Inside) -> None:
    request = await asked(world, world.person("alice").principal)
    await world.person("bob").sign_in(request.shown())
    found = await polled(world, request)
    assert found.state == "denied"
    assert "Somebody else" in found.reason
    assert world.identity.sessions.of(HERE) is None
    assert grants(world.identity) == 0


@pytest.mark.parametrize("field", ["tenant", "issuer"])
async def test_a_caller_of_another_tenant_or_issuer_is_nobody_here(world: Inside, field: str) -> None:
    """Attack: one database, two organizations; the sign-in of the one is to serve as the other's."""
    alice = world.person("alice").principal
    foreign = replace(alice, **{field: "globex" if field == "tenant" else "https://other.example"})
    world.identity.vault.store_grant(
        foreign,
        refresh_token=Secret("rt-of-another-place"),
        scope="",
        expires_at=world.clock() + 3600,
        now=world.clock(),
    )
    with pytest.raises(RefusedError, match="another organization or issuer") as refused:
        await ask(world, foreign)
    assert refused.value.code == "foreign_principal"
    assert world.network.sent == []
    assert world.identity.sessions.of(HERE) is None


@pytest.mark.case("G10")
async def test_two_tenants_on_one_database_sign_in_for_themselves(world: Inside) -> None:
    await signed_in(world, "alice")
    globex = world.again(tenant="globex")
    there = Place("globex", "assistant", "t1")
    theirs = Principal("globex", globex.settings.issuer, world.person("alice").principal.subject)
    try:
        assert globex.sessions.of(there) is None
        request = await ask(world, theirs, there, globex)
        assert request is not None, "the sign-in at acme is none at globex"
        await world.person("alice").sign_in(request.shown())
        assert (await polled(world, request, globex)).state == "approved"
        acme, other = world.identity.sessions.of(HERE), globex.sessions.of(there)
        assert acme is not None
        assert other is not None
        assert acme.grant_id != other.grant_id
        assert globex.vault.grant(acme.grant_id, theirs) is None
        assert world.identity.vault.grant(other.grant_id, world.person("alice").principal) is None
    finally:
        await asyncio.to_thread(globex.close)


# -- answers that are not what was asked for ----------------------------------------------------------------------------------


@pytest.mark.case("B16")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda body: {**body, "id_token": None}, "no id_token"),
        (lambda body: {**body, "id_token": body["access_token"]}, "another kind"),
        (lambda body: {**body, "id_token": body["id_token"][:-8] + "AAAAAAAA"}, "signature"),
        (lambda body: {**body, "refresh_token": None}, "no refresh token"),
        (lambda body: {**body, "access_token": ""}, "access_token"),
    ],
)
async def test_a_sign_in_whose_answer_lacks_or_forges_something_stores_nothing(
    world: Inside, change: Callable[[dict[str, Any]], dict[str, Any]], told: str
) -> None:
    request = await asked(world, VISITOR)
    await world.person("alice").sign_in(request.shown())
    answered(world, DEVICE, change)
    found = await polled(world, request)
    assert found.state == "denied"
    assert told in found.reason
    assert world.identity.sessions.of(HERE) is None
    assert grants(world.identity) == 0


@pytest.mark.case("B15")
@pytest.mark.parametrize("status", [500, 429])
async def test_a_failure_while_polling_for_a_login_leaves_it_open(world: Inside, status: int) -> None:
    request = await asked(world, VISITOR)
    await world.person("alice").sign_in(request.shown())
    world.network.fault = lambda sent: httpx.Response(status) if sent.url.path == "/issuer/token" else None
    assert (await polled(world, request)).state == "pending"
    world.network.fault = None
    assert (await polled(world, request)).state == "approved"


async def test_a_login_that_was_withdrawn_while_it_was_finished_leaves_no_session_and_no_grant(world: Inside) -> None:
    request = await asked(world, VISITOR)
    await world.person("alice").sign_in(request.shown())

    def withdrawn_meanwhile(body: dict[str, Any]) -> dict[str, Any]:
        assert world.identity.ledger.decide(request, "withdrawn", now=world.clock())
        return body

    answered(world, DEVICE, withdrawn_meanwhile)
    assert (await polled(world, request)).state == "withdrawn"
    session = world.identity.sessions.of(HERE)
    assert session is None or not session.live(world.clock())
    assert grants(world.identity) == 0


# -- by browser ------------------------------------------------------------------------------------------------------------------

BACK = "http://127.0.0.1:7777/callback"


@pytest_asyncio.fixture
async def browser(tmp_path: Path, clock: Clock) -> AsyncIterator[Inside]:
    """The world with logins by authorization code."""
    async with inside(tmp_path, clock, login="browser", redirect_uri=BACK) as up:
        yield up


async def redirected(world: Inside, request: Request, username: str = "alice") -> list[tuple[str, str]]:
    """The query that the browser comes back with."""
    back = await world.person(username).sign_in(request.shown())
    assert back.startswith(f"{BACK}?")
    return parse_qsl(urlsplit(back).query)


async def finish(world: Inside, query: list[tuple[str, str]], identity: Identity | None = None) -> Request:
    identity = identity or world.identity
    return await identity.transport.acall(identity.asking.browser_callback, query)


def codes_sent(world: Inside) -> int:
    return world.network.grants().count(CODE)


async def test_a_browser_login_finishes_with_the_redirect_and_is_polled_nowhere(browser: Inside) -> None:
    request = await asked(browser, VISITOR)
    assert (request.url.split("?")[0], request.code) == (f"{URL}/issuer/authorize", "")
    assert (await polled(browser, replace(request, interval=0.0))).state == "pending"
    assert browser.network.grants() == []
    assert (await finish(browser, await redirected(browser, request))).id == request.id
    assert current(browser.identity, request).state == "approved"
    session = browser.identity.sessions.of(HERE)
    assert session is not None
    assert session.principal == browser.person("alice").principal
    assert codes_sent(browser) == 1


def _edited(**changed: str | None) -> Callable[[list[tuple[str, str]]], list[tuple[str, str]]]:
    def edit(query: list[tuple[str, str]]) -> list[tuple[str, str]]:
        values: dict[str, str | None] = {**dict(query), **changed}
        return [(name, value) for name, value in values.items() if value is not None]

    return edit


@pytest.mark.case("A1")
@pytest.mark.parametrize(
    "edit",
    [
        _edited(iss=None),
        _edited(iss="https://evil.example"),
        _edited(iss=f"{URL}/issuer/"),
        _edited(iss=f"{URL}/Issuer"),
        _edited(iss=""),
        _edited(iss=None, code=None, error="access_denied"),
        _edited(iss="https://evil.example", code=None, error="access_denied"),
        _edited(iss="https://evil.example", code="theirs"),
    ],
)
async def test_a_redirect_that_is_not_from_the_issuer_causes_no_token_request_and_ends_nothing(
    browser: Inside, edit: Callable[[list[tuple[str, str]]], list[tuple[str, str]]]
) -> None:
    request = await asked(browser, VISITOR)
    query = await redirected(browser, request)
    with pytest.raises(ProtocolError, match="server"):
        await finish(browser, edit(query))
    assert codes_sent(browser) == 0
    assert current(browser.identity, request).state == "pending"
    await finish(browser, query)  # the true one is not spoilt by it
    assert current(browser.identity, request).state == "approved"


@pytest.mark.parametrize(
    "edit",
    [
        _edited(state=None),
        _edited(state=""),
        _edited(state="A" * 43),
        lambda query: [*query, ("state", dict(query)["state"])],
        lambda query: [],
        lambda query: [("state", "\ud800")],
    ],
)
async def test_a_redirect_that_belongs_to_no_login_stores_nothing(
    browser: Inside, edit: Callable[[list[tuple[str, str]]], list[tuple[str, str]]]
) -> None:
    request = await asked(browser, VISITOR)
    query = edit(await redirected(browser, request))
    with pytest.raises(UsageError, match="unknown, used or expired"):
        await finish(browser, query)
    assert codes_sent(browser) == 0
    assert grants(browser.identity) == 0
    assert current(browser.identity, request).state == "pending"


async def test_a_redirect_serves_once(browser: Inside) -> None:
    query = await redirected(browser, await asked(browser, VISITOR))
    await finish(browser, query)
    session = browser.identity.sessions.of(HERE)
    with pytest.raises(UsageError):
        await finish(browser, query)
    assert codes_sent(browser) == 1
    assert browser.identity.sessions.of(HERE) == session


async def test_a_browser_that_opens_the_redirect_twice_at_once_signs_in_once(browser: Inside) -> None:
    """The same code sent twice would make the issuer revoke what it brought (casebook A4)."""
    query = await redirected(browser, await asked(browser, VISITOR))
    results = await asyncio.gather(*(finish(browser, query) for _ in range(5)), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["Request", *["UsageError"] * 4]
    assert codes_sent(browser) == 1
    session = browser.identity.sessions.of(HERE)
    assert session is not None
    entry = await browser.identity.transport.acall(browser.identity.broker.token, HERE, session, PORTFOLIO)
    assert entry["sealed"]


async def test_a_browser_login_ends_at_its_time_for_the_redirect_and_for_whoever_waits(browser: Inside) -> None:
    request = await asked(browser, VISITOR)
    query = await redirected(browser, request)
    browser.clock.advance(request.expires_at - browser.clock())
    with pytest.raises(UsageError, match="expired"):
        await finish(browser, query)
    assert codes_sent(browser) == 0
    await browser.identity.transport.acall(browser.identity.asking.wait, HERE)
    assert current(browser.identity, request).state == "expired"


async def test_a_refusal_of_the_issuer_ends_the_login(browser: Inside) -> None:
    request = await asked(browser, VISITOR)
    state = dict(parse_qsl(urlsplit(request.url).query))["state"]
    query = [("error", "access_denied"), ("error_description", "\x1b[2Jno"), ("state", state), ("iss", f"{URL}/issuer")]
    with pytest.raises(OAuthError, match="access_denied"):
        await finish(browser, query)
    found = current(browser.identity, request)
    assert (found.state, found.reason) == ("denied", "The sign-in ended: access_denied.")


async def test_an_id_token_of_another_sign_in_is_not_taken(browser: Inside) -> None:
    request = await asked(browser, VISITOR)
    query = await redirected(browser, request)
    tokens, alice = browser.world.issuer.tokens, browser.person("alice").principal

    def replayed(body: dict[str, Any]) -> dict[str, Any]:
        made = tokens.identity(
            subject=alice.subject, client_id="deputize-agent", auth_time=browser.clock(), nonce="of-another-sign-in"
        )
        return {**body, "id_token": made}

    answered(browser, CODE, replayed)
    with pytest.raises(TokenError, match="another sign-in"):
        await finish(browser, query)
    assert current(browser.identity, request).state == "denied"
    assert grants(browser.identity) == 0


async def test_a_code_that_could_not_be_redeemed_ends_the_login_and_says_so(browser: Inside) -> None:
    request = await asked(browser, VISITOR)
    query = await redirected(browser, request)
    browser.network.fault = lambda sent: httpx.ReadTimeout("slow") if sent.url.path == "/issuer/token" else None
    with pytest.raises(TransportError):
        await finish(browser, query)
    browser.network.fault = None
    assert current(browser.identity, request).state == "denied"
    again = await asked(browser, VISITOR)
    assert again.id != request.id
    await finish(browser, await redirected(browser, again))
    assert current(browser.identity, again).state == "approved"


@pytest.mark.case("E18")
async def test_a_browser_login_that_waited_through_a_restart_is_finished_by_the_next_process(browser: Inside) -> None:
    request = await asked(browser, VISITOR)
    query = await redirected(browser, request)
    await asyncio.to_thread(browser.identity.close)
    next_process = browser.again(login="browser", redirect_uri=BACK)
    try:
        await finish(browser, query, next_process)
        assert current(next_process, request).state == "approved"
    finally:
        await asyncio.to_thread(next_process.close)


async def test_the_code_of_one_issuer_is_not_sent_to_another(browser: Inside) -> None:
    request = await asked(browser, VISITOR)
    query = await redirected(browser, request)
    moved = browser.again(url="http://127.0.0.1:2025", login="browser", redirect_uri=BACK)
    browser.network.sent.clear()
    try:
        for asserted in (query, [*(p for p in query if p[0] != "iss"), ("iss", moved.settings.issuer)]):
            with pytest.raises(RefusedError, match="another issuer"):
                await finish(browser, asserted, moved)
    finally:
        await asyncio.to_thread(moved.close)
    assert browser.network.sent == []


# -- pages that are never shown (casebook C9) -----------------------------------------------------------------------------------

_ELSEWHERE = [
    "http://127.0.0.1:2025/a",
    "http://evil.example/a",
    "javascript:alert(1)",
    "data:text/html,a",
    "/authorize",
]


@pytest.mark.case("C9")
@pytest.mark.parametrize("url", _ELSEWHERE)
@pytest.mark.parametrize("name", ["authorization_endpoint", "token_endpoint", "jwks_uri"])
async def test_discovery_that_names_anything_but_https_shows_nothing_to_anybody(
    browser: Inside, name: str, url: str
) -> None:
    answered(browser, "", lambda body: {**body, name: url}, path="/issuer/.well-known/openid-configuration")
    with pytest.raises(ProtocolError, match=f"{name} is not an https URL"):
        await ask(browser, VISITOR)
    assert browser.identity.ledger.pending(HERE) == []
    assert [httpx.URL(sent.url).path for sent in browser.network.sent] == ["/issuer/.well-known/openid-configuration"]


@pytest.mark.case("C9")
@pytest.mark.parametrize("url", _ELSEWHERE)
async def test_a_device_page_that_is_not_https_is_not_shown(world: Inside, url: str) -> None:
    answered(world, "", lambda body: {**body, "verification_uri": url}, path="/issuer/device_authorization")
    with pytest.raises(ProtocolError, match="verification_uri is not an https URL"):
        await ask(world, VISITOR)
    assert world.identity.ledger.pending(HERE) == []
