"""What pages and endpoints share: a bounded request read once, answers with the headers that keep them safe."""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import jinja2
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from ..errors import DeputizeError, ProtocolError, UsageError
from ..oauth.wire import parameters
from ..text import printable

__all__ = ["Inbound", "SignedIn", "endpoint", "page", "same_origin", "strict_json", "templates"]

_BODY_LIMIT = 64 * 1024
_log = logging.getLogger("deputize")

HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
CONTENT_POLICY = "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; frame-ancestors 'none'"


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Who is signed in, in this browser.

    Args:
        csrf: a token of this browser's session, in every form.
        auth_time: when they signed in, unix seconds.
    """

    subject: str
    name: str
    csrf: str
    auth_time: float


@dataclass(frozen=True, slots=True)
class Inbound:
    """A request that was read whole."""

    method: str
    url: str
    path: Mapping[str, str]
    query: tuple[tuple[str, str], ...]
    form: tuple[tuple[str, str], ...]
    body: bytes
    headers: Mapping[str, str]
    cookies: Mapping[str, str]
    address: str
    fields: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Inbound], Response]


def endpoint(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """A Starlette endpoint: reads the body up to 64 KiB, then runs ``handler`` in a worker thread.

    A form field that is repeated is refused (casebook A14). What was asked wrongly becomes a 400; what fails here, a 503
    that says nothing about our files.
    """

    async def respond(request: Request) -> Response:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > _BODY_LIMIT:
                return _refusal("The request is larger than 64 KiB", 413)
        form: tuple[tuple[str, str], ...] = ()
        if request.headers.get("content-type", "").split(";")[0].strip().lower() == "application/x-www-form-urlencoded":
            try:
                form = tuple(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=100))
            except ValueError:
                return _refusal("The form cannot be read", 400)
        try:
            fields = parameters(form, "The form")
            parameters(request.query_params.multi_items(), "The query")
        except ProtocolError as error:
            return _refusal(error.message, 400)
        inbound = Inbound(
            method=request.method,
            url=str(request.url),
            path=dict(request.path_params),
            query=tuple(request.query_params.multi_items()),
            form=form,
            body=bytes(body),
            headers=dict(request.headers),
            cookies=dict(request.cookies),
            address=request.client.host if request.client else "",
            fields=fields,
        )
        try:
            answer = await run_in_threadpool(handler, inbound)
        except UsageError as error:
            answer = _refusal(str(error), 400)
        except DeputizeError as error:
            _log.error("%s %s could not be answered: %s", request.method, printable(request.url.path), error)
            answer = JSONResponse({"error": "temporarily_unavailable"}, 503)
        for name, value in HEADERS.items():
            answer.headers.setdefault(name, value)
        answer.headers.setdefault("content-security-policy", CONTENT_POLICY)
        return answer

    return respond


def strict_json(text: str | bytes) -> Any:
    """JSON that says one thing: no member twice (two readers could each believe another one), no ``NaN``.

    Raises:
        ValueError: it is none.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a member twice")
        return found

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise ValueError("too deep") from None


def _refusal(description: str, status: int) -> Response:
    return JSONResponse({"error": "invalid_request", "error_description": description}, status, headers=HEADERS)


def templates(*folders: Path) -> jinja2.Environment:
    """Jinja2 over ``folders``, then the authority's own templates; everything is escaped."""
    places = [str(folder) for folder in folders] + [str(Path(__file__).parent / "templates")]
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(places), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )


def page(
    environment: jinja2.Environment, name: str, status: int = 200, form_targets: str = "", **values: Any
) -> Response:
    """A rendered page.

    Args:
        form_targets: origins beside this one that a form may lead to (the client of a sign-in).
    """
    html = environment.get_template(name).render(**values)
    policy = f"{CONTENT_POLICY}; form-action 'self' {form_targets}".rstrip()
    return HTMLResponse(html, status, headers={"content-security-policy": policy})


def same_origin(inbound: Inbound, origin: str, csrf: str) -> bool:
    """Whether a form was sent from a page of this origin, port included, in this browser session (casebook B12).

    A browser that sends no ``Origin`` says by ``Sec-Fetch-Site`` where the request is from, and must.
    """
    sent = inbound.headers.get("origin")
    if sent is not None:
        if sent != origin:
            return False
    elif inbound.headers.get("sec-fetch-site") != "same-origin":
        return False
    return bool(csrf) and hmac.compare_digest(inbound.fields.get("csrf", "").encode(), csrf.encode())
