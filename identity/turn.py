"""A turn that waits as a whole: what the placements in other people's graphs share.

``create_agent`` hands all calls of a turn to its tools at once, and so does a hand-made graph with one node for tools. What
waited there beside a call that ran would lose that call's result when the person goes on talking. So everything that the
calls of a turn need is obtained before the first of them runs. The gate is the same as in :mod:`identity.nodes`, and it
decides again right before each call.
"""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.errors import GraphBubbleUp, GraphInterrupt
from langgraph.prebuilt.tool_node import ToolCallRequest, ToolRuntime
from langgraph.types import Command, interrupt

from .calls import INVALID_CALL, CallsOf, OpenCall, answer, open_calls, run_id
from .errors import ProtocolError
from .gate import Examined, Gate
from .ledger import Outcome
from .needs import binding
from .policy import StepUp
from .running import asked, broke, can_be_kept, failures, in_sync, interrupted, message_of, quiet_writer
from .sessions import Place
from .transport import Transport

__all__ = ["Held", "Turn", "turn_id"]

_TURNS = uuid.UUID("0c3a3c52-8c53-5a0b-8b7e-5f2a9a3b1d44")
"""The namespace of the ids of turns and of the answers to their calls."""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_ROUNDS = 10
"""How often a turn may need something else than the time before, until it is given up: login, approvals, tokens, and a
sign-in that ends meanwhile."""

Run = Callable[[ToolCallRequest], Any]
Arun = Callable[[ToolCallRequest], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Held:
    """What a turn has in hand. It may come from graph state, so nothing in it is believed.

    Args:
        tokens: sealed tokens, by :attr:`identity.needs.Resource.key`.
        failures: what could not be had, as :meth:`identity.gate.Gate.examine` takes it.
        waits: the turn that somebody has to be asked about and that has not been made ready since.
    """

    tokens: Mapping[str, Any] = field(default_factory=dict)
    failures: Mapping[str, Any] = field(default_factory=dict)
    waits: str = ""

    @classmethod
    def of(cls, stored: object) -> Held:
        """What graph state holds, whatever a client made of it (casebook E2)."""
        found = stored if isinstance(stored, Mapping) else {}
        tokens, failures, waits = (found.get(name) for name in ("tokens", "failures", "waits"))
        return cls(
            tokens if isinstance(tokens, Mapping) else {},
            failures if isinstance(failures, Mapping) else {},
            waits if isinstance(waits, str) else "",
        )

    def stored(self) -> dict[str, Any]:
        """What graph state is to hold."""
        return {"tokens": dict(self.tokens), "failures": dict(self.failures), "waits": self.waits}


def turn_id(place: Place, messages: Sequence[AnyMessage], index: int) -> str:
    """The id of the turn whose message has, or is to have, this index: what the claims of its calls are keyed by.

    Computed, so that it is the same whenever this very step is run again and in each copy of the thread: the same message
    of a person, after the same answers of tools. The id of the model's message will not do. A provider or a cache that
    repeats one makes two orders look like one (casebook E4). And LangGraph may run a tool while the checkpoint of the turn
    that called it is still being written: if the process dies there, the model is asked anew, and answers under a new id
    (E6).
    """
    done: list[str] = []
    start = index - 1
    while start >= 0 and not isinstance(messages[start], HumanMessage):
        message = messages[start]
        if isinstance(message, ToolMessage):
            done.append(str(message.id))
        elif isinstance(message, AIMessage) and message.tool_calls:
            done.append("")
        start -= 1
    said = messages[start] if start >= 0 else None
    # An id that LangGraph made is in this conversation and its copies only. One that a client chose, or none, may be anywhere:
    # then the thread counts, and the place in it. A copy of such a thread is not recognized.
    where = None if said is not None and _is_unique(said.id) else [place.thread, start]
    what = [place.tenant, place.graph, where, said and said.id, said and said.content, done]
    return str(uuid.uuid5(_TURNS, json.dumps(what, default=str)))


def _is_unique(id_: str | None) -> bool:
    return id_ is not None and _UUID.fullmatch(id_) is not None


class Turn:
    """The calls of one turn of a model, made ready together and run one by one.

    Claims know a call by its turn and its position there: no provider chooses either. Every method has a sync and an async
    form; the async one reads the database in a thread.

    Args:
        named: the turn's id, from the place, the history, and the index of the model's message in it.
    """

    def __init__(
        self, gate: Gate, transport: Transport, named: Callable[[Place, Sequence[AnyMessage], int], str]
    ) -> None:
        self.gate = gate
        self._transport = transport
        self._named = named

    # -- the calls ---------------------------------------------------------------------------------------------------

    def calls(self, messages: Sequence[AnyMessage], config: RunnableConfig) -> list[OpenCall]:
        """The open calls of the last turn."""
        return open_calls(messages, self._of(config))

    def answer_open(self, messages: Sequence[AnyMessage], config: RunnableConfig) -> list[AnyMessage]:
        """:meth:`identity.gate.Gate.answer_open`."""
        return self.gate.answer_open(messages, config, self._of(config))

    def _of(self, config: RunnableConfig) -> CallsOf:
        place = self.gate.place(config)

        def calls_of(messages: Sequence[AnyMessage], index: int) -> list[OpenCall]:
            message = cast("AIMessage", messages[index])
            made = [(c["name"], c["args"], c["id"]) for c in message.tool_calls]
            made += [(INVALID_CALL, {}, c["id"]) for c in message.invalid_tool_calls]  # providers want an answer too
            turn = self._named(place, messages, index) if made else ""
            return [OpenCall(turn, str(i), name, args, id_ or "") for i, (name, args, id_) in enumerate(made)]

        return calls_of

    # -- getting ready -----------------------------------------------------------------------------------------------

    def glance(self, calls: Sequence[OpenCall], config: RunnableConfig, held: Held) -> Held:
        """What the calls of a turn can have without asking a person; ``waits`` if somebody has to be asked."""
        if self.gate.runs_at_once(calls, config, held.tokens):
            return held
        wanted = _wanted(self._examine(calls, config, held))
        if not wanted:
            return held
        waiting = replace(held, waits=calls[0].message_id)
        if wanted != {"token"}:
            return waiting
        held, question = self._transport.call(self._obtain, calls, config, held)
        return waiting if question else held

    async def aglance(self, calls: Sequence[OpenCall], config: RunnableConfig, held: Held) -> Held:
        """:meth:`glance`, async."""
        if self.gate.runs_at_once(calls, config, held.tokens):
            return held
        wanted = _wanted(await asyncio.to_thread(self._examine, calls, config, held))
        if not wanted:
            return held
        waiting = replace(held, waits=calls[0].message_id)
        if wanted != {"token"}:
            return waiting
        held, question = await self._transport.acall(self._obtain, calls, config, held)
        return waiting if question else held

    def ready(self, calls: Sequence[OpenCall], config: RunnableConfig, held: Held) -> Held:
        """Everything that the calls need. Interrupts for as long as a person has to decide about one of them.

        The node runs again from its start when it goes on, so nothing stands before the interrupt but asking, and what
        was asked is found in the ledger.
        """
        held, question = self._transport.call(self._obtain, calls, config, held)
        _wait(question)
        return held

    async def aready(self, calls: Sequence[OpenCall], config: RunnableConfig, held: Held) -> Held:
        """:meth:`ready`, async."""
        held, question = await self._transport.acall(self._obtain, calls, config, held)
        _wait(question)
        return held

    def _examine(self, calls: Sequence[OpenCall], config: RunnableConfig, held: Held) -> list[Examined]:
        return self.gate.examine(calls, config, held.tokens, held.failures)

    async def _obtain(
        self, calls: Sequence[OpenCall], config: RunnableConfig, held: Held
    ) -> tuple[Held, dict[str, Any] | None]:
        """Login first, then approvals, then tokens, which live shortest. Runs on the transport's loop.

        Returns the value to interrupt with, if a person has to decide first.
        """
        held = Held(held.tokens)
        for _ in range(_ROUNDS):
            examined = await asyncio.to_thread(self._examine, calls, config, held)
            wanted = _wanted(examined)
            if "login" in wanted:
                if waiting := [e for e in examined if e.waits]:
                    return held, asked(waiting)
                held = await self._login(calls[0], config, held)
            elif "approval" in wanted:
                unasked = [e for e in examined if e.decision == StepUp("approval") and not e.waits]
                if not unasked:
                    return held, asked([e for e in examined if e.waits])
                held = await self._approvals(unasked, config, held)
            elif "token" in wanted:
                held = await self._tokens(examined, config, held)
            else:
                return held, None
        raise ProtocolError(
            "What the calls of this turn need was obtained again and again, and never served",
            "See what the issuer answers, and whether this machine's clock is right",
        )

    async def _login(self, call: OpenCall, config: RunnableConfig, held: Held) -> Held:
        gate = self.gate
        caller = await asyncio.to_thread(gate.caller, config)
        login = gate.asking.login(gate.place(config), caller, call.message_id, gate.scopes, run_id(config))
        results = await asyncio.gather(login, return_exceptions=True)
        return _with_failures(held, [("login", call)], results)

    async def _approvals(self, examined: Sequence[Examined], config: RunnableConfig, held: Held) -> Held:
        results = await asyncio.gather(*(self.gate.ask(config, e) for e in examined), return_exceptions=True)
        return _with_failures(held, [(e.call.id, e.call) for e in examined], results)

    async def _tokens(self, examined: Sequence[Examined], config: RunnableConfig, held: Held) -> Held:
        wanted = {
            need.key: (need, e) for e in examined if isinstance(e.decision, StepUp) for need in e.missing if e.session
        }
        results = await asyncio.gather(
            *(self.gate.token(config, e.session, need) for need, e in wanted.values() if e.session),
            return_exceptions=True,
        )
        got = {key: r for key, r in zip(wanted, results, strict=True) if not isinstance(r, BaseException)}
        held = replace(held, tokens={**held.tokens, **got})
        return _with_failures(held, [(key, e.call) for key, (_, e) in wanted.items()], results)

    # -- running one call --------------------------------------------------------------------------------------------

    def run(
        self, call: OpenCall, request: ToolCallRequest, handler: Run, held: Held, turn: Sequence[OpenCall] = ()
    ) -> Any:
        """Run one call through the gate: claim it, lend it its tokens, hand it to ``handler``, record what it came to.

        Args:
            turn: every open call of its turn. If that still waits, the call waits here for all of it.
        """
        config = request.runtime.config
        if turn and held.waits == call.message_id:
            held = self.ready(turn, config, held)
        admitted = self.gate.admit(call, config, held.tokens, held.failures, asks=True)
        if isinstance(admitted, Examined) and isinstance(admitted.decision, StepUp):
            # It was not made ready, or is not any more: other middleware edited it, or a client wrote the turn.
            held = self.ready([call], config, held)
            admitted = self.gate.admit(call, config, held.tokens, held.failures)
        if isinstance(admitted, ToolMessage):
            return _named_answer(call, admitted)
        with self.gate.bound(admitted) as invocation:
            try:
                result = _kept(call, handler(_lent(request, invocation, in_sync)))
            except GraphInterrupt:
                if admitted.claim is None:
                    raise
                result = interrupted(call)
            except GraphBubbleUp:
                raise
            except Exception as error:
                result = broke(admitted, error)
        self.gate.finish(admitted, _told(call, result))
        return _named_answer(call, result)

    async def arun(
        self, call: OpenCall, request: ToolCallRequest, handler: Arun, held: Held, turn: Sequence[OpenCall] = ()
    ) -> Any:
        """:meth:`run`, async."""
        config = request.runtime.config
        if turn and held.waits == call.message_id:
            held = await self.aready(turn, config, held)
        admitted = await asyncio.to_thread(self.gate.admit, call, config, held.tokens, held.failures, asks=True)
        if isinstance(admitted, Examined) and isinstance(admitted.decision, StepUp):
            held = await self.aready([call], config, held)
            admitted = await asyncio.to_thread(self.gate.admit, call, config, held.tokens, held.failures)
        if isinstance(admitted, ToolMessage):
            return _named_answer(call, admitted)
        with self.gate.bound(admitted) as invocation:
            try:
                result = _kept(call, await handler(_lent(request, invocation)))
            except GraphInterrupt:
                if admitted.claim is None:
                    raise
                result = interrupted(call)
            except GraphBubbleUp:
                raise
            except Exception as error:
                result = broke(admitted, error)
        await asyncio.to_thread(self.gate.finish, admitted, _told(call, result))
        return _named_answer(call, result)


def _wanted(examined: Sequence[Examined]) -> set[str]:
    return {e.decision.what for e in examined if isinstance(e.decision, StepUp)}


def _with_failures(held: Held, tried: Sequence[tuple[str, OpenCall]], results: Sequence[Any]) -> Held:
    return replace(held, failures={**held.failures, **failures(tried, results)})


def _wait(question: dict[str, Any] | None) -> None:
    """Interrupt, whatever a resume brought: the values that clients sent are used up, and decide nothing (casebook E1)."""
    while question is not None:
        interrupt(question)


def _named_answer(call: OpenCall, result: Any) -> Any:
    """An answer has an id that says which call it answers: the turn that follows is named by it (:func:`turn_id`)."""
    if not isinstance(result, ToolMessage):
        return result
    return result.model_copy(update={"id": str(uuid.uuid5(_TURNS, f"{call.message_id} {call.id}"))})


def _lent(
    request: ToolCallRequest, invocation: dict[str, Any], form: Callable[[BaseTool], BaseTool] = lambda tool: tool
) -> ToolCallRequest:
    """The request with the validated call, and with every way that the tool has to stream made quiet (casebook E25)."""
    tool = form(request.tool) if request.tool is not None else None
    lent = binding.get()
    runtime = request.runtime
    if lent is not None and lent.secrets:
        configurable = runtime.config.get("configurable") or {}
        inner = configurable.get("__pregel_runtime")
        if inner is not None:
            # In place: ToolNode invokes the tool with this very mapping, which it made for this one call.
            quiet = inner.override(stream_writer=quiet_writer(inner.stream_writer, lent))
            runtime.config["configurable"] = {**configurable, "__pregel_runtime": quiet}
        runtime = _QuietRuntime(
            state=runtime.state,
            context=runtime.context,
            config=runtime.config,
            stream_writer=quiet_writer(runtime.stream_writer, lent),
            tool_call_id=runtime.tool_call_id,
            store=runtime.store,
            tools=runtime.tools,
            execution_info=runtime.execution_info,
            server_info=runtime.server_info,
        )
    made = cast("Any", invocation)
    return ToolCallRequest(tool_call=made, tool=tool, state=request.state, runtime=runtime)


class _QuietRuntime(ToolRuntime[Any, Any]):
    def emit_output_delta(self, delta: Any) -> None:
        lent = binding.get()
        super().emit_output_delta(lent.redact(delta) if lent else delta)


def _kept(call: OpenCall, result: Any) -> Any:
    """What graph state gets of a result: a message, or the ``Command`` that a tool of such a graph may return."""
    if not isinstance(result, Command | list):
        return message_of(call, result)
    lent = binding.get()
    if lent is None or not lent.secrets or can_be_kept(_updates(result), lent):
        return result
    told = f"{call.name} ran, and returned something that cannot be stored, so only this is told of it."
    return answer(call, Outcome(told, "success"))


def _told(call: OpenCall, result: Any) -> ToolMessage:
    """The message that answers the call, also inside a ``Command``: what the ledger keeps of a result."""
    if isinstance(result, ToolMessage):
        return result
    for update in _updates(result):
        for message in (update.get("messages") or ()) if isinstance(update, Mapping) else [update]:
            if isinstance(message, ToolMessage) and message.tool_call_id == call.known_as:
                return message
    return answer(call, Outcome(f"{call.name} ran.", "success"))


def _updates(result: Any) -> list[Any]:
    parts = result if isinstance(result, list) else [result]
    return [part.update if isinstance(part, Command) else part for part in parts]
