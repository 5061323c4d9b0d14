"""The authorization server, on Authlib's server parts: clients, how they authenticate, and which grants there are."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from authlib.common.urls import add_params_to_uri
from authlib.oauth2.rfc6749 import (
    AuthorizationServer,
    ClientMixin,
    InvalidClientError,
    InvalidRequestError,
    OAuth2Error,
    OAuth2Payload,
    OAuth2Request,
)
from authlib.oauth2.rfc7523 import JWTBearerClientAssertion
from authlib.oauth2.rfc9207 import IssuerParameter
from starlette.responses import JSONResponse, RedirectResponse, Response

from identity.authority import Authority, Inbound
from identity.errors import TokenError
from identity.oauth.jwt import LEEWAY, KeySet, key_id, verified_claims

from .installation import AGENT, TRADING, Installation
from .tokens import Tokens

__all__ = ["SCOPES", "Registration", "Server"]

SCOPES = ("openid", "profile", "offline_access", "portfolio:read", "orders:write")

_AUTH_METHOD = "private_key_jwt"
_ASSERTION_LIFETIME = 3600
_RESPONSE_TYPE = re.compile(r"[a-z_ ]{0,100}")


@dataclass(frozen=True, slots=True)
class Registration(ClientMixin):  # type: ignore[misc]  # Authlib is untyped
    """A registered client.

    Args:
        key: its public JWK; ``None`` for a public client, which proves nothing.
        audiences: the APIs that it may be given tokens for.
        api: the API that it is itself; it may ask about tokens for that one.
    """

    client_id: str
    name: str
    grants: frozenset[str]
    redirect_uris: tuple[str, ...] = ()
    audiences: frozenset[str] = frozenset()
    key: Mapping[str, Any] | None = None
    api: str = ""

    def get_client_id(self) -> str:
        return self.client_id

    def get_default_redirect_uri(self) -> str | None:
        return None  # it has to be sent, and to match

    def get_allowed_scope(self, scope: str | None) -> str:
        return " ".join(s for s in (scope or "").split() if s in SCOPES)

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        """Exact match; of a loopback address the port alone may differ (RFC 9700 §2.1, RFC 8252 §7.3; casebook A5)."""
        if redirect_uri in self.redirect_uris:
            return True
        try:
            sent = urlsplit(redirect_uri)
            port = sent.port
        except ValueError:
            return False
        if sent.scheme != "http" or sent.hostname not in ("127.0.0.1", "::1") or port is None:
            return False
        host = f"[{sent.hostname}]" if ":" in sent.hostname else sent.hostname
        if sent.netloc != f"{host}:{port}":  # user name, upper case, leading zeros
            return False
        return redirect_uri.replace(sent.netloc, host, 1) in self.redirect_uris

    def check_client_secret(self, client_secret: str) -> bool:
        return False  # there are none

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method == (_AUTH_METHOD if self.key else "none")

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code" and "authorization_code" in self.grants

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type in self.grants


class _Payload(OAuth2Payload):  # type: ignore[misc]
    def __init__(self, pairs: tuple[tuple[str, str], ...]) -> None:
        self._data = dict(pairs)
        self._datalist: dict[str, list[str]] = defaultdict(list)
        for name, value in pairs:
            self._datalist[name].append(value)

    @property
    def data(self) -> dict[str, str]:
        return self._data

    @property
    def datalist(self) -> dict[str, list[str]]:
        return self._datalist


class _Request(OAuth2Request):  # type: ignore[misc]
    """What Authlib reads, from a request that was read whole."""

    def __init__(self, inbound: Inbound) -> None:
        super().__init__(inbound.method, inbound.url, headers=dict(inbound.headers))
        self.inbound = inbound
        self.payload = _Payload(inbound.form if inbound.method == "POST" else inbound.query)

    @property
    def args(self) -> dict[str, str]:
        return dict(self.inbound.query)

    @property
    def form(self) -> dict[str, str]:
        return dict(self.inbound.form)


class _Issuer(IssuerParameter):  # type: ignore[misc]
    def __init__(self, issuer: str) -> None:
        self._issuer = issuer

    def get_issuer(self) -> str:
        return self._issuer

    def add_issuer_parameter(self, authorization_server: Any, response: Response) -> None:
        """RFC 9207 §2, on error responses too: Starlette keeps the location in a header."""
        location = response.headers.get("location")
        if location:
            response.headers["location"] = add_params_to_uri(location, [("iss", self._issuer)])


class _Assertion(JWTBearerClientAssertion):  # type: ignore[misc]
    """``private_key_jwt`` (RFC 7523 §3): ``aud`` is the issuer, each ``jti`` serves once (casebook A15, A19)."""

    CLIENT_AUTH_METHOD = _AUTH_METHOD

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server

    def __call__(self, query_client: Any, request: Any) -> Any:
        if request.form.get("client_assertion_type") != self.CLIENT_ASSERTION_TYPE:
            return None
        client_id, assertion = request.form.get("client_id"), request.form.get("client_assertion", "")
        client = query_client(client_id)
        if client is None or client.key is None:
            raise InvalidClientError(description="The client is not known, or has no key")
        try:
            kid = key_id(assertion) or ""
            keys = KeySet.of({"keys": [{**client.key, "kid": kid, "use": "sig"}]})
            claims = verified_claims(assertion, keys=keys, types=(None, "jwt"))
        except TokenError as error:
            raise InvalidClientError(description=error.message) from None
        self._check(claims, client.client_id)
        request.client = client
        return client

    def _check(self, claims: Mapping[str, Any], client_id: str) -> None:
        now = self._server.tokens.clock()
        expires_at, jti = claims.get("exp"), claims.get("jti")
        if claims.get("iss") != client_id or claims.get("sub") != client_id:
            raise InvalidClientError(description="The assertion is of another client")
        if claims.get("aud") != self._server.world.issuer:
            raise InvalidClientError(description="The assertion's audience is not this issuer")
        if not isinstance(expires_at, int | float) or not now - LEEWAY < expires_at <= now + _ASSERTION_LIFETIME:
            raise InvalidClientError(description="The assertion has expired, or lives too long")
        not_before = claims.get("nbf", 0)
        if not isinstance(not_before, int | float) or not not_before <= now + LEEWAY:  # NaN is neither
            raise InvalidClientError(description="The assertion is not valid yet")
        if not isinstance(jti, str) or not 8 <= len(jti) <= 256:
            raise InvalidClientError(description="The assertion has no usable jti")
        with self._server.world.database.write() as db:
            db.execute("DELETE FROM assertions WHERE expires_at < ?", (now - 2 * LEEWAY,))
            added = db.execute(
                "INSERT INTO assertions (id, expires_at) VALUES (?, ?) ON CONFLICT DO NOTHING",
                (f"{client_id} {jti}", float(expires_at)),
            )
        if added.rowcount != 1:
            raise InvalidClientError(description="The assertion was used before")


class Server(AuthorizationServer):  # type: ignore[misc]
    """Clients, tokens and grants of one installation."""

    def __init__(self, world: Installation, tokens: Tokens, authority: Authority) -> None:
        super().__init__(scopes_supported=SCOPES)
        self.world = world
        self.tokens = tokens
        self.authority = authority
        self.clients = {client.client_id: client for client in _clients(world)}
        self.register_client_auth_method(_AUTH_METHOD, _Assertion(self))
        self.issuer_parameter = _Issuer(world.issuer)
        self.register_extension(self.issuer_parameter)

    def query_client(self, client_id: str | None) -> Registration | None:
        client = self.clients.get(client_id or "")
        return None if client is None or self.tokens.disabled("client", client.client_id) else client

    def save_token(self, token: Mapping[str, Any], request: OAuth2Request) -> None:
        """Tokens are recorded where they are made."""

    def get_authorization_grant(self, request: Any) -> Any:
        """Authlib quotes an unknown ``response_type`` in an error, and fails where an error may not hold its characters."""
        if not _RESPONSE_TYPE.fullmatch(request.payload.response_type or ""):
            raise InvalidRequestError("The response_type is malformed")
        return super().get_authorization_grant(request)

    def send_signal(self, name: str, *args: object, **kwargs: object) -> None:
        """Nobody listens."""

    def create_oauth2_request(self, request: Any) -> Any:
        return request if isinstance(request, OAuth2Request) else _Request(request)

    def handle_error_response(self, request: Any, error: OAuth2Error) -> Response:
        if isinstance(error, InvalidClientError):
            error.status_code = 401  # RFC 6749 §5.2, CIBA Core §13; at every endpoint alike
        answer: Response = super().handle_error_response(request, error)
        return answer

    def handle_response(self, status: int, body: Any, headers: Any) -> Response:
        named = {str(name).lower(): str(value) for name, value in headers}
        if 300 <= status < 400:
            return RedirectResponse(named["location"], 303)  # never 307: a form is not sent on (RFC 9700 §4.12)
        if status == 401:  # a challenge has a realm (RFC 7617 §2); Authlib's has none
            named["www-authenticate"] = 'Basic realm="issuer", error="invalid_client"'
        payload = json.loads(body) if isinstance(body, str) and body else body or {}
        return JSONResponse(payload, status, headers={k: v for k, v in named.items() if k != "content-type"})


def _clients(world: Installation) -> list[Registration]:
    return [
        Registration(
            AGENT,
            "Trading assistant",
            frozenset(
                {
                    "authorization_code",
                    "refresh_token",
                    "client_credentials",
                    "urn:ietf:params:oauth:grant-type:device_code",
                    "urn:ietf:params:oauth:grant-type:token-exchange",
                    "urn:openid:params:grant-type:ciba",
                }
            ),
            ("http://127.0.0.1/callback", "http://[::1]/callback"),
            frozenset({world.trading}),
            world.agent_key,
        ),
        Registration(TRADING, "Trading API", frozenset(), key=world.trading_key, api=world.trading),
    ]
