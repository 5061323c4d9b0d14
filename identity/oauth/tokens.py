"""Token requests and responses that all grants share: RFC 6749 §5 and §6, RFC 7009."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ProtocolError
from ..secret import Secret
from .client import Client, authenticated
from .metadata import ServerMetadata
from .wire import Form, Request, Response, optional_text, read_json, seconds, text

__all__ = [
    "TokenResponse",
    "client_credentials_request",
    "process_revocation_response",
    "process_token_response",
    "refresh_request",
    "revocation_request",
    "token_request",
]

_WHAT = "The token endpoint"


@dataclass(frozen=True, slots=True)
class TokenResponse:
    """A successful token response (RFC 6749 §5.1). Made by the ``process_…_response`` functions only.

    Args:
        expires_at: unix seconds; ``None`` when the answer did not say.
        scope: as granted; ``None`` when it did not say, which means: as asked.
        authorization_details: as granted (RFC 9396 §7).
    """

    access_token: Secret
    token_type: str
    expires_at: float | None
    scope: str | None
    refresh_token: Secret | None
    id_token: Secret | None
    issued_token_type: str | None
    authorization_details: tuple[Mapping[str, Any], ...] | None


def token_request(server: ServerMetadata, client: Client, form: Form, now: float) -> Request:
    """A request to the token endpoint, with the client's authentication."""
    return Request("POST", server.token_endpoint, authenticated(form, client, server, now))


def refresh_request(
    server: ServerMetadata, client: Client, refresh_token: Secret, *, scope: str | None = None, now: float
) -> Request:
    """RFC 6749 §6."""
    form: Form = (("grant_type", "refresh_token"), ("refresh_token", refresh_token.reveal()))
    return token_request(server, client, form + ((("scope", scope),) if scope else ()), now)


def client_credentials_request(
    server: ServerMetadata, client: Client, *, scope: str, resource: str | None = None, now: float
) -> Request:
    """RFC 6749 §4.4: a token of the agent itself, for nobody."""
    form: Form = (("grant_type", "client_credentials"), ("scope", scope), ("resource", resource or ""))
    return token_request(server, client, tuple(field for field in form if field[1]), now)


def process_token_response(response: Response, *, now: float) -> TokenResponse:
    """Validate a token response (RFC 6749 §5.1).

    Raises:
        OAuthError: the server refused, with its ``error``.
        ProtocolError: a required member is missing or malformed, or the token is not a bearer token.
        TransportError: no answer that is one.
    """
    return read_token_response(read_json(response, _WHAT), now)


def read_token_response(body: Mapping[str, Any], now: float) -> TokenResponse:
    """The members of a token response, validated."""
    token_type = text(body, "token_type", _WHAT)
    if token_type.lower() != "bearer":
        raise ProtocolError(f"{_WHAT} issued a token of the type {token_type}", "Only bearer tokens are used here")
    lifetime = seconds(body, "expires_in", _WHAT)
    details = body.get("authorization_details")
    if details is not None and not (isinstance(details, list) and all(isinstance(item, dict) for item in details)):
        raise ProtocolError(f"{_WHAT} answered with malformed authorization_details", "Nothing of it was used")
    scope = body.get("scope")
    if scope is not None and not isinstance(scope, str):
        raise ProtocolError(f"{_WHAT} answered with a scope that is no text", "Nothing of it was used")
    return TokenResponse(
        access_token=_vschar(text(body, "access_token", _WHAT), "access_token"),
        token_type="Bearer",  # noqa: S106 - a type's name
        expires_at=None if lifetime is None else now + lifetime,
        scope=scope,
        refresh_token=_optional(body, "refresh_token"),
        id_token=_optional(body, "id_token"),
        issued_token_type=optional_text(body, "issued_token_type", _WHAT),
        authorization_details=None if details is None else tuple(details),
    )


def _optional(body: Mapping[str, Any], name: str) -> Secret | None:
    value = optional_text(body, name, _WHAT)
    return None if value is None else _vschar(value, name)


def _vschar(value: str, name: str) -> Secret:
    """RFC 6749 appendix A.12, A.17: tokens are ``1*VSCHAR``. A line break in one would end the header that carries it."""
    if not all(0x20 <= ord(c) <= 0x7E for c in value):
        raise ProtocolError(f"{_WHAT} answered with a malformed {name}", "Nothing of it was used")
    return Secret(value)


def revocation_request(server: ServerMetadata, client: Client, token: Secret, *, hint: str, now: float) -> Request:
    """RFC 7009 §2.1. ``hint`` is ``refresh_token`` or ``access_token``."""
    form: Form = (("token", token.reveal()), ("token_type_hint", hint))
    return Request("POST", server.endpoint("revocation_endpoint"), authenticated(form, client, server, now))


def process_revocation_response(response: Response) -> None:
    """RFC 7009 §2.2: 200 whether the token was known or not, with a body that means nothing."""
    if response.status != 200:
        read_json(response, "The revocation endpoint")
