"""Visitors: people who have not signed in, each known by an id that this server minted.

The id is random and travels sealed in a cookie, so nobody can choose one, and two visitors are two owners (casebook E19).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable

from .errors import SealError
from .principal import Visitor
from .sealing import Context, StateKeys, visitor_context

__all__ = ["Visitors", "cookie_name"]

_COOKIE = "deputize_visitor"

_LIFETIME = 30 * 86_400
_LIMIT = 1_024


def cookie_name(url: str) -> str:
    """What the cookie is called at ``url``. Over https nobody but this very host can set it (RFC 6265bis §4.1.3.2)."""
    return f"__Host-{_COOKIE}" if url.startswith("https://") else _COOKIE


class Visitors:
    """Mints and knows visitors.

    Args:
        clock: unix seconds.
    """

    lifetime = _LIFETIME
    """Seconds that a cookie is good for."""

    def __init__(self, tenant: str, keys: StateKeys, clock: Callable[[], float]) -> None:
        self._context: Context = visitor_context(tenant)
        self._keys = keys
        self._clock = clock

    def mint(self) -> str:
        """A new visitor's cookie value."""
        value = json.dumps({"id": secrets.token_urlsafe(16), "expires_at": self._clock() + _LIFETIME})
        return self._keys.seal(value, self._context)

    def known(self, cookie: str) -> Visitor | None:
        """The visitor of a cookie value; ``None`` for one that was not minted here, or is too old."""
        if not cookie or len(cookie) > _LIMIT:
            return None
        try:
            held = json.loads(self._keys.open(cookie, self._context).reveal())
        except SealError:
            return None
        return Visitor(held["id"]) if self._clock() < held["expires_at"] else None
