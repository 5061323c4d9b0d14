"""LangGraph: what a node's config carries for what runs inside of it, and what becomes of a node that is cancelled."""

from __future__ import annotations

import asyncio
from typing import Any, TypedDict

import pytest
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.constants import START
from langgraph.errors import NodeCancelledError
from langgraph.graph import StateGraph

CONFIG: Any = {"configurable": {"thread_id": "t"}}


class State(TypedDict, total=False):
    value: str


def graph(node: Any) -> Any:
    return StateGraph(State).add_node("node", node).add_edge(START, "node").compile(checkpointer=InMemorySaver())


def test_a_tool_writes_to_the_stream_through_the_runtime_in_its_config() -> None:
    """The key has no public name. Where it changes, what tools stream would not be redacted any more."""

    @tool
    def write() -> str:
        """Write."""
        get_stream_writer()("secret")
        return "written"

    def node(state: State, config: RunnableConfig) -> State:
        configurable = config["configurable"]
        runtime = configurable["__pregel_runtime"]
        quiet = runtime.override(stream_writer=lambda value: runtime.stream_writer("***"))
        write.invoke({}, {**config, "configurable": {**configurable, "__pregel_runtime": quiet}})
        return {}

    assert list(graph(node).stream({"value": ""}, CONFIG, stream_mode="custom")) == ["***"]


async def test_a_cancellation_that_a_node_raises_ends_the_run_as_an_error_of_its_own() -> None:
    async def node(state: State) -> State:
        raise asyncio.CancelledError

    with pytest.raises(NodeCancelledError):
        await graph(node).ainvoke({"value": ""}, CONFIG)


async def test_a_run_that_is_cancelled_from_outside_can_be_gone_on_with() -> None:
    runs: list[asyncio.Task[Any]] = []
    ran: list[str] = []

    async def node(state: State) -> State:
        ran.append("node")
        if len(ran) == 1:
            runs[0].cancel()
            await asyncio.Event().wait()
        return {"value": "done"}

    compiled = graph(node)
    runs.append(asyncio.create_task(compiled.ainvoke({"value": ""}, CONFIG)))
    with pytest.raises(asyncio.CancelledError):
        await runs[0]
    assert (await compiled.ainvoke(None, CONFIG))["value"] == "done"
    assert ran == ["node", "node"]  # from its start: what it had done before is done again
