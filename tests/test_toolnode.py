"""``tool_node`` in hand-made graphs: where a ``ToolNode`` was, with what a ``ToolNode`` can do."""

from __future__ import annotations

import asyncio
import operator
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import pytest
from langchain.tools import ToolRuntime
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import InjectedState, ToolNode, tools_condition
from langgraph.types import Command, interrupt
from pydantic import BaseModel, field_validator

from identity import needs, tool_node
from identity.errors import NeedsError
from tests.placements.placing import LARGE, QUOTE, SMALL, answers, orders_sent
from tests.support import Inside, Scripted, as_caller, calls, config, last, requests, say, sign_in


def around(node: Any, model: Scripted, schema: Any = MessagesState, saver: Any = None) -> Any:
    """``model → tools → model`` and nothing else: the graph of LangGraph's documentation."""

    def call_model(state: Any) -> dict[str, Any]:
        messages = state["messages"] if isinstance(state, dict) else state.messages
        return {"messages": [model.invoke(messages)]}

    graph = StateGraph(schema)
    graph.add_node("model", call_model)
    graph.add_node("tools", node)
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    return graph.compile(checkpointer=saver or InMemorySaver())


async def test_it_stands_where_a_tool_node_stood_without_any_other_change(world: Inside) -> None:
    graph = around(tool_node(world.tools(), world.identity), Scripted(calls(LARGE), "Bought."))
    (asked,) = requests(await sign_in(world, graph))
    await world.person("alice").approve(asked)
    with as_caller(world, "alice"):
        state = await world.identity.resume(graph, config())
    assert last(state) == "Bought."
    assert orders_sent(world) == 1


class PydanticState(BaseModel):
    messages: Annotated[list[AnyMessage], add_messages]


@dataclass
class DataclassState:
    messages: Annotated[list[AnyMessage], add_messages]


@pytest.mark.parametrize("schema", [PydanticState, DataclassState])
async def test_the_state_may_be_a_model_or_a_dataclass(world: Inside, schema: Any) -> None:
    graph = around(tool_node(world.tools(), world.identity), Scripted(calls(QUOTE), "98.40"), schema)
    assert answers(await say(graph)) == ["ACME: 98.40 USD"]


class Appended(TypedDict):
    messages: Annotated[list[AnyMessage], operator.add]


async def test_messages_that_have_no_ids_at_all_are_told_apart_by_where_they_stand(world: Inside) -> None:
    """A reducer that only appends gives none. The same words and the same call, twice, are two orders."""
    model = Scripted(calls("show_portfolio"), "Signed in.")
    graph = around(tool_node(world.tools(), world.identity), model, Appended)

    async def tell(text: str) -> Any:
        return await graph.ainvoke({"messages": [HumanMessage(text)]}, config())

    await world.person("alice").sign_in(requests(await tell("Portfolio"))[0])
    await world.identity.resume(graph, config())
    with as_caller(world, "alice"):
        for _ in range(2):
            model.turns = [AIMessage("", tool_calls=[{"id": "call_0", "name": SMALL[0], "args": SMALL[1]}]), "Bought."]
            state = await tell("Buy 5")
    assert len({text for text in answers(state) if "Bought" in text}) == len(world.orders()) == 2


async def test_what_tool_node_injects_is_injected_here_too(world: Inside) -> None:
    class Named(MessagesState):
        name: str

    @tool
    def greet(state: Annotated[dict[str, Any], InjectedState], name: Annotated[str, InjectedState("name")]) -> str:
        """Greet."""
        return f"Hello {name} after {len(state['messages'])} messages"

    graph = around(tool_node([greet], world.identity), Scripted(calls("greet"), "There."), Named)
    state = await graph.ainvoke({"messages": [("user", "hi")], "name": "alice"}, config())
    assert answers(state) == ["Hello alice after 2 messages"]


async def test_a_function_is_a_tool_here_too(world: Inside) -> None:
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    graph = around(tool_node([add], world.identity), Scripted(calls(("add", {"a": 1, "b": 2})), "3"))
    assert answers(await say(graph)) == ["3"]


async def test_a_tool_may_write_to_state_and_lead_on_as_with_a_tool_node(world: Inside) -> None:
    class Noted(MessagesState):
        noted: str

    @tool
    def note(text: str, runtime: ToolRuntime) -> Any:
        """Note."""
        told = ToolMessage(f"noted {text}", tool_call_id=runtime.tool_call_id)
        return Command(update={"noted": text, "messages": [told]})

    @tool
    def get_quote(symbol: str) -> str:
        """Quote."""
        return "ACME: 98.40 USD"

    graph = around(tool_node([note, get_quote], world.identity), Scripted(), Noted)
    bare = around(ToolNode([note, get_quote]), Scripted(), Noted)
    for made in (graph, bare):
        turn = calls(("note", {"text": "x"}), QUOTE)
        await made.aupdate_state(config(), {"messages": [("user", "go"), turn]}, as_node="model")
        state = await made.ainvoke(None, config())
        assert state["noted"] == "x"
        assert sorted(answers(state)) == ["ACME: 98.40 USD", "noted x"]


async def test_the_calls_of_a_turn_run_at_the_same_time(world: Inside) -> None:
    met = asyncio.Barrier(2)

    @tool
    @needs(read_only=True)
    async def meet() -> str:
        """Wait for the other one."""
        await asyncio.wait_for(met.wait(), 5)
        return "met"

    graph = around(tool_node([meet], world.identity), Scripted(calls("meet", "meet"), "Done."))
    assert answers(await say(graph)) == ["met", "met"]


async def test_of_several_tools_that_interrupt_each_is_heard_and_what_ran_beside_them_runs_once(world: Inside) -> None:
    made: list[str] = []

    @tool
    def order() -> str:
        """Order."""
        made.append("order")
        return "ordered"

    @tool
    @needs(read_only=True)
    def ask(what: str) -> str:
        """Ask."""
        return str(interrupt(what))

    turn = calls(("ask", {"what": "one"}), "order", ("ask", {"what": "two"}))
    graph = around(tool_node([order, ask], world.identity), Scripted(turn, "Done."))
    state = await say(graph)
    assert sorted(i.value for i in state["__interrupt__"]) == ["one", "two"]
    assert made == ["order"]
    state = await graph.ainvoke(None, config())
    assert len(state["__interrupt__"]) == 2
    assert made == ["order"]


async def test_an_error_of_a_tool_is_told_and_the_others_are_answered(world: Inside) -> None:
    @tool
    def fail() -> str:
        """Fail."""
        raise ValueError("no such thing")

    graph = around(tool_node([fail, *world.tools()], world.identity), Scripted(calls("fail", QUOTE), "Done."))
    told = answers(await say(graph))
    assert told[0].startswith("fail failed. ValueError: no such thing")
    assert told[1] == "ACME: 98.40 USD"


async def test_a_process_that_never_saw_the_thread_gets_its_tokens_anew(world: Inside) -> None:
    """State has no channel for sealed tokens here: they are remembered by the process, and exchanged again by another one."""
    saver = InMemorySaver()
    model = Scripted(calls("show_portfolio"), "There.", calls("show_portfolio"), "There.")
    await sign_in(world, around(tool_node(world.tools(), world.identity), model, saver=saver))
    exchange = "urn:ietf:params:oauth:grant-type:token-exchange"
    assert world.network.grants().count(exchange) == 1
    with as_caller(world, "alice"):
        state = await say(around(tool_node(world.tools(), world.identity), model, saver=saver))
    assert "12 ACME" in answers(state)[-1]
    assert world.network.grants().count(exchange) == 2


def test_tools_that_cannot_be_called_through_a_gate_are_refused_when_the_node_is_made(world: Inside) -> None:
    class Checked(BaseModel, arbitrary_types_allowed=True):
        number: int
        runtime: ToolRuntime

        @field_validator("number")
        @classmethod
        def positive(cls, number: int) -> int:
            return abs(number)

    @tool(args_schema=Checked)
    def count(number: int, runtime: ToolRuntime) -> str:
        """Count."""
        return "counted"

    with pytest.raises(NeedsError, match="has validators"):
        tool_node([count], world.identity)
