"""``tool_node``: the gate in a hand-made graph, in the place of LangGraph's ``ToolNode``."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AnyMessage, HumanMessage, RemoveMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_executor_for_config
from langchain_core.tools import BaseTool
from langgraph.errors import GraphInterrupt
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.prebuilt import ToolNode
from langgraph.prebuilt.tool_node import ToolCallRequest

from .calls import OpenCall
from .gate import Gate
from .running import Step
from .turn import Arun, Held, Run, Turn, turn_id

if TYPE_CHECKING:
    from .identity import Identity

__all__ = ["GuardedToolNode", "tool_node"]

_THREADS = 4096

_running: ContextVar[tuple[OpenCall, Held]] = ContextVar("deputize_running")
"""The call that a task or a thread is running."""


def tool_node(
    tools: Sequence[BaseTool | Callable[..., Any]], identity: Identity, graph: str = "agent"
) -> GuardedToolNode:
    """A node for a hand-made graph that runs tools for the person who is talking, where a ``ToolNode`` was::

        tools = tool_node([get_quote, buy_stock], identity)
        graph.add_node("intake", tools.intake)
        graph.add_edge(START, "intake")
        graph.add_node("tools", tools)

    The state has ``messages`` with ``add_messages`` (``MessagesState``). A turn waits as a whole: while one of its calls waits
    for a person, none of them runs.

    Args:
        graph: names the sessions and seals. On a LangGraph server it is the name that ``langgraph.json`` gives the graph.

    Raises:
        NeedsError: two tools have one name, or one cannot be called through a gate.
    """
    return GuardedToolNode(tools, identity, graph)


class GuardedToolNode(Runnable[Any, Any]):
    """Made by :func:`tool_node`.

    Attributes:
        intake: the node that a run starts with. It refuses runs of anybody but the owner before the model is shown the
            history, and answers what was left open when the person went on talking while something waited.
    """

    def __init__(self, tools: Sequence[BaseTool | Callable[..., Any]], identity: Identity, graph: str) -> None:
        self._node = ToolNode(tools, wrap_tool_call=self._call, awrap_tool_call=self._acall)
        gate = Gate(list(self._node.tools_by_name.values()), graph, identity, injects=True)
        self._turn = Turn(gate, identity.transport, turn_id)
        self._tokens: dict[str, Held] = {}
        self._lock = threading.Lock()
        self.name = "tools"
        self.intake = Step(self._intake, self._aintake, "intake")

    # -- the node ------------------------------------------------------------------------------------------------------

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        config = config or {}
        self._turn.gate.check_owner(config, begin=True)
        calls = self._turn.calls(_messages(input), config)
        held = self._held(config)
        if not self._turn.gate.runs_at_once(calls, config, held.tokens):
            held = self._kept(config, self._turn.ready(calls, config, held))

        def run(call: OpenCall) -> Any:
            _running.set((call, held))
            try:
                return self._node.invoke([_spelled(call)], config)
            except Exception as error:
                return error

        with get_executor_for_config(config) as executor:
            return _combined(list(executor.map(run, calls)))

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        config = config or {}
        if not self._turn.gate.knows_owner(config):
            await asyncio.to_thread(self._turn.gate.check_owner, config, begin=True)
        calls = self._turn.calls(_messages(input), config)
        held = self._held(config)
        if not self._turn.gate.runs_at_once(calls, config, held.tokens):
            held = self._kept(config, await self._turn.aready(calls, config, held))

        async def run(call: OpenCall) -> Any:
            _running.set((call, held))
            return await self._node.ainvoke([_spelled(call)], config)

        # Each to its end, also when one of them interrupts: what runs on after its node has ended is nobody's.
        return _combined(await asyncio.gather(*map(run, calls), return_exceptions=True))

    def _call(self, request: ToolCallRequest, handler: Run) -> Any:
        call, held = _running.get()
        return self._turn.run(call, request, handler, held)

    async def _acall(self, request: ToolCallRequest, handler: Arun) -> Any:
        call, held = _running.get()
        return await self._turn.arun(call, request, handler, held)

    # -- tokens --------------------------------------------------------------------------------------------------------

    def _held(self, config: RunnableConfig) -> Held:
        """The sealed tokens of a thread. State has no channel for them here, so this process remembers them."""
        return self._tokens.get(self._turn.gate.place(config).thread, Held())

    def _kept(self, config: RunnableConfig, held: Held) -> Held:
        with self._lock:
            self._tokens[self._turn.gate.place(config).thread] = Held(held.tokens)
            if len(self._tokens) > _THREADS:
                del self._tokens[next(iter(self._tokens))]
        return held

    # -- people go on talking ------------------------------------------------------------------------------------------

    def _intake(self, state: Any, config: RunnableConfig) -> dict[str, Any]:
        self._turn.gate.check_owner(config, begin=True)
        messages = _messages(state)
        if not (messages and isinstance(messages[-1], HumanMessage) and self._turn.calls(messages, config)):
            return {}
        return {"messages": [RemoveMessage(REMOVE_ALL_MESSAGES), *self._turn.answer_open(messages, config)]}

    async def _aintake(self, state: Any, config: RunnableConfig) -> dict[str, Any]:
        return await asyncio.to_thread(self._intake, state, config)


def _messages(state: Any) -> list[AnyMessage]:
    found: list[AnyMessage] = state["messages"] if isinstance(state, dict) else state.messages
    return found


def _spelled(call: OpenCall) -> dict[str, Any]:
    return {"type": "tool_call", "id": call.known_as, "name": call.name, "args": dict(call.arguments)}


def _combined(results: Sequence[Any]) -> Any:
    """What a ``ToolNode`` returns for all calls of a turn, from what it returned for each."""
    interrupts = [result for result in results if isinstance(result, GraphInterrupt)]
    if interrupts:  # all that anybody is asked, not only what was asked first
        raise GraphInterrupt([asked for interrupted in interrupts for asked in interrupted.args[0]])
    for result in results:
        if isinstance(result, BaseException):
            raise result
    if all(isinstance(result, dict) for result in results):
        return {"messages": [message for result in results for message in result["messages"]]}
    return [part for result in results for part in (result if isinstance(result, list) else [result])]
