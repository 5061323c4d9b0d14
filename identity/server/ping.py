"""The CIBA notification endpoint: the authorization server says that a request was decided (CIBA Core §10.2).

A ping carries no decision. It only has the token endpoint asked at once, instead of at the next poll.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..settings import PING_PATH

if TYPE_CHECKING:
    from ..identity import Identity

__all__ = ["ping_route"]

_LIMIT = 4_096


def ping_route(identity: Identity, decided: Callable[[Any], Awaitable[None]] | None = None) -> Route:
    """``POST /deputize/ping``, for the routes of an application.

    Args:
        decided: told of a request that this ping has found decided, e.g. to wake its thread.
    """

    async def ping(request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > _LIMIT:
                return _refused(413)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        handle = _auth_req_id(bytes(body))
        if scheme.lower() != "bearer" or not token or handle is None:
            return _refused(401)
        found = await identity.transport.acall(identity.asking.pinged, token, handle)
        if found is None:  # unknown, or the pair does not match: nothing changes (casebook B13)
            return _refused(401)
        if decided is not None and found.state != "pending":
            await decided(found)
        return Response(status_code=204)  # CIBA Core §10.2; never a redirect

    return Route(PING_PATH, ping, methods=["POST"])


def _auth_req_id(body: bytes) -> str | None:
    """The body is a JSON object with ``auth_req_id`` and nothing else."""
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(parsed, dict) or set(parsed) != {"auth_req_id"} or not isinstance(parsed["auth_req_id"], str):
        return None
    return parsed["auth_req_id"] or None


def _refused(status: int) -> Response:
    headers = {"www-authenticate": "Bearer", "cache-control": "no-store"}
    return JSONResponse({"error": "invalid_token" if status == 401 else "invalid_request"}, status, headers=headers)
