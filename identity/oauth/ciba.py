"""Client-initiated backchannel authentication: OpenID Connect CIBA Core 1.0, poll and ping."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import OAuthError, ProtocolError
from ..secret import Secret
from .client import Client, authenticated
from .metadata import ServerMetadata
from .tokens import TokenResponse, process_token_response, token_request
from .wire import Request, Response, optional_text, read_json, safe_url, seconds, text

__all__ = [
    "BackchannelAuthentication",
    "Pending",
    "backchannel_request",
    "ciba_token_request",
    "iss_sub_hint",
    "ping_request",
    "process_backchannel_response",
    "process_poll_response",
]

_WHAT = "The backchannel authentication endpoint"
_SLOW_DOWN = 5.0


@dataclass(frozen=True, slots=True)
class BackchannelAuthentication:
    """An open request (CIBA Core §7.3).

    Args:
        expires_at: unix seconds.
        interval: seconds between polls.
        approval_uri: the page where the person decides, when the server says it (an extension of our own authority).
    """

    auth_req_id: Secret
    expires_at: float
    interval: float
    approval_uri: str | None


@dataclass(frozen=True, slots=True)
class Pending:
    """Nobody has decided yet; ask again after ``interval`` seconds, from now on."""

    interval: float


def iss_sub_hint(issuer: str, subject: str) -> str:
    """A ``login_hint`` that names one person (RFC 9493 ``iss_sub``). Built as JSON: quotes in a subject stay text (B5)."""
    return json.dumps({"format": "iss_sub", "iss": issuer, "sub": subject})


def backchannel_request(
    server: ServerMetadata,
    client: Client,
    *,
    login_hint: str,
    scope: str,
    binding_message: str,
    authorization_details: Sequence[Mapping[str, Any]],
    resource: str | None,
    requested_expiry: int,
    client_notification_token: Secret | None = None,
    now: float,
) -> Request:
    """Ask a person (CIBA Core §7.1; RFC 9396 §3; RFC 8707 §2).

    Args:
        resource: the API that the token of an approval is for.
        requested_expiry: seconds.
        client_notification_token: for a client that is registered for ping (§7.1): the server's pings carry it.
    """
    form: list[tuple[str, str]] = [
        ("scope", scope),
        ("login_hint", login_hint),
        ("binding_message", binding_message),
        ("authorization_details", json.dumps(authorization_details)),
        ("requested_expiry", str(requested_expiry)),
    ]
    if resource:
        form.append(("resource", resource))
    if client_notification_token is not None:
        form.append(("client_notification_token", client_notification_token.reveal()))
    url = server.endpoint("backchannel_authentication_endpoint")
    return Request("POST", url, authenticated(tuple(form), client, server, now))


def process_backchannel_response(
    response: Response, *, now: float, allow_origins: Collection[str] = ()
) -> BackchannelAuthentication:
    """CIBA Core §7.3; ``interval`` is 5 when absent."""
    body = read_json(response, _WHAT)
    lifetime = seconds(body, "expires_in", _WHAT)
    if not lifetime:
        raise ProtocolError(f"{_WHAT} answered without expires_in", "The server does not follow CIBA Core §7.3")
    page = optional_text(body, "approval_uri", _WHAT)
    return BackchannelAuthentication(
        auth_req_id=Secret(text(body, "auth_req_id", _WHAT)),
        expires_at=now + lifetime,
        interval=seconds(body, "interval", _WHAT) or 5.0,
        approval_uri=None if page is None else safe_url(page, "approval_uri", allow_origins),
    )


def ping_request(endpoint: str, client_notification_token: Secret, auth_req_id: Secret) -> Request:
    """The authorization server's side of a ping (§10.2): a bearer token, and JSON that holds the id and nothing else."""
    headers = {"authorization": f"Bearer {client_notification_token.reveal()}"}
    return Request("POST", endpoint, headers=headers, json={"auth_req_id": auth_req_id.reveal()})


def ciba_token_request(server: ServerMetadata, client: Client, auth_req_id: Secret, *, now: float) -> Request:
    """CIBA Core §10.1."""
    grant = "urn:openid:params:grant-type:ciba"
    return token_request(server, client, (("grant_type", grant), ("auth_req_id", auth_req_id.reveal())), now)


def process_poll_response(response: Response, *, interval: float, now: float) -> Pending | TokenResponse:
    """What a poll brought, of CIBA (§11) and of the device flow (RFC 8628 §3.5) alike.

    ``slow_down`` adds five seconds for good (casebook B3).

    Raises:
        OAuthError: the request has ended: ``access_denied``, ``expired_token``, ``invalid_grant`` …
        TransportError: nothing is known; the request stands (B15).
    """
    try:
        return process_token_response(response, now=now)
    except OAuthError as error:
        match error.error:
            case "authorization_pending":
                return Pending(interval)
            case "slow_down":
                return Pending(interval + _SLOW_DOWN)
            case _:
                raise
