"""One spelling for one value: RFC 8785 bytes, and their digest.

An approval binds the digest of what was shown. Two spellings of one value would let the one be shown and the other run,
so everything is normalized first: decimals and integers that JavaScript cannot hold become strings that keep every
digit (casebook B21). A number and its spelling as a string do digest alike; which of both a value is, is fixed by the
tool's schema, whose digest is part of every binding.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import rfc8785
from pydantic import BaseModel

from .errors import UsageError

__all__ = ["canonical", "digest", "normalized"]

_SAFE_INTEGER = 2**53 - 1
_DEPTH = 32
_DIGITS = 1_000


def canonical(value: Any) -> bytes:
    """The RFC 8785 form of ``value``.

    Raises:
        UsageError: it holds something that has no such form; the error names the place.
    """
    return rfc8785.dumps(normalized(value))


def digest(value: Any) -> str:
    """SHA-256 of :func:`canonical`, base64url without padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(canonical(value)).digest()).rstrip(b"=").decode()


def normalized(value: Any, where: str = "value", depth: int = 0) -> Any:
    """``value`` as plain JSON: what :func:`canonical` spells."""
    if depth > _DEPTH:
        raise UsageError(f"{where} is nested deeper than {_DEPTH} levels", "Pass flatter arguments")
    match value:
        case None | bool():
            return value
        case Enum():
            return normalized(value.value, where, depth + 1)
        case str():
            return _unicode(value, where)
        case int():
            if abs(value) <= _SAFE_INTEGER:
                return int(value)
            if value.bit_length() > _DIGITS * 3:
                raise UsageError(f"{where} is a number of more than {_DIGITS} digits", "Pass a smaller number")
            return str(int(value))
        case Decimal():
            if not value.is_finite():
                raise UsageError(f"{where} is not a finite number", "Pass a number")
            # Attack: a limit of 1E+999999999 is eleven characters long, and a gigabyte when it is spelled out (G6).
            if max(abs(value.adjusted()), -int(value.as_tuple().exponent)) > _DIGITS:
                raise UsageError(f"{where} is a number of more than {_DIGITS} digits", "Pass a smaller number")
            return format(value, "f")
        case float():
            if not math.isfinite(value):
                raise UsageError(f"{where} is not a finite number", "Pass a number")
            # Beyond 2^53 a float is an integer, and JSON would read its spelling back as one.
            return float(value) if abs(value) <= _SAFE_INTEGER else str(int(value))
        case datetime() | date() | time():
            return value.isoformat()
        case UUID():
            return str(value)
        case BaseModel():
            return normalized(value.model_dump(), where, depth + 1)
        case Mapping():
            if not all(isinstance(key, str) for key in value):
                raise UsageError(f"{where} has a key that is no string", "Name every field by a string")
            return {
                _unicode(key, f"a key of {where}"): normalized(item, f"{where}.{key}", depth + 1)
                for key, item in value.items()
            }
        case list() | tuple():
            return [normalized(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
        case _:
            raise UsageError(
                f"{where} is a {type(value).__name__}, which has no canonical form", "Pass JSON-like values"
            )


def _unicode(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{where} is not valid Unicode", "Pass text without lone surrogates") from None
    return str(text)
