"""What is sent and what comes back, without a network: requests, responses, and how a bad answer is told."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import NeedsError, OAuthError, ProtocolError, TransportError
from ..needs import origin_of

__all__ = ["Form", "Request", "Response", "optional_text", "parameters", "read_json", "safe_url", "seconds", "text"]

Form = tuple[tuple[str, str], ...]
"""``application/x-www-form-urlencoded`` fields in order; names may repeat."""

_TEXT_LIMIT = 16_384


@dataclass(frozen=True, slots=True, repr=False)
class Request:
    """An HTTP request with a form or a JSON body. Its ``repr`` shows neither body nor headers: they carry codes,
    assertions and tokens."""

    method: str
    url: str
    form: Form = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        return f"Request({self.method} {self.url})"


@dataclass(frozen=True, slots=True, repr=False)
class Response:
    """An HTTP response; header names in lower case. Its ``repr`` shows no body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"Response({self.status}, {len(self.body)} bytes)"


def read_json(response: Response, what: str) -> dict[str, Any]:
    """The JSON object of a successful answer.

    Args:
        what: who answered, for the error: "The token endpoint".

    Raises:
        OAuthError: an OAuth error response (RFC 6749 §5.2), whatever 4xx it came with; ``slow_down`` with 429 too.
        TransportError: 408, 429 or 5xx, or a page instead of an answer: nothing is known, try again later.
        ProtocolError: any other answer that is none.
    """
    body = _parsed(response)
    if response.status == 200 and isinstance(body, dict) and "error" not in body:
        return body
    slow_down = isinstance(body, dict) and body.get("error") == "slow_down"  # Auth0 sends it with 429
    if (response.status in (408, 429) and not slow_down) or response.status >= 500:
        raise TransportError(
            f"{what} is unavailable (HTTP {response.status})", "Try again later", retry_after=_retry_after(response)
        )
    if isinstance(body, dict) and isinstance(body.get("error"), str):
        described = body.get("error_description")
        raise OAuthError(body["error"], described if isinstance(described, str) else "", status=response.status)
    kind = response.headers.get("content-type", "").split(";")[0].strip() or "no content type"
    if body is None and kind in ("text/html", "application/xhtml+xml"):
        # A login wall, a proxy's error page, a maintenance page: it says nothing about the request.
        raise TransportError(f"{what} answered with a web page (HTTP {response.status})", "Check that its URL is right")
    raise ProtocolError(
        f"{what} answered HTTP {response.status} with {kind}, not the JSON object that it must",
        "Check that its URL is right",
    )


def _parsed(response: Response) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name twice")  # two readers could each believe another one
        return found

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    try:
        return json.loads(response.body, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None


def _retry_after(response: Response) -> float | None:
    value = response.headers.get("retry-after", "")
    return min(float(value), 3600.0) if value.isascii() and value.isdigit() and len(value) < 9 else None


def text(body: Mapping[str, Any], name: str, what: str) -> str:
    """A required member that is a string."""
    value = optional_text(body, name, what)
    if value is None:
        raise ProtocolError(f"{what} answered without {name}", "The server does not follow its specification")
    return value


def optional_text(body: Mapping[str, Any], name: str, what: str) -> str | None:
    """A member that is a non-empty string, or absent."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not value or len(value) > _TEXT_LIMIT:
        raise ProtocolError(
            f"{what} answered with a {name} that is no text", "The server does not follow its specification"
        )
    return value


def seconds(body: Mapping[str, Any], name: str, what: str) -> float | None:
    """A member that is a number of seconds (some servers send digits as a string), or absent."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 12:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e11:
        raise ProtocolError(f"{what} answered with a {name} that is no number of seconds", "Nothing of it was used")
    return float(value)


def safe_url(url: str, name: str, allow_origins: Collection[str]) -> str:
    """``url`` if it is https or of an allowed origin; anything else is never opened or shown (casebook C9)."""
    try:
        origin = origin_of(url)
    except NeedsError:
        origin = ""
    if not (origin.startswith("https://") or origin in {origin_of(o) for o in allow_origins}):
        raise ProtocolError(
            f"The server's {name} is not an https URL", "Only https is spoken; the server must correct it"
        )
    if "#" in url:  # RFC 6749 §3.1
        raise ProtocolError(f"The server's {name} has a fragment", "The server must correct it")
    return url


def parameters(pairs: Collection[tuple[str, str]], what: str) -> dict[str, str]:
    """Query or form parameters by name.

    Raises:
        ProtocolError: one is repeated (RFC 6749 §3.1) or oversized: neither is dropped silently (casebook A14).
    """
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            raise ProtocolError(f"{what} has {name} twice", "Start again", code="invalid_request")
        if len(value) > _TEXT_LIMIT:
            raise ProtocolError(f"{what} has an oversized {name}", "Start again", code="invalid_request")
        found[name] = value
    return found
