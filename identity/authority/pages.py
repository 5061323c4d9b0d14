"""The inbox and the decision page. ``GET`` shows, ``POST`` decides; nothing else does (casebook B12)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import jinja2
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ..text import SHOWN_LIMIT, printable
from .service import Approval, Authority
from .web import Inbound, SignedIn, endpoint, page, same_origin

__all__ = ["Host", "authority_routes"]

_APART = frozenset({"type", "actions", "locations", "arguments", "digest"})
_STYLE = (Path(__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")


class Host(Protocol):
    """What the authority needs of the server that it is mounted in."""

    base: str
    """The absolute URL under which the pages are."""

    def signed_in(self, inbound: Inbound) -> SignedIn | None:
        """Who is signed in, in the browser that sent this."""
        ...

    def sign_in_url(self, return_to: str) -> str:
        """Where to sign in, to come back to a local path."""
        ...


def authority_routes(authority: Authority, host: Host, environment: jinja2.Environment) -> list[Route]:
    """``/approvals``, ``/approvals/{id}`` and the stylesheet, relative to where ``host.base`` is mounted."""
    parts = urlsplit(host.base)
    origin = f"{parts.scheme}://{parts.netloc}"

    def signed(handler: Callable[[Inbound, SignedIn], Response]) -> Callable[[Inbound], Response]:
        def check(inbound: Inbound) -> Response:
            person = host.signed_in(inbound)
            if person is None:
                return RedirectResponse(host.sign_in_url(urlsplit(inbound.url).path), 303)
            return handler(inbound, person)

        return check

    def inbox(inbound: Inbound, person: SignedIn) -> Response:
        now = authority.clock()
        rows = [_shown(approval, now) for approval in authority.inbox(person.subject)]
        return page(environment, "inbox.html", base=host.base, person=person, approvals=rows)

    def show(inbound: Inbound, person: SignedIn) -> Response:
        return _decision(inbound, person, told="")

    def decide(inbound: Inbound, person: SignedIn) -> Response:
        approval = authority.get(inbound.path["id"], person.subject)
        if approval is None:
            return _missing(person)
        if not same_origin(inbound, origin, person.csrf):
            # Attack: another page, of another port too, submits the form in the person's browser.
            return page(
                environment, "message.html", 403, base=host.base, person=person, title="Not sent from this page",
                text="The decision did not come from this page, so nothing was decided. Open the request again.",
            )  # fmt: skip
        choice = inbound.fields.get("decision")
        if choice not in ("approve", "deny"):
            return _decision(inbound, person, told="Nothing was decided: press one of the two buttons.", status=400)
        done = authority.decide(approval.id, person.subject, approve=choice == "approve", auth_time=person.auth_time)
        told = "" if done else "This had been decided before, or its time was over. Nothing was changed."
        return _decision(inbound, person, told=told, status=200 if done else 409)

    def _decision(inbound: Inbound, person: SignedIn, told: str, status: int = 200) -> Response:
        approval = authority.get(inbound.path["id"], person.subject)
        if approval is None:
            return _missing(person)
        shown = _shown(approval, authority.clock())
        return page(environment, "decision.html", status, base=host.base, person=person, told=told, **shown)

    def _missing(person: SignedIn) -> Response:
        return page(
            environment, "message.html", 404, base=host.base, person=person, title="Not found",
            text="There is no such request for you. Perhaps it was asked of somebody else, or the link is incomplete.",
        )  # fmt: skip

    def style(inbound: Inbound) -> Response:
        return Response(_STYLE, media_type="text/css", headers={"cache-control": "public, max-age=300"})

    return [
        Route("/style.css", endpoint(style), methods=["GET"]),
        Route("/approvals", endpoint(signed(inbox)), methods=["GET"]),
        Route("/approvals/{id}", endpoint(signed(show)), methods=["GET"]),
        Route("/approvals/{id}", endpoint(signed(decide)), methods=["POST"]),
    ]


def _shown(approval: Approval, now: float) -> dict[str, Any]:
    """What a page says about a request: what the server holds, spelled so that nothing in it can mislead (casebook B10)."""
    left = max(0, int(approval.expires_at - now))
    actions = [_action(detail) for detail in approval.details]
    access = printable(" ".join(scope for scope in approval.scope.split() if scope != "openid"))
    resource = printable(approval.resource)
    return {
        "id": quote(approval.id, safe=""),
        "agent": printable(approval.client_name),
        "code": printable(approval.binding_message, limit=64),
        "state": approval.state_at(now),
        "left": f"{left // 60} min {left % 60:02d} s",
        "asked_at": time.strftime("%d %b %Y, %H:%M UTC", time.gmtime(approval.created_at)),
        "actions": actions,
        "what": ", ".join(action["what"] for action in actions) or access or "Sign in",
        "brief": printable(", ".join(value for action in actions for _, value in action["rows"]), limit=60),
        "access": access,
        "resource": resource if resource not in [place for action in actions for place in action["where"]] else "",
    }


def _action(detail: Mapping[str, Any]) -> dict[str, Any]:
    """Every member is shown, known or not: what is not on the page is not approved. Only the digest is for machines."""
    arguments = detail.get("arguments", {})
    rows = list(arguments.items()) if isinstance(arguments, Mapping) else [("arguments", arguments)]
    rows += [(name, value) for name, value in detail.items() if name not in _APART]
    return {
        "what": ", ".join(_words(action) for action in _listed(detail.get("actions"))) or _words(detail.get("type")),
        "where": [printable(str(place)) for place in _listed(detail.get("locations"))],
        "rows": [(_words(name), _value(value)) for name, value in rows],
    }


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _words(name: object) -> str:
    return printable(str(name)).replace("_", " ").capitalize()


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return "; ".join(_value(item) for item in value)
    if isinstance(value, Mapping):
        return "; ".join(f"{printable(str(k))}: {_value(v)}" for k, v in value.items())
    return "none" if value is None else printable(str(value), limit=SHOWN_LIMIT)
