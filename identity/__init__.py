"""deputize: identity for AI agents, on LangGraph.

::

    from identity import AccessToken, Identity, approval, needs, resource

``Identity`` and ``AccessToken`` are imported when they are first used, so that a command line which only prints its help
does not load a graph library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .conditions import may, signed_in
from .errors import DeputizeError, RefusedError, SettingsError, UsageError
from .needs import approval, idempotency_key, needs, resource
from .principal import Principal, Visitor
from .secret import Secret

if TYPE_CHECKING:
    from .access import AccessToken
    from .identity import Identity
    from .middleware import IdentityMiddleware
    from .relations import Relation
    from .toolnode import tool_node

__all__ = [
    "AccessToken",
    "DeputizeError",
    "Identity",
    "IdentityMiddleware",
    "Principal",
    "RefusedError",
    "Relation",
    "Secret",
    "SettingsError",
    "UsageError",
    "Visitor",
    "approval",
    "idempotency_key",
    "may",
    "needs",
    "resource",
    "signed_in",
    "tool_node",
]

_LATER = {
    "AccessToken": "access",
    "Identity": "identity",
    "IdentityMiddleware": "middleware",
    "Relation": "relations",
    "tool_node": "toolnode",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LATER[name]}", __name__), name)
