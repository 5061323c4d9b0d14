"""Who is calling on the LangGraph server, and whose each thread is: the ``auth`` object that ``langgraph.json`` names.

Everything is denied that is not provided for here. A thread belongs to whoever began it, and is moved to the person who
signs in there; clients never say or change whose it is. The dictionary that ``authenticate`` returns is stored in clear by
the server, so it says who somebody is, and no more.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping, MutableMapping
from contextvars import Context, ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from httpx import HTTPStatusError
from langgraph_sdk import Auth, get_client
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ..errors import DeputizeError, TokenError
from ..oauth.jwt import LEEWAY
from ..principal import Caller, Principal, Visitor, caller_of
from ..secret import Secret
from ..visitors import cookie_name
from .guard import cookie_of
from .requests import OWN_METADATA, Refusal, check_created_run, route

if TYPE_CHECKING:
    from ..identity import Identity

__all__ = ["admit", "protect", "server_auth"]


@dataclass(frozen=True, slots=True)
class _Arrived:
    """The token that a request came with, on its way from ``authenticate`` to the creation of its run."""

    principal: Principal
    token: Secret
    expires_at: float


_MESSAGES = uuid.UUID("0f4b9d1e-7c55-5a0e-8f0a-55f7a1c2d9b6")
"""The namespace of the ids that new messages get."""

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
        cookie = cookie_of(scope.get("headers") or headers.items(), cookie_name(identity.settings.url))
        visitor = (await run_in_threadpool(lambda: identity.visitors)).known(cookie)
        if authorization:
            person = await identity.admit(authorization)
            # Who signs in keeps what they began in this very browser, and nobody else can finish it (casebook A17, A18).
            return {**person, "deputize_was": visitor.id} if visitor else person
        if visitor is None:
            raise Auth.exceptions.HTTPException(401, "Send an access token: Authorization: Bearer …")
        return {"identity": visitor.key, "display_name": "visitor", "deputize_visitor": visitor.id}

    return protect(auth, identity)


def protect(auth: Auth, identity: Identity, client: Callable[[], Any] | None = None) -> Auth:
    """Add the handlers to an ``auth`` object that has an ``authenticate`` of its own, which calls :meth:`Identity.admit`::

    @auth.authenticate
    async def authenticate(authorization: str | None):
        mine = …
        return {**mine, **await identity.admit(authorization)}

    protect(auth, identity)

    Args:
        client: makes an in-process client of the server (replaced in tests).
    """
    identity.served = True
    rate = _Rate(identity)

    async def nobody(ctx: Any, value: Any) -> bool:
        return False  # assistants, the store, crons, and whatever a new version brings (casebook E10)

    async def assistants(ctx: Any, value: Any) -> Any:
        return {"created_by": "system"}

    async def create(ctx: Any, value: MutableMapping[str, Any]) -> Any:
        caller = _caller(identity, ctx)
        _stamp(value, caller)
        return await _owned(identity, caller)

    async def own(ctx: Any, value: Any) -> Any:
        return await _owned(identity, _caller(identity, ctx), _was(ctx))

    async def update(ctx: Any, value: MutableMapping[str, Any]) -> Any:
        if OWN_METADATA & set(value.get("metadata") or {}):
            _refuse(Refusal(403, "Whose a thread is never changes by a client's word"))
        if "graph_id" in (value.get("metadata") or {}):
            _refuse(Refusal(403, "The graph of a thread does not change"))
        if value.get("action") == "rollback":
            _refuse(Refusal(403, "What happened is not rolled back"))
        return await own(ctx, value)

    async def delete(ctx: Any, value: Any) -> Any:
        if value.get("run_id"):
            # With a run go the checkpoints that it wrote. Who wants to forget a conversation deletes all of it.
            _refuse(Refusal(403, "A single run is not deleted"))
        return await own(ctx, value)

    async def create_run(ctx: Any, value: MutableMapping[str, Any]) -> Any:
        caller = _caller(identity, ctx)
        if refusal := check_created_run(value):
            _refuse(refusal)
        rate.take(caller)
        await _require_its_graph((client or get_client)(), value)
        arrived, was = _arrived.get(), _was(ctx)
        if arrived is not None and arrived.principal == caller:
            if identity.clock() > arrived.expires_at + LEEWAY:
                # A socket outlives the token that it was opened with.
                _refuse(Refusal(401, "The access token has expired. Connect again with a new one"))
            run_id, thread_id = str(value.get("run_id") or ""), str(value.get("thread_id") or "")
            moved = await run_in_threadpool(
                lambda: identity.arrive(thread_id, run_id, arrived.principal, was, arrived.token, arrived.expires_at)
            )
            if moved and was is not None:
                update = (client or get_client)().threads.update(thread_id, metadata={"owner": caller.key})
                # In a context of its own: in the caller's it would be refused like any other change of the owner.
                await asyncio.create_task(update, context=Context())
        _stamp(value, caller)
        _renamed(value)
        return await _owned(identity, caller, was)

    on: Any = auth.on
    on(nobody)
    for action in (on.assistants.read, on.assistants.search):
        action(assistants)
    for action in (on.threads.read, on.threads.search):
        action(own)
    on.threads.delete(delete)
    on.threads.create(create)
    on.threads.update(update)
    on.threads.create_run(create_run)
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


async def _require_its_graph(client: Any, value: Mapping[str, Any]) -> None:
    """A thread goes on with the graph that it began with (casebook E20): another one would read its history, and discard
    the step that waits there. The client sees what the caller may see."""
    if not value.get("thread_id"):
        return
    try:
        thread = await client.threads.get(str(value["thread_id"]))
    except HTTPStatusError as error:
        if error.response.status_code == 404:
            return  # it is new
        raise
    began = (thread.get("metadata") or {}).get("graph_id")
    if began and (await client.assistants.get(str(value["assistant_id"])))["graph_id"] != began:
        _refuse(Refusal(403, "Another graph runs on this thread. Begin a new one"))


def _was(ctx: Any) -> Visitor | None:
    """The visitor that a person's browser was before they signed in at the application."""
    try:
        found = ctx.user["deputize_was"]
    except (KeyError, TypeError, AttributeError):
        return None
    return Visitor(found) if isinstance(found, str) and found else None


def _renamed(value: MutableMapping[str, Any]) -> None:
    """New messages get ids of the server's making, the same if this run is started again (casebook E21).

    Attack: a message that bears the id of one in the history replaces it. Graphs of one's own may not look.
    """
    given = (value.get("kwargs") or {}).get("input")
    messages = given.get("messages") if isinstance(given, dict) else None
    for position, message in enumerate(messages if isinstance(messages, list) else [messages]):
        if isinstance(message, dict):
            message["id"] = str(uuid.uuid5(_MESSAGES, f"{value.get('run_id')} {position}"))


async def _owned(identity: Identity, caller: Caller, was: Visitor | None = None) -> dict[str, Any]:
    """The filter for what is a caller's own. A visitor who has signed in keeps the threads where that sign-in lives."""
    if was is not None:
        return {"$or": [{"owner": caller.key}, {"owner": was.key}]}
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
