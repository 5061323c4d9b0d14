"""The tokens that the issuer makes: RFC 9068 access tokens, ID tokens, refresh tokens with reuse detection."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from authlib.oauth2.rfc6749 import InvalidGrantError
from joserfc import jwt

from identity.oauth.jwt import AccessTokenClaims, KeySet, validate_access_token

from .installation import AGENT, Installation
from .storage import fingerprint

__all__ = ["ACCESS_LIFETIME", "REFRESH_LIFETIME", "Tokens"]

ACCESS_LIFETIME = 300
REFRESH_LIFETIME = 8 * 3600


class Tokens:
    """Issues, finds and revokes.

    Args:
        clock: unix seconds.
        issued: told of every token value, for the demo's search of what must not be found anywhere.
    """

    def __init__(self, world: Installation, clock: Callable[[], float], issued: Callable[[str], None]) -> None:
        self._world = world
        self._db = world.database
        self.clock = clock
        self._issued = issued
        self.public_keys = {"keys": [{**world.signing_key.as_dict(private=False), "use": "sig", "alg": "ES256"}]}
        self._own_keys = KeySet.of(self.public_keys)

    def _sign(self, claims: Mapping[str, Any], typ: str) -> str:
        key = self._world.signing_key
        token = jwt.encode({"alg": "ES256", "typ": typ, "kid": key.kid}, dict(claims), key, algorithms=["ES256"])
        self._issued(token)
        return token

    # -- grants ------------------------------------------------------------------------------------------------------

    def new_grant(self, client_id: str, subject: str) -> str:
        """A family of tokens that are revoked together."""
        id_ = secrets.token_hex(16)
        with self._db.write() as db:
            db.execute(
                "INSERT INTO grants (id, client_id, subject, created_at) VALUES (?, ?, ?, ?)",
                (id_, client_id, subject, self.clock()),
            )
        return id_

    def revoke_grant(self, grant_id: str) -> None:
        """Every token of a grant is dead (RFC 9700 §4.14.2; casebook A4, A7)."""
        now = self.clock()
        with self._db.write() as db:
            db.execute("UPDATE grants SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (now, grant_id))
            db.execute(
                "UPDATE access_tokens SET revoked_at = ? WHERE grant_id = ? AND revoked_at IS NULL", (now, grant_id)
            )

    def revoke(self, jti: str) -> None:
        """One access token is dead."""
        with self._db.write() as db:
            db.execute(
                "UPDATE access_tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (self.clock(), jti)
            )

    def disabled(self, kind: str, name: str) -> bool:
        """Whether a ``user`` or ``client`` was disabled. Asked at every grant (casebook C5)."""
        return bool(self._db.read("SELECT 1 FROM disabled WHERE id = ?", (f"{kind} {name}",)))

    def disable(self, kind: str, name: str) -> None:
        """Disable a ``user`` (by subject) or a ``client``."""
        with self._db.write() as db:
            db.execute("INSERT INTO disabled (id) VALUES (?) ON CONFLICT DO NOTHING", (f"{kind} {name}",))

    # -- access tokens -----------------------------------------------------------------------------------------------

    def access(
        self,
        *,
        subject: str,
        client_id: str,
        audience: str,
        scope: str,
        grant_id: str,
        act: Mapping[str, Any] | None = None,
        may_act: str | None = None,
        details: Sequence[Mapping[str, Any]] | None = None,
        not_after: float | None = None,
        jti: str | None = None,
    ) -> dict[str, Any]:
        """An access token response (RFC 9068 §2.2).

        Args:
            act: who acts for the subject, outermost first (RFC 8693 §4.1).
            may_act: who may be given a token to act for the subject (§4.4).
            not_after: unix seconds that it must not outlive (casebook C3).
        """
        now = self.clock()
        expires_at = int(now) + ACCESS_LIFETIME
        if not_after is not None:
            expires_at = min(expires_at, int(not_after))
        if expires_at <= now:
            raise InvalidGrantError("The token that this one would come from has expired")
        jti = jti or secrets.token_urlsafe(16)
        claims: dict[str, Any] = {
            "iss": self._world.issuer,
            "sub": subject,
            "aud": audience,
            "client_id": client_id,
            "scope": scope,
            "jti": jti,
            "iat": int(now),
            "exp": expires_at,
        }
        if act is not None:
            claims["act"] = dict(act)
        if may_act is not None:
            claims["may_act"] = {"sub": may_act}
        if details is not None:
            claims["authorization_details"] = [dict(item) for item in details]
        with self._db.write() as db:
            db.execute(
                "INSERT INTO access_tokens (id, grant_id, client_id, subject, expires_at) VALUES (?, ?, ?, ?, ?)",
                (jti, grant_id, client_id, subject, float(expires_at)),
            )
        answer = {
            "access_token": self._sign(claims, "at+jwt"),
            "token_type": "Bearer",
            "expires_in": expires_at - int(now),
            "scope": scope,
        }
        return answer | ({"authorization_details": claims["authorization_details"]} if details is not None else {})

    def for_agent(self, subject: str, client_id: str, scope: str, grant_id: str) -> dict[str, Any]:
        """A client's own access token for a person. Where the person agreed that this agent acts for them, it says so
        in ``may_act``, and so can be exchanged (casebook C12)."""
        may_act = client_id if client_id == AGENT and self.consented(subject, client_id) else None
        return self.access(
            subject=subject, client_id=client_id, audience=client_id, scope=scope, grant_id=grant_id, may_act=may_act
        )

    def valid(self, token: str, audience: str) -> AccessTokenClaims:
        """An access token of this issuer that has not been revoked.

        Raises:
            TokenError, InvalidGrantError: it is not one.
        """
        claims = validate_access_token(
            token, keys=self._own_keys, issuer=self._world.issuer, audience=audience, now=self.clock(), leeway=0
        )
        if not self.active(claims.jti):
            raise InvalidGrantError("The token was revoked")
        return claims

    def active(self, jti: str) -> bool:
        """Whether an access token stands: known, not expired, neither it nor its grant revoked, its person and client not
        disabled. The grant is asked too, since a token may be made in the moment in which its family is revoked."""
        rows = self._db.read(
            "SELECT t.client_id, t.subject, t.expires_at, coalesce(t.revoked_at, g.revoked_at)"
            " FROM access_tokens t JOIN grants g ON g.id = t.grant_id WHERE t.id = ?",
            (jti,),
        )
        if not rows:
            return False
        client_id, subject, expires_at, revoked_at = rows[0]
        return (
            revoked_at is None
            and self.clock() < expires_at
            and not self.disabled("client", client_id)
            and not self.disabled("user", subject)
        )

    def introspected(self, token: str, audience: str) -> dict[str, Any] | None:
        """The claims of a token that stands, for the API that it is for."""
        return dict(self.valid(token, audience).raw)

    # -- refresh tokens ----------------------------------------------------------------------------------------------

    def refresh(
        self, *, subject: str, client_id: str, scope: str, grant_id: str, auth_time: float, until: float
    ) -> str:
        """A refresh token for one use."""
        token = f"rt_{secrets.token_urlsafe(32)}"
        self._issued(token)
        with self._db.write() as db:
            db.execute(
                "INSERT INTO refresh_tokens (id, grant_id, client_id, subject, scope, auth_time, expires_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (fingerprint(token), grant_id, client_id, subject, scope, auth_time, until),
            )
        return token

    # -- ID tokens ---------------------------------------------------------------------------------------------------

    def identity(self, *, subject: str, client_id: str, auth_time: float, nonce: str = "", **more: Any) -> str:
        """An ID token (OpenID Connect Core §2)."""
        now = int(self.clock())
        name = next((p.name for p in self._world.people.values() if p.subject == subject), "")
        claims = {
            "iss": self._world.issuer,
            "sub": subject,
            "aud": client_id,
            "iat": now,
            "exp": now + ACCESS_LIFETIME,
            "auth_time": int(auth_time),
            "acr": "urn:deputize:password",
            "name": name,
            **({"nonce": nonce} if nonce else {}),
            **more,
        }
        return self._sign(claims, "JWT")

    # -- consent -----------------------------------------------------------------------------------------------------

    def consent(self, subject: str, client_id: str) -> None:
        """The person agreed on a page that this client may act for them."""
        with self._db.write() as db:
            db.execute(
                "INSERT INTO consents (id, subject, client_id, created_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (f"{subject} {client_id}", subject, client_id, self.clock()),
            )

    def consented(self, subject: str, client_id: str) -> bool:
        """Whether the person agreed."""
        return bool(self._db.read("SELECT 1 FROM consents WHERE id = ?", (f"{subject} {client_id}",)))
