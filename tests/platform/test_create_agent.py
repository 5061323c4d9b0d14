"""LangChain's ``create_agent`` and ``ToolNode``: what the placements in other people's graphs rest on."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain.agents.middleware.types import ExtendedModelResponse, ModelResponse
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_config
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, interrupt

from tests.support import Scripted, calls

CONFIG: Any = {"configurable": {"thread_id": "t"}}


@tool
def note(text: str) -> str:
    """Take a note."""
    return f"noted {text}"


class Waits(AgentMiddleware):
    """Sends a turn with calls past the model once more, where it waits."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        if isinstance(request.messages[-1], AIMessage):
            interrupt("?")
            return ExtendedModelResponse(ModelResponse([]))
        self.asked += 1
        made = handler(request)
        update = {"jump_to": "model"} if made.result[0].tool_calls else {}
        return ExtendedModelResponse(made, Command(update=update))


class Behind(AgentMiddleware):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    @property
    def name(self) -> str:
        return f"behind{self.number}"

    def after_model(self, state: Any, runtime: Any) -> None:
        return None


@pytest.mark.parametrize(("behind", "waits"), [(0, True), (1, False)])
def test_a_hook_around_the_model_can_send_its_turn_back_unless_a_node_stands_behind_it(
    behind: int, waits: bool
) -> None:
    guard = Waits()
    others = [Behind(number) for number in range(behind)]
    graph = create_agent(
        Scripted(calls(("note", {"text": "x"}))), [note], middleware=[guard, *others], checkpointer=InMemorySaver()
    )
    state = graph.invoke({"messages": [("user", "go")]}, CONFIG)
    assert ("__interrupt__" in state) is waits
    state = graph.invoke(Command(resume=True), CONFIG) if waits else state
    assert [m.content for m in state["messages"]][-2:] == ["noted x", "Done."]
    assert guard.asked == 2  # for the call, and for what came of it


def test_each_call_of_a_turn_is_a_task_of_its_own_with_the_whole_state_and_all_tools() -> None:
    seen: list[Any] = []

    class Looks(AgentMiddleware):
        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            seen.append((request.tool_call["args"], len(request.state["messages"]), request.runtime.tools))
            return handler(request)

    turn = calls(("note", {"text": "x"}), ("note", {"text": "y"}))
    create_agent(Scripted(turn), [note], middleware=[Looks()]).invoke({"messages": [("user", "go")]})
    assert sorted(args["text"] for args, _, _ in seen) == ["x", "y"]
    assert [messages for _, messages, _ in seen] == [2, 2]
    assert all(tools == [note] for _, _, tools in seen)


def test_a_tool_runs_with_the_very_config_that_its_wrapper_was_given() -> None:
    """So what a wrapper writes there, a quiet stream writer, is what the tool finds."""

    @tool
    def look() -> str:
        """Look."""
        return str(get_config()["configurable"]["planted"])

    class Plants(AgentMiddleware):
        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            request.runtime.config["configurable"] = {**request.runtime.config["configurable"], "planted": "here"}
            return handler(request)

    graph = create_agent(Scripted(calls("look")), [look], middleware=[Plants()])
    assert graph.invoke({"messages": [("user", "go")]})["messages"][-2].content == "here"


def test_a_message_under_a_known_id_replaces_the_one_in_the_history() -> None:
    """What a provider that repeats ids does to a conversation that keeps them."""
    history: Any = [HumanMessage("one", id="1"), AIMessage("first", id="same"), HumanMessage("two", id="2")]
    merged: Any = add_messages(history, [AIMessage("second", id="same")])
    assert [m.content for m in merged] == ["one", "second", "two"]


def test_a_replay_of_the_inputs_own_checkpoint_gives_the_persons_message_another_id() -> None:
    graph = StateGraph(MessagesState)
    graph.add_node("node", lambda state: {})
    graph.add_edge(START, "node")
    compiled = graph.compile(checkpointer=InMemorySaver())
    first = compiled.invoke({"messages": [("user", "go")]}, CONFIG)["messages"][0].id
    (before,) = [s for s in compiled.get_state_history(CONFIG) if s.next == ("__start__",)]
    assert compiled.invoke(None, before.config)["messages"][0].id != first


def test_resume_values_of_a_node_reach_its_interrupts_in_order_whoever_they_were_for() -> None:
    """Why a tool of ``tool_node`` that interrupts by itself may find what was sent while an approval was waited for."""
    decided: list[bool] = []

    def node(state: MessagesState) -> Any:
        while not decided:
            interrupt("approval")
        return {"messages": [ToolMessage(str(interrupt("which?")), tool_call_id="c")]}

    graph = StateGraph(MessagesState)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    compiled = graph.compile(checkpointer=InMemorySaver())
    compiled.invoke({"messages": []}, CONFIG)
    compiled.invoke(Command(resume="for the approval"), CONFIG)
    decided.append(True)
    assert compiled.invoke(None, CONFIG)["messages"][0].content == "for the approval"
