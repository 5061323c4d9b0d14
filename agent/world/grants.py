"""The grants of the token endpoint, on Authlib's where it has them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, cast

from authlib.consts import default_json_headers
from authlib.oauth2.rfc6749 import (
    BaseGrant,
    InvalidGrantError,
    InvalidRequestError,
    InvalidScopeError,
    OAuth2Error,
    TokenEndpointMixin,
    UnauthorizedClientError,
)
from authlib.oauth2.rfc6749.grants import AuthorizationCodeGrant, ClientCredentialsGrant, RefreshTokenGrant
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc8628 import DEVICE_CODE_GRANT_TYPE, DeviceCodeGrant

from identity.authority import CibaError, strict_json
from identity.errors import TokenError

from .server import Registration, Server
from .storage import fingerprint
from .tokens import REFRESH_LIFETIME

__all__ = ["GRANTS", "InvalidTargetError", "S256Only"]

_METHODS = ["private_key_jwt"]
_WITH_PUBLIC = ["private_key_jwt", "none"]
CODE_LIFETIME = 60
_TOKEN_LIMIT = 16_384

DETAIL_TYPES = ("stock_order", "tool_call")
"""``authorization_details`` types: of the trading API, and of any guarded tool."""


class InvalidTargetError(OAuth2Error):  # type: ignore[misc]
    """RFC 8707 §2: the resource is unknown, or not one that this client may have tokens for."""

    error = "invalid_target"


class _Shared:
    """What every grant here needs."""

    server: Server
    request: Any

    @property
    def tokens(self) -> Any:
        return self.server.tokens

    def person(self, subject: str) -> str:
        if self.tokens.disabled("user", subject):
            raise InvalidGrantError("The person's account is disabled")
        return subject

    def audience(self, client: Registration) -> str | None:
        """The ``resource`` asked for, if the client may call it (RFC 8707, RFC 8693 §2.1; casebook C2)."""
        named = {self.request.form.get("resource"), self.request.form.get("audience")} - {None, ""}
        if len(named) > 1 or not named <= client.audiences:
            raise InvalidTargetError("This client may not call that resource, or it named two")
        return cast("str | None", next(iter(named), None))

    def signed_in(
        self, *, subject: str, client: Registration, scope: str, grant_id: str, auth_time: float, nonce: str
    ) -> dict[str, Any]:
        """What a sign-in brings: an access token for the client itself, an ID token, a refresh token if asked for."""
        answer: dict[str, Any] = self.tokens.for_agent(subject, client.client_id, scope, grant_id)
        answer["id_token"] = self.tokens.identity(
            subject=subject, client_id=client.client_id, auth_time=auth_time, nonce=nonce
        )
        if "offline_access" in scope.split() and "refresh_token" in client.grants:
            until = self.tokens.clock() + REFRESH_LIFETIME
            answer["refresh_token"] = self.tokens.refresh(
                subject=subject,
                client_id=client.client_id,
                scope=scope,
                grant_id=grant_id,
                auth_time=auth_time,
                until=until,
            )
        return answer


@dataclass(frozen=True, slots=True)
class _Code:
    id: str
    grant_id: str
    client_id: str
    subject: str
    redirect_uri: str
    scope: str
    nonce: str
    code_challenge: str
    code_challenge_method: str
    auth_time: float
    expires_at: float
    used_at: float | None

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.scope


class S256Only(CodeChallenge):  # type: ignore[misc]
    """PKCE with S256, for every client: Authlib would accept ``plain``, and none from confidential clients (casebook A3)."""

    SUPPORTED_CODE_CHALLENGE_METHOD = ["S256"]

    def validate_code_challenge(self, grant: Any, redirect_uri: str) -> None:
        data = grant.request.payload.data
        if not data.get("code_challenge") or data.get("code_challenge_method") != "S256":
            raise InvalidRequestError("PKCE with S256 is required")
        super().validate_code_challenge(grant, redirect_uri)


class CodeGrant(_Shared, AuthorizationCodeGrant):  # type: ignore[misc]
    """RFC 6749 §4.1. A code that comes twice revokes what it had brought (casebook A4)."""

    TOKEN_ENDPOINT_AUTH_METHODS = _WITH_PUBLIC

    @staticmethod
    def validate_authorization_redirect_uri(request: Any, client: Registration) -> str:
        """Authlib quotes a wrong one in an error, and fails where an error may not hold its characters."""
        redirect_uri: str = request.payload.redirect_uri or ""
        if not client.check_redirect_uri(redirect_uri):
            raise InvalidRequestError("The redirect_uri is not one that is registered for this client")
        return redirect_uri

    def save_authorization_code(self, code: str, request: Any) -> None:
        now, data, person = self.tokens.clock(), request.payload.data, request.user
        grant_id = self.tokens.new_grant(request.client.client_id, person.subject)
        with self.server.world.database.write() as db:
            db.execute(
                "INSERT INTO codes (id, grant_id, client_id, subject, redirect_uri, scope, nonce, code_challenge,"
                " code_challenge_method, auth_time, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'S256', ?, ?)",
                (
                    fingerprint(code),
                    grant_id,
                    request.client.client_id,
                    person.subject,
                    data["redirect_uri"],
                    request.scope,
                    data.get("nonce", ""),
                    data["code_challenge"],
                    person.auth_time,
                    now + CODE_LIFETIME,
                ),
            )

    def query_authorization_code(self, code: str, client: Registration) -> _Code | None:
        columns = ", ".join(_Code.__dataclass_fields__)
        rows = self.server.world.database.read(
            f"SELECT {columns} FROM codes WHERE id = ? AND client_id = ?",  # noqa: S608
            (fingerprint(code), client.client_id),
        )
        found = _Code(*rows[0]) if rows else None
        if found is not None and found.used_at is not None:
            self.tokens.revoke_grant(found.grant_id)
            return None
        return None if found is None or self.tokens.clock() >= found.expires_at else found

    def authenticate_user(self, authorization_code: _Code) -> str:
        return self.person(authorization_code.subject)

    def generate_token(self, **_: Any) -> dict[str, Any]:
        code: _Code = self.request.authorization_code
        with self.server.world.database.write() as db:  # of two at once, one is first
            used = db.execute(
                "UPDATE codes SET used_at = ? WHERE id = ? AND used_at IS NULL", (self.tokens.clock(), code.id)
            )
        if used.rowcount != 1:
            self.tokens.revoke_grant(code.grant_id)
            raise InvalidGrantError("The code was used before")
        return self.signed_in(
            subject=code.subject,
            client=self.request.client,
            scope=code.scope,
            grant_id=code.grant_id,
            auth_time=code.auth_time,
            nonce=code.nonce,
        )

    def delete_authorization_code(self, authorization_code: _Code) -> None:
        """It was marked as used; it stays, so that a second use is noticed."""


@dataclass(frozen=True, slots=True)
class _Refresh:
    id: str
    grant_id: str
    client_id: str
    subject: str
    scope: str
    auth_time: float
    expires_at: float
    used_at: float | None
    revoked_at: float | None

    def check_client(self, client: Registration) -> bool:
        return self.client_id == client.client_id

    def get_scope(self) -> str:
        return self.scope


class RefreshGrant(_Shared, RefreshTokenGrant):  # type: ignore[misc]
    """RFC 6749 §6, with rotation: a refresh token that comes twice kills its whole family (casebook A7)."""

    TOKEN_ENDPOINT_AUTH_METHODS = _WITH_PUBLIC

    def authenticate_refresh_token(self, refresh_token: str) -> _Refresh | None:
        rows = self.server.world.database.read(
            "SELECT r.id, r.grant_id, r.client_id, r.subject, r.scope, r.auth_time, r.expires_at, r.used_at, g.revoked_at"
            " FROM refresh_tokens r JOIN grants g ON g.id = r.grant_id WHERE r.id = ?",
            (fingerprint(refresh_token),),
        )
        found = _Refresh(*rows[0]) if rows else None
        if found is None or found.revoked_at is not None or self.tokens.clock() >= found.expires_at:
            return None
        return found

    def authenticate_user(self, refresh_token: _Refresh) -> str:
        return self.person(refresh_token.subject)

    def issue_token(self, user: str, refresh_token: _Refresh) -> dict[str, Any]:
        with self.server.world.database.write() as db:
            used = db.execute(
                "UPDATE refresh_tokens SET used_at = ? WHERE id = ? AND used_at IS NULL",
                (self.tokens.clock(), refresh_token.id),
            )
        if used.rowcount != 1:
            self.tokens.revoke_grant(refresh_token.grant_id)
            raise InvalidGrantError("The refresh token was used before")
        scope = self.request.payload.scope or refresh_token.scope
        client: Registration = self.request.client
        answer: dict[str, Any] = self.tokens.for_agent(user, client.client_id, scope, refresh_token.grant_id)
        answer["refresh_token"] = self.tokens.refresh(
            subject=user,
            client_id=client.client_id,
            scope=refresh_token.scope,
            grant_id=refresh_token.grant_id,
            auth_time=refresh_token.auth_time,
            until=refresh_token.expires_at,  # rotation does not lengthen the grant
        )
        return answer

    def revoke_old_credential(self, refresh_token: _Refresh) -> None:
        """It was marked as used when the new one was issued."""


@dataclass(frozen=True, slots=True)
class _Device:
    id: str
    user_code: str
    client_id: str
    scope: str
    state: str
    subject: str | None
    auth_time: float | None
    interval: float
    polled_at: float | None
    expires_at: float
    used_at: float | None
    now: float

    def get_client_id(self) -> str:
        return self.client_id

    def get_scope(self) -> str:
        return self.scope

    def get_user_code(self) -> str:
        return self.user_code

    def is_expired(self) -> bool:
        return self.now >= self.expires_at


class DeviceGrant(_Shared, DeviceCodeGrant):  # type: ignore[misc]
    """RFC 8628 §3.4."""

    TOKEN_ENDPOINT_AUTH_METHODS = _WITH_PUBLIC

    def query_device_credential(self, device_code: str) -> _Device:
        rows = self.server.world.database.read(
            "SELECT id, user_code, client_id, scope, state, subject, auth_time, interval, polled_at, expires_at, used_at"
            " FROM devices WHERE id = ?",
            (fingerprint(device_code),),
        )
        if not rows or rows[0][-1] is not None:
            raise InvalidGrantError("The device code is not known, or was used")
        return _Device(*(*rows[0], self.tokens.clock()))

    def query_user_grant(self, user_code: str) -> tuple[str, bool] | None:
        rows = self.server.world.database.read("SELECT subject, state FROM devices WHERE user_code = ?", (user_code,))
        if not rows or rows[0][1] == "pending":
            return None
        return self.person(rows[0][0]), rows[0][1] == "approved"

    def should_slow_down(self, credential: _Device) -> bool:
        early = credential.polled_at is not None and credential.now - credential.polled_at < credential.interval - 0.05
        with self.server.world.database.write(durable=False) as db:
            db.execute(
                "UPDATE devices SET polled_at = ?, interval = interval + ? WHERE id = ?",
                (credential.now, 5.0 if early else 0.0, credential.id),
            )
        return early

    def generate_token(self, **_: Any) -> dict[str, Any]:
        device: _Device = self.request.credential
        with self.server.world.database.write() as db:
            used = db.execute(
                "UPDATE devices SET used_at = ? WHERE id = ? AND used_at IS NULL", (device.now, device.id)
            )
        if used.rowcount != 1:
            raise InvalidGrantError("The device code was used")
        subject = cast("str", self.request.user)
        return self.signed_in(
            subject=subject,
            client=self.request.client,
            scope=device.scope,
            grant_id=self.tokens.new_grant(device.client_id, subject),
            auth_time=device.auth_time or device.now,
            nonce="",
        )


class ClientGrant(_Shared, ClientCredentialsGrant):  # type: ignore[misc]
    """RFC 6749 §4.4: the client for itself. Nobody's name is in it, so it opens nothing that is somebody's."""

    TOKEN_ENDPOINT_AUTH_METHODS = _METHODS

    def generate_token(self, **_: Any) -> dict[str, Any]:
        client: Registration = self.request.client
        return cast(
            "dict[str, Any]",
            self.tokens.access(
                subject=client.client_id,
                client_id=client.client_id,
                audience=self.audience(client) or client.client_id,
                scope="",
                grant_id=self.tokens.new_grant(client.client_id, client.client_id),
            ),
        )


class ExchangeGrant(_Shared, BaseGrant, TokenEndpointMixin):  # type: ignore[misc]
    """RFC 8693: a person's token for the agent becomes one for an API, with the agent as ``act``."""

    GRANT_TYPE = "urn:ietf:params:oauth:grant-type:token-exchange"
    TOKEN_ENDPOINT_AUTH_METHODS = _METHODS
    ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a type's name

    def validate_token_request(self) -> None:
        form, client = self.request.form, self.authenticate_token_endpoint_client()
        self.request.client = client
        if not client.check_grant_type(self.GRANT_TYPE):
            raise UnauthorizedClientError("This client may not exchange tokens")
        token = form.get("subject_token", "")
        if not token or len(token) > _TOKEN_LIMIT:
            raise InvalidRequestError("The subject_token is missing or oversized")  # and no other grant is tried (C4)
        if form.get("subject_token_type") != self.ACCESS_TOKEN or "actor_token" in form or "actor_token_type" in form:
            raise InvalidRequestError("The subject_token is to be an access token, and the client itself is the actor")
        if form.get("requested_token_type", self.ACCESS_TOKEN) != self.ACCESS_TOKEN:
            raise InvalidRequestError("Only access tokens are issued")
        try:
            subject = self.tokens.valid(token, audience=client.client_id)
        except TokenError as error:
            raise InvalidGrantError(error.message) from None
        if subject.may_act != client.client_id:  # absent, or somebody else (casebook C1, C12)
            raise InvalidGrantError("The subject_token does not let this client act for its subject")
        audience = self.audience(client)
        if not audience:
            raise InvalidTargetError("Name the resource that the token is for")
        asked = set(self.request.payload.scope.split()) if self.request.payload.scope else set()
        if not asked or not asked <= subject.scopes:
            raise InvalidScopeError()
        self.person(subject.subject)
        self.subject, self.target = subject, audience

    def create_token_response(self) -> tuple[int, dict[str, Any], Any]:
        client: Registration = self.request.client
        former = self.subject.raw.get("act")
        grant_id = self.server.world.database.read(
            "SELECT grant_id FROM access_tokens WHERE id = ?", (self.subject.jti,)
        )[0][0]
        answer = self.tokens.access(
            subject=self.subject.subject,
            client_id=client.client_id,
            audience=self.target,
            scope=self.request.payload.scope,
            grant_id=grant_id,
            act={"sub": client.client_id, **({"act": former} if former else {})},  # nested, never rewritten (C1)
            not_after=self.subject.expires_at,  # may_act and authorization_details are not handed on (C3, C12)
        )
        return 200, {**answer, "issued_token_type": self.ACCESS_TOKEN}, default_json_headers


class CibaGrant(_Shared, BaseGrant, TokenEndpointMixin):  # type: ignore[misc]
    """CIBA Core §10.1: the token of an approval, once."""

    GRANT_TYPE = "urn:openid:params:grant-type:ciba"
    TOKEN_ENDPOINT_AUTH_METHODS = _METHODS

    def validate_token_request(self) -> None:
        client = self.authenticate_token_endpoint_client()
        self.request.client = client
        if not client.check_grant_type(self.GRANT_TYPE):
            raise UnauthorizedClientError("This client may not ask for approvals")
        handle = self.request.form.get("auth_req_id", "")
        if not handle or len(handle) > 1024:
            raise InvalidRequestError("The auth_req_id is missing or oversized")
        try:
            self.approval = self.server.authority.poll(handle, client.client_id)
        except CibaError as error:
            raise _ciba_error(error) from None
        self.person(self.approval.subject)  # disabled since: refused (casebook B7)

    def create_token_response(self) -> tuple[int, dict[str, Any], Any]:
        client, approval, jti = self.request.client, self.approval, secrets.token_urlsafe(16)
        # The token is on record before the approval is taken for it: whoever comes second finds it and revokes it.
        answer = self.tokens.access(
            subject=approval.subject,
            client_id=client.client_id,
            audience=approval.resource or client.client_id,
            scope=approval.scope,
            grant_id=self.tokens.new_grant(client.client_id, approval.subject),
            act={"sub": client.client_id},
            details=approval.details or None,
            jti=jti,
        )
        former = self.server.authority.redeem(approval, jti)
        if former is not None:  # taken twice: the first token is dead too (casebook B2)
            for each in (former, jti):
                self.tokens.revoke(each)
            raise InvalidGrantError("The auth_req_id was used before")
        answer["id_token"] = self.tokens.identity(
            subject=approval.subject,
            client_id=client.client_id,
            auth_time=approval.auth_time or 0,
            **{"urn:openid:params:jwt:claim:auth_req_id": self.request.form["auth_req_id"]},
        )
        return 200, answer, default_json_headers


def _ciba_error(error: CibaError) -> OAuth2Error:
    found = OAuth2Error(description=error.message)
    found.error = error.code
    return found


GRANTS: tuple[tuple[type, list[Any]], ...] = (
    (CodeGrant, [S256Only(required=True)]),
    (RefreshGrant, []),
    (DeviceGrant, []),
    (ClientGrant, []),
    (ExchangeGrant, []),
    (CibaGrant, []),
)


def granted_details(text: str) -> list[dict[str, Any]]:
    """``authorization_details`` of a request (RFC 9396 §2), or a refusal: an unknown type is not processed (§5)."""
    try:
        found = strict_json(text) if text else []
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(detail, dict) and _well_formed(detail) for detail in found):
        error = OAuth2Error(description="The authorization_details are malformed, or of an unknown type")
        error.error = "invalid_authorization_details"
        raise error
    return found


def _well_formed(detail: dict[str, Any]) -> bool:
    lists = (detail.get(name, []) for name in ("locations", "actions", "datatypes", "privileges"))
    return detail.get("type") in DETAIL_TYPES and all(
        isinstance(items, list) and all(isinstance(item, str) for item in items) for items in lists
    )


__all__ += ["DETAIL_TYPES", "DEVICE_CODE_GRANT_TYPE", "granted_details"]
