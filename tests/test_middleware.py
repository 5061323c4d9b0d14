"""``IdentityMiddleware`` in ``create_agent``: beside other middleware, with what ``create_agent`` can do, at no extra step."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import httpx
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    HumanInTheLoopMiddleware,
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    ToolRetryMiddleware,
)
from langchain.agents.structured_output import ToolStrategy
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, RemoveMessage, ToolMessage
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.types import Command
from pydantic import BaseModel

from identity import AccessToken, IdentityMiddleware, needs, resource
from identity.errors import NeedsError
from tests.placements.placing import LARGE, QUOTE, SMALL, answers, by_middleware, orders_sent
from tests.support import Inside, Scripted, as_caller, calls, config, history_faults, last, requests, say, sign_in


def agent(world: Inside, model: Any, *, tools: Any = None, before: Any = (), after: Any = (), **more: Any) -> Any:
    """``create_agent`` with the middleware among others."""
    middleware = [*before, IdentityMiddleware(world.identity), *after]
    saver = more.pop("saver", None) or InMemorySaver()
    return create_agent(
        model, world.tools() if tools is None else tools, middleware=middleware, checkpointer=saver, **more
    )


async def steps(graph: Any, thread: str = "t1") -> int:
    return len([s async for s in graph.aget_state_history(config(thread))])


# -- nothing more than there was -----------------------------------------------------------------------------------------


async def test_it_adds_no_node_and_a_turn_that_waits_for_nobody_takes_no_extra_step(world: Inside) -> None:
    guarded = agent(world, Scripted(calls("show_portfolio"), "There.", calls(SMALL), "Bought."))

    @tool
    def get_quote(symbol: str) -> str:
        """Quote."""
        return "98.40"

    bare = create_agent(Scripted(calls(QUOTE), "98.40"), [get_quote], checkpointer=InMemorySaver())
    assert set(guarded.get_graph().nodes) == set(bare.get_graph().nodes)
    await sign_in(world, guarded)
    before = await steps(guarded)
    with as_caller(world, "alice"):
        await say(guarded)  # also where a token has to be exchanged
    await say(bare)
    assert await steps(guarded) - before == await steps(bare)
    assert len(world.orders()) == 1


async def test_its_channel_is_no_clients_to_give_or_to_see(world: Inside) -> None:
    graph = agent(world, Scripted(calls("show_portfolio"), "There."))
    state = await sign_in(world, graph)
    assert set(state) == {"messages"}
    assert "deputize" not in graph.get_input_jsonschema()["properties"]
    assert "deputize" not in graph.get_output_jsonschema()["properties"]
    assert "sealed" in str((await graph.aget_state(config())).values["deputize"])


async def test_what_could_not_be_had_is_not_carried_from_turn_to_turn(world: Inside) -> None:
    other = ("buy_stock", {**LARGE[1], "quantity": 40})
    graph = agent(world, Scripted(calls("show_portfolio"), "There.", calls(LARGE), "No.", calls(QUOTE, other), "No."))
    await sign_in(world, graph)
    world.network.fault = lambda r: httpx.ConnectError("refused") if "bc-authorize" in r.url.path else None
    with as_caller(world, "alice"):
        for _ in range(2):
            assert "did not answer" in answers(await say(graph))[-1]
    assert len((await graph.aget_state(config())).values["deputize"]["failures"]) == 1


async def test_an_empty_wake_of_a_thread_that_is_done_asks_no_model(world: Inside) -> None:
    model = Scripted(calls(QUOTE), "98.40", "What else?")
    graph = agent(world, model)
    await say(graph)
    state = await graph.ainvoke({"messages": []}, config())
    assert last(state) == "98.40"
    assert len(model.heard) == 2


async def test_an_empty_input_withdraws_nothing_and_goes_on_after_the_decision(world: Inside) -> None:
    """What the waker sends when no step is pending any more."""
    graph = agent(world, Scripted(calls(LARGE), "Bought."))
    (asked,) = requests(await sign_in(world, graph))
    with as_caller(world, "alice"):
        assert requests(await graph.ainvoke({"messages": []}, config())) == [asked]
        await world.person("alice").approve(asked)
        world.clock.advance(30)
        await world.identity.poll()
        assert last(await graph.ainvoke({"messages": []}, config())) == "Bought."
    assert len(world.orders()) == 1


def test_without_langchain_the_import_says_what_to_install() -> None:
    program = """
import sys
sys.modules["langchain"] = sys.modules["langchain.agents"] = sys.modules["langchain.agents.middleware.types"] = None
import identity
try:
    identity.IdentityMiddleware
except ImportError as error:
    print(error)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "deputize[langchain]" in told.stdout


# -- beside other middleware ---------------------------------------------------------------------------------------------


class Afterwards(AgentMiddleware):
    """Does nothing after the model, in a node of its own."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    def after_model(self, state: Any, runtime: Any) -> None:
        return None


@pytest.mark.parametrize("form", ["async", "sync"])
@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("first", [True, False])
async def test_a_turn_waits_however_many_nodes_of_others_stand_behind_the_model(
    world: Inside, first: bool, count: int, form: str
) -> None:
    """With any, the way back to the model is forgotten before it is taken, and each call waits where it would run."""
    others = [Afterwards(f"after{number}") for number in range(count)]
    model = Scripted(calls(QUOTE, SMALL, LARGE), "Bought.")
    graph = agent(world, model, **{"after" if first else "before": others})

    async def run(given: Any) -> Any:
        if form == "async":
            return await graph.ainvoke(given, config())
        return await asyncio.to_thread(graph.invoke, given, config())

    alice = world.person("alice")
    with as_caller(world, "alice"):
        for decide in (alice.sign_in, alice.approve):
            state = await run({"messages": [("user", "Buy 50")]} if decide == alice.sign_in else None)
            assert len({request["id"] for request in requests(state)}) == 1
            await decide(requests(state)[0])
            assert world.orders() == []  # it waits as a whole in either place
            world.clock.advance(30)
            await world.identity.poll()
        state = await run(None)
    assert last(state) == "Bought."
    assert sorted(text[:9] for text in answers(state)) == ["ACME: 98.", "Bought 5 ", "Bought 50"]
    assert orders_sent(world) == 2
    assert all(history_faults(heard) == [] for heard in model.heard)


@pytest.mark.case("E17")
async def test_a_turn_that_waits_where_its_calls_run_is_withdrawn_as_a_whole_too(world: Inside) -> None:
    model = Scripted(calls(QUOTE, SMALL, LARGE), "None of it.")
    graph = agent(world, model, after=[Afterwards("after")])
    await sign_in_to_all(world, graph)
    with as_caller(world, "alice"):
        state = await say(graph, "No, leave it")
    assert ["Withdrawn" in text for text in answers(state)] == [True, True, True]
    assert orders_sent(world) == 0
    assert all(history_faults(heard) == [] for heard in model.heard)


async def sign_in_to_all(world: Inside, graph: Any) -> None:
    """Every call of the turn shows the one login that is asked for."""
    asked = requests(await say(graph))
    assert len({request["id"] for request in asked}) == 1
    await world.person("alice").sign_in(asked[0])
    await world.identity.resume(graph, config())


@pytest.mark.parametrize("first", [True, False])
async def test_retries_and_fallbacks_of_the_model_let_a_turn_wait(world: Inside, first: bool) -> None:
    others = [ModelRetryMiddleware(max_retries=2), ModelFallbackMiddleware(Scripted("Fallback."))]
    graph = agent(world, Scripted(calls(LARGE), "Bought."), **{"after" if first else "before": others})
    (asked,) = requests(await sign_in(world, graph))
    await world.person("alice").approve(asked)
    with as_caller(world, "alice"):
        assert last(await world.identity.resume(graph, config())) == "Bought."


async def test_a_call_that_a_reviewer_edits_is_another_call_and_needs_a_yes_of_its_own(world: Inside) -> None:
    """LangChain's own reviewer turns a small order into a large one, after the turn was made ready."""
    review = HumanInTheLoopMiddleware(interrupt_on={"buy_stock": True})
    graph = agent(world, Scripted(calls("show_portfolio"), "There.", calls(SMALL), "Bought."), before=[review])
    await sign_in(world, graph)
    edit = {"type": "edit", "edited_action": {"name": "buy_stock", "args": LARGE[1]}}
    with as_caller(world, "alice"):
        assert "action_requests" in (await say(graph))["__interrupt__"][0].value
        state = await graph.ainvoke(Command(resume={"decisions": [edit]}), config())
        (asked,) = requests(state)
        assert "50" in await world.person("alice").read(asked["url"])
        assert world.orders() == []
        await world.person("alice").approve(asked)
        state = await world.identity.resume(graph, config())
    assert "Bought 50" in answers(state)[-1]
    assert [order.quantity for order in world.orders()] == [50]


async def test_a_call_that_a_reviewer_edits_while_others_wait_is_asked_about_together_with_them(world: Inside) -> None:
    review = HumanInTheLoopMiddleware(interrupt_on={"get_quote": True})
    turn = calls(QUOTE, LARGE)
    graph = agent(world, Scripted(calls("show_portfolio"), "There.", turn, "Bought both."), before=[review])
    await sign_in(world, graph)
    edit = {"type": "edit", "edited_action": {"name": "buy_stock", "args": {**LARGE[1], "quantity": 40}}}
    alice = world.person("alice")
    with as_caller(world, "alice"):
        await say(graph)
        asked = {r["id"]: r for r in requests(await graph.ainvoke(Command(resume={"decisions": [edit]}), config()))}
        assert len(asked) == 2
        for request in asked.values():
            assert world.orders() == []
            await alice.approve(request)
            state = await world.identity.resume(graph, config())
    assert last(state) == "Bought both."
    assert sorted(order.quantity for order in world.orders()) == [40, 50]


async def test_a_tool_that_is_tried_again_by_other_middleware_has_its_token_each_time(world: Inside) -> None:
    tries: list[str] = []

    @tool
    @needs(read_only=True, token=resource(f"{world.url}/trading", "portfolio:read"))
    async def look(token: AccessToken) -> str:
        """Look."""
        tries.append(token.reveal())
        if len(tries) == 1:
            raise ConnectionError("reset")
        return "seen"

    retry = ToolRetryMiddleware(max_retries=1, initial_delay=0, backoff_factor=0, jitter=False)
    graph = agent(world, Scripted(calls("look"), "Seen."), tools=[look], after=[retry])
    state = await sign_in(world, graph)
    assert answers(state) == ["seen"]
    assert len(tries) == 2


async def test_a_tool_that_other_middleware_puts_in_place_is_held_to_what_it_declares(world: Inside) -> None:
    @tool("get_quote")
    @needs(token=resource(f"{world.url}/trading", "portfolio:read"))
    async def stricter(symbol: str, token: AccessToken) -> str:
        """A quote for people who are signed in."""
        return f"{symbol} for a person"

    class Swap(AgentMiddleware):
        async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
            return await handler(request.override(tool=stricter))

        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(tool=stricter))

    graph = agent(world, Scripted(calls(QUOTE), "There."), before=[Swap()])
    (asked,) = requests(await say(graph))
    assert asked["kind"] == "login"
    await world.person("alice").sign_in(asked)
    assert answers(await world.identity.resume(graph, config())) == ["ACME for a person"]


class Trimming(AgentMiddleware):
    """LangChain's documented way to trim: the first message and the last few."""

    def before_model(self, state: Any, runtime: Any) -> Any:
        messages = state["messages"]
        if len(messages) <= 5:
            return None
        return {"messages": [RemoveMessage(REMOVE_ALL_MESSAGES), messages[0], *messages[-4:]]}


@pytest.mark.case("E4")
async def test_equal_orders_of_one_run_whose_history_is_trimmed_are_each_made(world: Inside) -> None:
    """The history before the fourth order looks like that before the third, but for the answers in it."""
    model = Scripted(calls("show_portfolio"), "There.", *(calls(SMALL) for _ in range(5)), "Bought five times.")
    graph = agent(world, model, after=[Trimming()])
    await sign_in(world, graph)
    with as_caller(world, "alice"):
        assert last(await say(graph, "Buy 5, five times")) == "Bought five times."
    assert len(world.orders()) == orders_sent(world) == 5


async def test_one_middleware_serves_two_agents_with_different_tools_of_one_name(world: Inside) -> None:
    @tool("get_quote")
    def other(symbol: str) -> str:
        """Another one."""
        return f"{symbol} elsewhere"

    shared = IdentityMiddleware(world.identity)
    for tools, told in (
        (world.tools(), "ACME: 98.40 USD"),
        ([other], "ACME elsewhere"),
        (world.tools(), "ACME: 98.40 USD"),
    ):
        model = Scripted(calls(QUOTE), "There.")
        graph = create_agent(model, tools, middleware=[shared], checkpointer=InMemorySaver())
        assert answers(await say(graph, thread=told)) == [told]


async def test_two_tools_of_one_name_are_refused_when_the_agent_runs(world: Inside) -> None:
    class Adding(AgentMiddleware):
        async def awrap_model_call(self, request: Any, handler: Any) -> Any:
            return await handler(request.override(tools=[*request.tools, *world.tools()]))

    with pytest.raises(NeedsError, match="same name"):
        await say(agent(world, Scripted("Hello."), before=[Adding()]))


# -- what create_agent can do --------------------------------------------------------------------------------------------


class Advice(BaseModel):
    """What the agent is to come up with."""

    symbol: str


async def test_a_structured_response_beside_guarded_calls_is_kept_while_they_wait(world: Inside) -> None:
    model = Scripted(calls(LARGE, ("Advice", {"symbol": "ACME"})))
    graph = agent(world, model, response_format=ToolStrategy(Advice))
    (asked,) = requests(await sign_in(world, graph))
    await world.person("alice").approve(asked)
    with as_caller(world, "alice"):
        state = await world.identity.resume(graph, config())
    assert state["structured_response"] == Advice(symbol="ACME")
    assert "Bought 50" in "".join(answers(state))
    assert history_faults(state["messages"]) == []


async def test_a_tool_that_ends_the_run_ends_it(world: Inside) -> None:
    @tool(return_direct=True)
    @needs(read_only=True)
    def look() -> str:
        """Look."""
        return "seen"

    state = await say(agent(world, Scripted(calls("look"), "never"), tools=[look]))
    assert last(state) == "seen"


class Streaming(Scripted):
    """Says its turns in pieces."""

    async def _astream(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        message = self._generate(messages).generations[0].message
        assert isinstance(message, AIMessage)
        for piece in message.text:
            yield ChatGenerationChunk(message=AIMessageChunk(piece))
        called = [
            {"name": c["name"], "args": '{"symbol": "ACME"}', "id": c["id"], "index": i, "type": "tool_call_chunk"}
            for i, c in enumerate(message.tool_calls)
        ]
        yield ChatGenerationChunk(message=AIMessageChunk("", tool_call_chunks=called))


@pytest.mark.parametrize("model", [Streaming, Scripted])
async def test_pieces_that_are_streamed_join_into_the_message_that_is_kept(world: Inside, model: Any) -> None:
    graph = agent(world, model(calls(QUOTE, content="Let me look."), "It is at 98.40."))
    pieces: dict[str, str] = {}
    async for message, metadata in graph.astream({"messages": [("user", "quote")]}, config(), stream_mode="messages"):
        if metadata["langgraph_node"] == "model":
            assert message.id is not None
            pieces[message.id] = pieces.get(message.id, "") + str(message.text)
    kept = {m.id: str(m.text) for m in (await graph.aget_state(config())).values["messages"] if m.type == "ai"}
    assert pieces == kept
    assert list(kept.values()) == ["Let me look.", "It is at 98.40."]


@pytest.mark.case("E4")
async def test_a_turn_that_comes_from_a_cache_is_a_turn_of_its_own(world: Inside) -> None:
    """A cache of models' answers returns the very message of another conversation, ids included."""
    made = []
    graph = agent(world, model := Scripted(calls("show_portfolio"), "Signed in."))
    await sign_in(world, graph, thread="t0")
    model.cache = InMemoryCache()
    model.turns = [calls(SMALL), "Bought."]
    with as_caller(world, "alice"):
        for thread in ("t1", "t2"):
            given = {"messages": [HumanMessage("Buy 5", id="1")]}
            state = await graph.ainvoke(given, config(thread))
            made += [m for m in state["messages"] if isinstance(m, ToolMessage)]
    assert len({m.content for m in made}) == len(world.orders()) == 2


@pytest.mark.case("E4")
async def test_a_provider_that_repeats_the_ids_of_its_messages_replaces_nothing_in_the_history(world: Inside) -> None:
    def turn(text: str = "", *called: Any) -> AIMessage:
        made = calls(*called, content=text)
        made.id = "chatcmpl-0"
        return made

    model = Scripted(turn("", QUOTE), turn("98.40"), turn("", "show_portfolio"), turn("Never mind."))
    graph = agent(world, model)
    await say(graph)
    await say(graph, "Portfolio")
    state = await say(graph, "Forget it")
    assert [m.type for m in state["messages"]] == ["human", "ai", "tool", "ai", "human", "ai", "tool", "human", "ai"]
    assert all(history_faults(heard) == [] for heard in model.heard)


async def test_a_thread_from_before_there_was_a_gate_goes_on_with_it(world: Inside) -> None:
    """Calls that were left open under ids of the provider."""
    saver = InMemorySaver()
    bare = create_agent(Scripted(calls(SMALL)), world.tools(), checkpointer=saver)
    await bare.ainvoke({"messages": [("user", "Buy 5")]}, config(), interrupt_before=["tools"])
    graph = agent(world, model := Scripted("Bought."), saver=saver)
    state = await sign_in_again(world, graph)
    assert last(state) == "Bought."
    assert len(world.orders()) == 1
    assert history_faults(model.heard[-1]) == []


async def sign_in_again(world: Inside, graph: Any) -> Any:
    (asked,) = requests(await graph.ainvoke(None, config()))
    await world.person("alice").sign_in(asked)
    return await world.identity.resume(graph, config())


def test_the_middleware_is_the_same_in_both_forms(world: Inside) -> None:
    graph = by_middleware(Scripted(calls(QUOTE), "98.40"), world.tools(), world.identity, InMemorySaver())
    assert last(graph.invoke({"messages": [("user", "quote")]}, config())) == "98.40"
