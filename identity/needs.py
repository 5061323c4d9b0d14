"""``@needs``: what a tool must have before it may run.

Everything that a tool declares lives here; what is done about it lives in :mod:`identity.gate`. Two rules:

- **Token parameters are no tool arguments.** They leave the signature before ``@tool`` sees the function, so no model is
  asked for them, no validation error can print them, and no trace records them (casebook E27). The gate binds them
  through a context variable; a guarded tool that is called without its own binding raises.
- **A doubt asks.** A predicate that fails, or returns anything but a ``bool``, means that a person is asked (B21).
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Literal, NoReturn, TypeVar, cast
from urllib.parse import SplitResult, urlsplit

from .conditions import May, SignedIn, taken_by_name
from .errors import GateError, NeedsError
from .principal import Principal
from .redaction import fields_of, redacted
from .secret import Secret

__all__ = [
    "Approval",
    "Binding",
    "Needs",
    "Resource",
    "approval",
    "binding",
    "idempotency_key",
    "needs",
    "needs_of",
    "resource",
]

_T = TypeVar("_T")
_ATTRIBUTE = "__deputize_needs__"


@dataclass(frozen=True, slots=True)
class Resource:
    """An access token for one API (RFC 8707). Made by :func:`resource`."""

    audience: str
    scopes: tuple[str, ...]
    origins: tuple[str, ...]

    @property
    def key(self) -> str:
        """Names the token in graph state: the audience and its sorted scopes."""
        return " ".join((self.audience, *self.scopes))

    @property
    def scope(self) -> str:
        """The scopes as the wire's ``scope`` (RFC 6749 §3.3)."""
        return " ".join(self.scopes)


def resource(audience: str, *scopes: str, hosts: Iterable[str] | None = None) -> Resource:
    """A token for the API ``audience``, asked for with ``scopes`` and sent nowhere else.

    Args:
        audience: the resource indicator (RFC 8707 §2): an absolute URI without a fragment.
        scopes: what the tool needs there, no more.
        hosts: origins (``https://api.example``) that the token may be sent to. Only for an audience that is not an
            ``https`` or ``http`` URL, such as ``api://orders``; otherwise the audience's own origin is the only one.

    Raises:
        NeedsError: the audience or a scope cannot be used on the wire, or ``hosts`` is missing or superfluous.
    """
    parts = _split(audience)
    if parts is None or not parts.scheme or "#" in audience:
        raise NeedsError(
            f"resource({audience!r}) is not an absolute URI", "Name the API by its URL, without a fragment"
        )
    if parts.scheme in ("https", "http"):
        if hosts is not None:
            raise NeedsError(f"resource({audience!r}) is a URL and needs no hosts", "Leave hosts away")
        origins: tuple[str, ...] = (origin_of(audience),)
    else:
        if not hosts:
            raise NeedsError(
                f"resource({audience!r}) does not say where its token may go",
                "Name the API's origins: resource(…, hosts=['https://api.example'])",
            )
        origins = tuple(origin_of(host) for host in hosts)
    for scope in scopes:
        # RFC 6749 §3.3: scope-token = 1*( %x21 / %x23-5B / %x5D-7E )
        if not scope or not all(0x21 <= ord(c) <= 0x7E and c not in '"\\' for c in scope):
            raise NeedsError(f"{scope!r} is not one scope", "Give each scope as an argument of its own")
    return Resource(audience, tuple(sorted(set(scopes))), origins)


def origin_of(url: str) -> str:
    """``scheme://host:port`` of an http(s) URL, lower case, with the port always written.

    Raises:
        NeedsError: it has none, or two readers could see different ones in it.
    """
    parts = _split(url)
    try:
        port = parts.port if parts else None
    except ValueError:
        parts = None
    if not parts or parts.scheme not in ("https", "http") or not parts.hostname or "@" in parts.netloc or port == 0:
        raise NeedsError(f"{url!r} has no origin", "Give an https URL without user name, such as https://api.example")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port or (443 if parts.scheme == 'https' else 80)}"


def _split(uri: str) -> SplitResult | None:
    """The parts of a URI; ``None`` if it is none.

    RFC 3986 §2 knows neither spaces nor backslashes nor letters beyond ASCII. ``urlsplit`` drops some, browsers take a
    backslash for a slash, and a Kelvin sign becomes a k: each is a way to show one host and mean another.
    """
    if not uri.isascii() or not uri.isprintable() or " " in uri or "\\" in uri:
        return None
    try:
        parts = urlsplit(uri)
    except ValueError:
        return None
    behind = parts.netloc.partition("]")[2]  # older Pythons read https://[::1]evil.example as ::1
    return None if behind and not behind.startswith(":") else parts


@dataclass(frozen=True, slots=True)
class Approval:
    """A person's yes before the call. Made by :func:`approval`."""

    when: Callable[..., bool] | None
    type: str
    parameters: tuple[str, ...]
    wait: Literal["interrupt", "defer"] = "interrupt"

    def asks(self, arguments: Mapping[str, Any]) -> bool:
        """Whether a call with these validated arguments has to be approved. Every doubt is a yes (casebook B21)."""
        if self.when is None:
            return True
        values = {name: arguments.get(name) for name in self.parameters}
        try:
            return _odd(values) or self.when(**values) is not False
        except Exception:
            return True


def _odd(value: object) -> bool:
    """A number that a comparison with a limit would wave through: negative, infinite, not a number; also inside."""
    match value:
        case bool() | str() | bytes():
            return False
        case int():
            return value < 0
        case float():
            return not math.isfinite(value) or value < 0
        case Decimal():
            return not value.is_finite() or value < 0
        case Mapping():
            return any(map(_odd, value.values()))
        case Sequence() | Set():
            return any(map(_odd, value))
        case _:
            return any(map(_odd, fields_of(value)))


def approval(
    when: Callable[..., bool] | None = None,
    *,
    type: str = "tool_call",
    wait: Literal["interrupt", "defer"] = "interrupt",
) -> Approval:
    """The call waits for the person's approval, out of band (OpenID CIBA Core 1.0).

    Args:
        when: a predicate over the tool's parameters, taken by name, returning a strict ``bool``; without it every call
            is asked about. It sees validated arguments. A negative or non-finite number among the ones that it takes,
            an exception, or any other return value asks as well.
        type: the RFC 9396 ``type`` of the authorization detail, as the API knows it.
        wait: ``interrupt``: the turn stops until the person has decided. ``defer``: the call is answered with "asked for
            approval", the conversation goes on, and the outcome comes into it when the person has decided.

    Raises:
        NeedsError: ``when`` takes its parameters in a way that cannot be filled by name, or ``wait`` is something else.
    """
    parameters: tuple[str, ...] = ()
    if when is not None:
        parameters = taken_by_name(when, "approval(when=…)", "lambda quantity, limit: …")
    if not type or not type.isprintable():
        raise NeedsError("approval(type=…) needs a name", "Use the type that the API documents (RFC 9396 §2)")
    if wait not in ("interrupt", "defer"):
        raise NeedsError(f"approval(wait={wait!r}) is no way to wait", "Write 'interrupt' or 'defer'")
    return Approval(when, type, parameters, wait)


@dataclass(frozen=True, slots=True, eq=False)
class Needs:
    """Everything that one tool declares. Compared by identity: a binding belongs to one declaration."""

    approvals: tuple[Approval, ...] = ()
    tokens: Mapping[str, Resource] = field(default_factory=lambda: MappingProxyType({}))
    read_only: bool = False
    relations: tuple[May, ...] = ()
    signed_in: bool = False

    @property
    def user(self) -> bool:
        """Whether somebody has to be signed in."""
        return bool(self.approvals or self.tokens or self.relations or self.signed_in)

    @property
    def primary(self) -> Resource | None:
        """The API that an approval's own token is for: the first one declared."""
        return next(iter(self.tokens.values()), None)

    def approval_for(self, arguments: Mapping[str, Any]) -> Approval | None:
        """The first condition that asks for an approval of a call with these arguments."""
        return next((condition for condition in self.approvals if condition.asks(arguments)), None)


NOTHING = Needs()
"""What a tool without ``@needs`` declares: no user, no token; and since it is not marked read-only, a claim (E24)."""

_IN_USE = Needs()  # whose binding it is while its one call runs: nobody's any more


@dataclass(frozen=True, slots=True)
class Binding:
    """What the gate lends to one call of one tool.

    Args:
        needs: whose binding this is; a tool called from inside another one does not inherit it.
        tokens: parameter name to access token (:class:`identity.access.AccessToken`).
        idempotency_key: names this effect to the API, the same for every run of the same call.
        secrets: every value that was opened for the call, to be replaced wherever the tool repeats it (casebook E25).
        principal: the person who is signed in on this thread; ``None`` when nobody is.
    """

    needs: Needs
    tokens: Mapping[str, Any]
    idempotency_key: str
    secrets: tuple[Secret, ...]
    principal: Principal | None = None

    def redact(self, value: _T) -> _T:
        """``value`` with every opened secret in it replaced, through containers; objects that hold one become text.

        What holds none comes back as it is.
        """
        return redacted(value, self.secrets)


binding: ContextVar[Binding | None] = ContextVar("deputize_binding", default=None)
"""Set by the gate around one tool call."""


def idempotency_key() -> str:
    """Inside a guarded tool: the key that names this effect to the API (the ``Idempotency-Key`` header's value).

    It is the same however often the call is run again, so an API that honours it cannot be made to act twice.
    """
    bound = binding.get()
    if bound is None:
        raise GateError("idempotency_key() was called outside a tool call", "Call it in the tool's own function")
    return bound.idempotency_key


def needs_of(tool: object) -> Needs:
    """What ``tool`` (a function or a LangChain tool) declared; :data:`NOTHING` if it declared nothing."""
    for owner in (tool, getattr(tool, "func", None), getattr(tool, "coroutine", None)):
        found = getattr(owner, _ATTRIBUTE, None)
        if isinstance(found, Needs):
            return found
    return NOTHING


class needs:  # noqa: N801 - used as a decorator, named like one
    """Declare what a tool needs, above the function and below ``@tool``, or around an existing LangChain tool.

    Positional arguments are conditions, keyword arguments name the parameters that receive tokens::

        @tool
        @needs(approval(when=lambda quantity, limit: quantity * limit > 1_000),
               token=resource("https://trading.example", "orders:write"))
        async def buy_stock(symbol: str, quantity: int, limit: Decimal, token: AccessToken) -> str: ...

    Several stack. ``read_only=True`` says that the tool has no effect that could be repeated, and so claims none.

    Raises:
        NeedsError: a token parameter or a parameter of a predicate does not exist in the tool.
    """

    def __init__(self, *conditions: Approval | May | SignedIn, read_only: bool = False, **tokens: Resource) -> None:
        for condition in conditions:
            if not isinstance(condition, Approval | May | SignedIn):
                raise NeedsError(f"needs() takes conditions such as approval(), not {type(condition).__name__}")
        for name, token in tokens.items():
            if not isinstance(token, Resource):
                raise NeedsError(f"needs({name}=…) takes a resource(), not {type(token).__name__}")
        self._conditions = conditions
        self._tokens = tokens
        self._read_only = read_only

    def __call__(self, target: _T) -> _T:
        if inspect.isroutine(target):
            return cast("_T", self._wrap(target))
        if hasattr(target, "args_schema"):
            return cast("_T", self._wrap_tool(target))
        raise NeedsError(
            f"needs() goes around a function or a tool, not {type(target).__name__}", "Write @tool above @needs(…)"
        )

    def _wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        inner = getattr(function, _ATTRIBUTE, None)
        if isinstance(inner, Needs):  # stacked: one wrapper around the innermost function, one declaration
            return _guarded(function.__wrapped__, self._merged(inner))  # type: ignore[attr-defined]
        return _guarded(function, self._merged(NOTHING))

    def _wrap_tool(self, tool: Any) -> Any:
        functions = {
            name: self._wrap(f) for name in ("func", "coroutine") if (f := getattr(tool, name, None)) is not None
        }
        if not functions:
            raise NeedsError(
                f"The tool {tool.name!r} has no function to wrap",
                "Write a function that calls it, with @tool and @needs",
            )
        merged = {needs_of(f) for f in functions.values()}
        if len(merged) > 1:  # func and coroutine of one tool share one declaration
            first = next(iter(merged))
            functions = {name: _guarded(f.__wrapped__, first) for name, f in functions.items()}  # type: ignore[attr-defined]
        schema = tool.args_schema
        fields = schema.get("properties", {}) if isinstance(schema, dict) else getattr(schema, "model_fields", {})
        hidden = set(self._tokens) & set(fields)
        if hidden:
            raise NeedsError(
                f"{tool.name!r} already takes {', '.join(sorted(hidden))} as an argument that models see",
                "Put @needs below @tool, above the function",
            )
        return tool.model_copy(update=functions)

    def _merged(self, inner: Needs) -> Needs:
        twice = set(inner.tokens) & set(self._tokens)
        if twice:
            raise NeedsError(f"The token parameter {sorted(twice)[0]!r} is declared twice", "Name each one once")
        return replace(
            inner,
            approvals=(*(c for c in self._conditions if isinstance(c, Approval)), *inner.approvals),
            relations=(*(c for c in self._conditions if isinstance(c, May)), *inner.relations),
            signed_in=inner.signed_in or any(isinstance(c, SignedIn) for c in self._conditions),
            tokens=MappingProxyType({**self._tokens, **inner.tokens}),
            read_only=self._read_only or inner.read_only,
        )


def _guarded(function: Callable[..., Any], declared: Needs) -> Callable[..., Any]:
    name = getattr(function, "__name__", "the tool")
    signature = inspect.signature(function)
    parameters = signature.parameters
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for token in declared.tokens:
        if token not in parameters or parameters[token].kind not in (
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.KEYWORD_ONLY,
        ):
            raise NeedsError(f"{name}() has no parameter {token!r} to receive a token", f"Add it: {token}: AccessToken")
    looking: tuple[Approval | May, ...] = (*declared.approvals, *declared.relations)
    for condition in looking:
        for parameter in condition.parameters:
            if parameter in declared.tokens or (parameter not in parameters and not any_name):
                known = ", ".join(p for p in parameters if p not in declared.tokens) or "none"
                what = "approval(when=…)" if isinstance(condition, Approval) else "may(…)"
                raise NeedsError(f"{what} of {name}() looks at {parameter!r}", f"{name}() has: {known}")

    @contextmanager
    def bind() -> Iterator[Binding]:
        bound = binding.get()
        if bound is None or bound.needs is not declared:
            raise GateError(
                f"{name}() was called outside its gate",
                "Let a graph that was built with deputize call it, not your code",
            )
        # Attack: a tool runs a sub-agent that has the same tool, and its model's call takes this call's approval.
        reset = binding.set(replace(bound, needs=_IN_USE))
        try:
            yield bound
        finally:
            binding.reset(reset)

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def guarded(*args: Any, **kwargs: Any) -> Any:
            with bind() as bound:
                try:
                    return bound.redact(await function(*args, **kwargs, **bound.tokens))
                except Exception as error:
                    failure = error
            _raise_redacted(failure, bound)

    else:

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            with bind() as bound:
                try:
                    return bound.redact(function(*args, **kwargs, **bound.tokens))
                except Exception as error:
                    failure = error
            _raise_redacted(failure, bound)

    shown = [p for p in parameters.values() if p.name not in declared.tokens]
    guarded.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    guarded.__annotations__ = {k: v for k, v in function.__annotations__.items() if k not in declared.tokens}
    setattr(guarded, _ATTRIBUTE, declared)
    return guarded


def _raise_redacted(error: Exception, bound: Binding) -> NoReturn:
    """Raise ``error`` again; if it, or an error behind it, shows a secret, raise its redacted text alone."""
    if bound.redact(error) is error:
        raise error
    raise GateError(bound.redact(f"{type(error).__name__}: {error}"), code="tool_error")
