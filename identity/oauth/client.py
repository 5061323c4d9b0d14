"""The agent's own credential: ``private_key_jwt`` (RFC 7523 §2.2, OpenID Connect Core §9)."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from joserfc import jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey

from .metadata import ServerMetadata
from .wire import Form

__all__ = ["ASSERTION_TYPE", "Client", "authenticated", "client_assertion"]

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_LIFETIME = 60


@dataclass(frozen=True, slots=True)
class Client:
    """A confidential client.

    Args:
        key: its private key.
        alg: the JWS algorithm of its assertions.
    """

    client_id: str
    key: ECKey | RSAKey | OKPKey
    alg: str = "ES256"

    def __repr__(self) -> str:
        return f"Client({self.client_id!r})"


def client_assertion(client: Client, server: ServerMetadata, now: float) -> str:
    """A signed statement of who the client is, for one use within a minute (RFC 7523 §3).

    Its ``aud`` is the issuer, never an endpoint: metadata that lies about an endpoint would collect assertions that the
    true server accepts (casebook A19).
    """
    claims = {
        "iss": client.client_id,
        "sub": client.client_id,
        "aud": server.issuer,
        "jti": secrets.token_urlsafe(24),
        "iat": int(now),
        "nbf": int(now),
        "exp": int(now) + _LIFETIME,
    }
    header = {"alg": client.alg, "typ": "JWT"} | ({"kid": client.key.kid} if client.key.kid else {})
    return jwt.encode(header, claims, client.key, algorithms=[client.alg])


def authenticated(form: Form, client: Client, server: ServerMetadata, now: float) -> Form:
    """``form`` with the client's authentication."""
    return (
        *form,
        ("client_id", client.client_id),
        ("client_assertion_type", ASSERTION_TYPE),
        ("client_assertion", client_assertion(client, server, now)),
    )
