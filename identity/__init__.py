"""deputize: identity for AI agents, on LangGraph.

::

    from identity import AccessToken, Identity, approval, needs, resource

``Identity`` and ``AccessToken`` are imported when they are first used, so that a command line which only prints its help
does not load a graph library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import DeputizeError, RefusedError, SettingsError, UsageError
from .needs import approval, idempotency_key, needs, resource
from .principal import Principal, Visitor
from .secret import Secret

if TYPE_CHECKING:
    from .access import AccessToken
    from .identity import Identity

__all__ = [
    "AccessToken",
    "DeputizeError",
    "Identity",
    "Principal",
    "RefusedError",
    "Secret",
    "SettingsError",
    "UsageError",
    "Visitor",
    "approval",
    "idempotency_key",
    "needs",
    "resource",
]

_LATER = {"AccessToken": "access", "Identity": "identity"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LATER[name]}", __name__), name)
