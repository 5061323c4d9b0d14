"""The real ``oidc-provider``, which nobody here wrote: login, refresh, delegation, CIBA, and a whole approved conversation."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvicorn
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from starlette.applications import Starlette

from agent.tools import trading_tools
from graphs.assistant import build_assistant
from identity import AccessToken, Identity, Principal, Relation, Secret, approval, needs, resource
from identity.asking import SAFETY_INTERVAL
from identity.broker import SignInAgainError
from identity.errors import OAuthError, ProtocolError, SettingsError, TokenError, TransportError, UsageError
from identity.keyring import create_client_key, create_keyring
from identity.ledger import Request
from identity.oauth.exchange import exchange_request
from identity.oauth.tokens import process_token_response, refresh_request
from identity.server import ping_route
from identity.sessions import Place, Session
from identity.settings import load_settings
from identity.terminal import Callback
from tests.interop.oidc_provider.running import API, CLIENT_ID, PINGED, Api, Person, Provider, running
from tests.support import Scripted, calls, config, last, requests, say

PORTFOLIO = resource(API, "portfolio:read")
ORDERS = resource(API, "orders:write")
PLACE = Place("default", "assistant", "t1")
SCOPES = ["orders:write", "portfolio:read"]


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    with running(tmp_path_factory.mktemp("oidc-provider")) as up:
        yield up
        assert "server_error" not in up.log.read_text()


@pytest.fixture
def installed(provider: Provider, tmp_path: Path) -> Iterator[Callable[..., Identity]]:
    """Makes identity layers that are installed as in production, each on files of its own."""
    made: list[Identity] = []

    def install(**more: Any) -> Identity:
        home = tmp_path / str(len(made))
        settings = load_settings(
            **{
                "issuer": provider.issuer,
                "client_id": CLIENT_ID,
                "client_key_file": provider.client_key_file,
                "data_dir": home / "data",
                "key_file": home / "keys" / "keyring.json",
                "ca_file": provider.ca_file,
                **more,
            }
        )
        create_keyring(settings.key_file, settings.data_dir, time.time())
        made.append(Identity(settings))
        return made[-1]

    yield install
    for identity in made:
        identity.close()


class Desk:
    """Somebody who talks to the assistant, the assistant's identity, and the API that it trades at."""

    def __init__(self, provider: Provider, identity: Identity, login: str) -> None:
        self.identity = identity
        self.person = Person(provider, login)
        self.api = Api(provider)
        self.principal = Principal("default", provider.issuer, login)

    async def send(self, request: Any) -> Any:
        return await self.identity.transport.acall(self.identity.transport.send, request)

    async def sign_in(self) -> Session:
        """Sign in by typed code, as at a terminal."""
        asking = self.identity.asking
        request = await self.identity.transport.acall(asking.login, PLACE, self.principal, "m0", SCOPES)
        assert request is not None
        await self.person.sign_in(request.shown())
        assert await self.poll(request) == "approved"
        session = self.identity.sessions.of(PLACE)
        assert session is not None
        return session

    async def token(self, session: Session, need: Any) -> AccessToken:
        """What a tool would be lent."""
        entry = await self.identity.transport.acall(self.identity.broker.token, PLACE, session, need)
        opened = self.identity.broker.open(PLACE, session, need, entry, time.time())
        assert opened is not None
        return opened

    async def poll(self, request: Request | dict[str, Any]) -> str:
        """Ask the server once, now, instead of when the interval has passed; the request's state after that."""
        found = request if isinstance(request, Request) else self.identity.ledger.request(request["id"])
        assert found is not None
        await self.identity.transport.acall(self.identity.asking.poll, found)
        after = self.identity.ledger.request(found.id)
        assert after is not None
        return after.state

    def assistant(self, tools: list[BaseTool], *turns: Any) -> Any:
        return build_assistant(Scripted(*turns), tools, self.identity, InMemorySaver())

    async def ask(self, need: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """A call that waits for an approval: the graph, the request as the chat shows it, and as the telephone does."""

        @tool
        @needs(approval(type="stock_order"), token=need)
        async def buy(quantity: int, limit: Decimal, token: AccessToken) -> str:
            """Buy shares."""
            return f"bought with {sorted(self.api.claims(token.reveal(), time.time()).scopes)}"

        await self.sign_in()
        graph = self.assistant([buy], calls(("buy", {"quantity": 5, "limit": "99.90"})))
        with self.identity.caller(self.principal):
            (shown,) = requests(await say(graph))
        return graph, shown, await self.on_the_telephone(shown)

    async def on_the_telephone(self, shown: dict[str, Any]) -> dict[str, Any]:
        """The request with the code that the chat shows: by that, people know which one it is."""
        (found,) = [r for r in await self.person.waiting() if r["binding_message"] == shown["code"]]
        return found

    async def outcome(self, graph: Any) -> str:
        """What the tool's call came to, now that its request is decided."""
        state = await self.identity.resume(graph, config())
        return str(state["messages"][-2].content)


@pytest_asyncio.fixture
async def desk(provider: Provider, installed: Callable[..., Identity], request: Any) -> AsyncIterator[Desk]:
    up = Desk(provider, installed(login="device"), getattr(request, "param", "alice"))
    yield up
    await up.person.close()


@contextmanager
def browser(installed: Callable[..., Identity]) -> Iterator[tuple[Identity, Callback]]:
    """An identity layer whose people sign in in a browser that comes back to loopback."""
    with Callback() as callback:
        identity = installed(login="browser", redirect_uri=callback.redirect_uri)
        callback.finish = lambda query: identity.transport.call(identity.asking.browser_callback, query)
        yield identity, callback


# -- the server, and who is believed to be it ------------------------------------------------------------------------


async def test_its_metadata_is_accepted_and_so_is_the_agents_credential(desk: Desk) -> None:
    server = await desk.identity.transport.acall(desk.identity.broker.check)
    assert server.issuer == desk.principal.issuer
    assert server.authorization_response_iss_parameter_supported
    assert server.code_challenge_methods_supported == ("S256",)
    assert server.backchannel_token_delivery_modes_supported == ("poll", "ping")
    assert server.authorization_details_types_supported == ("stock_order",)


async def test_another_key_is_told_to_be_registered_there(installed: Callable[..., Identity], tmp_path: Path) -> None:
    create_client_key(tmp_path / "other.json")
    identity = installed(client_key_file=tmp_path / "other.json")
    with pytest.raises(OAuthError, match="invalid_client") as refused:
        await identity.transport.acall(identity.broker.check)
    assert "DEPUTIZE_CLIENT_KEY_FILE" in refused.value.hint


@pytest.mark.case("A13")
async def test_an_issuer_spelled_with_another_slash_is_another_issuer(
    provider: Provider, installed: Callable[..., Identity]
) -> None:
    identity = installed(issuer=provider.issuer + "/")
    with pytest.raises(ProtocolError, match="for another issuer"):
        await identity.transport.acall(identity.broker.server)


async def test_a_private_authority_is_trusted_only_where_the_settings_name_it(
    installed: Callable[..., Identity], tmp_path: Path
) -> None:
    unnamed = installed(ca_file=None)
    with pytest.raises(TransportError, match="did not answer"):
        await unnamed.transport.acall(unnamed.broker.server)
    (tmp_path / "empty.pem").write_text("not a certificate")
    for file in (tmp_path / "empty.pem", tmp_path / "missing.pem"):
        wrong = installed(ca_file=file)
        with pytest.raises(SettingsError, match=r"DEPUTIZE_CA_FILE: .*\.pem holds no certificates"):
            await wrong.transport.acall(wrong.broker.server)


# -- signing in, and staying so --------------------------------------------------------------------------------------


async def test_a_person_signs_in_in_the_browser_and_the_code_serves_once(
    provider: Provider, installed: Callable[..., Identity]
) -> None:
    alice = Person(provider, "alice")
    with browser(installed) as (identity, callback):
        seen: list[list[tuple[str, str]]] = []
        finish = callback.finish
        assert finish is not None
        callback.finish = lambda query: (seen.append(query), finish(query))
        request = await identity.transport.acall(identity.asking.login, PLACE, None, "m0", SCOPES)
        assert "Signed in" in await alice.sign_in(request.shown())
        session = identity.sessions.of(PLACE)
        assert session is not None
        assert session.principal == Principal("default", provider.issuer, "alice")
        assert session.principal.name == "Alice Archer"
        assert dict(seen[0])["iss"] == provider.issuer
        with pytest.raises(UsageError, match="used or expired"):
            await identity.transport.acall(identity.asking.browser_callback, seen[0])
    await alice.close()


async def test_a_device_login_brings_a_grant_that_is_refreshed_for_each_token(desk: Desk) -> None:
    session = await desk.sign_in()
    vault = desk.identity.vault
    refresh_tokens = []
    for generation in range(3):
        grant = vault.live_grant(desk.principal, time.time())
        assert grant is not None and grant.generation == generation
        refresh_tokens.append(vault.refresh_token(grant))
        await desk.token(session, ORDERS)  # its subject token lives a minute, so there is none in store that serves
    assert len({token.reveal() for token in refresh_tokens}) == 3

    # Somebody stole the first refresh token and uses it: the server ends the whole family, and we ask for a sign-in.
    broker = desk.identity.broker
    server, client = (
        await desk.identity.transport.acall(broker.server),
        await desk.identity.transport.acall(broker.client),
    )
    stolen = await desk.send(refresh_request(server, client, refresh_tokens[0], now=time.time()))
    with pytest.raises(OAuthError, match="invalid_grant"):
        process_token_response(stolen, now=time.time())
    with pytest.raises(SignInAgainError):
        await desk.token(session, ORDERS)


# -- acting for somebody ---------------------------------------------------------------------------------------------


async def test_a_delegated_token_is_a_valid_access_token_of_the_person_with_the_agent_as_actor(desk: Desk) -> None:
    token = await desk.token(await desk.sign_in(), PORTFOLIO)
    claims = desk.api.claims(token.reveal(), time.time())
    assert (claims.subject, claims.actor, claims.may_act) == ("alice", CLIENT_ID, None)
    assert claims.scopes == {"portfolio:read"}
    assert claims.authorization_details == ()
    with pytest.raises(TokenError, match="expired"):
        desk.api.claims(token.reveal(), claims.expires_at + 61)


@pytest.mark.case("A8")
async def test_the_token_of_the_sign_in_itself_opens_nothing_at_the_api(desk: Desk) -> None:
    session = await desk.sign_in()
    await desk.token(session, PORTFOLIO)
    grant = desk.identity.vault.grant(session.grant_id, session.principal)
    assert grant is not None
    subject_token = desk.identity.vault.subject_token(grant, time.time() - 60)  # while it was fresh enough to be used
    assert subject_token is not None
    with pytest.raises(TokenError, match="another audience"):
        desk.api.claims(subject_token.reveal(), time.time())


async def test_a_token_for_an_api_is_no_subject_token(desk: Desk) -> None:
    token = await desk.token(await desk.sign_in(), PORTFOLIO)
    broker = desk.identity.broker
    server, client = (
        await desk.identity.transport.acall(broker.server),
        await desk.identity.transport.acall(broker.client),
    )
    answer = await desk.send(
        exchange_request(
            server, client, Secret(token.reveal()), audience_resource=API, scope="orders:write", now=time.time()
        )
    )
    with pytest.raises(OAuthError, match="subject_token is not acceptable"):
        process_token_response(answer, now=time.time())


@pytest.mark.parametrize(
    ("need", "error"),
    [
        (resource(API, "orders:cancel"), "invalid_scope"),
        (resource("https://other.example/api", "orders:write"), "invalid_target"),
    ],
)
async def test_what_was_not_granted_at_the_sign_in_is_not_delegated(desk: Desk, need: Any, error: str) -> None:
    session = await desk.sign_in()
    with pytest.raises(OAuthError, match=error):
        await desk.token(session, need)


# -- asking a person -------------------------------------------------------------------------------------------------


async def test_an_approval_shows_the_same_code_and_the_very_call_on_the_telephone(desk: Desk) -> None:
    graph, shown, waiting = await desk.ask(ORDERS)
    (detail,) = waiting["authorization_details"]
    assert (detail["type"], detail["locations"], detail["actions"]) == ("stock_order", [API], ["buy"])
    assert detail["arguments"] == {"quantity": 5, "limit": "99.90"}
    assert await desk.poll(shown) == "pending"
    await desk.person.decide(waiting, approve=True)
    assert await desk.poll(shown) == "approved"
    assert await desk.outcome(graph) == "bought with ['orders:write']"


@contextmanager
def pinged(provider: Provider, identity: Identity) -> Iterator[list[str]]:
    """Our notification endpoint, served with TLS; what its pings have found."""
    found: list[str] = []

    async def decided(request: Request) -> None:
        found.append(request.state)

    certificate, key = provider.tls
    app = Starlette(routes=[ping_route(identity, decided)])
    served = uvicorn.Config(app, log_level="warning", lifespan="off", ssl_certfile=certificate, ssl_keyfile=str(key))
    server = uvicorn.Server(served)
    thread = threading.Thread(target=server.run, args=([provider.pings],), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.should_exit = True
        thread.join(timeout=10)


@pytest.mark.case("B13")
async def test_a_ping_brings_the_decision_at_once(provider: Provider, installed: Callable[..., Identity]) -> None:
    desk = Desk(provider, installed(login="device", client_id=PINGED, delivery="ping"), "alice")
    with pinged(provider, desk.identity) as found:
        graph, shown, waiting = await desk.ask(ORDERS)
        request = desk.identity.ledger.request(shown["id"])
        assert request is not None
        assert request.interval == SAFETY_INTERVAL
        await desk.person.decide(waiting, approve=True)
        for _ in range(500):  # five seconds at most, far below the interval
            if found:
                break
            await asyncio.sleep(0.01)
        assert found == ["approved"]
        assert await desk.outcome(graph) == "bought with ['orders:write']"
    await desk.person.close()


async def test_a_server_that_sends_no_interval_is_asked_every_five_seconds(desk: Desk) -> None:
    _, shown, _ = await desk.ask(ORDERS)
    request = desk.identity.ledger.request(shown["id"])
    assert request is not None
    assert request.interval == 5.0
    assert request.next_poll_at == pytest.approx(request.created_at + 5.0)


async def test_a_denial_ends_the_request_and_nothing_is_bought(desk: Desk) -> None:
    graph, shown, waiting = await desk.ask(ORDERS)
    await desk.person.decide(waiting, approve=False)
    assert await desk.poll(shown) == "denied"
    assert "declined" in await desk.outcome(graph)


@pytest.mark.parametrize("desk", ["hasty"], indirect=True)
@pytest.mark.parametrize("late", [1.2, 3.2], ids=["expired_token", "invalid_grant, once the server has forgotten it"])
async def test_a_request_that_nobody_decided_in_time_has_expired(desk: Desk, late: float) -> None:
    graph, shown, _ = await desk.ask(ORDERS)
    await asyncio.sleep(late)
    assert await desk.poll(shown) == "expired"
    assert "expired" in await desk.outcome(graph)


@pytest.mark.case("B16")
async def test_scopes_that_the_server_drops_without_a_word_are_noticed(desk: Desk) -> None:
    graph, shown, waiting = await desk.ask(resource(API, "orders:write", "orders:cancel"))
    assert "orders:cancel" in waiting["scope"]
    await desk.person.decide(waiting, approve=True)
    assert await desk.poll(shown) == "denied"
    assert "without the scope orders:cancel" in await desk.outcome(graph)


@pytest.mark.case("B16")
async def test_an_approval_of_another_order_than_was_asked_for_is_not_used(desk: Desk) -> None:
    graph, shown, waiting = await desk.ask(ORDERS)
    (detail,) = waiting["authorization_details"]
    other = {**detail, "arguments": {**detail["arguments"], "quantity": 500}}
    await desk.person.decide(waiting, approve=True, authorization_details=[other])
    assert await desk.poll(shown) == "denied"
    assert "Something else was approved" in await desk.outcome(graph)


# -- the whole of it -------------------------------------------------------------------------------------------------


async def test_a_whole_approved_conversation_runs_against_it(
    provider: Provider, installed: Callable[..., Identity]
) -> None:
    with browser(installed) as (identity, _):
        desk = Desk(provider, identity, "bob")
        may_buy = Relation(desk.principal.key, "can_buy", "instrument:ACME")
        await asyncio.to_thread(identity.relations.write, identity.settings.tenant, [may_buy])
        order = {"symbol": "ACME", "quantity": 5, "limit": "100"}
        large = {"symbol": "ACME", "quantity": 50, "limit": "100"}
        graph = desk.assistant(
            trading_tools("https://api.example", desk.api.network),
            calls(("get_quote", {"symbol": "ACME"})),
            "There you are.",
            calls("show_portfolio"),
            "That is all.",
            calls(("buy_stock", order)),
            "Bought.",
            calls(("buy_stock", large)),
            "Bought those, too.",
        )
        state = await say(graph, "What is ACME at?")
        assert "98.40" in state["messages"][-2].content

        (asked,) = requests(await say(graph, "Show my portfolio"))
        assert asked["kind"] == "login"
        await desk.person.sign_in(asked)
        state = await identity.resume(graph, config())
        assert "12 of bob" in state["messages"][-2].content

        with identity.caller(desk.principal):
            await say(graph, "Buy 5")
            (asked,) = requests(await say(graph, "Buy 50"))
        assert asked["kind"] == "approval"
        assert [sent for sent, _ in desk.api.orders] == [order]

        waiting = await desk.on_the_telephone(asked)
        await desk.person.decide(waiting, approve=True)
        state = await identity.resume(graph, config())  # asks the server when its interval has passed
        assert last(state) == "Bought those, too."
        assert "Bought 50 ACME" in state["messages"][-2].content

        (small, by_exchange), (filled, by_approval) = desk.api.orders
        assert (small, filled) == (order, large)
        for claims in (by_exchange, by_approval):
            assert (claims.subject, claims.actor, claims.scopes) == ("bob", CLIENT_ID, {"orders:write"})
        assert by_exchange.authorization_details == ()
        assert list(by_approval.authorization_details) == waiting["authorization_details"]

        # Run again from each of its old checkpoints, it buys nothing again.
        async for old in graph.aget_state_history(config()):
            if old.next:
                with identity.caller(desk.principal):
                    await graph.ainvoke(None, old.config)
        assert len(desk.api.orders) == 2
        await desk.person.close()
