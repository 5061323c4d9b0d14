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
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Annotated, Any, TypedDict

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage, ToolMessage
from langchain_core.messages.utils import convert_to_messages
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.channels.ephemeral_value import EphemeralValue
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.constants import END, START
from langgraph.errors import GraphBubbleUp
from langgraph.graph.message import REMOVE_ALL_MESSAGES, add_messages
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Send, interrupt

from .errors import DeputizeError, InputError
from .gate import INVALID_CALL, Examined, Gate, OpenCall, answer, open_calls
from .ledger import Outcome, Request
from .needs import Binding, binding
from .policy import Allow, Deny, StepUp
from .text import printable
from .transport import Transport

__all__ = ["INTAKE_ROUTES", "ROUTES", "Input", "Nodes", "State", "new_messages_only"]

_STORED = JsonPlusSerializer()
"""How checkpointers spell what they store."""


def _merge(held: dict[str, Any] | None, new: dict[str, Any] | None) -> dict[str, Any]:
    return {**(held or {}), **(new or {})}


def _latest(held: Any, new: Any) -> Any:
    """What was written last. A run that a client sent to some node may write twice in a step, which is no reason to fail."""
    return new


class Input(TypedDict):
    """What a client may give: new messages of a person."""

    messages: Annotated[list[AnyMessage], add_messages]


class State(Input, total=False):
    """A cache of sealed things and handles. Nothing in it is believed.

    ``tokens``: sealed tokens, by audience and scopes. ``requests``: what waits for a person, as clients may see it.
    ``failures``: what could not be had in the turn that they name, so that it is not tried in a loop.
    """

    tokens: Annotated[dict[str, Any], _merge]
    requests: Annotated[list[dict[str, Any]], _latest]
    failures: Annotated[dict[str, Any], _latest]


class _Call(TypedDict):
    """What ``authorize`` sends to ``tool_call``: one call, the sealed tokens of its declaration, and what failed for it."""

    call: dict[str, Any]
    tokens: dict[str, Any]
    failures: dict[str, Any]


ROUTES = ["tool_call", "login", "approval", "token_exchange", END]
"""Where ``authorize`` can lead, for ``add_conditional_edges`` and the graph's drawing."""

INTAKE_ROUTES = ["model", "tidy"]
"""Where ``intake`` can lead."""


def new_messages_only(graph: CompiledStateGraph[Any, Any, Any, Any]) -> CompiledStateGraph[Any, Any, Any, Any]:
    """Make ``graph`` refuse any input but new messages of a person (casebook E21).

    Attack: an input with a message of another role forges the assistant's words or a tool's result, one with a known id
    replaces history, a ``RemoveMessage`` erases it, another key edits a channel.
    """
    graph.channels[START] = _NewMessages(graph.builder.input_schema)
    return graph


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
    # Without the id that the client chose: it could name a message of the history, and replace it.
    return {"messages": [HumanMessage(message.content, id=str(uuid.uuid4())) for message in messages]}


class _Step(Runnable[Any, Any]):
    """A node or an edge in both forms.

    LangGraph runs and traces what is in a node by itself. A ``RunnableLambda`` here would read both signatures and open a
    trace of its own at every call: a tenth of a whole turn (``make bench``).
    """

    def __init__(
        self,
        function: Callable[[Any, RunnableConfig], Any],
        afunction: Callable[[Any, RunnableConfig], Awaitable[Any]],
        name: str,
    ) -> None:
        self._function = function
        self._afunction = afunction
        self.name = name

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return self._function(input, config or {})

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        return await self._afunction(input, config or {})


class Nodes:
    """The nodes and edges of one graph, each a ``Runnable`` with a sync and an async form.

    Attributes:
        model, login, approval, await_user, token_exchange, tool_call, tidy: nodes.
        intake, authorize: edges; :data:`INTAKE_ROUTES` and :data:`ROUTES` say where they lead.
    """

    def __init__(self, model: BaseChatModel, gate: Gate, transport: Transport) -> None:
        tools = [guarded.tool for guarded in gate.tools.values()]
        self._bound = model.bind_tools(tools) if tools else model
        self._gate = gate
        self._transport = transport
        self.model = _Step(self._model, self._amodel, "model")
        self.login = self._networked(self._login, "login")
        self.approval = self._networked(self._approval, "approval")
        self.token_exchange = self._networked(self._token_exchange, "token_exchange")
        self.await_user = _threaded(self._await_user, "await_user")
        self.tool_call = _Step(self._tool_call, self._atool_call, "tool_call")
        self.tidy = _threaded(self._tidy, "tidy")
        self.intake = _threaded(self._intake, "intake")
        self.authorize = _Step(self._authorize, self._aauthorize, "authorize")

    def _networked(self, node: Callable[[State, RunnableConfig], Any], name: str) -> Runnable[Any, Any]:
        """A node whose coroutine runs on the transport's loop. It must not need LangGraph's context."""

        def run(state: State, config: RunnableConfig) -> Any:
            return self._transport.call(node, state, config)

        async def arun(state: State, config: RunnableConfig) -> Any:
            return await self._transport.acall(node, state, config)

        return _Step(run, arun, name)

    # -- model -------------------------------------------------------------------------------------------------------

    def _model(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        if open_calls(state["messages"]) or not _model_is_next(state["messages"]):
            return {}
        self._gate.check_owner(config)  # again: a resumed run, or one that was sent to this node, never passed intake
        run_id = uuid.uuid4()
        return _turn(self._bound.invoke(state["messages"], {**config, "run_id": run_id}), run_id)

    async def _amodel(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        if open_calls(state["messages"]) or not _model_is_next(state["messages"]):
            return {}
        await asyncio.to_thread(self._gate.check_owner, config)
        run_id = uuid.uuid4()
        return _turn(await self._bound.ainvoke(state["messages"], {**config, "run_id": run_id}), run_id)

    # -- edges -------------------------------------------------------------------------------------------------------

    def _intake(self, state: State, config: RunnableConfig) -> str:
        self._gate.check_owner(config)
        messages = state["messages"]
        if messages and isinstance(messages[-1], HumanMessage) and open_calls(messages):
            return "tidy"
        return "model"

    def _authorize(self, state: State, config: RunnableConfig) -> str | list[Send]:
        examined = self._examine(state, config)
        if not examined:
            return END
        ready = [e for e in examined if isinstance(e.decision, Allow | Deny)]
        if ready:
            return [Send("tool_call", _sent(e, state)) for e in ready]
        wanted = {e.decision.what for e in examined if isinstance(e.decision, StepUp)}
        if "login" in wanted:
            return "login"
        return "token_exchange" if "token" in wanted else "approval"

    async def _aauthorize(self, state: State, config: RunnableConfig) -> str | list[Send]:
        if not open_calls(state["messages"]):
            return END  # every turn ends here: no trip to a thread for that
        return await asyncio.to_thread(self._authorize, state, config)

    def _examine(self, state: State, config: RunnableConfig) -> list[Examined]:
        calls = open_calls(state["messages"])
        return self._gate.examine(calls, config, _held(state, "tokens"), _held(state, "failures"))

    # -- asking ------------------------------------------------------------------------------------------------------

    async def _login(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        calls = open_calls(state["messages"])
        if not calls:  # a client sent the run here
            return {"requests": []}
        place = self._gate.place(config)
        asked = self._gate.asking.login(place, self._gate.caller(), calls[0].message_id, self._gate.scopes)
        request, *_ = results = await asyncio.gather(asked, return_exceptions=True)
        shown = [] if request is None or isinstance(request, BaseException) else [request.shown()]
        return {**_failures([("login", calls[0])], results), "requests": shown}

    async def _approval(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        examined = await asyncio.to_thread(self._examine, state, config)
        unasked = [
            e for e in examined if isinstance(e.decision, StepUp) and e.decision.what == "approval" and not e.request
        ]
        results = await asyncio.gather(*(self._ask(e, config) for e in unasked), return_exceptions=True)
        asked = [r for r in results if not isinstance(r, BaseException)] + [e.request for e in examined if e.request]
        return {
            **_failures([(e.call.id, e.call) for e in unasked], results),
            "requests": [request.shown() for request in asked if request.state == "pending"],
        }

    async def _ask(self, examined: Examined, config: RunnableConfig) -> Request:
        assert examined.session and examined.bound and examined.condition and examined.tool  # by StepUp("approval")
        return await self._gate.asking.approval(
            self._gate.place(config), examined.session, examined.bound, examined.condition, examined.tool.needs.primary
        )

    # -- waiting -----------------------------------------------------------------------------------------------------

    def _await_user(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        """Interrupt, unless something can go on. What the resume carries is ignored: the ledger decides (casebook E1)."""
        examined = self._examine(state, config)
        if not examined or not all(e.waits for e in examined):
            return {"requests": []}
        interrupt(_asked(examined))
        return {}

    # -- tokens ------------------------------------------------------------------------------------------------------

    async def _token_exchange(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        examined = await asyncio.to_thread(self._examine, state, config)
        wanted = {
            need.key: (need, e)
            for e in examined
            if isinstance(e.decision, StepUp) and e.decision.what == "token"
            for need in e.missing
        }
        place = self._gate.place(config)
        results = await asyncio.gather(
            *(self._gate.token(place, e.session, need) for need, e in wanted.values() if e.session),
            return_exceptions=True,
        )
        got = {key: r for key, r in zip(wanted, results, strict=True) if not isinstance(r, BaseException)}
        return {**_failures([(key, e.call) for key, (_, e) in wanted.items()], results), "tokens": got}

    # -- the call ----------------------------------------------------------------------------------------------------

    def _tool_call(self, sent: _Call, config: RunnableConfig) -> dict[str, Any]:
        call = _received(sent)
        if call is None:
            return {}
        admitted = self._gate.admit(call, config, sent["tokens"], sent["failures"])
        if isinstance(admitted, ToolMessage):
            return {"messages": [admitted]}
        assert admitted.tool is not None
        with self._gate.bound(admitted) as invocation:
            try:
                result = _message(call, _invoke(admitted.tool.tool, invocation, _quiet(config)))
            except GraphBubbleUp:
                raise
            except Exception as error:
                result = _broke(call, error)
        return {"messages": [self._gate.finish(admitted, result)]}

    async def _atool_call(self, sent: _Call, config: RunnableConfig) -> dict[str, Any]:
        call = _received(sent)
        if call is None:
            return {}
        admitted = await asyncio.to_thread(self._gate.admit, call, config, sent["tokens"], sent["failures"])
        if isinstance(admitted, ToolMessage):
            return {"messages": [admitted]}
        assert admitted.tool is not None
        with self._gate.bound(admitted) as invocation:
            try:
                result = _message(call, await admitted.tool.tool.ainvoke(invocation, _quiet(config)))
            except GraphBubbleUp:
                raise
            except Exception as error:
                result = _broke(call, error)
        return {"messages": [await asyncio.to_thread(self._gate.finish, admitted, result)]}

    # -- people go on talking ----------------------------------------------------------------------------------------

    def _tidy(self, state: State, config: RunnableConfig) -> dict[str, Any]:
        history = self._gate.answer_open(state["messages"], config)
        return {"messages": [RemoveMessage(REMOVE_ALL_MESSAGES), *history], "requests": []}


def _threaded(function: Callable[[Any, RunnableConfig], Any], name: str) -> Runnable[Any, Any]:
    """A node or edge that reads the database: the async form does it in a thread, so that no loop stands still."""

    async def afunction(state: Any, config: RunnableConfig) -> Any:
        return await asyncio.to_thread(function, state, config)

    return _Step(function, afunction, name)


def _model_is_next(messages: Sequence[AnyMessage]) -> bool:
    return bool(messages) and isinstance(messages[-1], HumanMessage | ToolMessage)


def _turn(message: Any, run_id: uuid.UUID) -> dict[str, Any]:
    """The model's message, with ids that we minted.

    Claims are keyed by message and call id: a provider that repeats an id, or leaves it out, must not make one call look
    like another that was made before (casebook E4).
    """
    calls = [{**call} for call in message.tool_calls]  # copies: the message may be in a cache
    for broken in message.invalid_tool_calls:  # arguments that are no JSON
        calls.append({"type": "tool_call", "id": broken.get("id"), "name": INVALID_CALL, "args": {}})
    seen: set[str] = set()
    for call in calls:
        if not call["id"] or call["id"] in seen:
            call["id"] = f"call_{uuid.uuid4().hex}"
        seen.add(call["id"])
    turn = AIMessage(
        content=message.content,
        # Providers keep things there that they want back (signatures of thoughts); calls are kept in one place only.
        additional_kwargs={
            k: v for k, v in message.additional_kwargs.items() if k not in ("tool_calls", "function_call")
        },
        tool_calls=calls,
        id=f"lc_run--{run_id}",  # as LangChain names the chunks that it streams, so that clients join them
        name=message.name,
        response_metadata=message.response_metadata,
        usage_metadata=message.usage_metadata,
    )
    return {"messages": [turn]}


def _held(state: State, channel: str) -> Mapping[str, Any]:
    """A channel's value, or nothing if a client wrote something else there (casebook E2)."""
    found = state.get(channel)
    return found if isinstance(found, Mapping) else {}


def _sent(examined: Examined, state: State) -> _Call:
    call, held, failures = examined.call, _held(state, "tokens"), _held(state, "failures")
    declared = [need.key for need in examined.tool.needs.tokens.values()] if examined.tool else []
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


def _failures(tried: Sequence[tuple[str, OpenCall]], results: Sequence[Any]) -> dict[str, Any]:
    """What could not be had, for the turn that it was tried in: it is told, not tried again. Our own bugs are raised."""
    failed: dict[str, Any] = {}
    for (key, call), result in zip(tried, results, strict=True):
        if isinstance(result, DeputizeError):
            if result.code != "login_required":  # the session has ended; the next look asks for a sign-in
                failed[key] = {"message_id": call.message_id, "reason": str(result)}
        elif isinstance(result, BaseException):
            raise result
    return {"failures": failed}


def _asked(examined: Sequence[Examined]) -> dict[str, Any]:
    """The interrupt's value: LangChain's ``HITLRequest``, one action for each pending request, and where to decide."""
    waiting = {e.request.id: (e, e.request) for e in examined if e.request is not None}
    actions = [
        {
            "name": "login",
            "args": {},
            "description": f"Sign in at {r.url}" + (f" with the code {r.code}" if r.code else ""),
        }
        if r.kind == "login"
        else {
            "name": e.call.name,
            "args": dict(e.call.arguments),
            "description": f"Waits for your approval (#{r.short_id}). "
            + (f"Decide at {r.url}" if r.url else "Your identity provider asks you")
            + f"; the page shows the code {r.code}",
        }
        for e, r in waiting.values()
    ]
    return {
        "action_requests": actions,
        # Nothing that is sent back here decides anything: the page at the link does.
        "review_configs": [
            {"action_name": name, "allowed_decisions": []} for name in {a["name"]: None for a in actions}
        ],
        "requests": [request.shown() for _, request in waiting.values()],
    }


def _invoke(tool: BaseTool, invocation: dict[str, Any], config: RunnableConfig) -> Any:
    """Call a tool from sync code, also one that has only an async form.

    That one gets a loop and a thread of its own: this thread may have a loop that runs (a notebook's), and on the
    transport's loop a tool that blocks would stop every login and every exchange.
    """
    if getattr(tool, "coroutine", None) is None or getattr(tool, "func", None) is not None:
        return tool.invoke(invocation, config)
    with ThreadPoolExecutor(1, thread_name_prefix="deputize-tool") as alone:
        return alone.submit(copy_context().run, asyncio.run, tool.ainvoke(invocation, config)).result()


def _quiet(config: RunnableConfig) -> RunnableConfig:
    """``config`` whose stream writer replaces what the call was lent (casebook E25)."""
    lent = binding.get()
    configurable = config.get("configurable") or {}
    runtime = configurable.get("__pregel_runtime")
    if lent is None or not lent.secrets or runtime is None:
        return config
    write = runtime.stream_writer
    quiet = runtime.override(stream_writer=lambda value: write(lent.redact(value)))
    return {**config, "configurable": {**configurable, "__pregel_runtime": quiet}}


def _broke(call: OpenCall, error: Exception) -> ToolMessage:
    told = str(error) if isinstance(error, DeputizeError) else f"{type(error).__name__}: {error}"
    return answer(call, Outcome(f"{call.name} failed. {printable(told, limit=500)}", "error"))


def _message(call: OpenCall, result: Any) -> ToolMessage:
    if not isinstance(result, ToolMessage):
        told = f"{call.name} ran, and returned a {type(result).__name__} instead of a result."
        return answer(call, Outcome(told, "error"))
    # Attack: a tool makes its own message, and with it answers another call or replaces what was said before.
    message = result.model_copy(update={"tool_call_id": call.id, "name": call.name, "id": None})
    lent = binding.get()
    if lent is None or not lent.secrets or _can_be_kept(message, lent):
        return message
    return answer(call, Outcome(lent.redact(str(message.content)), message.status))


def _can_be_kept(message: ToolMessage, lent: Binding) -> bool:
    """Whether a checkpoint can hold ``message``, and would not hold what was lent in clear (casebook E25).

    An artefact may keep a token out of its ``repr`` and give it to the serializer (``SecretStr``), or be nothing that can
    be stored at all (the token object, a response): the run would end right after the effect, with its outcome lost.
    """
    try:
        _, stored = _STORED.dumps_typed(message)
    except Exception:
        return False
    return not any(secret.reveal().encode() in stored for secret in lent.secrets)
