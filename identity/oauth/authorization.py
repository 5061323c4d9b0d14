"""The authorization code flow: RFC 6749 §4.1, with PKCE, ``nonce``, and ``iss`` (RFC 9207)."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass

from authlib.oauth2.rfc6749.parameters import prepare_grant_uri

from ..errors import OAuthError, ProtocolError, UsageError
from ..secret import Secret
from .client import Client
from .metadata import ServerMetadata
from .pkce import Pkce, require_s256
from .tokens import token_request
from .wire import Request, parameters

__all__ = [
    "AuthorizationAttempt",
    "AuthorizationCode",
    "authorization_request",
    "code_request",
    "local_path",
    "process_authorization_response",
]


@dataclass(frozen=True, slots=True)
class AuthorizationAttempt:
    """One login on its way through a browser: what its answer is checked against."""

    url: str
    state: Secret
    nonce: Secret
    pkce: Pkce
    redirect_uri: str
    issuer: str


@dataclass(frozen=True, slots=True)
class AuthorizationCode:
    """A code that passed every check of its response. Only :func:`process_authorization_response` makes one."""

    value: Secret
    attempt: AuthorizationAttempt


def authorization_request(
    server: ServerMetadata, client_id: str, *, redirect_uri: str, scope: str
) -> AuthorizationAttempt:
    """Where to send the browser (RFC 6749 §4.1.1, OpenID Connect Core §3.1.2.1).

    Raises:
        ProtocolError: the server has no authorization endpoint, or does not support S256 (casebook A3).
    """
    require_s256(server)
    state, nonce, pkce = Secret(secrets.token_urlsafe(32)), Secret(secrets.token_urlsafe(32)), Pkce.new()
    # OpenID Connect Core §11: who asks for offline access MUST send prompt=consent; else servers may ignore the scope.
    consent = {"prompt": "consent"} if "offline_access" in scope.split() else {}
    url = prepare_grant_uri(
        server.endpoint("authorization_endpoint"),
        client_id=client_id,
        response_type="code",
        redirect_uri=redirect_uri,
        scope=scope,
        state=state.reveal(),
        nonce=nonce.reveal(),
        code_challenge=pkce.challenge,
        code_challenge_method="S256",
        **consent,
    )
    return AuthorizationAttempt(url, state, nonce, pkce, redirect_uri, server.issuer)


def process_authorization_response(
    server: ServerMetadata, attempt: AuthorizationAttempt, query: Collection[tuple[str, str]]
) -> AuthorizationCode:
    """Validate the redirect's query. ``iss`` first, on errors too: another server's error is not ours to believe.

    Raises:
        ProtocolError: ``iss`` is missing though advertised, or wrong (RFC 9207 §2.4; casebook A1); ``state`` is missing or
            another one (A2); a parameter is repeated (A14).
        OAuthError: the server refused; its ``error``.
    """
    found = parameters(query, "The redirect")
    issuer = found.get("iss")
    if issuer is None and server.authorization_response_iss_parameter_supported:
        raise ProtocolError("The redirect does not say which server it is from", "Start the sign-in again")
    if issuer is not None and issuer != attempt.issuer:
        raise ProtocolError(
            "The redirect is from another server than the one that was asked", "Start the sign-in again"
        )
    if not found.get("state") or Secret(found["state"]) != attempt.state:  # compared in constant time
        raise ProtocolError("The redirect belongs to another sign-in", "Start the sign-in again", code="invalid_state")
    if "error" in found:
        raise OAuthError(found["error"], found.get("error_description", ""), hint="Start the sign-in again")
    if not found.get("code"):
        raise ProtocolError("The redirect brings neither a code nor an error", "Start the sign-in again")
    return AuthorizationCode(Secret(found["code"]), attempt)


def code_request(server: ServerMetadata, client: Client, code: AuthorizationCode, *, now: float) -> Request:
    """Redeem a code (RFC 6749 §4.1.3, RFC 7636 §4.5). A code of another issuer is never sent here."""
    if server.issuer != code.attempt.issuer:
        raise ProtocolError("The code is from another server", "Start the sign-in again")
    form = (
        ("grant_type", "authorization_code"),
        ("code", code.value.reveal()),
        ("redirect_uri", code.attempt.redirect_uri),
        ("code_verifier", code.attempt.pkce.verifier.reveal()),
    )
    return token_request(server, client, form, now)


def local_path(return_to: str) -> str:
    """``return_to`` if it is a path of this site (casebook A6): not ``//evil``, ``\\evil``, an absolute URL or a header break.

    Raises:
        UsageError: it is anything else.
    """
    if (
        not return_to.startswith("/")
        or return_to.startswith("//")
        or "\\" in return_to
        or not return_to.isascii()
        or not return_to.isprintable()
        or len(return_to) > 2048
    ):
        raise UsageError("The page to return to is not one of this site", "Open the link again as it was given")
    return return_to
