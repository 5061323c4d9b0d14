"""The guard: pure ASGI middleware around everything that a LangGraph server answers.

In this order: in-process calls pass; the host must be ours; the origin must be ours or allowed; the application's own routes
pass; what no client may ask for is refused; bodies are read, bounded and checked; a caller without credentials gets a
visitor's id. Answers stream through untouched.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Match

from ..needs import origin_of
from ..settings import hosts_of
from ..visitors import cookie_name
from .requests import Kind, Refusal, check_body, route

if TYPE_CHECKING:
    from ..identity import Identity

__all__ = ["BODY_LIMIT", "Guard"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODY_LIMIT = 1 << 20
"""Bytes of a request that are read; more is refused unread (casebook G6)."""

_BODY_SECONDS = 30.0


class Guard:
    """Middleware for the ``http.app`` that ``langgraph.json`` names::

        app = Starlette(routes=routes, middleware=[Middleware(Guard, identity=identity, routes=routes)], lifespan=…)

    Args:
        identity: whose settings name the URL and the allowed origins; it mints visitors.
        routes: the application's own routes. They answer for themselves: only host and origin are checked for them.
        client: an in-process client of the server, for the newest checkpoint of a thread; made at first use.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        identity: Identity,
        routes: Sequence[BaseRoute] = (),
        client: Callable[[], Any] | None = None,
    ) -> None:
        settings = identity.settings
        self._app = app
        self._identity = identity
        self._own = tuple(routes)
        self._client = client or _in_process_client
        self._hosts = hosts_of(settings.url)
        self._same = {f"{urlsplit(settings.url).scheme}://{host}" for host in self._hosts}
        self._origins = self._same | {_spelled(origin) for origin in settings.origins.split()}
        self._secure = settings.url.startswith("https://")
        self._cookie = cookie_name(settings.url)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or _in_process(scope):
            await self._app(scope, receive, send)
            return
        headers = _Headers(scope["headers"])
        origin = headers.one("origin")
        refusal = self._elsewhere(headers, origin)
        if refusal is not None:
            await _refuse(scope, receive, send, refusal, None)
            return
        if any(own.matches(scope)[0] == Match.FULL for own in self._own):
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["type"] == "http" else "WEBSOCKET"
        kind = route(method, scope["path"])
        if method == "OPTIONS" and origin is not None:
            kind = "open"  # a preflight of an allowed origin: the server's CORS middleware answers it
        if kind is None:
            await _refuse(scope, receive, send, Refusal(403, "This is not available here"), origin)
            return
        if kind == "socket":
            await self._app(scope, _checked_socket(receive, send), send)
            return
        if kind != "open":
            scope, send = await self._with_visitor(scope, headers, send)
        if method in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        body = await _body(headers, receive)
        checked = body if isinstance(body, Refusal) else await self._checked(kind, scope, headers, body)
        if isinstance(checked, Refusal):
            await _refuse(scope, receive, send, checked, origin)
            return
        if checked != body:
            scope = {**scope, "headers": headers.replaced("content-length", str(len(checked)))}
        await self._app(scope, _replayed(checked, receive), send)

    # -- where a request is from -------------------------------------------------------------------------------------

    def _elsewhere(self, headers: _Headers, origin: str | None) -> Refusal | None:
        host = headers.one("host")
        if host is None or host.lower() not in self._hosts:
            # Attack: a foreign name that was made to resolve to this machine (DNS rebinding; casebook E9).
            return Refusal(421, "This host name is not served here")
        if headers.count("origin") > 1 or (origin is not None and origin.lower() not in self._origins):
            # Attack: a page of another site, or of another port, sends a request from this person's browser (E8, E23).
            return Refusal(403, "Requests from pages of this origin are not answered")
        elsewhere = headers.one("sec-fetch-site") in ("cross-site", "same-site")
        if origin is None and elsewhere and headers.one("sec-fetch-mode") != "navigate":
            return Refusal(403, "Requests from pages of other sites are not answered")
        return None

    # -- visitors ------------------------------------------------------------------------------------------------------

    async def _with_visitor(self, scope: Scope, headers: _Headers, send: Send) -> tuple[Scope, Send]:
        """A caller without credentials is a visitor with an id of its own, minted here (casebook E19)."""
        if headers.one("authorization") or headers.one("x-auth-scheme"):
            return scope, send
        visitors = await run_in_threadpool(lambda: self._identity.visitors)
        if visitors.known(cookie_of(scope["headers"], self._cookie)) is not None:
            return scope, send
        value = visitors.mint()
        flags = "; HttpOnly; SameSite=Lax; Path=/" + ("; Secure" if self._secure else "")
        minted = f"{self._cookie}={value}; Max-Age={visitors.lifetime}{flags}".encode()

        async def with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (b"set-cookie", minted)]}
            await send(message)

        others = [part for part in _cookies(scope["headers"]) if part.partition("=")[0] != self._cookie]
        return {
            **scope,
            "headers": headers.replaced("cookie", "; ".join([*others, f"{self._cookie}={value}"])),
        }, with_cookie

    # -- bodies --------------------------------------------------------------------------------------------------------

    async def _checked(self, kind: Kind, scope: Scope, headers: _Headers, body: bytes) -> bytes | Refusal:
        if kind == "cancel" and set(_actions(scope)) - {"interrupt"}:
            return Refusal(403, "A run that is cancelled stays in the history: action=rollback is not available here")
        if not body:
            return body if kind in ("read", "cancel") else Refusal(422, "The body is not a JSON object")
        if (headers.one("content-type") or "").partition(";")[0].strip().lower() != "application/json":
            # Attack: a form or text/plain needs no preflight, so any page could send it (casebook E23).
            return Refusal(415, "Send application/json")
        try:
            parsed = json.loads(body)
        except (ValueError, RecursionError):
            return Refusal(400, "The body is not JSON that can be read")
        if kind == "run" and isinstance(parsed, dict):
            body, parsed = await self._from_the_newest(scope["path"], body, parsed)
        return check_body(kind, parsed) or body

    async def _from_the_newest(self, path: str, body: bytes, parsed: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
        """Chat interfaces name the checkpoint that they show. If it is the newest, it is where the run starts anyway."""
        checkpoint = parsed.get("checkpoint")
        inner = checkpoint.get("checkpoint_id") if isinstance(checkpoint, dict) else None
        named = [name for name in (inner, parsed.get("checkpoint_id")) if name is not None]
        if not named:
            return body, parsed
        try:
            state = await self._client().threads.get_state(path.split("/")[2])
        except Exception:  # no such thread: the server says so
            return body, parsed
        newest = (state.get("checkpoint") or {}).get("checkpoint_id")
        if any(name != newest for name in named):
            return body, parsed
        parsed = {name: value for name, value in parsed.items() if name not in ("checkpoint", "checkpoint_id")}
        return json.dumps(parsed).encode(), parsed


class _Headers:
    """ASGI headers; a header that is there twice has no value."""

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        self._pairs = list(pairs)

    def count(self, name: str) -> int:
        return sum(key == name.encode() for key, _ in self._pairs)

    def one(self, name: str) -> str | None:
        found = [value for key, value in self._pairs if key == name.encode()]
        return found[0].decode("latin-1") if len(found) == 1 else None

    def replaced(self, name: str, value: str) -> list[tuple[bytes, bytes]]:
        return [(k, v) for k, v in self._pairs if k != name.encode()] + [(name.encode(), value.encode("latin-1"))]


def cookie_of(pairs: Iterable[tuple[bytes, bytes]], cookie: str) -> str:
    """A cookie of a request's headers; empty when there is none, or more than one.

    Over HTTP/2 they may come in several headers (RFC 9113 §8.2.3). Others in them may be spelled in any way.
    """
    found = [value for name, _, value in (part.partition("=") for part in _cookies(pairs)) if name == cookie]
    return found[0] if len(found) == 1 else ""


def _cookies(pairs: Iterable[tuple[bytes, bytes]]) -> list[str]:
    headers = [value.decode("latin-1") for name, value in pairs if name == b"cookie"]
    return [part.strip() for header in headers for part in header.split(";") if part.strip()]


def _spelled(origin: str) -> str:
    """An origin as browsers send it: without its scheme's own port."""
    parts = urlsplit(origin_of(origin))
    usual = {"https": 443, "http": 80}[parts.scheme]
    return f"{parts.scheme}://{parts.hostname}" + ("" if parts.port == usual else f":{parts.port}")


def _in_process(scope: Scope) -> bool:
    """A call of this process to itself; no request from outside can have this root path."""
    root = scope.get("root_path") or ""
    return root == "/noauth" or root.startswith("/noauth/")


def _in_process_client() -> Any:
    from langgraph_sdk import get_client

    return get_client()


async def _body(headers: _Headers, receive: Receive) -> bytes | Refusal:
    length = headers.one("content-length") or "0"
    too_large = Refusal(413, f"The request is larger than {BODY_LIMIT} bytes")
    if not (length.isdecimal() and len(length) < 20) or int(length) > BODY_LIMIT:
        return too_large
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return Refusal(400, "The request ended before its body")
                body += message.get("body", b"")
                if len(body) > BODY_LIMIT:
                    return too_large
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        return Refusal(408, "The request took too long to arrive")


def _replayed(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


def _checked_socket(receive: Receive, send: Send) -> Receive:
    """Each message of a socket is a command, checked like those that are posted; a refused one is answered here."""

    async def checked() -> Message:
        while True:
            message = await receive()
            if message["type"] != "websocket.receive":
                return message
            refusal, id_ = _verdict(message.get("text"))
            if refusal is None:
                return message
            answer = {"type": "error", "id": id_, "error": "invalid_argument", "message": refusal.detail}
            await send({"type": "websocket.send", "text": json.dumps(answer)})

    return checked


def _actions(scope: Scope) -> list[str]:
    query = scope.get("query_string", b"").decode("latin-1")
    return [value for name, value in parse_qsl(query, keep_blank_values=True) if name == "action"]


def _verdict(text: str | None) -> tuple[Refusal | None, Any]:
    if text is None:
        return Refusal(400, "Messages are text"), None
    if len(text) > BODY_LIMIT:
        return Refusal(413, f"The message is larger than {BODY_LIMIT} bytes"), None
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return Refusal(400, "The message is not JSON that can be read"), None
    return check_body("command", parsed), parsed.get("id") if isinstance(parsed, dict) else None


async def _refuse(scope: Scope, receive: Receive, send: Send, refusal: Refusal, origin: str | None) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": refusal.detail[:120]})
        return
    # An allowed page of another origin may read why it was refused.
    headers = {"access-control-allow-origin": origin, "vary": "origin"} if origin else None
    await JSONResponse({"detail": refusal.detail}, refusal.status, headers=headers)(scope, receive, send)
