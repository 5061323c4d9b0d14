"""What every placement does around the gate: asking, running a tool, and making of its result what may be kept.

:mod:`identity.nodes` has a graph of its own; :mod:`identity.middleware` and :mod:`identity.toolnode` stand in other
people's.
"""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, cast

from langchain_core.messages import AIMessage, AIMessageChunk, ToolMessage, message_chunk_to_message
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from .calls import INVALID_CALL, OpenCall, answer
from .errors import DeputizeError
from .gate import Examined
from .ledger import Outcome, Request
from .needs import Binding, binding
from .text import printable

__all__ = [
    "Step",
    "asked",
    "broke",
    "can_be_kept",
    "failures",
    "in_sync",
    "interrupted",
    "message_of",
    "minted",
    "quiet",
    "quiet_writer",
    "shown",
    "threaded",
]

_STORED = JsonPlusSerializer()
"""How checkpointers spell what they store."""


class Step(Runnable[Any, Any]):
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


def threaded(function: Callable[[Any, RunnableConfig], Any], name: str) -> Runnable[Any, Any]:
    """A node or edge that reads the database: the async form does it in a thread, so that no loop stands still."""

    async def afunction(state: Any, config: RunnableConfig) -> Any:
        return await asyncio.to_thread(function, state, config)

    return Step(function, afunction, name)


def minted(message: AIMessage, turn: uuid.UUID, id_: str) -> AIMessage:
    """A model's message under an id that we chose, its calls under the ids of their turn.

    Claims are keyed by them: a provider that repeats an id, or leaves it out, must not make one call look like another that
    was made before (casebook E4).
    """
    # Copies, all of it: the message may be in a cache.
    calls: list[Any] = [{**call, "args": _storable(call["args"])} for call in message.tool_calls]
    for broken in message.invalid_tool_calls:  # arguments that are no JSON
        calls.append({"type": "tool_call", "id": broken.get("id"), "name": INVALID_CALL, "args": {}})
    ids: dict[str, str] = {}
    for position, call in enumerate(calls):
        own = f"call_{turn.hex[:24]}_{position}"  # at most 40 characters, which some providers count
        ids.setdefault(call["id"] or own, own)
        call["id"] = own
    # Providers keep things in these that they want back (signatures of thoughts); calls are kept in one place only.
    more = {k: v for k, v in message.additional_kwargs.items() if k not in ("tool_calls", "function_call")}
    content = _renamed(message.content, ids)
    made = {"content": content, "additional_kwargs": more, "tool_calls": calls, "invalid_tool_calls": [], "id": id_}
    whole = message_chunk_to_message(message) if isinstance(message, AIMessageChunk) else message
    return cast("AIMessage", whole.model_copy(update=made))


def _renamed(content: Any, minted: Mapping[str, str]) -> Any:
    """Content blocks that name calls by the provider's ids name them by ours."""
    if not isinstance(content, list):
        return content
    return [
        {k: minted.get(v, v) if k in ("id", "call_id") and isinstance(v, str) else v for k, v in block.items()}
        if isinstance(block, dict)
        else block
        for block in content
    ]


def _storable(value: Any) -> Any:
    """Arguments that a checkpoint can hold: msgpack has no integer beyond 64 bits, so such a one becomes its digits."""
    if isinstance(value, dict):
        return {key: _storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return str(value)
    return value


def failures(tried: Sequence[tuple[str, OpenCall]], results: Sequence[Any]) -> dict[str, Any]:
    """What could not be had, for the turn that it was tried in: it is told, not tried again. Our own bugs are raised."""
    failed: dict[str, Any] = {}
    for (key, call), result in zip(tried, results, strict=True):
        if isinstance(result, DeputizeError):
            if result.code != "login_required":  # the session has ended; the next look asks for a sign-in
                failed[key] = {"message_id": call.message_id, "reason": str(result)}
        elif isinstance(result, BaseException):
            raise result
    return failed


def asked(examined: Sequence[Examined], deferred: Sequence[Request] = ()) -> dict[str, Any]:
    """The interrupt's value: LangChain's ``HITLRequest``, one action for each pending request, and where to decide.

    ``deferred`` is what the turn does not wait for: it is shown, so that it can be decided.
    """
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
        "requests": shown([request for _, request in waiting.values()], deferred),
    }


def shown(asked: Sequence[Request], deferred: Sequence[Request]) -> list[dict[str, Any]]:
    """What waits for a person, as clients may see it: what was asked just now, and what waits since before."""
    return [r.shown() for r in {r.id: r for r in (*asked, *deferred)}.values() if r.state == "pending"]


def in_sync(tool: BaseTool) -> BaseTool:
    """``tool`` as sync code can call it, also one that has only an async form.

    That one gets a loop and a thread of its own: this thread may have a loop that runs (a notebook's), and on the
    transport's loop a tool that blocks would stop every login and every exchange.
    """
    coroutine = getattr(tool, "coroutine", None)
    if coroutine is None or getattr(tool, "func", None) is not None:
        return tool

    @functools.wraps(coroutine)
    def function(*args: Any, **kwargs: Any) -> Any:
        with ThreadPoolExecutor(1, thread_name_prefix="deputize-tool") as alone:
            return alone.submit(copy_context().run, asyncio.run, coroutine(*args, **kwargs)).result()

    return tool.model_copy(update={"func": function})


def quiet(config: RunnableConfig) -> RunnableConfig:
    """``config`` whose stream writer replaces what the call was lent (casebook E25)."""
    lent = binding.get()
    configurable = config.get("configurable") or {}
    runtime = configurable.get("__pregel_runtime")
    if lent is None or not lent.secrets or runtime is None:
        return config
    silent = runtime.override(stream_writer=quiet_writer(runtime.stream_writer, lent))
    return {**config, "configurable": {**configurable, "__pregel_runtime": silent}}


def quiet_writer(write: Callable[[Any], None], lent: Binding) -> Callable[[Any], None]:
    """``write`` for a call that was lent something (casebook E25)."""
    return lambda value: write(lent.redact(value))


def broke(admitted: Examined, error: Exception) -> ToolMessage:
    """What a call is answered with whose tool failed."""
    call = admitted.call
    told = f"{call.name} failed. " + printable(
        str(error) if isinstance(error, DeputizeError) else f"{type(error).__name__}: {error}", limit=500
    )
    if admitted.claim is not None and not isinstance(error, DeputizeError):
        # A timeout says nothing about what was sent before it: a model that was told "failed" would do it once more.
        told += " It may have happened all the same: check at the service before you try again."
    return answer(call, Outcome(told, "error"))


def interrupted(call: OpenCall) -> ToolMessage:
    """A tool with an effect that interrupts itself would be run again from its start, effect included."""
    told = f"{call.name} stopped to ask something, which only tools that are marked read-only can do. Use approval()."
    return answer(call, Outcome(told, "error"))


def message_of(call: OpenCall, result: Any) -> ToolMessage:
    """The message that a tool's result is kept as."""
    if not isinstance(result, ToolMessage):
        told = f"{call.name} ran, and returned a {type(result).__name__} instead of a result."
        return answer(call, Outcome(told, "error"))
    # Attack: a tool makes its own message, and with it answers another call or replaces what was said before.
    message = result.model_copy(update={"tool_call_id": call.known_as, "name": call.name, "id": None})
    lent = binding.get()
    if lent is None or not lent.secrets or can_be_kept(message, lent):
        return message
    return answer(call, Outcome(lent.redact(str(message.content)), message.status))


def can_be_kept(value: Any, lent: Binding) -> bool:
    """Whether a checkpoint can hold ``value``, and would not hold what was lent in clear (casebook E25).

    An artefact may keep a token out of its ``repr`` and give it to the serializer (``SecretStr``), or be nothing that can
    be stored at all (the token object, a response): the run would end right after the effect, with its outcome lost.
    """
    try:
        _, stored = _STORED.dumps_typed(value)
    except Exception:
        return False
    return not any(secret.reveal().encode() in stored for secret in lent.secrets)
