"""What an approval is for: one exact call, its digest, and what of it a page shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .canonical import canonical, digest
from .errors import (
    RefusedError,
)
from .sessions import Place, Session
from .text import SHOWN_LIMIT, printable

__all__ = ["Call", "binding_digest", "call_digest", "require_shown", "shown_arguments"]

_BINDING_VERSION = 1
_POLICY_VERSION = "tools/1"


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call, as its approval binds it.

    Args:
        arguments: validated, by name.
        schema_digest: of the tool's argument schema: another schema is another call.
        audience: the API that the tool declared first; empty if it declared none.
    """

    message_id: str
    id: str
    tool: str
    arguments: Mapping[str, Any]
    schema_digest: str
    audience: str


def binding_digest(call: Call, place: Place, session: Session, actor: str, nonce: str, expires_at: int) -> str:
    """What an approval is for: SHA-256 over the RFC 8785 form of every field that must not change (casebook B4)."""
    return digest(
        {
            "version": _BINDING_VERSION,
            "policy": _POLICY_VERSION,
            "tool": call.tool,
            "schema": call.schema_digest,
            "arguments": dict(call.arguments),
            "tenant": place.tenant,
            "issuer": session.principal.issuer,
            "subject": session.principal.subject,
            "actor": actor,
            "graph": place.graph,
            "thread": place.thread,
            "message_id": call.message_id,
            "tool_call_id": call.id,
            "audience": call.audience,
            "nonce": nonce,
            "expires_at": expires_at,
        }
    )


def call_digest(call: Call, session: Session) -> str:
    """What is equal about equal calls: who calls what with which arguments, in whatever words, turn or thread."""
    person = session.principal
    return digest(
        {
            "tool": call.tool,
            "schema": call.schema_digest,
            "arguments": dict(call.arguments),
            "subject": [person.tenant, person.issuer, person.subject],
        }
    )


def require_shown(call: Call) -> None:
    """Refuse to ask about what a page cannot show whole (casebook B10): what comes after the cut would be approved unseen.

    Raises:
        RefusedError: a value is longer than :data:`identity.text.SHOWN_LIMIT`.
    """

    def too_long(value: Any) -> bool:
        if isinstance(value, dict):
            return any(too_long(key) or too_long(item) for key, item in value.items())
        if isinstance(value, list):
            return any(map(too_long, value))
        return isinstance(value, str) and len(printable(value, limit=SHOWN_LIMIT + 1)) > SHOWN_LIMIT

    shown = shown_arguments(call.arguments)
    if too_long(shown) or len(json.dumps(shown)) > 8 * SHOWN_LIMIT:
        raise RefusedError(
            f"{call.tool} needs approval, and its arguments are too long to be shown whole on the approval page",
            "Ask for less at a time",
        )


def shown_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Validated arguments as JSON values for the approval page and the API: decimals and large integers as strings."""
    shown: dict[str, Any] = json.loads(canonical(dict(arguments)))
    return shown
