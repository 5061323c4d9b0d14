"""Who is calling on the LangGraph server, and whose each thread is: the ``auth`` object that ``langgraph.json`` names.

Everything is denied that is not provided for here. A thread belongs to whoever began it, and is moved to the person who
signs in there; clients never say or change whose it is. The dictionary that ``authenticate`` returns is stored in clear by
the server, so it says who somebody is, and no more.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from langgraph_sdk import Auth
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ..errors import DeputizeError, TokenError
from ..principal import Caller, Principal, Visitor
from ..secret import Secret
from .guard import cookie_of
from .requests import OWN_METADATA, Refusal, check_created_run, route

if TYPE_CHECKING:
    from ..identity import Identity

__all__ = ["admit", "caller_of", "protect", "server_auth"]


@dataclass(frozen=True, slots=True)
class _Arrived:
    """The token that a request came with, on its way from ``authenticate`` to the creation of its run."""

    principal: Principal
    token: Secret
    expires_at: float


_arrived: ContextVar[_Arrived | None] = ContextVar("deputize_arrived", default=None)


def server_auth(identity: Identity) -> Auth:
    """A ready ``auth`` object: bearer tokens of the issuer for people, sealed cookies for visitors::

        # langgraph.json: "auth": {"path": "app:auth", "disable_studio_auth": true}
        auth = server_auth(identity)
    """
    auth = Auth()

    @auth.authenticate
    async def authenticate(
        authorization: str | None, headers: Mapping[bytes, bytes], path: str, method: str, scope: Mapping[str, Any]
    ) -> Any:
        if route("WEBSOCKET" if scope["type"] == "websocket" else method, path) is None:
            raise Auth.exceptions.HTTPException(403, "This is not available here")
        if authorization:
            return await identity.admit(authorization)
        cookie = cookie_of(headers.get(b"cookie", b"").decode("latin-1"))
        visitor = (await run_in_threadpool(lambda: identity.visitors)).known(cookie)
        if visitor is None:
            raise Auth.exceptions.HTTPException(401, "Send an access token: Authorization: Bearer …")
        return {"identity": visitor.key, "display_name": "visitor", "deputize_visitor": visitor.id}

    return protect(auth, identity)


def protect(auth: Auth, identity: Identity) -> Auth:
    """Add the handlers to an ``auth`` object that has an ``authenticate`` of its own, which calls :meth:`Identity.admit`::

        @auth.authenticate
        async def authenticate(authorization: str | None):
            mine = …
            return {**mine, **await identity.admit(authorization)}

        protect(auth, identity)
    """
    identity.served = True
    rate = _Rate(identity)

    @auth.on
    async def everything_else(ctx: Any, value: Any) -> bool:
        return False  # assistants, the store, crons, and whatever a new version brings (casebook E10)

    @auth.on.assistants.read
    @auth.on.assistants.search
    async def assistants(ctx: Any, value: Any) -> Any:
        return {"created_by": "system"}

    @auth.on.threads.create
    async def create(ctx: Any, value: MutableMapping[str, Any]) -> Any:
        caller = _caller(identity, ctx)
        _stamp(value, caller)
        return await _owned(identity, caller)

    @auth.on.threads.read
    @auth.on.threads.search
    @auth.on.threads.delete
    async def read(ctx: Any, value: Any) -> Any:
        return await _owned(identity, _caller(identity, ctx))

    @auth.on.threads.update
    async def update(ctx: Any, value: MutableMapping[str, Any]) -> Any:
        if OWN_METADATA & set(value.get("metadata") or {}):
            _refuse(Refusal(403, "Whose a thread is never changes by a client's word"))
        if value.get("action") == "rollback":
            _refuse(Refusal(403, "What happened is not rolled back"))
        return await _owned(identity, _caller(identity, ctx))

    @auth.on.threads.create_run
    async def create_run(ctx: Any, value: MutableMapping[str, Any]) -> Any:
        caller = _caller(identity, ctx)
        if refusal := check_created_run(value):
            _refuse(refusal)
        rate.take(caller)
        arrived = _arrived.get()
        if arrived is not None and arrived.principal == caller:
            run_id, thread_id = str(value.get("run_id") or ""), str(value.get("thread_id") or "")
            await run_in_threadpool(
                lambda: identity.arrive(thread_id, run_id, arrived.principal, arrived.token, arrived.expires_at)
            )
        _stamp(value, caller)
        return await _owned(identity, caller)

    return auth


async def admit(identity: Identity, authorization: str | None) -> dict[str, Any]:
    """See :meth:`identity.Identity.admit`."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Auth.exceptions.HTTPException(401, "Send an access token: Authorization: Bearer …")
    try:
        principal, expires_at = await identity.verify(Secret(token.strip()))
    except TokenError as error:
        raise Auth.exceptions.HTTPException(401, str(error)) from None
    except DeputizeError:
        # The issuer's keys cannot be had: nobody is let in, and nobody is told that their token is bad.
        raise HTTPException(503, "Tokens cannot be checked at the moment. Try again") from None
    _arrived.set(_Arrived(principal, Secret(token.strip()), expires_at))
    return {
        "identity": principal.key,
        "display_name": principal.name or principal.subject,
        "deputize_issuer": principal.issuer,
        "deputize_subject": principal.subject,
    }


def caller_of(user: Any, tenant: str, *, embedded: bool) -> Caller | None:
    """The caller that a server's user stands for; ``None`` for anybody who was not admitted here."""
    if user is None:
        return None
    issuer, subject = _field(user, "deputize_issuer"), _field(user, "deputize_subject")
    if issuer and subject:
        name = _field(user, "display_name")
        return Principal(tenant, issuer, subject, name if name != subject else "")
    if visitor := _field(user, "deputize_visitor"):
        return Visitor(visitor)
    if embedded and _field(user, "kind") == "StudioUser":
        # LangGraph Studio on this machine's own development world; it begins as a visitor like everybody (casebook E19).
        return Visitor("studio")
    return None


def _field(user: Any, name: str) -> str:
    try:
        found = user[name]
    except (KeyError, TypeError, AttributeError, IndexError):
        found = getattr(user, name, "")
    return found if isinstance(found, str) else ""


def _caller(identity: Identity, ctx: Any) -> Caller:
    caller = caller_of(ctx.user, identity.settings.tenant, embedded=identity.settings.embedded)
    if caller is None:
        _refuse(Refusal(403, "Nobody was admitted with this request"))
    return caller


def _stamp(value: MutableMapping[str, Any], caller: Caller) -> None:
    """Whose a new thread is, in the metadata that it begins with; what a client says of it is refused (E22)."""
    metadata = value.get("metadata")
    if metadata is None:
        metadata = value["metadata"] = {}
    if OWN_METADATA & set(metadata):
        _refuse(Refusal(403, "Whose a thread is never changes by a client's word"))
    metadata["owner"] = caller.key


async def _owned(identity: Identity, caller: Caller) -> dict[str, Any]:
    """The filter for what is a caller's own. A visitor who has signed in keeps the threads where that sign-in lives."""
    if isinstance(caller, Visitor):
        people = await run_in_threadpool(lambda: identity.sessions.people_of(caller.key, identity.clock()))
        if people:
            moved = [{"owner": person.key, "visitor": caller.key} for person in people]
            return {"$or": [{"owner": caller.key}, *moved]}
    return {"owner": caller.key}


class _Rate:
    """Runs that one caller may start in a minute (casebook G6). Counted in this process."""

    def __init__(self, identity: Identity) -> None:
        self._limit = identity.settings.runs_per_minute
        self._clock = identity.clock
        self._minute = 0
        self._count: dict[str, int] = {}

    def take(self, caller: Caller) -> None:
        minute = int(self._clock() // 60)
        if minute != self._minute:
            self._minute, self._count = minute, {}
        self._count[caller.key] = self._count.get(caller.key, 0) + 1
        if self._count[caller.key] > self._limit:
            _refuse(Refusal(429, f"More than {self._limit} runs were started within a minute. Wait a moment"))


def _refuse(refusal: Refusal) -> NoReturn:
    raise Auth.exceptions.HTTPException(refusal.status, refusal.detail)
