"""LangGraph: how edges, ``Send`` objects and joins fire. The shape of our graph rests on each of these."""

from __future__ import annotations

import itertools
import operator
from typing import Annotated, Any, TypedDict

from langgraph.channels.ephemeral_value import EphemeralValue
from langgraph.constants import START
from langgraph.graph import END, StateGraph
from langgraph.types import Send


class State(TypedDict, total=False):
    seen: Annotated[list[str], operator.add]


def saying(name: str) -> Any:
    return lambda state: {"seen": [name]}


def test_a_conditional_edge_on_a_send_target_fires_once_for_each_task() -> None:
    fired: list[str] = []

    def edge(state: State) -> str:
        fired.append("edge")
        return END

    graph = StateGraph(State)
    graph.add_node("worker", saying("worker"))
    graph.add_conditional_edges(START, lambda state: [Send("worker", {}) for _ in range(3)], ["worker"])
    graph.add_conditional_edges("worker", edge, [END])
    assert graph.compile().invoke({"seen": []})["seen"] == ["worker"] * 3
    assert len(fired) == 3  # so what decides the turn is attached to the join, never to the target


def test_a_plain_edge_from_a_send_target_fires_once_for_all_of_its_tasks() -> None:
    graph = StateGraph(State)
    graph.add_node("worker", saying("worker"))
    graph.add_node("join", saying("join"))
    graph.add_conditional_edges(START, lambda state: [Send("worker", {}) for _ in range(3)], ["worker"])
    graph.add_edge("worker", "join")
    assert graph.compile().invoke({"seen": []})["seen"] == ["worker"] * 3 + ["join"]


def test_two_nodes_that_run_together_join_in_one_run_of_the_next() -> None:
    graph = StateGraph(State)
    for name in ("connect", "approval", "await_user"):
        graph.add_node(name, saying(name))
    graph.add_conditional_edges(START, lambda state: ["connect", "approval"], ["connect", "approval"])
    graph.add_edge("connect", "await_user")
    graph.add_edge("approval", "await_user")
    assert sorted(graph.compile().invoke({"seen": []})["seen"]) == ["approval", "await_user", "connect"]


def test_sends_and_names_that_are_mixed_put_the_waiting_node_beside_the_join() -> None:
    steps: list[set[str]] = []
    graph = StateGraph(State)
    for name in ("call", "approval", "await_user", "model"):
        graph.add_node(name, saying(name))
    graph.add_conditional_edges(START, lambda state: [Send("call", {}), "approval"], ["call", "approval"])  # type: ignore[arg-type, return-value]
    graph.add_edge("call", "model")
    graph.add_edge("approval", "await_user")
    for update in graph.compile().stream({"seen": []}, stream_mode="tasks"):
        if "input" in update:
            steps.append(update["name"])
    # In the second superstep: an interrupt there would hold back what the model node has to commit.
    assert set(steps[2:]) == {"model", "await_user"}


def test_a_loop_goes_on_for_thousands_of_steps_before_langgraph_ends_it() -> None:
    graph = StateGraph(State)
    graph.add_node("again", lambda state: {})
    graph.add_edge(START, "again")
    graph.add_conditional_edges("again", lambda state: "again", ["again"])
    going = graph.compile().stream({"seen": []})
    assert len(list(itertools.islice(going, 1_000))) == 1_000  # nothing that can fail may lead back to itself


async def test_a_runnable_with_both_forms_serves_invoke_and_ainvoke() -> None:
    from langchain_core.runnables import Runnable

    class Both(Runnable[Any, Any]):
        def invoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
            return {"seen": ["sync"]}

        async def ainvoke(self, input: Any, config: Any = None, **kwargs: Any) -> Any:
            return {"seen": ["async"]}

    graph = StateGraph(State)
    graph.add_node("node", Both())
    graph.add_edge(START, "node")
    compiled = graph.compile()
    assert compiled.invoke({"seen": []})["seen"] == ["sync"]
    assert (await compiled.ainvoke({"seen": []}))["seen"] == ["async"]


def test_what_goes_into_a_run_passes_the_start_channel_of_the_compiled_graph() -> None:
    given: list[Any] = []

    class Watched(EphemeralValue[Any]):
        def update(self, values: Any) -> bool:
            given.extend(values)
            return super().update([{"seen": ["replaced"]} for _ in values])

    graph = StateGraph(State)
    graph.add_node("node", saying("node"))
    graph.add_edge(START, "node")
    compiled = graph.compile()
    compiled.channels[START] = Watched(State)
    assert compiled.invoke({"seen": ["given"]})["seen"] == ["replaced", "node"]
    assert given == [{"seen": ["given"]}]
