"""Who is calling, and whose each thread is: the handlers, called as the server calls them."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from langgraph_sdk import Auth
from starlette.exceptions import HTTPException

from identity import Identity, Principal
from identity.principal import Visitor
from identity.secret import Secret
from identity.server import auth as module
from identity.server.auth import protect, server_auth
from identity.sessions import Place
from identity.visitors import cookie_name
from tests.support import Inside, assistant, calls, config
from tests.world.driver import Driver

COOKIE = cookie_name("http://127.0.0.1")

TEXT = {"messages": [{"role": "user", "content": "hi"}]}
LOGIN = "https://app.example/sign-in"


class Patched:
    """The in-process client, as far as threads' metadata and assistants' graphs go. The graph is the assistant's id."""

    def __init__(self) -> None:
        self.threads = self.assistants = self
        self.graphs: dict[str, str] = {}
        self.updated: list[tuple[str, dict[str, Any]]] = []

    async def get(self, id_: str) -> dict[str, Any]:
        if id_ == "gone":
            request = httpx.Request("GET", "http://server/threads/gone")
            raise httpx.HTTPStatusError("404", request=request, response=httpx.Response(404, request=request))
        return {"metadata": {"graph_id": self.graphs[id_]} if id_ in self.graphs else {}, "graph_id": id_}

    async def update(self, thread: str, *, metadata: dict[str, Any]) -> None:
        self.updated.append((thread, metadata))


class Context:
    def __init__(self, user: Any) -> None:
        self.user = user
        self.permissions: list[str] = []


class StudioUser:
    """What the server makes of ``x-auth-scheme: langsmith``."""

    identity = display_name = "langgraph-studio-user"
    kind = "StudioUser"

    def __getitem__(self, name: str) -> str:
        return {"kind": self.kind, "identity": self.identity, "display_name": self.display_name}[name]


class Called:
    """Dispatches as the server does: the handler of the resource and action, else the global one."""

    def __init__(self, identity: Identity, auth: Auth | None = None) -> None:
        self.identity = identity
        self.client = Patched()
        self.auth = auth or server_auth(identity)

    async def enter(
        self,
        token: str | None = None,
        visitor: str | None = None,
        path: str = "/threads",
        method: str = "POST",
        **more: Any,
    ) -> Any:
        headers = {b"cookie": f"{COOKIE}={visitor}".encode()} if visitor else {}
        authorization = more.get("authorization", f"Bearer {token}" if token else None)
        authenticate: Any = self.auth._authenticate_handler
        scope = {"type": more.get("type", "http")}
        return await authenticate(authorization=authorization, headers=headers, path=path, method=method, scope=scope)

    async def may(self, user: Any, resource: str, action: str, value: dict[str, Any]) -> Any:
        handlers = self.auth._handlers.get((resource, action)) or self.auth._global_handlers
        return await handlers[-1](ctx=Context(user), value=value)  # type: ignore[call-arg]

    async def run(self, user: Any, run_id: str = "r1", thread: str = "t1", **more: Any) -> Any:
        return await self.may(user, "threads", "create_run", created(run_id, thread, **more))


def created(run_id: str = "r1", thread: str = "t1", **more: Any) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "thread_id": thread,
        "assistant_id": "assistant",
        "metadata": {},
        "multitask_strategy": "enqueue",
        "kwargs": {"input": TEXT, "command": None, "config": {"configurable": {}}},
        **more,
    }


@pytest_asyncio.fixture
async def driver(world: Inside) -> AsyncIterator[Driver]:
    made = Driver(world)
    yield made
    await made.close()


@pytest_asyncio.fixture
async def token(driver: Driver) -> str:
    """alice's access token, made for the agent."""
    return str((await driver.sign_in("alice"))["access_token"])


@pytest.fixture
def called(world: Inside, monkeypatch: pytest.MonkeyPatch) -> Called:
    made = Called(world.identity, Auth())
    monkeypatch.setattr(module, "get_client", lambda: made.client)
    made.auth = server_auth(world.identity)
    return made


def visitor(world: Inside) -> tuple[str, Visitor]:
    cookie = world.identity.visitors.mint()
    known = world.identity.visitors.known(cookie)
    assert known is not None
    return cookie, known


# -- who is calling ----------------------------------------------------------------------------------------------------


async def test_a_person_comes_with_an_access_token_and_nothing_of_it_is_kept_by_the_server(
    world: Inside, called: Called, token: str
) -> None:
    user = await called.enter(token)
    alice = world.person("alice").principal
    assert user["identity"] == alice.key
    assert (user["deputize_issuer"], user["deputize_subject"]) == (alice.issuer, alice.subject)
    assert token not in str(user)
    assert set(user) == {"identity", "display_name", "deputize_issuer", "deputize_subject"}


@pytest.mark.case("E19")
async def test_a_visitor_comes_with_a_cookie_that_was_minted_here(world: Inside, called: Called) -> None:
    (one, first), (two, second) = visitor(world), visitor(world)
    assert (await called.enter(visitor=one))["identity"] == first.key
    assert (await called.enter(visitor=two))["identity"] == second.key
    for forged in (None, first.id, f"visitor:{first.id}", "studio", one[:-2], one + "x"):
        with pytest.raises(Auth.exceptions.HTTPException) as refused:
            await called.enter(visitor=forged)
        assert refused.value.status_code == 401


@pytest.mark.parametrize(
    "authorization",
    ["Bearer", "Bearer ", "Basic x", "x", "Bearer x.y.z", "Bearer ..", "bearer \x00", "Bearer " + "x" * 9000],
)
async def test_something_that_is_no_token_is_401_also_for_a_visitor(
    world: Inside, called: Called, authorization: str
) -> None:
    """Who says to be somebody and is not is told so, and is not taken for somebody else."""
    for cookie in (None, visitor(world)[0]):
        with pytest.raises(Auth.exceptions.HTTPException) as refused:
            await called.enter(authorization=authorization, visitor=cookie)
        assert refused.value.status_code == 401


@pytest.mark.parametrize("kind", ["id_token", "refresh_token", "other audience", "client's own", "expired", "tampered"])
@pytest.mark.case("A8")
async def test_a_token_that_is_not_a_persons_access_token_for_the_agent_is_401(
    world: Inside, called: Called, driver: Driver, kind: str
) -> None:
    tokens = await driver.sign_in("alice")
    match kind:
        case "other audience":
            sent = await driver.exchanged(tokens["access_token"])
        case "client's own":
            answer = await driver.token("client_credentials", scope="")
            sent = answer.json().get("access_token", "x.y.z")
        case "expired":
            sent = tokens["access_token"]
            world.clock.advance(400)
        case "tampered":
            head, body, signature = tokens["access_token"].split(".")
            sent = f"{head}.{body}.{signature[::-1]}"
        case _:
            sent = tokens[kind]
    with pytest.raises(Auth.exceptions.HTTPException) as refused:
        await called.enter(sent)
    assert refused.value.status_code == 401
    assert sent not in refused.value.detail


async def test_when_keys_cannot_be_had_nobody_is_let_in_and_nobody_is_told_that_the_token_is_bad(
    world: Inside, called: Called, token: str
) -> None:
    world.network.fault = lambda request: httpx.ConnectError("refused")
    with pytest.raises(HTTPException) as refused:
        await called.enter(token)
    assert refused.value.status_code == 503
    world.network.fault = None
    world.clock.advance(90)
    assert (await called.enter(token))["identity"] == world.person("alice").principal.key


@pytest.mark.case("E10")
async def test_a_route_that_is_not_for_clients_is_refused_here_too(called: Called, token: str) -> None:
    for method, path in (("POST", "/threads/t1/state"), ("POST", "/threads/t1/copy"), ("GET", "/store/items")):
        with pytest.raises(Auth.exceptions.HTTPException) as refused:
            await called.enter(token, path=path, method=method)
        assert refused.value.status_code == 403
    assert await called.enter(token, path="/threads/t1/stream/events", method="GET", type="websocket")


async def test_an_authenticate_of_ones_own_admits_with_one_line(world: Inside, token: str) -> None:
    mine = Auth()

    @mine.authenticate
    async def authenticate(authorization: str | None) -> Any:
        return {"team": "blue", **await world.identity.admit(authorization)}

    called = Called(world.identity, protect(mine, world.identity, Patched))
    user: Any = await authenticate(f"Bearer {token}")
    assert user["team"] == "blue"
    alice = world.person("alice").principal
    assert await called.run(user) == {"owner": alice.key}
    assert world.identity.inbound.token("r1", alice, world.clock()) is not None
    with pytest.raises(Auth.exceptions.HTTPException):
        await authenticate(None)


# -- nobody, and Studio ------------------------------------------------------------------------------------------------


@pytest.mark.case("E8", "E10")
@pytest.mark.parametrize(
    "user", [{"identity": "bob"}, {}, StudioUser(), None, {"identity": "x", "deputize_subject": "sub"}]
)
async def test_somebody_whom_deputize_did_not_admit_owns_nothing(world: Inside, called: Called, user: Any) -> None:
    object.__setattr__(world.identity.settings, "embedded", False)
    for action in ("create", "read", "update", "delete", "search", "create_run"):
        with pytest.raises(Auth.exceptions.HTTPException) as refused:
            await called.may(user, "threads", action, created())
        assert refused.value.status_code == 403


@pytest.mark.case("E8", "E19")
async def test_studio_is_a_visitor_of_its_own_in_the_embedded_world(world: Inside, called: Called) -> None:
    cookie, _ = visitor(world)
    found = await called.may(StudioUser(), "threads", "search", {})
    assert found == {"owner": Visitor("studio").key}
    assert found != await called.may(await called.enter(visitor=cookie), "threads", "search", {})


@pytest.mark.case("E10")
@pytest.mark.parametrize(
    ("resource", "action"),
    [(r, a) for r in ("assistants", "crons") for a in ("create", "update", "delete")]
    + [("crons", "read"), ("crons", "search")]
    + [("store", a) for a in ("get", "put", "delete", "search", "list_namespaces")]
    + [("new_resource", "read"), ("threads", "new_action")],
)
async def test_what_has_no_handler_is_denied(called: Called, token: str, resource: str, action: str) -> None:
    assert await called.may(await called.enter(token), resource, action, {}) is False


async def test_assistants_that_the_server_brings_can_be_seen_and_no_others(called: Called, token: str) -> None:
    user = await called.enter(token)
    for action in ("read", "search"):
        assert await called.may(user, "assistants", action, {}) == {"created_by": "system"}


# -- whose a thread is -------------------------------------------------------------------------------------------------


@pytest.mark.case("E22")
@pytest.mark.parametrize("action", ["create", "create_run"])
async def test_a_new_thread_is_its_callers_and_says_so_itself(
    world: Inside, called: Called, token: str, action: str
) -> None:
    cookie, known = visitor(world)
    for user, key in (
        (await called.enter(token), world.person("alice").principal.key),
        (await called.enter(visitor=cookie), known.key),
    ):
        value = created(metadata={"title": "x"})
        assert await called.may(user, "threads", action, value) == {"owner": key}
        assert value["metadata"] == {"title": "x", "owner": key}
        value = created(metadata=None)
        await called.may(user, "threads", action, value)
        assert value["metadata"] == {"owner": key}


@pytest.mark.case("E22")
@pytest.mark.parametrize("action", ["create", "create_run", "update"])
@pytest.mark.parametrize("name", ["owner", "visitor"])
async def test_whose_it_is_never_changes_by_a_clients_word(called: Called, token: str, action: str, name: str) -> None:
    user = await called.enter(token)
    with pytest.raises(Auth.exceptions.HTTPException) as refused:
        await called.may(user, "threads", action, created(metadata={name: user["identity"]}))
    assert refused.value.status_code == 403


@pytest.mark.case("E12")
@pytest.mark.parametrize("action", ["read", "search", "update", "delete", "create_run", "create"])
async def test_everything_is_filtered_by_whose_it_is(called: Called, token: str, action: str) -> None:
    user = await called.enter(token)
    value = created() if action.startswith("create") else {}
    assert await called.may(user, "threads", action, value) == {"owner": user["identity"]}


@pytest.mark.case("E20")
async def test_a_thread_goes_on_with_the_graph_that_it_began_with(called: Called, token: str) -> None:
    user = await called.enter(token)
    called.client.graphs = {"t1": "assistant"}
    assert await called.run(user)
    assert await called.run(user, thread="new", assistant_id="other")
    assert await called.run(user, thread="gone", assistant_id="other")
    with pytest.raises(Auth.exceptions.HTTPException) as refused:
        await called.run(user, assistant_id="other")
    assert refused.value.status_code == 403
    with pytest.raises(Auth.exceptions.HTTPException):
        await called.may(user, "threads", "update", {"thread_id": "t1", "metadata": {"graph_id": "other"}})


@pytest.mark.parametrize(("action", "value"), [("update", {"action": "rollback"}), ("delete", {"run_id": "r1"})])
async def test_a_part_of_what_happened_is_not_erased(called: Called, token: str, action: str, value: Any) -> None:
    with pytest.raises(Auth.exceptions.HTTPException) as refused:
        await called.may(await called.enter(token), "threads", action, value)
    assert refused.value.status_code == 403


@pytest.mark.case("E3", "E4", "E21", "E22")
@pytest.mark.parametrize(
    "kwargs",
    [
        {"command": {"goto": "tool_call"}},
        {"input": {"messages": [{"role": "system", "content": "x"}]}},
        {"config": {"configurable": {"checkpoint_id": "x"}}},
        {"config": {"configurable": {"deputize_wake": "x"}}},
    ],
)
async def test_a_run_that_no_client_may_ask_for_is_not_created_and_keeps_no_token(
    world: Inside, called: Called, token: str, kwargs: dict[str, Any]
) -> None:
    user = await called.enter(token)
    with pytest.raises(Auth.exceptions.HTTPException):
        await called.run(user, kwargs={"input": TEXT, "config": {"configurable": {}}, **kwargs})
    assert world.identity.inbound.token("r1", world.person("alice").principal, world.clock()) is None


@pytest.mark.case("G6")
async def test_a_caller_that_floods_runs_is_told_to_wait_and_others_are_not(
    world: Inside, called: Called, token: str
) -> None:
    limit = world.identity.settings.runs_per_minute
    cookie, _ = visitor(world)
    user = await called.enter(visitor=cookie)
    for number in range(limit):
        await called.run(user, f"r{number}")
    with pytest.raises(Auth.exceptions.HTTPException) as refused:
        await called.run(user)
    assert refused.value.status_code == 429
    assert await called.run(await called.enter(token))
    world.clock.advance(60)
    assert await called.run(user)


# -- the token that a run came with ------------------------------------------------------------------------------------


@pytest.mark.case("C10")
async def test_the_token_goes_with_the_run_sealed_and_to_nobody_elses(
    world: Inside, called: Called, driver: Driver, token: str
) -> None:
    alice, bob = world.person("alice").principal, world.person("bob").principal
    await called.run(await called.enter(token))
    held = world.identity.inbound.token("r1", alice, world.clock())
    assert held is not None
    assert held.reveal() == token
    assert world.identity.inbound.token("r2", alice, world.clock()) is None
    with pytest.raises(Exception, match=r"."):  # another context opens nothing
        world.identity.inbound.token("r1", bob, world.clock())
    rows = world.identity.database.read("SELECT * FROM inbound")
    assert token not in str(rows)


async def test_a_run_of_a_visitor_brings_no_token_that_somebody_else_came_with(
    world: Inside, called: Called, token: str
) -> None:
    """One connection may carry requests of several people: what one left in the context is not the next one's."""
    cookie, _ = visitor(world)
    await called.enter(token)
    await called.run(await called.enter(visitor=cookie))
    assert world.identity.database.read("SELECT count(*) FROM inbound") == [(0,)]


async def test_each_request_has_its_own(world: Inside, called: Called, driver: Driver, token: str) -> None:
    bobs = (await driver.sign_in("bob"))["access_token"]
    alice, bob = world.person("alice").principal, world.person("bob").principal

    async def request(sent: str, run_id: str) -> None:
        await called.run(await called.enter(sent), run_id)

    pairs = [(token, "ra"), (bobs, "rb")]
    await asyncio.gather(*(asyncio.create_task(request(*pair), context=contextvars.copy_context()) for pair in pairs))
    for person, run_id, sent in ((alice, "ra", token), (bob, "rb", bobs)):
        held = world.identity.inbound.token(run_id, person, world.clock())
        assert held is not None
        assert held.reveal() == sent


async def test_a_socket_that_outlived_its_token_starts_no_run(world: Inside, called: Called, token: str) -> None:
    user = await called.enter(token, path="/threads/t1/stream/events", method="GET", type="websocket")
    assert await called.run(user)
    world.clock.advance(400)
    with pytest.raises(Auth.exceptions.HTTPException) as refused:
        await called.run(user, "r2")
    assert refused.value.status_code == 401


# -- signing in --------------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def begun(world: Inside, called: Called) -> tuple[str, Visitor]:
    """A visitor's thread ``t1`` that waits for a sign-in at the application's own page."""
    asking = world.identity.asking
    asking._login, asking._login_url = "url", LOGIN
    cookie, known = visitor(world)
    graph = assistant(world, calls("show_portfolio"))
    with world.identity.caller(known):
        state = await graph.ainvoke(TEXT, config())
    assert state["__interrupt__"][0].value["requests"][0]["url"] == LOGIN
    return cookie, known


HERE = Place("default", "assistant", "t1")


@pytest.mark.case("A17", "A18", "E19")
async def test_a_visitor_who_comes_back_signed_in_in_the_same_browser_keeps_the_thread_which_becomes_theirs(
    world: Inside, called: Called, begun: tuple[str, Visitor], token: str
) -> None:
    cookie, known = begun
    alice = world.person("alice").principal
    user = await called.enter(token, visitor=cookie)
    assert user["deputize_was"] == known.id
    assert await called.run(user) == {"$or": [{"owner": alice.key}, {"owner": known.key}]}
    assert called.client.updated == [("t1", {"owner": alice.key})]
    session = world.identity.sessions.of(HERE)
    assert session is not None
    assert session.principal == alice
    assert not session.belongs_to(known), "whoever knows the cookie from before is nobody now"
    assert world.identity.ledger.pending(HERE) == []
    await called.run(user, "r2")
    assert len(called.client.updated) == 1, "moved once"


@pytest.mark.case("A17", "A18")
@pytest.mark.parametrize("browser", ["no cookie", "another visitor's", "a forged one"])
async def test_somebody_elses_browser_finishes_no_sign_in_that_a_visitor_began(
    world: Inside, called: Called, begun: tuple[str, Visitor], driver: Driver, browser: str
) -> None:
    """A visitor sends the link of their conversation to bob, who is signed in or signs in."""
    cookie = {"no cookie": None, "another visitor's": visitor(world)[0], "a forged one": begun[1].id}[browser]
    bob = await called.enter((await driver.sign_in("bob"))["access_token"], visitor=cookie)
    await called.run(bob)
    assert called.client.updated == []
    assert world.identity.sessions.of(HERE) is None
    assert [request.kind for request in world.identity.ledger.pending(HERE)] == ["login"]
    assert begun[1].key not in str(await called.may(bob, "threads", "read", {}))


@pytest.mark.case("A17")
async def test_a_second_person_in_the_same_browser_takes_over_nothing_of_the_first(
    world: Inside, called: Called, begun: tuple[str, Visitor], driver: Driver, token: str
) -> None:
    cookie, _ = begun
    await called.run(await called.enter(token, visitor=cookie))
    bob = await called.enter((await driver.sign_in("bob"))["access_token"], visitor=cookie)
    await called.run(bob, "r2")
    session = world.identity.sessions.of(HERE)
    assert session is not None
    assert session.principal == world.person("alice").principal
    assert len(called.client.updated) == 1


@pytest.mark.case("E19")
async def test_a_visitor_sees_what_they_signed_in_to_while_the_sign_in_lives_and_nothing_after_it(
    world: Inside, called: Called
) -> None:
    cookie, known = visitor(world)
    user = await called.enter(visitor=cookie)
    alice = world.person("alice").principal
    grant = world.identity.vault.store_grant(
        alice, refresh_token=Secret("r"), scope="", expires_at=world.clock() + 1000, now=world.clock()
    )
    session = world.identity.sessions.start(
        HERE, alice, owner=known.key, grant_id=grant.id, expires_at=world.clock() + 1000, now=world.clock()
    )
    moved = {"owner": alice.key, "visitor": known.key}
    assert await called.may(user, "threads", "read", {}) == {"$or": [{"owner": known.key}, moved]}
    world.identity.sessions.end(session, world.clock())
    assert await called.may(user, "threads", "read", {}) == {"owner": known.key}


@pytest.mark.case("A18")
@pytest.mark.parametrize("login", ["browser", "device"])
async def test_a_link_or_code_of_the_issuer_is_given_to_no_visitor_of_a_server(
    world: Inside, called: Called, login: str
) -> None:
    """A visitor could pass it on, and somebody else would sign in for them. In the embedded world a code is typed by hand."""
    world.identity.asking._login, world.identity.asking._device_for_all = login, False
    _, known = visitor(world)
    graph = assistant(world, calls("show_portfolio"))
    with world.identity.caller(known):
        state = await graph.ainvoke(TEXT, config())
    assert "__interrupt__" not in state
    assert "Somebody who is not known cannot be" in str(state["messages"])
    named = Principal("default", world.identity.settings.issuer, "somebody")
    with world.identity.caller(named):  # nobody else can finish that one
        state = await assistant(world, calls("show_portfolio")).ainvoke(TEXT, config("t2"))
    assert "__interrupt__" in state


@pytest.mark.case("E21")
async def test_a_new_message_never_has_the_id_of_another(world: Inside, called: Called) -> None:
    user = await called.enter(visitor=visitor(world)[0])
    messages = [{"role": "user", "content": "hi", "id": "an id of the history"}, {"role": "user", "content": "there"}]
    told = [await _created(called, user, run, messages) for run in ("r1", "r1", "r2")]
    assert told[0] == told[1] != told[2], "the same when the server starts the same run again"
    assert len({*told[0], *told[2], "an id of the history"}) == 5


async def _created(called: Called, user: Any, run: str, messages: list[dict[str, Any]]) -> list[str]:
    given = [dict(message) for message in messages]
    await called.run(user, run, kwargs={"input": {"messages": given}, "config": {"configurable": {}}})
    return [message["id"] for message in given]
