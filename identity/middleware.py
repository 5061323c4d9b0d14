"""``IdentityMiddleware``: the gate in an agent that is made with LangChain's ``create_agent``.

It adds no node: each one would cost every turn a commit. What a turn needs is looked at where its model has answered; if a
person has to decide, the turn goes past the model's node once more, which then is the place that waits. The calls run in
the agent's own node for tools, each through the gate.
"""

from __future__ import annotations

import asyncio
import re
import threading
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, cast

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, RemoveMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.config import get_config
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.types import Command

from .calls import OpenCall
from .gate import Gate
from .running import minted
from .sessions import Place
from .turn import Held, Turn, turn_id

try:
    from langchain.agents.middleware.types import (
        AgentMiddleware,
        AgentState,
        ExtendedModelResponse,
        ModelRequest,
        ModelResponse,
        PrivateStateAttr,
        ToolCallRequest,
        TracePolicy,
        omit_payload,
    )
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "IdentityMiddleware is for LangChain's create_agent, which is not installed: pip install 'deputize[langchain]'"
    ) from None

if TYPE_CHECKING:
    from .identity import Identity

__all__ = ["IdentityMiddleware"]

_MINTED = re.compile(r"call_[0-9a-f]{24}_[0-9]+")

_KEPT = 64
"""How many sets of tools are remembered: an agent has one, unless a middleware chooses tools anew for each call."""


class IdentityState(AgentState[Any]):
    """``deputize``: what :class:`identity.turn.Held` stores. Sealed tokens and handles; nothing in it is believed."""

    deputize: NotRequired[Annotated[dict[str, Any], PrivateStateAttr]]


class IdentityMiddleware(AgentMiddleware[IdentityState, Any, Any]):
    """Tools that run for the person who is talking, with login and approval where their ``@needs`` say so::

        agent = create_agent(model, tools, middleware=[IdentityMiddleware(identity)], checkpointer=…)

    Put it first in the list, so that no other middleware sees the model before the conversation's owner is known.

    A turn waits as a whole: while one of its calls waits for a person, none of them runs. (``build_assistant`` runs first
    what is ready; ``create_agent`` hands all calls to its tools together.)

    Args:
        graph: names the sessions and seals. A sub-agent that is to share its parent's sign-in takes the parent's name. On a
            LangGraph server it is the name that ``langgraph.json`` gives the graph that runs are started on.
    """

    state_schema = IdentityState
    trace_policy = TracePolicy(process_inputs=omit_payload, process_outputs=omit_payload)
    """What our hooks are given is the agent's whole state, sealed tokens included, and says nothing that other spans do not."""

    def __init__(self, identity: Identity, graph: str = "agent") -> None:
        super().__init__()
        self.tools: Sequence[BaseTool] = ()
        self._identity = identity
        self._graph = graph
        identity.graphs.add(graph)  # here already, since the gate is made when the agent first runs
        self._turns: dict[tuple[int, ...], Turn] = {}
        self._lock = threading.Lock()

    # -- around the model ----------------------------------------------------------------------------------------------

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ExtendedModelResponse[Any]:
        """Refuse foreigners, wait for people, answer what was left open, and only then ask the model."""
        turn = self._turn([tool for tool in request.tools if isinstance(tool, BaseTool)])
        step = _Step.of(request, turn)
        turn.gate.check_owner(step.config, begin=step.begins)
        if step.waits:
            return step.goes_on(turn.ready(step.calls, step.config, step.held))
        if step.over:
            return step.goes_on(step.held)
        history = turn.answer_open(step.messages, step.config) if step.calls else None
        response = handler(request if history is None else request.override(messages=history))
        made, calls = step.made(turn, response, history)
        return step.answered(made, history, turn.glance(calls, step.config, step.held) if calls else step.held)

    def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> Coroutine[Any, Any, ExtendedModelResponse[Any]]:
        """:meth:`wrap_model_call`, async."""
        # Not ``async def``: LangChain wraps those in a trace that takes two trips to a thread, a tenth of a whole turn.
        return self._awrap_model_call(request, handler)

    async def _awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ExtendedModelResponse[Any]:
        turn = self._turn([tool for tool in request.tools if isinstance(tool, BaseTool)])
        step = _Step.of(request, turn)
        if step.begins or not turn.gate.knows_owner(step.config):
            await asyncio.to_thread(turn.gate.check_owner, step.config, begin=step.begins)
        if step.waits:
            return step.goes_on(await turn.aready(step.calls, step.config, step.held))
        if step.over:
            return step.goes_on(step.held)
        history = await asyncio.to_thread(turn.answer_open, step.messages, step.config) if step.calls else None
        response = await handler(request if history is None else request.override(messages=history))
        made, calls = step.made(turn, response, history)
        return step.answered(made, history, await turn.aglance(calls, step.config, step.held) if calls else step.held)

    # -- around the tools ----------------------------------------------------------------------------------------------

    def wrap_tool_call(self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Any]) -> Any:
        """Run one call through the gate."""
        turn = self._turn(_known(request))
        call, calls = _called(request, turn)
        return Command() if call is None else turn.run(call, request, handler, _held(request.state), calls)

    def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Any]]
    ) -> Coroutine[Any, Any, Any]:
        """:meth:`wrap_tool_call`, async."""
        return self._awrap_tool_call(request, handler)

    async def _awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Any]]
    ) -> Any:
        turn = self._turn(_known(request))
        call, calls = _called(request, turn)
        return Command() if call is None else await turn.arun(call, request, handler, _held(request.state), calls)

    def _turn(self, tools: Sequence[BaseTool]) -> Turn:
        """The gate for an agent's tools, which a middleware is not told when it is made."""
        key = tuple(map(id, tools))  # a gate keeps its tools, so while it is remembered no other tool gets their ids
        with self._lock:
            turn = self._turns.pop(key, None)
            if turn is None:
                turn = Turn(Gate(tools, self._graph, self._identity, injects=True), self._identity.transport, _named)
            self._turns[key] = turn
            if len(self._turns) > _KEPT:
                del self._turns[next(iter(self._turns))]
        return turn


@dataclass(frozen=True, slots=True)
class _Step:
    """Where a conversation stands when it comes to the model."""

    config: RunnableConfig
    place: Place
    state: Any
    messages: list[AnyMessage]
    calls: list[OpenCall]
    held: Held

    @classmethod
    def of(cls, request: ModelRequest[Any], turn: Turn) -> _Step:
        config, state, messages = get_config(), request.state, request.state["messages"]
        return cls(config, turn.gate.place(config), state, messages, turn.calls(messages, config), _held(state))

    @property
    def begins(self) -> bool:
        """Whether somebody has just said something, perhaps for the first time."""
        return bool(self.messages) and isinstance(self.messages[-1], HumanMessage)

    @property
    def waits(self) -> bool:
        """Whether the turn has open calls, and nobody has said anything since."""
        return bool(self.calls) and isinstance(self.messages[-1], AIMessage | ToolMessage)

    @property
    def over(self) -> bool:
        """Whether the model has said the last word, so that there is nothing to ask it (an empty wake)."""
        return not self.calls and bool(self.messages) and isinstance(self.messages[-1], AIMessage)

    def made(
        self, turn: Turn, response: ModelResponse[Any], history: list[AnyMessage] | None
    ) -> tuple[ModelResponse[Any], list[OpenCall]]:
        """The model's answer with ids that repeat none, and its calls.

        Calls get the ids of their turn, which their claims are keyed by. The message keeps the one that clients who are
        streamed to know it by, unless a provider or a cache repeats it: it would replace a message of the history.
        """
        before = self.messages if history is None else history
        result: list[BaseMessage] = []
        renamed: dict[tuple[Any, str], Any] = {}
        for message in response.result:
            if isinstance(message, AIMessage):
                mine = self._minted(message, before)
                renamed |= {
                    (a["id"], a["name"]): b["id"] for a, b in zip(message.tool_calls, mine.tool_calls, strict=False)
                }
                result.append(mine)
            elif isinstance(message, ToolMessage):  # the answer to the call that was the structured response
                key = (message.tool_call_id, message.name or "")
                result.append(message.model_copy(update={"tool_call_id": renamed.get(key, message.tool_call_id)}))
            else:
                result.append(message)
        return replace(response, result=result), turn.calls(cast("list[AnyMessage]", result), self.config)

    def _minted(self, message: AIMessage, before: list[AnyMessage]) -> AIMessage:
        id_ = message.id
        if not id_ or any(earlier.id == id_ for earlier in before):
            id_ = f"lc_run--{uuid.uuid4()}"
        if message.tool_calls or message.invalid_tool_calls:
            return minted(message, uuid.UUID(turn_id(self.place, before, len(before))), id_)
        return message if message.id == id_ else message.model_copy(update={"id": id_})

    def goes_on(self, held: Held) -> ExtendedModelResponse[Any]:
        """No new message: the agent goes on to its tools, or to its end."""
        return self._with(ModelResponse([], self.state.get("structured_response")), {}, held)

    def answered(
        self, made: ModelResponse[Any], history: list[AnyMessage] | None, held: Held
    ) -> ExtendedModelResponse[Any]:
        """The model's answer. If somebody has to decide about it, the turn comes to the model's node once more."""
        update: dict[str, Any] = {}
        if held.waits != self.held.waits:
            # Forgotten where another middleware has a node behind the model. Then every call of the turn waits in its place.
            update["jump_to"] = "model"
        if history is not None:
            update["messages"] = [RemoveMessage(REMOVE_ALL_MESSAGES), *history, *made.result]
        return self._with(made, update, held)

    def _with(self, made: ModelResponse[Any], update: dict[str, Any], held: Held) -> ExtendedModelResponse[Any]:
        if held != self.held:
            update["deputize"] = held.stored()
        return ExtendedModelResponse(made, Command(update=update) if update else None)


def _held(state: Any) -> Held:
    return Held.of(state.get("deputize"))


def _known(request: ToolCallRequest) -> list[BaseTool]:
    tools = request.runtime.tools
    if request.tool is None or any(tool is request.tool for tool in tools):
        return tools
    return [request.tool]  # put there by another middleware


def _called(request: ToolCallRequest, turn: Turn) -> tuple[OpenCall | None, list[OpenCall]]:
    """The call as it is to run, and every open one of its turn.

    ``None`` where the history has no open call of this id: a client sent the run here with something else (casebook E3).
    """
    made = request.tool_call
    calls = turn.calls(request.state["messages"], request.runtime.config)
    found = next((call for call in calls if call.known_as == made["id"]), None)
    if found is None:
        return None, calls
    # Another middleware may have edited it on the way. Then no approval fits it any more (B24).
    call = replace(found, name=made["name"], arguments=made["args"])
    return call, [call if each is found else each for each in calls]


# -- ids -----------------------------------------------------------------------------------------------------------------


def _named(place: Place, messages: Sequence[AnyMessage], index: int) -> str:
    """The id of a turn: in the ids of the calls that :meth:`_Step.made` made, so that it stays with them whatever becomes
    of the history before them; in a history from before there was a gate, the message's own."""
    message = messages[index]
    assert isinstance(message, AIMessage)
    first = message.tool_calls[0]["id"] if message.tool_calls else None
    return first.rpartition("_")[0] if first and _MINTED.fullmatch(first) else str(message.id)
