"""LangGraph: what an interrupt does to the superstep around it, and what a resume runs again."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.constants import START
from langgraph.graph import StateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command, Send, interrupt

CONFIG: Any = {"configurable": {"thread_id": "t"}}


class State(TypedDict, total=False):
    said: Annotated[list[str], operator.add]


def two_beside_each_other(first: Any, second: Any) -> Any:
    """START leads to ``first`` and ``second`` in one superstep, by ``Send``."""
    graph = StateGraph(State)
    graph.add_node("first", first)
    graph.add_node("second", second)
    graph.add_conditional_edges(START, lambda state: [Send("first", {}), Send("second", {})], ["first", "second"])
    return graph.compile(checkpointer=InMemorySaver())


def asks(state: State) -> State:
    return {"said": [f"answered {interrupt('?')}"]}


def test_the_result_of_a_sibling_of_an_interrupt_is_shown_and_is_not_committed() -> None:
    graph = two_beside_each_other(lambda state: {"said": ["bought"]}, asks)
    assert graph.invoke({"said": ["go"]}, CONFIG)["said"] == ["go", "bought"]
    held = graph.checkpointer.get_tuple(CONFIG)
    assert held.checkpoint["channel_values"]["said"] == ["go"]
    assert ["bought"] in [value for _, channel, value in held.pending_writes if channel == "said"]
    graph.invoke(Command(resume="yes"), CONFIG)
    assert graph.get_state(CONFIG).values["said"] == ["go", "bought", "answered yes"]


def test_a_new_message_discards_what_siblings_of_an_interrupt_had_done() -> None:
    graph = two_beside_each_other(lambda state: {"said": ["bought"]}, asks)
    graph.invoke({"said": ["go"]}, CONFIG)
    graph.invoke({"said": ["something else"]}, CONFIG)
    graph.invoke(Command(resume="yes"), CONFIG)
    assert graph.get_state(CONFIG).values["said"].count("bought") == 1  # of two runs that both bought


def test_a_resume_runs_the_node_from_its_start_and_finished_siblings_not_again() -> None:
    runs: list[str] = []

    def pays(state: State) -> State:
        runs.append("pays")
        return {"said": ["paid"]}

    def acts_then_asks(state: State) -> State:
        runs.append("acts")
        interrupt("?")
        return {"said": ["done"]}

    graph = two_beside_each_other(pays, acts_then_asks)
    graph.invoke({"said": []}, CONFIG)
    graph.invoke(Command(resume="yes"), CONFIG)
    assert sorted(runs) == ["acts", "acts", "pays"]  # nothing with an effect may stand before an interrupt


def test_a_resume_with_no_input_interrupts_again_and_one_with_a_value_gets_past() -> None:
    graph = StateGraph(State).add_node("asks", asks).add_edge(START, "asks").compile(checkpointer=InMemorySaver())
    graph.invoke({"said": []}, CONFIG)
    assert "__interrupt__" in graph.invoke(None, CONFIG)
    assert graph.invoke(Command(resume={"forged": True}), CONFIG)["said"] == ["answered {'forged': True}"]


def test_with_several_interrupts_pending_a_bare_resume_is_refused() -> None:
    graph = two_beside_each_other(asks, asks)
    state = graph.invoke({"said": []}, CONFIG)
    assert len(state["__interrupt__"]) == 2
    with pytest.raises(RuntimeError, match="multiple pending interrupts"):
        graph.invoke(Command(resume="yes"), CONFIG)
    by_id = {i.id: "yes" for i in state["__interrupt__"]}
    assert graph.invoke(Command(resume=by_id), CONFIG)["said"] == ["answered yes", "answered yes"]


def test_except_exception_around_an_interrupt_swallows_it() -> None:
    def swallows(state: State) -> State:
        try:
            interrupt("?")
        except Exception as error:
            return {"said": [type(error).__name__]}
        return {"said": ["asked"]}

    graph = StateGraph(State).add_node("node", swallows).add_edge(START, "node").compile(checkpointer=InMemorySaver())
    state = graph.invoke({"said": []}, CONFIG)
    assert "__interrupt__" not in state
    assert state["said"] == ["GraphInterrupt"]


def test_the_runtime_context_is_gone_on_resume_unless_it_is_passed_again() -> None:
    seen: list[object] = []

    def node(state: State, runtime: Runtime[str]) -> State:
        seen.append(runtime.context)
        interrupt("?")
        return {}

    graph = StateGraph(State, context_schema=str)  # type: ignore[type-var]
    graph.add_node("node", node)  # type: ignore[type-var]
    graph.add_edge(START, "node")
    compiled = graph.compile(checkpointer=InMemorySaver())
    compiled.invoke({"said": []}, CONFIG, context="alice")
    compiled.invoke(None, CONFIG)
    compiled.invoke(None, CONFIG, context="alice")
    assert seen == ["alice", None, "alice"]


def test_a_new_message_on_an_interrupted_thread_starts_over_at_the_beginning() -> None:
    runs: list[str] = []

    def begins(state: State) -> State:
        runs.append("begins")
        return {}

    graph = StateGraph(State)
    graph.add_node("begins", begins)
    graph.add_node("asks", asks)
    graph.add_edge(START, "begins")
    graph.add_edge("begins", "asks")
    compiled = graph.compile(checkpointer=InMemorySaver())
    compiled.invoke({"said": []}, CONFIG)
    compiled.invoke({"said": ["more"]}, CONFIG)
    assert runs == ["begins", "begins"]
    assert len(compiled.get_state(CONFIG).interrupts) == 1  # the first one is gone


@pytest.mark.parametrize("given", [None, {"said": []}])
def test_no_input_goes_on_and_an_empty_one_starts_over(given: Any) -> None:
    """What the waker sends: with tasks pending no input, else an empty list of messages."""
    runs: list[str] = []

    def begins(state: State) -> State:
        runs.append("begins")
        return {}

    graph = StateGraph(State)
    graph.add_node("begins", begins)
    graph.add_node("asks", asks)
    graph.add_edge(START, "begins")
    graph.add_edge("begins", "asks")
    compiled = graph.compile(checkpointer=InMemorySaver())
    compiled.invoke({"said": ["go"]}, CONFIG)
    compiled.invoke(given, CONFIG)
    assert len(runs) == (1 if given is None else 2)


def test_no_input_on_a_finished_thread_runs_nothing() -> None:
    graph = StateGraph(State)
    graph.add_node("node", lambda state: {"said": ["ran"]})
    graph.add_edge(START, "node")
    compiled = graph.compile(checkpointer=InMemorySaver())
    compiled.invoke({"said": []}, CONFIG)
    assert compiled.invoke(None, CONFIG)["said"] == ["ran"]
