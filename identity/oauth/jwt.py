"""JWTs that others signed: RFC 7519, RFC 9068 access tokens, OpenID Connect ID tokens, and the keys they name.

The key comes from the issuer's JWKS, by ``kid``, and from nowhere else: ``jwk``, ``jku``, ``x5u`` and ``x5c`` in a token
are words of whoever made it (casebook A10). Algorithms are listed, never taken from the token alone (A9).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey

from ..errors import ProtocolError, TokenError
from ..secret import Secret
from .metadata import ServerMetadata
from .wire import Request, Response, read_json

__all__ = [
    "ALGORITHMS",
    "AccessTokenClaims",
    "IdTokenClaims",
    "JwksCache",
    "KeySet",
    "NeedsFetch",
    "jwks_request",
    "key_id",
    "validate_access_token",
    "validate_id_token",
    "verified_claims",
]

ALGORITHMS = ("ES256", "ES384", "RS256", "PS256", "EdDSA", "Ed25519")
"""Asymmetric only. With a symmetric one, whoever knows the public key could sign (casebook A9)."""

LEEWAY = 60.0
"""Seconds by which clocks may differ (casebook A12)."""

_LIMIT = 16_384
_RSA_BITS = 2048
_KINDS: dict[str, type[ECKey] | type[RSAKey] | type[OKPKey]] = {"EC": ECKey, "RSA": RSAKey, "OKP": OKPKey}
_FITTING = {"ES256": "EC", "ES384": "EC", "RS256": "RSA", "PS256": "RSA", "EdDSA": "OKP", "Ed25519": "OKP"}


class _Registry(jws.JWSRegistry):
    """joserfc's rules, less two: header parameters that are not understood are ignored, as RFC 7515 §4 says (Entra sends
    some), and ``EdDSA`` is no reason for a warning on every token: it is listed on purpose, since issuers still write it."""

    max_header_length = _LIMIT  # x5c makes headers long

    def __init__(self) -> None:
        super().__init__(algorithms=ALGORITHMS, strict_check_header=False)

    def get_alg(self, name: str) -> Any:
        if name not in ALGORITHMS:
            raise TokenError("The token's algorithm is not accepted", "Get a new token")
        return self.algorithms[name]


_REGISTRY = _Registry()

_COOL_DOWN = 60.0
_FRESH = 3600.0
_LAST_GOOD = 24 * 3600.0


class KeySet:
    """Public signing keys by ``kid``."""

    def __init__(self, keys: Mapping[str, ECKey | RSAKey | OKPKey]) -> None:
        self._keys = dict(keys)

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> KeySet:
        """The usable keys of a JWKS (RFC 7517 §5): public, asymmetric, for signatures. Others are passed over."""
        keys: dict[str, ECKey | RSAKey | OKPKey] = {}
        given = body.get("keys")
        for jwk in given if isinstance(given, list) else []:
            if not isinstance(jwk, dict) or jwk.get("use", "sig") != "sig" or not isinstance(jwk.get("kid"), str):
                continue
            kind = _KINDS.get(str(jwk.get("kty")))
            if kind is None or jwk["kid"] in keys:
                continue
            try:
                if kind is RSAKey and _bits(jwk["n"]) < _RSA_BITS:  # RFC 7518 §3.3: 2048 bits or larger MUST be used
                    continue
                key = kind.import_key(
                    {k: v for k, v in jwk.items() if k not in ("d", "p", "q", "dp", "dq", "qi", "oth")}
                )
            except (JoseError, ValueError, TypeError, KeyError, AttributeError):
                continue
            keys[jwk["kid"]] = key
        return cls(keys)

    def get(self, kid: str) -> ECKey | RSAKey | OKPKey | None:
        """The key of that name."""
        return self._keys.get(kid)

    def __contains__(self, kid: object) -> bool:
        return kid in self._keys

    def __bool__(self) -> bool:
        return bool(self._keys)


@dataclass(frozen=True, slots=True)
class NeedsFetch:
    """The keys at hand do not do, and the JWKS may be fetched now."""


class JwksCache:
    """An issuer's keys over time, driven by its caller: :meth:`lookup`, and then :meth:`store` or :meth:`failed`.

    - a ``kid`` that is not known is looked for at most once a minute, however many there are (casebook A10);
    - keys are fetched again after an hour, so that a withdrawn one is refused then (A11);
    - while the JWKS cannot be had, the last good keys serve for a day, and then none.
    """

    def __init__(self) -> None:
        self._keys = KeySet({})
        self._stored_at = float("-inf")
        self._tried_at = float("-inf")

    def lookup(self, kid: str | None, now: float) -> KeySet | NeedsFetch:
        """The keys to verify with; or that the JWKS has to be fetched first.

        Raises:
            TokenError: ``kid`` is unknown and it is too early to ask again, or the last good keys are too old.
        """
        serves = self.serves(kid, now)
        if serves and 0 <= now - self._stored_at < _FRESH:
            return self._keys
        if not 0 <= now - self._tried_at < _COOL_DOWN:  # a clock that was set back must not freeze the keys
            return NeedsFetch()
        if serves:
            return self._keys
        raise TokenError("The token is signed with a key that its issuer does not publish", "Get a new token")

    def serves(self, kid: str | None, now: float) -> bool:
        """Whether the last good keys hold ``kid`` and may still be used while the JWKS cannot be had."""
        return kid is not None and kid in self._keys and now - self._stored_at < _LAST_GOOD

    def store(self, response: Response, now: float) -> None:
        """Take over a fetched JWKS.

        Raises:
            OAuthError, ProtocolError, TransportError: it holds no usable key; the last good keys stay.
        """
        self._tried_at = now
        keys = KeySet.of(read_json(response, "The issuer's jwks_uri"))
        if not keys:
            raise ProtocolError("The issuer's jwks_uri holds no usable key", "The issuer must correct it")
        self._keys, self._stored_at = keys, now

    def failed(self, now: float) -> None:
        """The JWKS could not be had: not tried again within the cool-down."""
        self._tried_at = now


def jwks_request(server: ServerMetadata) -> Request:
    """The issuer's JWK set (RFC 7517 §5)."""
    return Request("GET", server.endpoint("jwks_uri"))


def key_id(token: str) -> str | None:
    """The ``kid`` that an unverified token names: good for finding a key, and for nothing else."""
    kid = _unverified_header(token).get("kid")
    return kid if isinstance(kid, str) else None


def _unverified_header(token: str) -> dict[str, Any]:
    if not isinstance(token, str) or len(token) > _LIMIT or token.count(".") != 2:
        raise TokenError("This is not a JWT", "Get a new token")
    head = token.split(".", 1)[0]
    try:
        header = json.loads(_decoded(head))
    except (ValueError, RecursionError):
        raise TokenError("This is not a JWT", "Get a new token") from None
    if not isinstance(header, dict):
        raise TokenError("This is not a JWT", "Get a new token")
    return header


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _bits(modulus: str) -> int:
    return int.from_bytes(_decoded(modulus), "big").bit_length()


def verified_claims(token: str, *, keys: KeySet, types: tuple[str | None, ...]) -> dict[str, Any]:
    """The claims of a JWT whose signature, algorithm and ``typ`` hold. Times and names are not checked here.

    Args:
        types: the media types that ``typ`` may have (RFC 7515 §4.1.9), lower case without ``application/``; ``None`` for absent.
    """
    header = _unverified_header(token)
    algorithm, kid, typ = header.get("alg"), header.get("kid"), header.get("typ")
    if algorithm not in ALGORITHMS:
        raise TokenError("The token's algorithm is not accepted", "Get a new token")
    if "crit" in header or "b64" in header:  # RFC 7515 §4.1.11: no extension is understood here
        raise TokenError("The token demands an extension that is not understood", "Get a new token")
    media_type = typ.lower().removeprefix("application/") if isinstance(typ, str) else typ
    if media_type not in types:
        raise TokenError("The token is of another kind than is accepted here", "Get a token of the right kind")
    key = keys.get(kid) if isinstance(kid, str) else None
    if key is None or key.key_type != _FITTING[algorithm]:
        raise TokenError("The token is signed with a key that its issuer does not publish", "Get a new token")
    try:
        claims = json.loads(jws.deserialize_compact(token, key, registry=_REGISTRY).payload)
    except (JoseError, ValueError, TypeError, RecursionError):
        raise TokenError("The token's signature does not hold", "Get a new token") from None
    if not isinstance(claims, dict):
        raise TokenError("The token holds no claims", "Get a new token")
    return claims


def _checked(claims: Mapping[str, Any], *, issuer: str, audience: str, now: float, leeway: float) -> float:
    if claims.get("iss") != issuer:
        raise TokenError("The token is of another issuer", "Get one from the issuer that this service trusts")
    given = claims.get("aud")
    if audience not in (given if isinstance(given, list) else [given]):
        raise TokenError("The token is for another audience", "Get one for this service")
    expires_at, not_before, issued_at = (_time(claims, name) for name in ("exp", "nbf", "iat"))
    if expires_at is None or now >= expires_at + leeway:
        raise TokenError("The token has expired", "Get a new one", code="expired_token")
    if any(moment is not None and moment > now + leeway for moment in (not_before, issued_at)):
        raise TokenError("The token is not valid yet", "Check the clocks of both machines")
    return expires_at


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e11:
        raise TokenError(f"The token's {name} is no time", "Get a new one")
    return float(value)


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not value:
        raise TokenError(f"The token has no {name}", "Get a new one")
    return value


@dataclass(frozen=True, slots=True)
class AccessTokenClaims:
    """A valid access token. Made by :func:`validate_access_token`.

    Args:
        actor: ``act.sub``: who acts for the subject. Only the outermost counts (RFC 8693 §4.1).
        may_act: ``may_act.sub``: who may be given a token to act for the subject (§4.4).
        expires_at: unix seconds.
        raw: every claim.
    """

    subject: str
    client_id: str
    scopes: frozenset[str]
    actor: str | None
    may_act: str | None
    authorization_details: tuple[Mapping[str, Any], ...]
    expires_at: float
    jti: str
    raw: Mapping[str, Any]


def validate_access_token(
    token: str, *, keys: KeySet, issuer: str, audience: str, now: float, leeway: float = LEEWAY
) -> AccessTokenClaims:
    """RFC 9068 §4, for a resource server or for whoever takes a subject token.

    Raises:
        TokenError: the token is not one of ``issuer`` for ``audience`` at ``now``, or not an access token at all (A8).
    """
    claims = verified_claims(token, keys=keys, types=("at+jwt",))
    expires_at = _checked(claims, issuer=issuer, audience=audience, now=now, leeway=leeway)
    details = claims.get("authorization_details", [])
    if not isinstance(details, list) or not all(isinstance(item, dict) for item in details):
        raise TokenError("The token's authorization_details are malformed", "Get a new one")
    scope = claims.get("scope", "")
    if not isinstance(scope, str):
        raise TokenError("The token's scope is malformed", "Get a new one")
    return AccessTokenClaims(
        subject=_text(claims, "sub"),
        client_id=_text(claims, "client_id"),
        scopes=frozenset(scope.split()),
        actor=_inner_subject(claims, "act"),
        may_act=_inner_subject(claims, "may_act"),
        authorization_details=tuple(details),
        expires_at=expires_at,
        jti=_text(claims, "jti"),
        raw=claims,
    )


def _inner_subject(claims: Mapping[str, Any], name: str) -> str | None:
    value = claims.get(name)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise TokenError(f"The token's {name} is malformed", "Get a new one")
    return _text(value, "sub")


@dataclass(frozen=True, slots=True)
class IdTokenClaims:
    """A valid ID token. Made by :func:`validate_id_token`."""

    subject: str
    name: str | None
    acr: str | None
    auth_time: float | None
    raw: Mapping[str, Any]


def validate_id_token(
    token: str,
    *,
    keys: KeySet,
    issuer: str,
    client_id: str,
    nonce: Secret | None = None,
    now: float,
    leeway: float = LEEWAY,
) -> IdTokenClaims:
    """OpenID Connect Core §3.1.3.7.

    Args:
        nonce: what the authorization request carried; ``None`` for flows without one.

    Raises:
        TokenError: it is not for this client, or not for this login.
    """
    claims = verified_claims(token, keys=keys, types=(None, "jwt"))
    _checked(claims, issuer=issuer, audience=client_id, now=now, leeway=leeway)
    given = claims.get("aud")
    if (isinstance(given, list) and len(given) > 1 and claims.get("azp") != client_id) or claims.get(
        "azp", client_id
    ) != client_id:
        raise TokenError("The ID token was issued to another client", "Sign in again")
    if nonce is not None and (not isinstance(claims.get("nonce"), str) or Secret(claims["nonce"] or " ") != nonce):
        raise TokenError("The ID token belongs to another sign-in", "Sign in again")
    name, acr = claims.get("name"), claims.get("acr")
    return IdTokenClaims(
        subject=_text(claims, "sub"),
        name=name if isinstance(name, str) else None,
        acr=acr if isinstance(acr, str) else None,
        auth_time=_time(claims, "auth_time"),
        raw=claims,
    )
