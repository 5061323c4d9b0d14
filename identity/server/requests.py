"""What a client may ask of the LangGraph server, as pure functions of a request.

Everything that is not listed here is refused: a new version of the server that grows a route does not open it. The guard
asks (:mod:`identity.server.guard`), and so do the auth handlers (:mod:`identity.server.auth`), with the same functions.

What is refused, and why: clients may not write state, jump, replay, copy, choose messages of the agent, stop before a node,
name a webhook, or erase a part of what happened. (All of a thread, its owner may delete.) None of that would give them
authority, which never lives in the graph; but it would let them spoil a conversation, and confuse the person who approves
in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..messages import odd_blocks

__all__ = ["OWN_METADATA", "Kind", "Refusal", "check_body", "check_created_run", "check_run", "route"]

Kind = Literal["open", "read", "run", "thread", "metadata", "command", "cancel", "socket"]

OWN_METADATA = frozenset({"owner", "visitor"})
"""Metadata of threads that says whose they are. Clients neither set nor change it (casebook E22)."""

DEPTH = 64
"""Levels of nesting that a body may have (casebook G6)."""

_ID = "[^/]+"
_ROUTES: tuple[tuple[str, str, Kind], ...] = (
    ("GET", "/", "open"),
    ("GET", "/ok", "open"),
    ("GET", "/info", "open"),
    ("GET", "/docs", "open"),
    ("GET", "/openapi.json", "open"),
    ("POST", "/assistants/search", "read"),
    ("POST", "/assistants/count", "read"),
    ("GET", "/assistants/{id}", "read"),
    ("GET", "/assistants/{id}/graph", "read"),
    ("GET", "/assistants/{id}/schemas", "read"),
    ("GET", "/assistants/{id}/subgraphs", "read"),
    ("GET", "/assistants/{id}/subgraphs/{id}", "read"),
    ("POST", "/assistants/{id}/versions", "read"),
    ("POST", "/threads", "thread"),
    ("POST", "/threads/search", "read"),
    ("POST", "/threads/count", "read"),
    ("GET", "/threads/{id}", "read"),
    ("PATCH", "/threads/{id}", "metadata"),
    ("DELETE", "/threads/{id}", "read"),
    ("GET", "/threads/{id}/state", "read"),
    ("GET", "/threads/{id}/state/{id}", "read"),
    ("POST", "/threads/{id}/state/checkpoint", "read"),
    ("GET", "/threads/{id}/history", "read"),
    ("POST", "/threads/{id}/history", "read"),
    ("GET", "/threads/{id}/stream", "read"),
    ("POST", "/threads/{id}/stream/events", "read"),
    ("POST", "/threads/{id}/commands", "command"),
    ("GET", "/threads/{id}/runs", "read"),
    ("POST", "/threads/{id}/runs", "run"),
    ("POST", "/threads/{id}/runs/stream", "run"),
    ("POST", "/threads/{id}/runs/wait", "run"),
    ("GET", "/threads/{id}/runs/{id}", "read"),
    ("GET", "/threads/{id}/runs/{id}/join", "read"),
    ("GET", "/threads/{id}/runs/{id}/stream", "read"),
    ("POST", "/threads/{id}/runs/{id}/cancel", "cancel"),
    ("WEBSOCKET", "/threads/{id}/stream/events", "socket"),
)  # fmt: skip
_LITERAL = {(method, path): kind for method, path, kind in _ROUTES if "{" not in path}
_PATTERNS = tuple(
    (method, re.compile(re.escape(path).replace(r"\{id\}", _ID)), kind) for method, path, kind in _ROUTES if "{" in path
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not passed on: an HTTP status and a sentence for people."""

    status: int
    detail: str


def route(method: str, path: str) -> Kind | None:
    """What kind of request this is, or ``None`` for one that no client may make.

    Args:
        method: the HTTP method, or ``WEBSOCKET``.
        path: decoded once, as the router will match it. A slash at the end, a doubled one or an encoded letter makes
            another path, and that is on no list.
    """
    found = _LITERAL.get((method, path))
    if found is not None:
        return found
    if method == "HEAD":  # Starlette answers HEAD wherever it answers GET
        return route("GET", path)
    return next((kind for verb, pattern, kind in _PATTERNS if verb == method and pattern.fullmatch(path)), None)


def check_body(kind: Kind, body: Any) -> Refusal | None:
    """Whether a parsed JSON body may be passed on."""
    if _too_deep(body):
        return Refusal(400, f"The request is nested deeper than {DEPTH} levels")
    match kind:
        case "run":
            return check_run(body, _RUN)
        case "thread":
            return _object(body, {"thread_id", "metadata", "if_exists"}) or _metadata(body.get("metadata"))
        case "metadata":
            return _object(body, {"metadata"}) or _metadata(body.get("metadata"))
        case "command":
            return _command(body)
        case _:
            return None


_RUN = frozenset(
    {
        "assistant_id", "input", "command", "config", "context", "metadata", "stream_mode", "stream_subgraphs",
        "stream_resumable", "on_disconnect", "on_completion", "multitask_strategy", "if_not_exists", "feedback_keys",
        "durability", "checkpoint_during", "langsmith_tracer", "checkpoint", "checkpoint_id", "after_seconds", "webhook",
        "interrupt_before", "interrupt_after",
    }
)  # fmt: skip
_START = frozenset({"assistant_id", "input", "config", "metadata", "multitaskStrategy", "langsmith_tracer"})


def check_run(body: Any, keys: frozenset[str] | None = _RUN) -> Refusal | None:
    """Whether a run may be created as asked.

    Args:
        keys: what may be in the body at all; ``None`` when the server has added its own.
    """
    if refusal := _object(body, keys):
        return refusal
    for name in ("interrupt_before", "interrupt_after", "webhook", "after_seconds"):
        if body.get(name):
            # Attacks: stopping a run between its steps to edit there; having the server send results elsewhere.
            return Refusal(403, f"{name} is not available here")
    if body.get("multitask_strategy", body.get("multitaskStrategy")) not in (None, "enqueue", "reject"):
        # "rollback" erases what happened, "interrupt" stops a run between an effect and its record.
        return Refusal(403, "Only the multitask strategies 'enqueue' and 'reject' are available here")
    if body.get("durability") == "exit" or body.get("checkpoint_during") is False:
        # Steps that are written at the end only are all run again when the process dies.
        return Refusal(
            403, "A run's steps are stored as it goes: neither durability 'exit' nor checkpoint_during false"
        )
    if body.get("on_completion") not in (None, "keep"):
        return Refusal(403, "A run leaves its thread where it is: on_completion is 'keep'")
    checkpoint = body.get("checkpoint")
    if checkpoint is not None and not isinstance(checkpoint, dict):
        return Refusal(422, "checkpoint is not an object")
    if body.get("checkpoint_id") or any(value for key, value in (checkpoint or {}).items() if key != "thread_id"):
        # It is copied into the run's configurable, so nothing else may be in it either (a map of checkpoints, say).
        return Refusal(403, "Runs go on from the newest checkpoint; older ones are not run again. Send a new message")
    for name in ("config", "context"):
        if refusal := _config(name, body.get(name)):
            return refusal
    return _run_metadata(body.get("metadata")) or _resume(body.get("command")) or _input(body.get("input"))


def check_created_run(value: Mapping[str, Any]) -> Refusal | None:
    """The same for what the server is about to create, in ``threads.create_run``: by then it has added keys of its own."""
    asked = value.get("kwargs") or {}
    configurable = (asked.get("config") or {}).get("configurable") or {}
    given = {key: configurable[key] for key in configurable if not str(key).startswith(("langgraph_", "__"))}
    body = {
        **{name: asked.get(name) for name in _KEPT},
        "config": {**{name: (asked.get("config") or {}).get(name) for name in _CONFIG}, "configurable": given},
        "metadata": value.get("metadata"),
        "multitask_strategy": value.get("multitask_strategy"),
        "after_seconds": value.get("after_seconds"),
    }
    return check_run(body)


_KEPT = (
    "input", "command", "interrupt_before", "interrupt_after", "webhook", "durability", "checkpoint_during",
)  # fmt: skip
_CONFIG = frozenset({"configurable", "metadata", "recursion_limit", "tags"})
_STEPS = range(10, 1_001)


def _config(name: str, value: Any) -> Refusal | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        return Refusal(422, f"{name} is not an object")
    if name == "config" and (refusal := _object(value, _CONFIG)):
        return refusal
    given = value.get("configurable") if name == "config" else value
    if given is None:
        given = {}
    if not isinstance(given, dict):
        return Refusal(422, "config.configurable is not an object")
    for key in given:
        if str(key).startswith(("deputize_", "langgraph_auth", "checkpoint", "__")) and given[key]:
            # Attacks: naming the person whom a run is for; replaying from a checkpoint; claiming to be the waker.
            return Refusal(403, f"{key} is set by the server and not by clients")
    if name != "config":
        return None
    steps = value.get("recursion_limit")
    if steps is not None and (not isinstance(steps, int) or steps not in _STEPS):
        # A small one stops a run between its steps, as interrupt_before would; a huge one never stops a loop.
        return Refusal(403, f"recursion_limit is between {_STEPS.start} and {_STEPS.stop - 1} here")
    return _run_metadata(value.get("metadata"))


def _metadata(value: Any) -> Refusal | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        return Refusal(422, "metadata is not an object")
    if taken := sorted(OWN_METADATA & set(value)):
        return Refusal(403, f"metadata.{taken[0]} is set by the server and never changes by a client's word")
    return None


def _run_metadata(value: Any) -> Refusal | None:
    """Metadata of a run that may begin its thread: which graph a thread is of is the server's to say (casebook E20)."""
    if refusal := _metadata(value):
        return refusal
    if taken := sorted({"graph_id", "assistant_id"} & set(value or {})):
        return Refusal(403, f"metadata.{taken[0]} is set by the server")
    return None


def _resume(command: Any) -> Refusal | None:
    if command is None:
        return None
    if not isinstance(command, dict):
        return Refusal(422, "command is not an object")
    if wrong := sorted(name for name, value in command.items() if name != "resume" and value not in (None, [], {})):
        # A resume decides nothing, so it may have any value; it only has the requests looked at again.
        return Refusal(403, f"command.{wrong[0]} is not available here: clients neither jump nor write state")
    return None


def _input(value: Any) -> Refusal | None:
    """New messages of a person (casebook E21); the graph checks them again and gives them ids of its own."""
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) - {"messages"}:
        return Refusal(403, "A run takes {'messages': [...]} and nothing else")
    given = value.get("messages")
    for message in given if isinstance(given, list) else [given]:
        if message is None or isinstance(message, str):
            continue
        if not isinstance(message, dict):
            return Refusal(422, "A message is text, or an object with a role and content")
        kinds = {str(message[key]) for key in ("role", "type") if message.get(key) is not None}
        if not kinds or kinds - {"user", "human"}:
            return Refusal(403, "A run takes new messages of a person, in no other role")
        if odd := odd_blocks(message.get("content")):
            return Refusal(403, f"A person's message cannot hold {odd[0]!r}")
    return None


def _command(body: Any) -> Refusal | None:
    """The second version of the event stream: ``POST …/commands`` and the messages of its socket."""
    if not isinstance(body, dict):
        return Refusal(422, "A command is an object")
    parameters = body.get("params") or {}
    if not isinstance(parameters, dict):
        return Refusal(422, "params is not an object")
    match body.get("method"):
        case "run.start":
            return check_run(parameters, _START)
        case "input.respond":
            return _object(parameters, {"interrupt_id", "namespace", "response", "responses"})
        case "agent.getTree" | "subscription.subscribe" | "subscription.unsubscribe" | "subscription.reconnect":
            return None
        case _:
            return Refusal(403, "This command is not available here")


def _object(body: Any, keys: frozenset[str] | set[str] | None) -> Refusal | None:
    if not isinstance(body, Mapping):
        return Refusal(422, "The body is not a JSON object")
    if keys is not None and (unknown := sorted(set(body) - keys)):
        return Refusal(403, f"{str(unknown[0])[:60]!r} is not available here")
    return None


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEPTH):
        inner = (c.values() if isinstance(c, dict) else c for c in level if isinstance(c, dict | list))
        level = [item for container in inner for item in container]
        if not level:
            return False
    return any(isinstance(item, dict | list) for item in level)
