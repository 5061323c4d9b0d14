"""What the tests of the protocols share: one server, one client, its answers, and tokens with any header."""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

from identity.oauth.client import Client
from identity.oauth.jwt import KeySet
from identity.oauth.metadata import ServerMetadata
from identity.oauth.wire import Request, Response

ISSUER = "https://issuer.example"
API = "https://trading.example"
AGENT = "agent"
NOW = 1_800_000_000.0

BAD_URLS = [
    "http://issuer.example/page",
    "http://127.0.0.1:2024.evil.example/page",
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "file:///etc/passwd",
    "ftp://issuer.example/page",
    "//issuer.example/page",
    "/page",
    "https:/issuer.example/page",
    "https://",
    "https://user:password@issuer.example/page",
    "https://issuer.example@evil.example/page",
    "https://issuer.example\\@evil.example/page",
    "https://issuer.example/page#fragment",
    "https://issuer.example/page#",
    "https://issuer.example/a\r\nLocation: https://evil.example",
    "https://issuer.example/a\x1b[2J",
    "https://issuer.example/a b",
    " https://issuer.example/page",
    "https://issuer\u200b.example/page",
    "https://\u0131ssuer.example/page",
    "https://[::1/page",
    "https://[not-an-address]/page",
    "https://issuer.example:99999/page",
    "https://issuer.example:0/page",
]
"""None of these may be opened or shown (casebook C9)."""


def server(**changes: Any) -> ServerMetadata:
    """A server that has everything."""
    made = ServerMetadata(
        issuer=ISSUER,
        token_endpoint=f"{ISSUER}/token",
        jwks_uri=f"{ISSUER}/jwks",
        authorization_endpoint=f"{ISSUER}/authorize",
        device_authorization_endpoint=f"{ISSUER}/device",
        backchannel_authentication_endpoint=f"{ISSUER}/bc",
        revocation_endpoint=f"{ISSUER}/revoke",
        introspection_endpoint=f"{ISSUER}/introspect",
        code_challenge_methods_supported=("S256",),
        authorization_response_iss_parameter_supported=True,
    )
    return replace(made, **changes)


@functools.cache
def ec(curve: str = "P-256", kid: str = "es") -> ECKey:
    return ECKey.generate_key(curve, {"kid": kid})


@functools.cache
def rsa(kid: str = "rs") -> RSAKey:
    return RSAKey.generate_key(2048, {"kid": kid})


@functools.cache
def okp(curve: str = "Ed25519", kid: str = "ed") -> OKPKey:
    return OKPKey.generate_key(curve, {"kid": kid})


def client() -> Client:
    return Client(AGENT, ec(kid="agent-key"))


def answer(body: Any, status: int = 200, content_type: str = "application/json", **headers: str) -> Response:
    """A response; anything but bytes becomes JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, {"content-type": content_type, **named}, raw)


def issued(**changes: Any) -> dict[str, Any]:
    """A token response's body; a member that is changed to ``...`` is left out."""
    body = {"access_token": "at-1", "token_type": "Bearer", "expires_in": 300, "scope": "orders:write", **changes}
    return {name: value for name, value in body.items() if value is not ...}


def fields(request: Request) -> dict[str, str]:
    """A request's form; every name in it once."""
    found = dict(request.form)
    assert len(found) == len(request.form)
    return found


def public(*keys: ECKey | RSAKey | OKPKey) -> dict[str, Any]:
    """Their JWKS."""
    return {"keys": [key.as_dict(private=False) for key in keys]}


def keyset(*keys: ECKey | RSAKey | OKPKey) -> KeySet:
    return KeySet.of(public(*keys))


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unsigned(header: Mapping[str, Any], claims: object) -> str:
    """The part of a JWT that is signed."""
    return ".".join(encoded(json.dumps(part).encode()) for part in (header, claims))


def signed(
    claims: object, *, key: ECKey | RSAKey | OKPKey | None = None, signer: str | None = None, **header: Any
) -> str:
    """A JWT with exactly this header (``...`` leaves a parameter out), really signed with ``key``.

    Args:
        signer: the algorithm that signs, when that is not what the header says.
    """
    key = key or ec()
    full = {"alg": "ES256", "kid": key.kid, "typ": "at+jwt", **header}
    full = {name: value for name, value in full.items() if value is not ...}
    text = unsigned(full, claims)
    algorithm = jws.JWSRegistry.algorithms[signer or full["alg"]]
    return f"{text}.{encoded(algorithm.sign(text.encode(), key))}"
