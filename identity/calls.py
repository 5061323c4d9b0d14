"""Tool calls of a model: which are open, and how one is answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, ToolMessage

from .ledger import Outcome

__all__ = ["INVALID_CALL", "CallsOf", "OpenCall", "answer", "calls_of", "open_calls", "run_id"]

INVALID_CALL = "invalid_call"
"""What a call is named whose arguments were no JSON. Providers want an answer to it too; no tool may be called this."""


@dataclass(frozen=True, slots=True)
class OpenCall:
    """A tool call that the model made and nobody has answered.

    Args:
        message_id, id: what its claim and its request are keyed by.
        wire_id: what the history knows it by, where that is another id than ours.
    """

    message_id: str
    id: str
    name: str
    arguments: Mapping[str, Any]
    wire_id: str | None = None

    @property
    def known_as(self) -> str:
        """The id that its answer carries."""
        return self.id if self.wire_id is None else self.wire_id


def run_id(config: Mapping[str, Any]) -> str:
    """The server's run; empty where there is no server."""
    return str((config.get("configurable") or {}).get("run_id") or "")


def answer(call: OpenCall, outcome: Outcome) -> ToolMessage:
    """An outcome as the call's ``ToolMessage``."""
    return ToolMessage(outcome.content, name=call.name, tool_call_id=call.known_as, status=outcome.status)


CallsOf = Callable[[Sequence[AnyMessage], int], list[OpenCall]]
"""The calls that the model's message at an index of a history made."""


def open_calls(messages: Sequence[AnyMessage], of: CallsOf | None = None) -> list[OpenCall]:
    """The unanswered calls of the last turn. Looks back as far as that turn only, however long the history is.

    Args:
        of: how calls are keyed, where models' messages are not under ids that we minted.
    """
    answered: set[str] = set()
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        if isinstance(message, ToolMessage):
            answered.add(message.tool_call_id)
        elif isinstance(message, AIMessage):
            return [call for call in (of or calls_of)(messages, index) if call.known_as not in answered]
    return []


def calls_of(messages: Sequence[AnyMessage], index: int) -> list[OpenCall]:
    """The calls of the message at ``index``, keyed by the ids that were minted when the model answered."""
    message = messages[index]
    assert isinstance(message, AIMessage)
    return [OpenCall(message.id or "", c["id"] or "", c["name"], c["args"]) for c in message.tool_calls]
