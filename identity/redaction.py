"""Secrets that come back: replaced in whatever a tool returns, streams or raises (casebook E25).

An API may echo the token that it was called with, and so may an exception, a log line in a result, or an object that hides
it from its ``repr`` but not from the serializer of a checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from decimal import Decimal
from typing import Any, TypeVar, cast
from urllib.parse import quote, quote_plus

from .secret import Secret

__all__ = ["fields_of", "redacted"]

_T = TypeVar("_T")


def redacted(value: _T, secrets: Iterable[Secret]) -> _T:
    """``value`` with every secret in it replaced by ``***``, through containers; objects that hold one become text.

    What holds none comes back as it is, the same object.
    """
    return cast("_T", _redact(value, _spellings(secrets)))


def _spellings(secrets: Iterable[Secret]) -> tuple[str, ...]:
    """Every secret as it is, as a URL carries it, and as ``repr`` and JSON escape it. Longest first: one may hold another."""
    found: set[str] = set()
    for secret in secrets:
        value = secret.reveal()
        found |= {value, quote(value), quote(value, safe=""), quote_plus(value)}
        found |= {repr(value)[1:-1], json.dumps(value)[1:-1]}
    return tuple(sorted(found, key=lambda spelling: (-len(spelling), spelling)))


def _redact(value: Any, secrets: tuple[str, ...]) -> Any:
    if not _holds(value, secrets):
        return value
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, "***")
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return _redact(bytes(value).decode("utf-8", "surrogateescape"), secrets).encode("utf-8", "surrogateescape")
    if isinstance(value, Mapping):
        return {_redact(k, secrets): _redact(v, secrets) for k, v in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(_redact(item, secrets) for item in value)
    return _redact(repr(value), secrets)


def _holds(value: object, secrets: tuple[str, ...]) -> bool:
    """Whether a secret is in ``value``: in what it shows, or in what a serializer would find in it."""
    seen: dict[int, object] = {}  # each object once: causes are contexts too, and lists may hold themselves
    waiting = [value]
    while waiting:
        match waiting.pop():
            case None | bool() | int() | float() | Decimal():
                continue
            case str() as text:
                if any(secret in text for secret in secrets):
                    return True
                continue
            case bytes() | bytearray() | memoryview() as raw:
                if any(secret.encode() in bytes(raw) for secret in secrets):
                    return True
                continue
            case item if id(item) in seen:
                continue
            case item:
                seen[id(item)] = item
                waiting += _parts(item)
    return False


def _parts(item: object) -> Iterable[object]:
    match item:
        case Mapping():
            return (*item.keys(), *item.values())
        case list() | tuple() | set() | frozenset():
            return item
        case BaseException():
            behind = (item.__cause__, item.__context__, *getattr(item, "exceptions", ()))
            return (repr(item), str(item), *getattr(item, "__notes__", ()), *behind)
        case _:
            return (repr(item), str(item), *fields_of(item))


def fields_of(value: object) -> Iterable[object]:
    """The fields of a dataclass or a pydantic model, also those that its ``repr`` leaves out."""
    if isinstance(value, type):
        return ()
    if is_dataclass(value):
        return [getattr(value, each.name, None) for each in fields(value)]
    if hasattr(type(value), "model_fields"):  # pydantic, which need not be imported for it
        return [*vars(value).values(), *(getattr(value, "model_extra", None) or {}).values()]
    return ()
