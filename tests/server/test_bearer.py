"""Conversations whose caller comes with an access token: exchanged for each API, asked for no sign-in, until it expires."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from identity.inbound import LOOK
from identity.principal import Principal
from identity.secret import Secret
from identity.sessions import Place
from tests.support import Inside, assistant, calls, last, requests
from tests.world.driver import EXCHANGE, Driver, claims

LARGE = ("buy_stock", {"symbol": "ACME", "quantity": 50, "limit": "100"})


class Bearer:
    """alice at the server: each run has an id, her user, and the token that she came with."""

    def __init__(self, world: Inside, driver: Driver) -> None:
        self.world, self.driver, self.runs = world, driver, 0
        self.alice: Principal = world.person("alice").principal
        world.identity.served = True

    async def token(self) -> str:
        return str((await self.driver.sign_in("alice"))["access_token"])

    def config(self, run_id: str, user: bool = True) -> Any:
        who = {"identity": self.alice.key, "deputize_issuer": self.alice.issuer, "deputize_subject": self.alice.subject}
        named = {"langgraph_auth_user": who} if user else {}
        return {"configurable": {"thread_id": "t1", "run_id": run_id, **named}}

    async def run(self, graph: Any, given: Any, token: str = "") -> dict[str, Any]:
        self.runs += 1
        run_id = f"r{self.runs}"
        if token:
            until = float(claims(token)["exp"])
            self.world.identity.arrive("t1", run_id, self.alice, None, Secret(token), until)
        state: dict[str, Any] = await graph.ainvoke(given, self.config(run_id))
        return state


def text(said: str = "go") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": said}]}


@pytest_asyncio.fixture
async def bearer(world: Inside) -> AsyncIterator[Bearer]:
    driver = Driver(world)
    yield Bearer(world, driver)
    await driver.close()


@pytest.mark.case("C10")
async def test_the_token_that_a_run_came_with_is_exchanged_and_nobody_is_asked_to_sign_in(
    world: Inside, bearer: Bearer
) -> None:
    token = await bearer.token()
    state = await bearer.run(assistant(world, calls("show_portfolio"), "There."), text(), token)
    assert requests(state) == []
    assert last(state) == "There."
    exchanges = [sent.form for sent in world.network.sent if sent.form.get("grant_type") == EXCHANGE]
    assert [form["subject_token"] for form in exchanges] == [token]
    assert "actor_token" not in exchanges[0]
    assert claims(token)["may_act"] == {"sub": "deputize-agent"}
    used = [s.headers["authorization"] for s in world.network.sent if s.url.endswith("/trading/portfolio")]
    assert token not in used[0]
    assert token not in str(state)


async def test_a_run_without_a_token_of_its_own_does_not_use_that_of_another_run(world: Inside, bearer: Bearer) -> None:
    token = await bearer.token()
    graph = assistant(world, calls("show_portfolio"), "There.", calls("show_portfolio"), "There.")
    await bearer.run(graph, text(), token)
    world.clock.advance(288)  # what the state holds is about to expire, the first run's token is not gone yet
    state = await bearer.run(graph, text())
    assert [request["kind"] for request in requests(state)] == ["login"]


async def test_an_approved_call_goes_on_with_the_approvals_own_token_when_nobody_calls(
    world: Inside, bearer: Bearer
) -> None:
    graph = assistant(world, calls(LARGE), "Bought.")
    state = await bearer.run(graph, text(), await bearer.token())
    (asked,) = requests(state)
    assert asked["kind"] == "approval"
    await world.person("alice").approve(asked)
    world.clock.advance(30)
    await world.identity.poll()
    world.identity.inbound.forget(["r1"])  # the run that asked has ended
    nonce = world.identity.ledger.issue_wake(Place("default", "assistant", "t1"), world.clock())
    woken = bearer.config("woken", user=False)
    woken["configurable"]["deputize_wake"] = nonce.reveal()
    state = await graph.ainvoke(None, woken)
    assert last(state) == "Bought."
    assert [order.quantity for order in world.orders()] == [50]


async def test_a_token_that_expires_in_the_middle_asks_for_a_sign_in_and_the_thread_goes_on_with_a_new_one(
    world: Inside, bearer: Bearer
) -> None:
    graph = assistant(world, calls("show_portfolio"), "There.", calls("show_portfolio"), "There again.")
    await bearer.run(graph, text(), await bearer.token())
    late = await bearer.token()
    world.clock.advance(400)
    state = await bearer.run(graph, text("again"), late)  # it was good when it was checked
    assert [request["kind"] for request in requests(state)] == ["login"]
    state = await bearer.run(graph, None, await bearer.token())
    assert last(state) == "There again."
    assert world.identity.ledger.pending(Place("default", "assistant", "t1")) == []


@pytest.mark.case("C10")
async def test_no_row_outlives_its_run_or_its_time(world: Inside, bearer: Bearer) -> None:
    await bearer.run(assistant(world, calls("show_portfolio")), text(), await bearer.token())
    inbound, now = world.identity.inbound, world.clock()
    assert inbound.due("default", now + LOOK) == [("r1", "t1")]
    world.clock.advance(301)
    inbound.prune(world.clock())
    assert world.identity.database.read("SELECT count(*) FROM inbound") == [(0,)]
