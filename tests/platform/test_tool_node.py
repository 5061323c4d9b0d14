"""LangGraph's ``ToolNode``: what it runs again, and what it prints. Why our calls have a node and a ``Send`` each."""

from __future__ import annotations

from typing import Annotated, Any

from langchain_core.messages import AIMessage
from langchain_core.tools import BaseTool, InjectedToolArg, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.constants import START
from langgraph.graph import MessagesState, StateGraph
from langgraph.prebuilt import InjectedState, ToolNode
from langgraph.types import Command, Send, interrupt

CONFIG: Any = {"configurable": {"thread_id": "t"}}


def called(*names: str, **arguments: Any) -> AIMessage:
    listed = [{"type": "tool_call", "id": f"c{i}", "name": n, "args": arguments} for i, n in enumerate(names)]
    return AIMessage("", tool_calls=listed)


def buying(bought: list[str]) -> list[BaseTool]:
    @tool
    def buy() -> str:
        """Buy."""
        bought.append("bought")
        return "bought"

    @tool
    def ask() -> str:
        """Ask."""
        return str(interrupt("?"))

    return [buy, ask]


def test_tool_node_runs_finished_calls_of_its_turn_again_on_resume() -> None:
    bought: list[str] = []
    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode(buying(bought)))
    graph.add_edge(START, "tools")
    compiled = graph.compile(checkpointer=InMemorySaver())
    compiled.invoke({"messages": [called("buy", "ask")]}, CONFIG)
    compiled.invoke(Command(resume="yes"), CONFIG)
    assert bought == ["bought", "bought"]


def test_calls_that_are_sent_one_by_one_are_not_run_again_on_resume() -> None:
    bought: list[str] = []
    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode(buying(bought)))

    def each(state: MessagesState) -> list[Send]:
        message = state["messages"][-1]
        assert isinstance(message, AIMessage)
        return [Send("tools", {"messages": [AIMessage("", tool_calls=[call])]}) for call in message.tool_calls]

    graph.add_conditional_edges(START, each, ["tools"])
    compiled = graph.compile(checkpointer=InMemorySaver())
    compiled.invoke({"messages": [called("buy", "ask")]}, CONFIG)
    compiled.invoke(Command(resume="yes"), CONFIG)
    assert bought == ["bought"]


def test_tool_node_prints_an_argument_that_was_injected_into_the_call() -> None:
    """How a wrapper would hand a tool its token (``InjectedToolArg``): hidden from models, and printed to them."""

    @tool
    def buy(quantity: int, token: Annotated[str, InjectedToolArg]) -> str:
        """Buy."""
        return "bought"

    assert "token" not in buy.tool_call_schema.model_json_schema()["properties"]  # type: ignore[union-attr]
    node = ToolNode([buy])
    graph = StateGraph(MessagesState).add_node("tools", node).add_edge(START, "tools").compile()
    state = graph.invoke({"messages": [called("buy", quantity="many", token="at_planted")]})
    assert "at_planted" in str(state["messages"][-1].content)


def test_tool_node_leaves_out_what_it_injected_from_state_itself() -> None:
    class State(MessagesState):
        token: str

    @tool
    def buy(quantity: int, token: Annotated[str, InjectedState("token")]) -> str:
        """Buy."""
        return "bought"

    graph = StateGraph(State).add_node("tools", ToolNode([buy])).add_edge(START, "tools").compile()
    state = graph.invoke({"messages": [called("buy", quantity="many")], "token": "at_planted"})
    assert "quantity" in str(state["messages"][-1].content)
    assert "at_planted" not in str(state["messages"][-1].content)
