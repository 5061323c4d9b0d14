"""Sub-agents and sub-graphs: their state has nothing of ours, they share the session of the root thread, and what they ask
surfaces where the conversation is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command

from identity import IdentityMiddleware, RefusedError, needs
from tests.placements.placing import LARGE, SMALL, answers, by_hand, by_middleware, orders_sent
from tests.support import Inside, Scripted, as_caller, calls, config, history_faults, last, requests, say

SUB = [by_middleware, by_hand]


def asking(sub: Any, name: str = "trader", form: str = "async", declared: bool = True) -> BaseTool:
    """A sub-agent as LangChain's documentation hands it to a supervisor: called in a tool."""

    async def ask_async(question: str) -> str:
        return last(await sub.ainvoke({"messages": [("user", question)]}))

    def ask_sync(question: str) -> str:
        return last(sub.invoke({"messages": [("user", question)]}))

    ask: Any = ask_async if form == "async" else ask_sync
    return tool(name, description="Ask the sub-agent.")(needs(read_only=True)(ask) if declared else ask)


def supervisor(world: Inside, model: Scripted, tools: list[BaseTool], guarded: bool = True) -> Any:
    middleware = [IdentityMiddleware(world.identity)] if guarded else []
    return create_agent(model, tools, middleware=middleware, checkpointer=InMemorySaver())


@pytest.mark.parametrize("guarded", [True, False], ids=["in a guarded agent", "in a bare agent"])
@pytest.mark.parametrize("build", SUB)
async def test_a_sub_agent_in_a_tool_asks_through_its_parent_and_acts_once(
    world: Inside, build: Any, guarded: bool
) -> None:
    trader = Scripted(calls(LARGE), "Bought them.")
    sub = build(trader, world.tools(), world.identity, None)
    boss = Scripted(calls(("trader", {"question": "Buy 50"})), "The trader bought them.")
    graph = supervisor(world, boss, [asking(sub, declared=guarded)], guarded)
    alice = world.person("alice")
    (asked,) = requests(await say(graph))
    assert asked["kind"] == "login"
    await alice.sign_in(asked)
    (asked,) = requests(await world.identity.resume(graph, config()))
    assert asked["kind"] == "approval"
    await alice.approve(asked)
    with as_caller(world, "alice"):
        state = await world.identity.resume(graph, config())
    assert last(state) == "The trader bought them."
    assert answers(state) == ["Bought them."]
    assert orders_sent(world) == len(world.orders()) == 1
    assert len(trader.heard) == 2  # it went on where it was: its model was not asked anew
    assert all(history_faults(heard) == [] for heard in (*boss.heard, *trader.heard))


@pytest.mark.parametrize("build", SUB)
async def test_a_sub_agent_shares_the_sign_in_of_its_parent(world: Inside, build: Any) -> None:
    sub = build(Scripted(calls(SMALL), "Bought."), world.tools(), world.identity, None)
    boss = Scripted(calls("show_portfolio"), "There.", calls(("trader", {"question": "Buy 5"})), "Done.")
    graph = supervisor(world, boss, [*world.tools(), asking(sub)])
    (asked,) = requests(await say(graph))
    await world.person("alice").sign_in(asked)
    await world.identity.resume(graph, config())
    with as_caller(world, "alice"):
        state = await say(graph, "Now buy")
    assert (requests(state), last(state)) == ([], "Done.")
    assert [order.subject for order in world.orders()] == [world.person("alice").principal.subject]
    with as_caller(world, "bob"), pytest.raises(RefusedError):
        await say(graph, "And for me?")


@pytest.mark.parametrize("build", SUB)
async def test_a_sub_agent_as_a_node_asks_through_its_parent_and_acts_once(world: Inside, build: Any) -> None:
    trader = Scripted(calls(LARGE), "Bought them.")
    graph = StateGraph(MessagesState)
    graph.add_node("before", lambda state: {})
    graph.add_node("trader", build(trader, world.tools(), world.identity, None))
    graph.add_edge(START, "before")
    graph.add_edge("before", "trader")
    compiled = graph.compile(checkpointer=InMemorySaver())
    alice = world.person("alice")
    await alice.sign_in(requests(await say(compiled))[0])
    (asked,) = requests(await world.identity.resume(compiled, config()))
    with as_caller(world, "alice"):
        assert requests(await compiled.ainvoke(Command(resume={"approved": True}), config())) == [asked]
        await alice.approve(asked)
        state = await world.identity.resume(compiled, config())
    assert last(state) == "Bought them."
    assert orders_sent(world) == len(world.orders()) == 1
    assert len(trader.heard) == 2


@pytest.mark.parametrize("build", SUB)
async def test_a_message_while_a_sub_agent_waits_leaves_the_thread_usable(world: Inside, build: Any) -> None:
    """The parent's call of the sub-agent is answered; what the sub-agent had asked for leads to nothing."""
    trader = Scripted(calls(LARGE), calls(SMALL), "Bought 5.")
    sub = build(trader, world.tools(), world.identity, None)
    boss = Scripted(calls(("trader", {"question": "Buy 50"})), "All right.", calls(("trader", {"question": "Buy 5"})))
    graph = supervisor(world, boss, [asking(sub)])
    alice = world.person("alice")
    await alice.sign_in(requests(await say(graph))[0])
    (asked,) = requests(await world.identity.resume(graph, config()))
    with as_caller(world, "alice"):
        assert last(await say(graph, "No, wait")) == "All right."
        await alice.approve(asked)
        world.clock.advance(30)
        await world.identity.poll()
        state = await say(graph, "Buy 5 instead")
    assert [order.quantity for order in world.orders()] == [5]
    assert answers(state)[-1] == "Bought 5."
    assert all(history_faults(heard) == [] for heard in (*boss.heard, *trader.heard))


async def test_two_sub_agents_at_once_each_ask_and_each_act_once(world: Inside) -> None:
    orders = {"one": LARGE, "two": ("buy_stock", {**LARGE[1], "quantity": 40})}
    subs = [
        by_middleware(Scripted(calls(order), f"{name} bought."), world.tools(), world.identity, None)
        for name, order in orders.items()
    ]
    boss = Scripted(calls("show_portfolio"), "There.", calls(("one", {"question": "?"}), ("two", {"question": "?"})))
    tools = [asking(sub, name) for sub, name in zip(subs, orders, strict=True)]
    graph = supervisor(world, boss, [*world.tools(), *tools])
    alice = world.person("alice")
    await alice.sign_in(requests(await say(graph))[0])
    await world.identity.resume(graph, config())
    with as_caller(world, "alice"):
        asked = requests(await say(graph, "Both"))
        assert len(asked) == 2
        for request in asked:
            await alice.approve(request)
            state = await world.identity.resume(graph, config())
    assert sorted(answers(state)[1:]) == ["one bought.", "two bought."]
    assert orders_sent(world) == len(world.orders()) == 2


def test_a_sub_agent_works_by_invoke_too(world: Inside) -> None:
    for number, build in enumerate(SUB):
        sub = build(Scripted(calls(LARGE), "Bought them."), world.tools(), world.identity, None)
        boss = Scripted(calls(("trader", {"question": "Buy 50"})), "Done.")
        graph = supervisor(world, boss, [asking(sub, form="sync")])
        thread = config(f"t{number}")
        with as_caller(world, "alice"):
            state = graph.invoke({"messages": [("user", "go")]}, thread)
            if number == 0:
                asyncio.run(world.person("alice").sign_in(requests(state)[0]))
                state = world.identity.resume_sync(graph, thread)
            asyncio.run(world.person("alice").approve(requests(state)[0]))
            state = world.identity.resume_sync(graph, thread)
        assert last(state) == "Done."
        assert len(world.orders()) == number + 1


@pytest.mark.case("E24")
async def test_a_tool_with_an_effect_that_interrupts_itself_is_told_what_to_declare_and_not_run_again(
    world: Inside,
) -> None:
    model = Scripted(calls("show_portfolio"))
    sub = by_middleware(model, world.tools(), world.identity, None)
    boss = Scripted(calls(("trader", {"question": "?"})), "It cannot.")
    state = await say(supervisor(world, boss, [asking(sub, declared=False)]))
    assert requests(state) == []
    assert "only tools that are marked read-only can do" in answers(state)[0]
    assert len(model.heard) == 1
