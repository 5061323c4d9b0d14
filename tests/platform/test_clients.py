"""LangGraph: what whoever holds a graph, or a server's client, can send. Each is an attack that ours is tried with."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.constants import START
from langgraph.graph import StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, Overwrite, Send, StateUpdate

CONFIG: Any = {"configurable": {"thread_id": "t"}}


class Input(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


class State(Input, total=False):
    tokens: Annotated[list[str], operator.add]


def graph(ran: list[Any] | None = None) -> Any:
    """START → ``first``; ``second`` is reached by nobody who goes the right way."""
    seen = ran if ran is not None else []
    built = StateGraph(State, input_schema=Input)
    built.add_node("first", lambda state: seen.append(("first", state)))
    built.add_node("second", lambda state: seen.append(("second", state)))
    built.add_edge(START, "first")
    return built.compile(checkpointer=InMemorySaver())


def test_a_narrow_input_schema_drops_other_channels_silently() -> None:
    assert graph().invoke({"messages": [], "tokens": ["forged"]}, CONFIG)["tokens"] == []


def test_a_narrow_input_schema_takes_messages_of_any_role_and_known_ids() -> None:
    compiled = graph()
    compiled.invoke({"messages": [HumanMessage("said", id="1")]}, CONFIG)
    state = compiled.invoke({"messages": [AIMessage("forged"), HumanMessage("replaced", id="1")]}, CONFIG)
    assert [m.content for m in state["messages"]] == ["replaced", "forged"]
    assert compiled.invoke({"messages": [RemoveMessage("1")]}, CONFIG)["messages"][0].content == "forged"
    emptied = compiled.invoke({"messages": Overwrite([AIMessage("all of it")])}, CONFIG)
    assert [m.content for m in emptied["messages"]] == ["all of it"]


def test_a_command_as_input_writes_to_any_channel_around_the_input_schema() -> None:
    compiled = graph()
    compiled.invoke({"messages": []}, CONFIG)
    state = compiled.invoke(Command(update={"messages": [AIMessage("forged")], "tokens": ["forged"]}), CONFIG)
    assert state["tokens"] == ["forged"]
    assert state["messages"][-1].content == "forged"


@pytest.mark.parametrize("target", ["second", Send("second", {"forged": True})])
def test_a_command_as_input_runs_any_node_with_any_argument(target: Any) -> None:
    ran: list[Any] = []
    compiled = graph(ran)
    compiled.invoke({"messages": []}, CONFIG)
    compiled.invoke(Command(goto=target), CONFIG)
    assert ran[-1][0] == "second"
    if isinstance(target, Send):
        assert ran[-1][1] == {"forged": True}


def test_state_can_be_edited_as_if_any_node_had_written_it_and_the_run_goes_on_from_there() -> None:
    ran: list[Any] = []
    compiled = graph(ran)
    compiled.invoke({"messages": [HumanMessage("said", id="1")]}, CONFIG)
    compiled.update_state(CONFIG, {"tokens": ["forged"]}, as_node="second")
    compiled.update_state(CONFIG, {"messages": [HumanMessage("edited", id="1")]}, as_node=START)
    assert compiled.get_state(CONFIG).next == ("first",)
    state = compiled.invoke(None, CONFIG)
    assert (state["tokens"], state["messages"][0].content) == (["forged"], "edited")


def test_a_history_can_be_written_as_supersteps_on_a_thread_that_never_ran() -> None:
    compiled = graph()
    compiled.bulk_update_state(
        CONFIG, [[StateUpdate({"messages": [AIMessage("forged")], "tokens": ["forged"]}, as_node="first")]]
    )
    assert compiled.get_state(CONFIG).values["tokens"] == ["forged"]


def test_an_old_checkpoint_can_be_run_again_and_what_came_after_it_happens_again() -> None:
    ran: list[Any] = []
    compiled = graph(ran)
    compiled.invoke({"messages": [HumanMessage("said")]}, CONFIG)
    before = next(s for s in compiled.get_state_history(CONFIG) if s.next == ("first",))
    compiled.invoke(None, before.config)
    assert [name for name, _ in ran] == ["first", "first"]


def test_a_threads_values_can_be_carried_to_another_thread() -> None:
    compiled = graph()
    compiled.invoke({"messages": [HumanMessage("said", id="1")]}, CONFIG)
    other: Any = {"configurable": {"thread_id": "another"}}
    compiled.update_state(other, compiled.get_state(CONFIG).values, as_node="first")
    assert compiled.get_state(other).values["messages"][0].id == "1"


def test_whoever_runs_a_graph_can_stop_it_before_any_node() -> None:
    compiled = graph()
    compiled.invoke({"messages": []}, CONFIG, interrupt_before=["first"])
    assert compiled.get_state(CONFIG).next == ("first",)
