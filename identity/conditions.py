"""Conditions of ``@needs`` about the person: ``signed_in()`` and ``may()``; and how objects are named.

What a call is about is made from its validated arguments, and **a doubt denies**: an argument that is missing or is no name,
a name that cannot be asked about, a function that fails (casebook G1). Who has which relation is looked up elsewhere
(:mod:`identity.relations`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from string import Formatter
from typing import Any
from uuid import UUID

from .errors import NeedsError

__all__ = ["May", "SignedIn", "is_object", "is_relation", "is_type", "may", "signed_in"]

_TYPE = r"[a-z][a-z0-9_-]{0,49}"
_OBJECT = re.compile(rf"{_TYPE}:[^\s#]{{1,200}}")
_RELATION = re.compile(r"[a-z][a-z0-9_]{0,49}")
_MANY = 1_000


def is_object(name: str) -> bool:
    """Whether ``name`` is a ``type:id`` that can be asked about. Anything else has no relations at all."""
    return bool(_OBJECT.fullmatch(name)) and name.isprintable()


def is_relation(name: str) -> bool:
    """Whether ``name`` can name a relation."""
    return bool(_RELATION.fullmatch(name))


def is_type(name: str) -> bool:
    """Whether ``name`` can stand before the colon of an object."""
    return bool(re.fullmatch(_TYPE, name))


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Somebody has to be signed in. Made by :func:`signed_in`."""


def signed_in() -> SignedIn:
    """The tool needs to know for whom it runs, and no token: for what is looked up in the agent's own data."""
    return SignedIn()


@dataclass(frozen=True, slots=True)
class May:
    """The person has a relation to what the call is about. Made by :func:`may`.

    Args:
        pieces: of a template: literal texts, each with the parameter that follows it; empty where ``function`` names the
            objects.
        parameters: those that are looked at.
    """

    relation: str
    function: Callable[..., Any] | None
    pieces: tuple[tuple[str, str], ...]
    parameters: tuple[str, ...]

    def objects(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """What a call with these validated arguments is about; empty if that cannot be told, and then nobody may make it."""
        if self.function is None:
            named: Any = self._filled(arguments)
        else:
            try:
                named = self.function(**{name: arguments[name] for name in self.parameters})
            except Exception:
                return ()
        found = (named,) if isinstance(named, str) else named
        if not isinstance(found, tuple | list | set | frozenset) or len(found) > _MANY:
            return ()
        return tuple(found) if all(isinstance(name, str) and is_object(name) for name in found) else ()

    def _filled(self, arguments: Mapping[str, Any]) -> str:
        between = {c for literal, _ in self.pieces[1 : len(self.parameters)] for c in literal}
        filled = ""
        for literal, parameter in self.pieces:
            filled += literal
            if parameter:
                value = _text(arguments.get(parameter))
                # Attack: "a/b" in the first place and "c" in the second would read like "a" and "b/c".
                if not value or between & set(value):
                    return ""
                filled += value
        return filled

    def refusal(self, object_: str) -> str:
        """The sentence for somebody who lacks the relation to ``object_``."""
        able = self.relation.removeprefix("can_").replace("_", " ")
        what = f"{able} {object_.partition(':')[2]}" if self.relation.startswith("can_") else "do this"
        return f"You may not {what} here ({self.relation} on {object_}). Ask an administrator."


def may(relation: str, object: str | Callable[..., Any]) -> May:
    """The call is made only for a person who has ``relation`` to what it is about::

        @needs(may("can_buy", "instrument:{symbol}"), token=resource(…))
        @needs(may("can_pay_from", lambda accounts: [f"account:{a}" for a in accounts]), token=resource(…))

    Asked with what the database says now, by every look at the call and once more right before it runs. Whoever lacks the
    relation is told so, and nobody is asked to approve the call.

    Args:
        relation: such as ``can_buy``.
        object: ``type:id`` with the tool's parameters in braces (text, whole numbers and UUIDs can be filled in); or a
            function that takes the tool's parameters by name and returns one such name, or a list of them, all of which
            must hold.

    Raises:
        NeedsError: the relation or the object cannot be named so.
    """
    if not is_relation(relation):
        raise NeedsError(f"{relation!r} is not a relation", "Name it like can_buy: lower case, no spaces")
    if not isinstance(object, str):
        return May(relation, object, (), taken_by_name(object, "may(…)", "lambda symbol: f'instrument:{symbol}'"))
    try:
        parsed = [(literal, field, spec, how) for literal, field, spec, how in Formatter().parse(object)]
    except ValueError:
        raise NeedsError(f"{object!r} is not a template", "Write it like 'instrument:{symbol}'") from None
    if "{{" in object or any(f is not None and (not f.isidentifier() or spec or how) for _, f, spec, how in parsed):
        raise NeedsError(f"{object!r} holds more than names in its braces", "Write it like 'instrument:{symbol}'")
    pieces = tuple((literal, field or "") for literal, field, _, _ in parsed)
    parameters = tuple(field for _, field in pieces if field)
    if any(not literal for literal, _ in pieces[1:]):
        raise NeedsError(f"{object!r} has two parameters that run into each other", "Put a separator between them")
    # The type is the tool's to say, never a model's; and the whole has to be a name if the parameters are.
    if not is_type(object.partition(":")[0]) or not is_object("".join(f"{lit}{'x' if f else ''}" for lit, f in pieces)):
        raise NeedsError(f"{object!r} is not an object", "Name it by type and id, like 'instrument:{symbol}'")
    return May(relation, None, pieces, parameters)


def taken_by_name(function: Any, what: str, example: str) -> tuple[str, ...]:
    """The parameters of a function that is called with a tool's parameters by name.

    Raises:
        NeedsError: it cannot be called so.
    """
    try:
        taken = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise NeedsError(f"{what} takes a function", f"Write {example}") from None
    if inspect.iscoroutinefunction(function):
        raise NeedsError(f"{what} is asked without waiting", "Write a function that is not async")
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY) for p in taken):
        raise NeedsError(f"{what} must name the parameters that it looks at", f"Write {example}")
    return tuple(p.name for p in taken)


def _text(value: object) -> str:
    """An argument as a part of a name; empty for what is none. ``1.0`` and ``1`` are one number and two names."""
    if isinstance(value, Enum):
        value = value.value
    return str(value) if isinstance(value, str | int | UUID) and not isinstance(value, bool) else ""
