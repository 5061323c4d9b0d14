"""The device authorization grant: RFC 8628."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ..errors import ProtocolError
from ..secret import Secret
from .client import Client, authenticated
from .metadata import ServerMetadata
from .tokens import token_request
from .wire import Request, Response, read_json, safe_url, seconds, text

__all__ = ["DeviceAuthorization", "device_request", "device_token_request", "process_device_response"]

_WHAT = "The device authorization endpoint"


@dataclass(frozen=True, slots=True)
class DeviceAuthorization:
    """What a person is shown (``verification_uri``, ``user_code``), and what the client polls with.

    ``verification_uri_complete`` is not kept: whoever sends that link to somebody else signs in as them (casebook A18).
    """

    device_code: Secret
    user_code: str
    verification_uri: str
    expires_at: float
    interval: float


def device_request(server: ServerMetadata, client: Client, *, scope: str, now: float) -> Request:
    """RFC 8628 §3.1."""
    url = server.endpoint("device_authorization_endpoint")
    return Request("POST", url, authenticated((("scope", scope),), client, server, now))


def process_device_response(
    response: Response, *, now: float, allow_origins: Collection[str] = ()
) -> DeviceAuthorization:
    """RFC 8628 §3.2."""
    body = read_json(response, _WHAT)
    lifetime = seconds(body, "expires_in", _WHAT)
    if not lifetime:
        raise ProtocolError(f"{_WHAT} answered without expires_in", "The server does not follow RFC 8628 §3.2")
    user_code = text(body, "user_code", _WHAT)
    if not user_code.isprintable() or len(user_code) > 64:
        raise ProtocolError(f"{_WHAT} answered with a user_code that nobody can type", "The server must correct it")
    return DeviceAuthorization(
        device_code=Secret(text(body, "device_code", _WHAT)),
        user_code=user_code,
        verification_uri=safe_url(text(body, "verification_uri", _WHAT), "verification_uri", allow_origins),
        expires_at=now + lifetime,
        interval=seconds(body, "interval", _WHAT) or 5.0,
    )


def device_token_request(server: ServerMetadata, client: Client, device_code: Secret, *, now: float) -> Request:
    """RFC 8628 §3.4."""
    grant = "urn:ietf:params:oauth:grant-type:device_code"
    return token_request(server, client, (("grant_type", grant), ("device_code", device_code.reveal())), now)
