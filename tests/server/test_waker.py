"""The waker: a decided request's thread goes on through the server's own queue, once, whatever fails on the way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from langgraph_sdk.errors import APIConnectionError, APITimeoutError, NotFoundError

from identity.principal import WAKE, Visitor
from identity.secret import Secret
from identity.server import waker as module
from identity.server.waker import Waker
from identity.sessions import Place
from tests.support import Inside, assistant, calls, config, requests, say, sign_in

LARGE = ("buy_stock", {"symbol": "ACME", "quantity": 50, "limit": "100"})


def status(code: int) -> httpx.HTTPStatusError:
    request = httpx.Request("GET", "http://server/threads")
    return httpx.HTTPStatusError(f"HTTP {code}", request=request, response=httpx.Response(code, request=request))


def without_answer(kind: type[APIConnectionError]) -> Exception:
    """The SDK's connection errors are status errors that have no response."""
    return kind(request=httpx.Request("GET", "http://server/threads"))


class Client:
    """What ``langgraph_sdk.get_client()`` gives, as far as the waker uses it.

    ``status`` and ``next`` are what the threads say; ``fail`` is asked before each call: an exception to raise.
    """

    def __init__(self) -> None:
        self.threads = self.runs = self
        self.status: dict[str, str] = {}
        self.next: dict[str, list[str]] = {}
        self.fail: Callable[[str, str], Exception | None] = lambda call, thread: None
        self.asked: list[tuple[str, str]] = []
        self.updated: dict[str, Any] = {}
        self.created: list[dict[str, Any]] = []

    async def get(self, thread: str, run: str = "") -> dict[str, Any]:
        """A thread; with ``run``, one of its runs."""
        if run:
            self._called("run", run)
            return {"status": self.status.get(run, "success")}
        self._called("get", thread)
        return {"status": self.status.get(thread, "interrupted"), "metadata": {}}

    async def update(self, thread: str, *, metadata: dict[str, Any]) -> None:
        self._called("update", thread)
        self.updated[thread] = metadata

    async def get_state(self, thread: str) -> dict[str, Any]:
        self._called("get_state", thread)
        return {"values": {}, "next": self.next.get(thread, ["await_user"])}

    async def create(self, thread: str, assistant: str, **given: Any) -> dict[str, Any]:
        self._called("create", thread)
        self.created.append({"thread": thread, "assistant": assistant, **given})
        return {}

    def _called(self, call: str, thread: str) -> None:
        self.asked.append((call, thread))
        if error := self.fail(call, thread):
            raise error


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def waker(world: Inside, client: Client) -> Waker:
    return Waker(world.identity, client)


async def next_round(world: Inside, waker: Waker, seconds: float = 40) -> None:
    """A round, that much later: past intervals, leases and back-offs."""
    world.clock.advance(seconds)
    await waker.round()


async def a_decided_request(world: Inside, thread: str = "t1") -> dict[str, Any]:
    """A login that alice has finished at the issuer, and that nobody has polled yet."""
    graph = assistant(world, calls("show_portfolio"))
    (asked,) = requests(await say(graph, thread=thread))
    await world.person("alice").sign_in(asked)
    return asked


def unwoken(world: Inside) -> list[str]:
    later = world.clock() + 60
    return [request.place.thread for request in world.identity.ledger.unwoken("default", later)]


async def test_a_decided_request_wakes_its_thread_once_behind_what_runs_there(
    world: Inside, waker: Waker, client: Client
) -> None:
    await a_decided_request(world)
    for _ in range(3):
        await next_round(world, waker)
    (made,) = client.created
    assert (made["thread"], made["assistant"]) == ("t1", "assistant")
    assert (made["input"], made["multitask_strategy"]) == (None, "enqueue")
    assert unwoken(world) == []


async def test_a_thread_with_nothing_pending_any_more_is_woken_to_look_again(
    world: Inside, waker: Waker, client: Client
) -> None:
    client.next = {"t1": []}
    await a_decided_request(world)
    await next_round(world, waker)
    assert [made["input"] for made in client.created] == [{"messages": []}]


async def test_a_busy_thread_is_woken_when_it_is_not_busy_any_more(world: Inside, waker: Waker, client: Client) -> None:
    """The decision came before the interrupt was committed, or while the person's next turn runs."""
    client.status = {"t1": "busy"}
    await a_decided_request(world)
    await next_round(world, waker)
    assert client.created == []
    client.status = {}
    await next_round(world, waker, 1)
    assert len(client.created) == 1


async def test_what_waits_and_what_was_withdrawn_wakes_nobody(world: Inside, waker: Waker, client: Client) -> None:
    graph = assistant(world, calls(LARGE), "Withdrawn.")
    await sign_in(world, graph)
    with world.identity.caller(world.person("alice").principal):
        await next_round(world, waker)  # the login
        before = list(client.created)
        await next_round(world, waker)  # an approval is pending
        await say(graph, "Never mind")
        await next_round(world, waker)
    assert client.created == before


@pytest.mark.parametrize("decision", ["approve", "deny", "expire"])
async def test_every_end_of_a_request_wakes(world: Inside, waker: Waker, client: Client, decision: str) -> None:
    graph = assistant(world, calls(LARGE))
    (asked,) = requests(await sign_in(world, graph))
    await next_round(world, waker)
    client.created.clear()
    if decision == "expire":
        world.clock.advance(1_000)
    else:
        await getattr(world.person("alice"), decision)(asked)
    await next_round(world, waker)
    assert len(client.created) == 1


async def test_two_decisions_in_one_thread_wake_it_once(world: Inside, waker: Waker, client: Client) -> None:
    graph = assistant(world, calls(LARGE, ("buy_stock", {**LARGE[1], "quantity": 40})))
    asked = requests(await sign_in(world, graph))
    await next_round(world, waker)
    client.created.clear()
    for each in asked:
        await world.person("alice").approve(each)
    await next_round(world, waker)
    assert len(client.created) == 1
    assert unwoken(world) == []


@pytest.mark.parametrize(
    "error",
    [
        status(500),
        status(409),
        status(429),
        status(403),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        without_answer(APIConnectionError),
        without_answer(APITimeoutError),
        KeyError("next"),
        RuntimeError("not in a server"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("call", ["get", "get_state", "create"])
async def test_a_failure_leaves_the_request_unwoken_and_a_later_round_tries_again(
    world: Inside, waker: Waker, client: Client, error: Exception, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    client.fail = lambda made, thread: error if made == call else None
    await a_decided_request(world)
    with caplog.at_level(logging.WARNING, "deputize"):
        await next_round(world, waker)
        await next_round(world, waker)
    assert unwoken(world) == ["t1"]
    assert len(caplog.messages) == 2
    assert all("was not woken" in message for message in caplog.messages)
    client.fail = lambda made, thread: None
    await next_round(world, waker)
    assert len(client.created) == 1
    assert unwoken(world) == []


async def test_one_thread_that_cannot_be_woken_holds_up_no_other(world: Inside, waker: Waker, client: Client) -> None:
    client.fail = lambda call, thread: RuntimeError("broken") if thread == "t1" else None
    for thread in ("t1", "t2", "t3"):
        await a_decided_request(world, thread)
    await next_round(world, waker)
    assert sorted(made["thread"] for made in client.created) == ["t2", "t3"]
    assert unwoken(world) == ["t1"]


@pytest.mark.parametrize("code", [404, 422])
async def test_a_thread_that_is_none_of_the_servers_is_left_alone(
    world: Inside, waker: Waker, client: Client, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It was deleted, or belongs to a Python program with the same database."""
    request = httpx.Request("GET", "http://server/threads")
    error = (
        NotFoundError("no", response=httpx.Response(404, request=request), body=None) if code == 404 else status(422)
    )
    client.fail = lambda call, thread: error
    await a_decided_request(world)
    for _ in range(3):
        await next_round(world, waker)
    assert unwoken(world) == []
    assert len(client.asked) == 1
    assert caplog.messages == []


async def test_two_processes_wake_a_thread_once(world: Inside, client: Client) -> None:
    await a_decided_request(world)
    identities = [world.again(), world.again()]
    world.clock.advance(40)
    await asyncio.gather(*(Waker(identity, client).round() for identity in identities))
    await asyncio.gather(*(Waker(identity, client).round() for identity in identities))
    for identity in identities:
        identity.close()
    assert len(client.created) == 1


async def test_a_process_that_dies_while_it_wakes_is_followed_by_another(
    world: Inside, waker: Waker, client: Client
) -> None:
    async def dies(thread: str) -> Any:
        raise asyncio.CancelledError

    await a_decided_request(world)
    get, client.get = client.get, dies  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        await next_round(world, waker)
    client.get = get  # type: ignore[method-assign]
    await next_round(world, waker, 1)
    assert client.created == [], "the lease of the one that died"
    await next_round(world, waker, 60)
    assert len(client.created) == 1


async def test_an_issuer_that_is_away_ends_nothing(world: Inside, waker: Waker, client: Client) -> None:
    await a_decided_request(world)
    world.network.fault = lambda request: httpx.ConnectError("refused")
    for _ in range(3):
        await next_round(world, waker)
    assert client.asked == []
    world.network.fault = None
    await next_round(world, waker, 120)
    assert len(client.created) == 1


async def test_what_was_decided_before_a_restart_is_woken_after_it(world: Inside, client: Client) -> None:
    await a_decided_request(world)
    world.clock.advance(10)
    assert len(await world.identity.poll()) == 1  # and then the process was gone
    identity = world.again()
    await Waker(identity, client).round()
    identity.close()
    assert len(client.created) == 1


async def test_a_woken_run_goes_on_where_the_thread_was(world: Inside, waker: Waker, client: Client) -> None:
    graph = assistant(world, calls("show_portfolio"), "There.")
    (asked,) = requests(await say(graph))
    await world.person("alice").sign_in(asked)
    client.next = {"t1": list((await graph.aget_state(config())).next)}
    await next_round(world, waker)
    (made,) = client.created
    world.identity.served = True  # nobody calls: the nonce says that it goes on for the thread's owner
    run = {"configurable": {"thread_id": made["thread"], "run_id": "r1", **made["config"]["configurable"]}}
    state = await graph.ainvoke(made["input"], run)
    assert state["messages"][-1].text == "There."


@pytest.mark.case("E19")
async def test_a_wakes_nonce_serves_one_run_of_one_thread(world: Inside, waker: Waker, client: Client) -> None:
    await a_decided_request(world)
    await next_round(world, waker)
    nonce = client.created[0]["config"]["configurable"][WAKE]
    ledger, now = world.identity.ledger, world.clock()
    here, elsewhere = Place("default", "assistant", "t1"), Place("default", "assistant", "t2")
    assert not ledger.redeem_wake(nonce, elsewhere, "r1", now)
    assert not ledger.redeem_wake("guessed", here, "r1", now)
    assert not ledger.redeem_wake(nonce, here, "", now)
    assert not ledger.redeem_wake(nonce, Place("default", "other", "t1"), "r1", now)
    assert not ledger.redeem_wake(nonce, Place("other", "assistant", "t1"), "r1", now)
    assert ledger.redeem_wake(nonce, here, "r1", now)
    assert ledger.redeem_wake(nonce, here, "r1", now), "every node of that run asks"
    assert not ledger.redeem_wake(nonce, here, "r2", now)


@pytest.mark.case("E19")
async def test_a_wakes_nonce_that_was_not_used_ends(world: Inside, waker: Waker, client: Client) -> None:
    await a_decided_request(world)
    await next_round(world, waker)
    nonce = client.created[0]["config"]["configurable"][WAKE]
    world.clock.advance(3_600)
    assert not world.identity.ledger.redeem_wake(nonce, Place("default", "assistant", "t1"), "r1", world.clock())
    await a_decided_request(world, "t2")
    await next_round(world, waker)
    assert world.identity.database.read("SELECT count(*) FROM wakes") == [(1,)]


@pytest.mark.case("E19")
async def test_a_nonce_is_of_no_use_to_somebody_who_calls(world: Inside, waker: Waker, client: Client) -> None:
    """It stands in the run's record, where the thread's owner can read it."""
    await a_decided_request(world)
    await next_round(world, waker)
    nonce = client.created[0]["config"]["configurable"][WAKE]
    world.identity.served = True
    here = Place("default", "assistant", "t1")
    bob = {"deputize_visitor": "bob", "identity": "visitor:bob"}
    for user in (bob, {"identity": "stranger"}):
        run = {"configurable": {"run_id": "r1", WAKE: nonce, "langgraph_auth_user": user}}
        assert world.identity.current_caller(run, here) == (Visitor("bob") if user is bob else None)
    assert world.identity.current_caller({"configurable": {"run_id": "r1", WAKE: "guessed"}}, here) is None
    assert world.identity.current_caller({"configurable": {"run_id": "r1", WAKE: [nonce]}}, here) is None
    woken = world.identity.current_caller({"configurable": {"run_id": "r1", WAKE: nonce}}, here)
    assert woken == world.person("alice").principal
    again = world.identity.current_caller({"configurable": {"run_id": "r2", WAKE: nonce}}, here)
    assert again is None, "a second run with it runs for nobody"


@pytest.mark.case("E19")
async def test_who_signed_in_owns_the_thread_from_then_on(world: Inside, waker: Waker, client: Client) -> None:
    graph = assistant(world, calls("show_portfolio"))
    with world.identity.caller(Visitor("v1")):
        (asked,) = requests(await say(graph))
    await world.person("alice").sign_in(asked)
    await next_round(world, waker)
    assert client.updated == {"t1": {"owner": world.person("alice").principal.key, "visitor": "visitor:v1"}}


# -- inbound tokens ----------------------------------------------------------------------------------------------------


def kept(world: Inside) -> list[str]:
    return [row[0] for row in world.identity.database.read("SELECT id FROM inbound ORDER BY id")]


@pytest.mark.case("C10")
async def test_the_tokens_of_runs_that_have_ended_are_deleted(world: Inside, waker: Waker, client: Client) -> None:
    alice = world.person("alice").principal
    client.status = {"goes on": "running", "queued": "pending", "failed": "error", "stopped": "interrupted"}
    for run in ("ended", "gone", *client.status):
        world.identity.inbound.keep(run, "t1", alice, Secret("x"), world.clock() + 300, world.clock())
    client.fail = lambda call, run: status(404) if run == "gone" else None
    await waker.round()
    assert len(kept(world)) == 6, "they have not been created yet, perhaps"
    await next_round(world, waker, 6)
    assert kept(world) == ["goes on", "queued"]
    client.status = {}
    await next_round(world, waker, 6)
    assert kept(world) == []
    asked = len(client.asked)
    await next_round(world, waker, 6)
    assert len(client.asked) == asked, "nothing is asked for nothing"


@pytest.mark.case("C10")
async def test_a_token_whose_run_cannot_be_looked_at_stays_until_it_can_and_never_beyond_its_time(
    world: Inside, waker: Waker, client: Client
) -> None:
    world.identity.inbound.keep(
        "r1", "t1", world.person("alice").principal, Secret("x"), world.clock() + 60, world.clock()
    )
    client.fail = lambda call, run: status(500)
    await next_round(world, waker, 10)
    assert kept(world) == ["r1"]
    await next_round(world, waker, 60)
    assert kept(world) == []


# -- in the background -------------------------------------------------------------------------------------------------


class Background:
    """The waker's rounds in the background, run one by one: the time between them is given out instead of slept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waits: list[float] = []
        self._go, self._waits = asyncio.Event(), asyncio.Event()
        monkeypatch.setattr(module, "asyncio", _With(asyncio, sleep=self._sleep))

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self._waits.set()
        await self._go.wait()
        self._go.clear()

    async def waiting(self) -> None:
        """Until the round that is going on has ended."""
        await asyncio.wait_for(self._waits.wait(), 10)

    async def next(self) -> None:
        """One more round."""
        self._waits.clear()
        self._go.set()
        await self.waiting()


class _With:
    """A module, with other things in it."""

    def __init__(self, module: Any, **other: Any) -> None:
        self.__dict__.update(other)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


async def test_rounds_that_fail_are_followed_by_slower_ones_and_the_first_good_one_wakes(
    world: Inside, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    background = Background(monkeypatch)

    async def broken() -> Any:
        raise OSError("the disk is gone")

    async with Waker(world.identity, client).lifespan():
        await background.waiting()
        quick = background.waits[-1]
        await a_decided_request(world)
        with monkeypatch.context() as during:
            during.setattr(world.identity, "poll", broken)
            for _ in range(10):
                await background.next()
        slower = background.waits[-10:]
        assert slower == sorted(slower)
        assert quick < slower[-1] <= 60
        world.clock.advance(40)
        await background.next()
        assert len(client.created) == 1
        assert background.waits[-1] == quick
    assert "the disk is gone" in caplog.text


async def test_the_waker_ends_with_the_server(world: Inside, client: Client) -> None:
    async with Waker(world.identity, client).lifespan():
        (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "deputize-waker"]
    assert task.done()
