"""Rich authorization requests: RFC 9396."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..canonical import canonical
from ..errors import DeputizeError, ProtocolError

__all__ = ["require_granted", "same_details"]


def same_details(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> bool:
    """Whether two lists of authorization details say the same, byte for byte in their RFC 8785 form."""
    try:
        return canonical([dict(item) for item in one]) == canonical([dict(item) for item in other])
    except DeputizeError:
        return False


def require_granted(asked: Sequence[Mapping[str, Any]], granted: Sequence[Mapping[str, Any]] | None) -> None:
    """The answer must return what it granted (RFC 9396 §7), and that must be what was asked (casebook B16)."""
    if granted is None or not same_details(asked, granted):
        raise ProtocolError("Something else was approved than was asked for, so it is not used", "Ask again")
