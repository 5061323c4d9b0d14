"""The LangGraph nodes and edges. ``graphs/assistant.py`` composes them; read that first.

Rules that hold everywhere here:

- every node and edge has a sync and an async form, so that ``invoke`` and ``ainvoke`` both work; the async form reads the
  database in a thread, and what goes over the network runs on the transport's own loop;
- only ``await_user`` interrupts, with nothing done before it that a second run of the node would repeat;
- ``authorize`` returns ``Send`` objects or one node's name, never both; what is ready runs, and is committed, before
  anything waits.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage, ToolMessage
from langchain_core.messages.utils import convert_to_messages
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.channels.ephemeral_value import EphemeralValue
from langgraph.channels.last_value import LastValue
from langgraph.constants import END, START
from langgraph.errors import GraphBubbleUp
from langgraph.graph.message import REMOVE_ALL_MESSAGES, add_messages
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, Send, interrupt
from typing_extensions import TypedDict  # before Python 3.12, pydantic makes a schema for Studio of no other one

from .calls import OpenCall, open_calls, run_id
from .errors import InputError
from .gate import Examined, Gate
from .guarded import GuardedTool
from .ledger import Request
from .messages import odd_blocks
from .policy import Allow, Deferred, Deny, StepUp
from .running import Step, asked, broke, failures, in_sync, interrupted, message_of, minted, quiet, shown, threaded
from .transport import Transport

__all__ = ["INTAKE_ROUTES", "ROUTES", "Input", "Nodes", "State", "new_messages_only"]

SETTLED = "settled-"
"""How the ids of messages begin that tell what became of deferred calls."""

_TURNS = uuid.UUID("6f0d8c5e-6b0b-5d3c-9a53-2b1f0f2f7c11")
"""The namespace of the ids that models' messages get."""


class _Latest(LastValue[Any]):
    """What was written last. A run that a client sent to some node may write twice in a step, which is no reason to fail.

    Not a reducer, which would do the same: LangGraph makes the channel of a reducer anew for each run and each edge, and that
    costs more than what an edge does (``make bench``).
    """

    def update(self, values: Sequence[Any]) -> bool:
        return super().update(values[-1:])


class _Merged(LastValue[Any]):
    """The union of what was written; what was written last counts."""

    def update(self, values: Sequence[Any]) -> bool:
        if not values:
            return False
        held = self.value if self.is_available() else None
        return super().update([{key: value for part in (held, *values) for key, value in (part or {}).items()}])


class Input(TypedDict):
    """What a client may give: new messages of a person."""

    messages: Annotated[list[AnyMessage], add_messages]


class State(Input, total=False):
    """A cache of sealed things and handles. Nothing in it is believed.

    ``tokens``: sealed tokens, by audience and scopes. ``requests``: what waits for a person, as clients may see it.
    ``failures``: what could not be had in the turn that they name, so that it is not tried in a loop. ``deferred``: whether
    an outcome is still to come, so that a turn's end looks for it.
    """

    tokens: Annotated[dict[str, Any], _Merged]
    requests: Annotated[list[dict[str, Any]], _Latest]
    failures: Annotated[dict[str, Any], _Latest]
    deferred: Annotated[bool, _Latest]


class _Call(TypedDict):
    """What ``authorize`` sends to ``tool_call``: one call, the sealed tokens of its declaration, and what failed for it."""

    call: dict[str, Any]
    tokens: dict[str, Any]
    failures: dict[str, Any]


ROUTES = ["tool_call", "login", "approval", "token_exchange", "tidy", "settle", END]
"""Where ``authorize`` can lead, for ``add_conditional_edges`` and the graph's drawing."""

INTAKE_ROUTES = ["model", "tidy", "settle"]
"""Where ``intake`` can lead."""


def new_messages_only(graph: CompiledStateGraph[Any, Any, Any, Any]) -> CompiledStateGraph[Any, Any, Any, Any]:
    """Make ``graph`` refuse any input but new messages of a person (casebook E21).

    Attack: an input with a message of another role forges the assistant's words or a tool's result, one with a known id
    replaces history, a ``RemoveMessage`` erases it, another key edits a channel.
    """
    graph.channels[START] = _NewMessages(graph.builder.input_schema)
    return _Guarded(**vars(graph))


class _Guarded(CompiledStateGraph[Any, Any, Any, Any]):
    """A graph that clients may resume, and may neither jump in nor write to (casebook E3).

    Nodes check whose a thread is, but what a ``Command`` writes is committed before any of them runs: a message that
    somebody else had left that way would be answered with the next run of the owner.
    """

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return super().stream(_named(_resume_only(input), config), config, **kwargs)

    def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return super().astream(_named(_resume_only(input), config), config, **kwargs)


def _resume_only(input: Any) -> Any:
    if isinstance(input, Command) and (input.update is not None or input.goto or input.graph is not None):
        raise InputError(
            "A run is given new messages, or a resume", "Send {'messages': [...]}, or Command(resume=True)"
        )
    return input


class _Named(HumanMessage):
    """A person's message whose id was made here."""


def _named(input: Any, config: RunnableConfig | None) -> Any:
    """The input of a server's run, with ids that are the same whenever the server starts that very run again.

    A run whose process died is queued once more, with its input. Under new ids the person would have said it twice, and the
    effects of the first time would be had twice (casebook E6, E24). A graph that another one calls is given messages by that
    one, several in one run perhaps, and they are not the same because the run is.
    """
    run = run_id(config or {})
    nested = ((config or {}).get("configurable") or {}).get("checkpoint_ns")
    if not run or nested or not isinstance(input, Mapping):
        return input
    messages = _checked_input(input)["messages"]
    return {
        "messages": [
            _Named(content=message.content, id=str(uuid.uuid5(_TURNS, json.dumps([run, position]))))
            for position, message in enumerate(messages)
        ]
    }


class _NewMessages(EphemeralValue[Any]):
    def update(self, values: Sequence[Any]) -> bool:
        return super().update([_checked_input(value) for value in values])


def _checked_input(value: Any) -> Any:
    if not isinstance(value, Mapping) or set(value) - {"messages"}:
        raise InputError("A run takes {'messages': […]} and nothing else", "Send one new message")
    given = value.get("messages") or []
    try:
        messages = convert_to_messages(given if isinstance(given, list) else [given])
    except (TypeError, ValueError, NotImplementedError):  # its text repeats the input, whatever that is
        raise InputError(
            "A run was given something that is no message", "Send {'role': 'user', 'content': 'text'}"
        ) from None
    for message in messages:
        if not isinstance(message, HumanMessage):
            raise InputError(
                f"A run takes new messages of a person, not a message of the kind {message.type!r}", "Send one"
            )
        if odd := odd_blocks(message.content):
            raise InputError(f"A person's message cannot hold {odd[0]!r}", "Send text, images, files or audio")
    # Without the id that the client chose: it could name a message of the history, and replace it.
    return {
        "messages": [
            HumanMessage(message.content, id=message.id if isinstance(message, _Named) else str(uuid.uuid4()))
            for message in messages
        ]
    }


class Nodes:
    """The nodes and edges of one graph, each a ``Runnable`` with a sync and an async form.

    Attributes:
        model, login, approval, await_user, token_exchange, tool_call, tidy, settle: nodes.
        intake, authorize: edges; :data:`INTAKE_ROUTES` and :data:`ROUTES` say where they lead.
    """

    def __init__(self, model: BaseChatModel, gate: Gate, transport: Transport) -> None:
        tools = [guarded.tool for guarded in gate.tools.values()]
        self._bound = model.bind_tools(tools) if tools else model
        self._gate = gate
        self._transport = transport
        self.model = Step(self._model, self._amodel, "model")
        self.login = self._networked(self._login, "login")
        self.approval = self._networked(self._approval, "approval")
        self.token_exchange = self._networked(self._token_exchange, "token_exchange")
        self.await_user = threaded(self._await_user, "await_user")
        self.tool_call = Step(self._tool_call, self._atool_call, "tool_call")
        self.tidy = threaded(self._tidy, "tidy")
        self.settle = Step(self._settle, self._asettle, "settle")
        self.intake = threaded(self._intake, "intake")
        self.authorize = Step(self._authorize, self._aauthorize, "authorize")

    def _networked(self, node: Callable[[State, RunnableConfig], Any], name: str) -> Runnable[Any, Any]:
        """A node whose coroutine runs on the transport's loop. It must not need LangGraph's context."""

        def run(state: State, config: RunnableConfig) -> Any:
            return self._transport.call(node, state, config)

        async def arun(state: State, config: RunnableConfig) -> Any:
            return await self._transport.acall(node, state, config)

        return Step(run, arun, name)

    # -- model -------------------------------------------------------------------------------------------------------

    def _model(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        if open_calls(state["messages"]) or not _model_is_next(state["messages"]):
            return {}
        self._gate.check_owner(config)  # again: a resumed run, or one that was sent to this node, never passed intake
        run_id = self._turn_id(state["messages"], config)
        return _turn(self._bound.invoke(state["messages"], {**config, "run_id": run_id}), run_id)

    async def _amodel(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        if open_calls(state["messages"]) or not _model_is_next(state["messages"]):
            return {}
        if not self._gate.knows_owner(config):
            await asyncio.to_thread(self._gate.check_owner, config)
        run_id = self._turn_id(state["messages"], config)
        return _turn(await self._bound.ainvoke(state["messages"], {**config, "run_id": run_id}), run_id)

    def _turn_id(self, messages: Sequence[AnyMessage], config: RunnableConfig) -> uuid.UUID:
        """The id of the model's next message: computed, the same whenever this very step is run again.

        LangGraph may run a tool while the checkpoint of the turn that called it is still being written. If the process dies
        there, the step is run anew; with an id made anew, the effect would be claimed anew, and be had twice (casebook E6).
        """
        place, since = self._gate.place(config), 0
        for message in reversed(messages):
            if isinstance(message, HumanMessage):
                # Its id was minted here, so it names one message of one person; a copied thread has the same one.
                return uuid.uuid5(_TURNS, json.dumps([place.tenant, place.graph, message.id, since]))
            # What was settled between was not said by the model: whether it had been yet must not count.
            since += isinstance(message, AIMessage) and not (message.id or "").startswith(SETTLED)
        return uuid.uuid4()

    # -- edges -------------------------------------------------------------------------------------------------------

    def _intake(self, state: State, config: RunnableConfig) -> str:
        self._gate.check_owner(config, begin=True)
        messages = state["messages"]
        if open_calls(messages):
            return "tidy" if isinstance(messages[-1], HumanMessage) else "model"
        return "settle" if _decided(self._gate.deferred(config)) else "model"

    def _authorize(self, state: State, config: RunnableConfig) -> str | list[Send]:
        examined = self._examine(state, config)
        if not examined:
            return "settle" if self._untold(state, config) else END
        ready = [e for e in examined if isinstance(e.decision, Allow | Deny | Deferred)]
        if ready:
            return [Send("tool_call", _sent(e.call, e.tool, state)) for e in ready]
        wanted = {e.decision.what for e in examined if isinstance(e.decision, StepUp)}
        if "login" in wanted:
            return "login"
        if self._goes_first(examined, state, config):
            return "tidy"
        return "token_exchange" if "token" in wanted else "approval"

    async def _aauthorize(self, state: State, config: RunnableConfig) -> str | list[Send]:
        # Every turn ends here, and most calls have nothing to wait for: no trip to a thread for that.
        calls = open_calls(state["messages"])
        if not calls and not state.get("deferred"):
            return END
        if calls and self._gate.runs_at_once(calls, config, _held(state, "tokens")):
            return [Send("tool_call", _sent(call, self._gate.tools.get(call.name), state)) for call in calls]
        return await asyncio.to_thread(self._authorize, state, config)

    def _examine(self, state: State, config: RunnableConfig) -> list[Examined]:
        calls = open_calls(state["messages"])
        return self._gate.examine(calls, config, _held(state, "tokens"), _held(state, "failures"))

    def _untold(self, state: State, config: RunnableConfig) -> list[Request]:
        """What was decided about calls that were deferred, and is not in the conversation yet."""
        seen = {message.id for message in state["messages"]}
        return [r for r in _decided(self._gate.deferred(config)) if _settled_id(r) not in seen]

    def _goes_first(self, examined: Sequence[Examined], state: State, config: RunnableConfig) -> bool:
        """Whether the outcome of a deferred call is to be told before this turn's approvals are decided.

        Its approval is good for minutes, and nobody knows when they will be. So they become deferred themselves.
        """
        waits = all(e.waits and e.decision == StepUp("approval") for e in examined)
        return waits and bool(self._untold(state, config))

    # -- asking ------------------------------------------------------------------------------------------------------

    async def _login(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        calls = open_calls(state["messages"])
        if not calls:  # a client sent the run here
            return {"requests": []}
        place = self._gate.place(config)
        caller = await asyncio.to_thread(self._gate.caller, config)
        asked = self._gate.asking.login(place, caller, calls[0].message_id, self._gate.scopes, run_id(config))
        request, *_ = results = await asyncio.gather(asked, return_exceptions=True)
        pending = [] if request is None or isinstance(request, BaseException) else [request]
        deferred = await asyncio.to_thread(self._gate.deferred, config)
        return {"failures": failures([("login", calls[0])], results), "requests": shown(pending, deferred)}

    async def _approval(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        examined = await asyncio.to_thread(self._examine, state, config)
        unasked = [
            e for e in examined if isinstance(e.decision, StepUp) and e.decision.what == "approval" and not e.request
        ]
        results = await asyncio.gather(*(self._gate.ask(config, e) for e in unasked), return_exceptions=True)
        asked = [r for r in results if not isinstance(r, BaseException)] + [e.request for e in examined if e.request]
        deferred = await asyncio.to_thread(self._gate.deferred, config)
        return {
            "failures": failures([(e.call.id, e.call) for e in unasked], results),
            "requests": shown(asked, deferred),
        }

    # -- waiting -----------------------------------------------------------------------------------------------------

    def _await_user(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Interrupt, unless something can go on. What the resume carries is ignored: the ledger decides (casebook E1)."""
        examined = self._examine(state, config)
        deferred = self._gate.deferred(config)
        if not examined or not all(e.waits for e in examined) or self._goes_first(examined, state, config):
            now = [e.request for e in examined if e.request and e.decision == Deferred()]
            return {"requests": shown(now, deferred), "deferred": bool(now or deferred)}
        interrupt(asked(examined, deferred))
        return {}

    # -- tokens ------------------------------------------------------------------------------------------------------

    async def _token_exchange(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        return await self._exchange(await asyncio.to_thread(self._examine, state, config), config)

    async def _exchange(self, examined: Sequence[Examined], config: RunnableConfig) -> dict[str, Any]:
        wanted = {
            need.key: (need, e)
            for e in examined
            if isinstance(e.decision, StepUp) and e.decision.what == "token"
            for need in e.missing
        }
        results = await asyncio.gather(
            *(self._gate.token(config, e.session, need) for need, e in wanted.values() if e.session),
            return_exceptions=True,
        )
        got = {key: r for key, r in zip(wanted, results, strict=True) if not isinstance(r, BaseException)}
        return {"failures": failures([(key, e.call) for key, (_, e) in wanted.items()], results), "tokens": got}

    # -- the call ----------------------------------------------------------------------------------------------------

    def _tool_call(self, sent: _Call, config: RunnableConfig) -> dict[str, Any]:
        call = _received(sent)
        return {} if call is None else {"messages": [self._run(call, config, sent["tokens"], sent["failures"])]}

    async def _atool_call(self, sent: _Call, config: RunnableConfig) -> dict[str, Any]:
        call = _received(sent)
        return {} if call is None else {"messages": [await self._arun(call, config, sent["tokens"], sent["failures"])]}

    def _run(
        self, call: OpenCall, config: RunnableConfig, tokens: Mapping[str, Any], failures: Mapping[str, Any]
    ) -> ToolMessage:
        admitted = self._gate.admit(call, config, tokens, failures)
        if isinstance(admitted, ToolMessage):
            return admitted
        assert admitted.tool is not None
        with self._gate.bound(admitted) as invocation:
            try:
                result = message_of(call, in_sync(admitted.tool.tool).invoke(invocation, quiet(config)))
            except GraphBubbleUp:
                if admitted.claim is None:
                    raise
                result = interrupted(call)
            except Exception as error:
                result = broke(admitted, error)
        return self._gate.finish(admitted, result)

    async def _arun(
        self, call: OpenCall, config: RunnableConfig, tokens: Mapping[str, Any], failures: Mapping[str, Any]
    ) -> ToolMessage:
        admitted = await asyncio.to_thread(self._gate.admit, call, config, tokens, failures)
        if isinstance(admitted, ToolMessage):
            return admitted
        assert admitted.tool is not None
        with self._gate.bound(admitted) as invocation:
            try:
                result = message_of(call, await admitted.tool.tool.ainvoke(invocation, quiet(config)))
            except GraphBubbleUp:
                if admitted.claim is None:
                    raise
                result = interrupted(call)
            except Exception as error:
                result = broke(admitted, error)
        return await asyncio.to_thread(self._gate.finish, admitted, result)

    # -- people go on talking ----------------------------------------------------------------------------------------

    def _tidy(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        history = self._gate.answer_open(state["messages"], config)
        deferred = self._gate.deferred(config)
        return {
            "messages": [RemoveMessage(REMOVE_ALL_MESSAGES), *history],
            "requests": shown([], deferred),
            "deferred": bool(deferred),
        }

    def _settle(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """What became of deferred calls, each a call and its result in one update.

        Nothing is added in a person's or the system's name: an outcome cannot pass for words of theirs.
        """
        pairs: list[AnyMessage] = []
        for request, call in self._unsettled(state, config):
            wanted = self._gate.examine([call], config, _held(state, "tokens"), {})
            got = self._transport.call(self._exchange, wanted, config)
            tokens = {**_held(state, "tokens"), **got["tokens"]}
            try:
                result = self._run(call, config, tokens, got["failures"])
            except GraphBubbleUp:
                result = interrupted(call)
            pairs += _pair(request, call, self._gate.settle(request, call, result, config))
        return self._told(pairs, config)

    async def _asettle(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        pairs: list[AnyMessage] = []
        for request, call in await asyncio.to_thread(self._unsettled, state, config):
            wanted = await asyncio.to_thread(self._gate.examine, [call], config, _held(state, "tokens"), {})
            got = await self._transport.acall(self._exchange, wanted, config)
            tokens = {**_held(state, "tokens"), **got["tokens"]}
            try:
                result = await self._arun(call, config, tokens, got["failures"])
            except GraphBubbleUp:
                result = interrupted(call)
            result = await asyncio.to_thread(self._gate.settle, request, call, result, config)
            pairs += _pair(request, call, result)
        return await asyncio.to_thread(self._told, pairs, config)

    def _unsettled(self, state: State, config: RunnableConfig) -> list[tuple[Request, OpenCall]]:
        """What is to be settled. What the history holds already, a run before this one has brought there: it is done."""
        untold = {request.id for request in self._untold(state, config)}
        found, done = [], []
        for request in _decided(self._gate.deferred(config)):
            call = self._gate.deferred_call(request) if request.id in untold else None
            if call is None:
                done.append(request)
            else:
                found.append((request, call))
        self._gate.told(done)
        return found

    def _told(self, pairs: list[AnyMessage], config: RunnableConfig) -> dict[str, Any]:
        deferred = self._gate.deferred(config)
        return {"messages": pairs, "requests": shown([], deferred), "deferred": bool(deferred)}


def _turn(message: Any, run_id: uuid.UUID) -> dict[str, Any]:
    # The message is named as LangChain names the chunks that it streams of this run, so that clients join them.
    return {"messages": [minted(message, run_id, f"lc_run--{run_id}")]}


def _model_is_next(messages: Sequence[AnyMessage]) -> bool:
    return bool(messages) and isinstance(messages[-1], HumanMessage | ToolMessage)


def _held(state: State, channel: str) -> Mapping[str, Any]:
    """A channel's value, or nothing if a client wrote something else there (casebook E2)."""
    found = state.get(channel)
    return found if isinstance(found, Mapping) else {}


def _sent(call: OpenCall, tool: GuardedTool | None, state: State) -> _Call:
    held, failures = _held(state, "tokens"), _held(state, "failures")
    declared = [need.key for need in tool.needs.tokens.values()] if tool else []
    return {
        "call": {"message_id": call.message_id, "id": call.id, "name": call.name, "arguments": dict(call.arguments)},
        "tokens": {key: held[key] for key in declared if key in held},
        "failures": {key: failures[key] for key in ("login", call.id, *declared) if key in failures},
    }


def _received(sent: Any) -> OpenCall | None:
    """The call that was sent; none if a client sent the run here with something else (casebook E3)."""
    call = sent.get("call") if isinstance(sent, Mapping) else None
    if not isinstance(call, Mapping) or set(call) != {"message_id", "id", "name", "arguments"}:
        return None
    return OpenCall(**call)


def _decided(deferred: Sequence[Request]) -> list[Request]:
    return [request for request in deferred if request.state != "pending"]


def _settled_id(request: Request) -> str:
    """The id of the message that tells what became of a deferred call. Computed: whoever tells it again, replaces it."""
    return f"{SETTLED}{request.id}"


def _pair(request: Request, call: OpenCall, result: ToolMessage) -> list[AnyMessage]:
    id_ = f"call_{request.id}"
    made = AIMessage(
        "",
        tool_calls=[{"type": "tool_call", "id": id_, "name": call.name, "args": dict(call.arguments)}],
        id=_settled_id(request),
    )
    return [made, result.model_copy(update={"tool_call_id": id_, "id": f"{made.id}-result"})]
