"""Authorization server metadata: RFC 8414, OpenID Connect Discovery 1.0."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import OAuthError, ProtocolError
from .wire import Request, Response, read_json, safe_url, text

__all__ = ["ServerMetadata", "metadata_request", "process_metadata_response"]


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """What an authorization server says about itself, under its wire names. Made by :func:`process_metadata_response`."""

    issuer: str
    token_endpoint: str
    jwks_uri: str | None
    authorization_endpoint: str | None
    device_authorization_endpoint: str | None
    backchannel_authentication_endpoint: str | None
    revocation_endpoint: str | None
    introspection_endpoint: str | None
    code_challenge_methods_supported: tuple[str, ...] = ()
    backchannel_token_delivery_modes_supported: tuple[str, ...] = ()
    grant_types_supported: tuple[str, ...] = ()
    authorization_details_types_supported: tuple[str, ...] = ()
    authorization_response_iss_parameter_supported: bool = False

    def endpoint(self, name: str) -> str:
        """A declared endpoint.

        Raises:
            ProtocolError: the server does not have it.
        """
        url: str | None = getattr(self, name)
        if url is None:
            raise ProtocolError(f"{self.issuer} has no {name}", "Use a server that does, or ask its operator")
        return url


def metadata_request(issuer: str) -> Request:
    """Discovery at the issuer's own URL (OpenID Connect Discovery §4)."""
    return Request("GET", issuer.rstrip("/") + "/.well-known/openid-configuration")


def process_metadata_response(
    issuer: str, response: Response, *, allow_origins: Collection[str] = ()
) -> ServerMetadata:
    """Validate a discovery document (RFC 8414 §3.3).

    Args:
        allow_origins: origins whose URLs need not be https (the embedded world's).

    Raises:
        ProtocolError: ``issuer`` in it is not the one asked, compared as a string (A13); an endpoint is not https (C9).
    """
    what = f"The discovery document of {issuer}"
    try:
        body = read_json(response, what)
    except OAuthError as error:
        raise ProtocolError(f"{what} cannot be had ({error.error})", "Check the issuer's URL") from None
    if text(body, "issuer", what) != issuer:
        raise ProtocolError(f"{what} is for another issuer", "Set the issuer exactly as the server spells it")

    def url(name: str) -> str | None:
        return safe_url(text(body, name, what), name, allow_origins) if body.get(name) is not None else None

    token_endpoint = url("token_endpoint")
    if token_endpoint is None:
        raise ProtocolError(f"{what} names no token_endpoint", "Check the issuer's URL")
    return ServerMetadata(
        issuer=issuer,
        token_endpoint=token_endpoint,
        jwks_uri=url("jwks_uri"),
        authorization_endpoint=url("authorization_endpoint"),
        device_authorization_endpoint=url("device_authorization_endpoint"),
        backchannel_authentication_endpoint=url("backchannel_authentication_endpoint"),
        revocation_endpoint=url("revocation_endpoint"),
        introspection_endpoint=url("introspection_endpoint"),
        code_challenge_methods_supported=_names(body, "code_challenge_methods_supported"),
        backchannel_token_delivery_modes_supported=_names(body, "backchannel_token_delivery_modes_supported"),
        grant_types_supported=_names(body, "grant_types_supported"),
        authorization_details_types_supported=_names(body, "authorization_details_types_supported"),
        authorization_response_iss_parameter_supported=body.get("authorization_response_iss_parameter_supported")
        is True,
    )


def _names(body: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = body.get(name)
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()
