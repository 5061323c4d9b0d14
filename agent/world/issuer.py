"""The authorization server's routes: endpoints for clients, pages for people."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import httpx
from authlib.oauth2.rfc6749 import InvalidRequestError, OAuth2Error, UnauthorizedClientError
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from identity.authority import Authority, Inbound, SignedIn, authority_routes, endpoint, templates
from identity.authority.web import page, same_origin
from identity.errors import TokenError
from identity.oauth.authorization import local_path
from identity.oauth.ciba import ping_request
from identity.secret import Secret
from identity.settings import PING_PATH
from identity.text import printable
from identity.transport import Transport

from .grants import DETAIL_TYPES, DEVICE_CODE_GRANT_TYPE, GRANTS, InvalidTargetError, granted_details
from .installation import Installation
from .people import People
from .server import SCOPES, Server
from .storage import fingerprint
from .tokens import Tokens

__all__ = ["Issuer"]

DEVICE_LIFETIME = 600
POLL_INTERVAL = 1.0
_APPROVAL_LIFETIME, _APPROVAL_LIFETIME_LIMIT = 300, 600
_COOKIE = "deputize_world"
_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"

# Authlib writes the tokens that it issues into its debug log (casebook E11).
logging.getLogger("authlib").setLevel(logging.INFO)

_MEANING = {
    "openid": "know who you are",
    "profile": "see your name",
    "offline_access": "stay signed in for up to 8 hours",
    "portfolio:read": "see your portfolio",
    "orders:write": "place orders for you (large ones only with your approval)",
}


class Issuer:
    """The embedded world's issuer.

    Args:
        clock: unix seconds.
        issued: told of every token value.
        mount: replaces the network to the agent, for pings (tests).
    """

    def __init__(
        self,
        world: Installation,
        clock: Callable[[], float],
        issued: Callable[[str], None],
        mount: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.world = world
        self.base = world.issuer
        self.tokens = Tokens(world, clock, issued)
        self.authority = Authority(world.database, clock, POLL_INTERVAL, self._ping)
        self._transport = Transport((world.url,), mount)
        # Who wants a ping: in memory only, since both values are secrets; what a restart forgets is polled for.
        self._pings: dict[str, tuple[Secret, Secret, float]] = {}
        self.people = People(world, clock)
        self.server = Server(world, self.tokens, self.authority)
        for grant, extensions in GRANTS:
            self.server.register_grant(grant, extensions)
        self._clock = clock
        self._pages = templates(Path(__file__).parent / "templates")
        self._pages.globals["sign_out"] = f"{self.base}/logout"
        parts = urlsplit(world.url)
        self._origin = f"{parts.scheme}://{parts.netloc}"

    # -- routes ------------------------------------------------------------------------------------------------------

    def routes(self) -> list[Route]:
        """Everything under ``/issuer``."""
        return [
            Route("/.well-known/openid-configuration", endpoint(self._metadata), methods=["GET"]),
            Route("/jwks", endpoint(self._jwks), methods=["GET"]),
            Route("/token", endpoint(self._token), methods=["POST"]),
            Route("/device_authorization", endpoint(self._oauth(self._device_authorization)), methods=["POST"]),
            Route("/bc-authorize", endpoint(self._oauth(self._bc_authorize)), methods=["POST"]),
            Route("/introspect", endpoint(self._oauth(self._introspect)), methods=["POST"]),
            Route("/revoke", endpoint(self._oauth(self._revoke)), methods=["POST"]),
            Route("/authorize", endpoint(self._authorize), methods=["GET", "POST"]),
            Route("/login", endpoint(self._login), methods=["GET", "POST"]),
            Route("/logout", endpoint(self._logout), methods=["POST"]),
            Route("/device", endpoint(self._device), methods=["GET", "POST"]),
            *authority_routes(self.authority, self, self._pages),
        ]

    def metadata(self) -> dict[str, Any]:
        """RFC 8414 §2, OpenID Connect Discovery §3, CIBA Core §4."""
        base = self.base
        return {
            "issuer": base,
            "authorization_endpoint": f"{base}/authorize",
            "token_endpoint": f"{base}/token",
            "jwks_uri": f"{base}/jwks",
            "device_authorization_endpoint": f"{base}/device_authorization",
            "backchannel_authentication_endpoint": f"{base}/bc-authorize",
            "backchannel_token_delivery_modes_supported": ["poll", "ping"],
            "introspection_endpoint": f"{base}/introspect",
            "revocation_endpoint": f"{base}/revoke",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
            "token_endpoint_auth_methods_supported": ["private_key_jwt"],
            "token_endpoint_auth_signing_alg_values_supported": ["ES256"],
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
            "authorization_details_types_supported": list(DETAIL_TYPES),
            "scopes_supported": list(SCOPES),
            "grant_types_supported": [grant.GRANT_TYPE for grant, _ in GRANTS],  # type: ignore[attr-defined]
        }

    def _metadata(self, inbound: Inbound) -> Response:
        return JSONResponse(self.metadata())

    def _jwks(self, inbound: Inbound) -> Response:
        return JSONResponse(self.tokens.public_keys)

    def _token(self, inbound: Inbound) -> Response:
        answer: Response = self.server.create_token_response(inbound)
        return answer

    # -- endpoints for clients ---------------------------------------------------------------------------------------

    def _oauth(self, handler: Callable[[Inbound, Any], Response]) -> Callable[[Inbound], Response]:
        """An endpoint with client authentication; OAuth errors become its answer."""

        def run(inbound: Inbound) -> Response:
            request = self.server.create_oauth2_request(inbound)
            try:
                client = self.server.authenticate_client(request, ["private_key_jwt", "none"])
                return handler(inbound, client)
            except OAuth2Error as error:
                answer: Response = self.server.handle_error_response(request, error)
                return answer

        return run

    def _device_authorization(self, inbound: Inbound, client: Any) -> Response:
        """RFC 8628 §3.2, without ``verification_uri_complete``: a code is typed by whoever sees the device (B14)."""
        if not client.check_grant_type(DEVICE_CODE_GRANT_TYPE):
            raise UnauthorizedClientError("This client may not use the device grant")
        scope = inbound.fields.get("scope", "")
        self.server.validate_requested_scope(scope)
        device_code, now = secrets.token_urlsafe(32), self._clock()
        user_code = "-".join("".join(secrets.choice(_LETTERS) for _ in range(4)) for _ in range(2))
        with self.world.database.write() as db:
            db.execute(
                "INSERT INTO devices (id, user_code, client_id, scope, address, state, interval, created_at, expires_at)"
                " VALUES (?, ?, ?, ?, ?, 'pending', ?, ?, ?)",
                (fingerprint(device_code), user_code, client.client_id, scope, inbound.address, POLL_INTERVAL, now,
                 now + DEVICE_LIFETIME),
            )  # fmt: skip
        return JSONResponse(
            {
                "device_code": device_code,
                "user_code": user_code,
                "verification_uri": f"{self.base}/device",
                "expires_in": DEVICE_LIFETIME,
                "interval": int(POLL_INTERVAL),
            }
        )

    def _bc_authorize(self, inbound: Inbound, client: Any) -> Response:
        """CIBA Core §7.1."""
        fields = inbound.fields
        if client.key is None or not client.check_grant_type("urn:openid:params:grant-type:ciba"):
            raise UnauthorizedClientError("Only confidential clients that are registered for it may ask (casebook B6)")
        scope = fields.get("scope", "")
        self.server.validate_requested_scope(scope)
        if "openid" not in scope.split():
            raise InvalidRequestError("The scope must contain openid")
        hints = [name for name in ("login_hint", "login_hint_token", "id_token_hint") if fields.get(name)]
        if hints != ["login_hint"]:
            raise InvalidRequestError("Exactly one login_hint is needed")
        person = self.people.hinted(fields["login_hint"], self.base)
        if person is None or self.tokens.disabled("user", person.subject):
            raise _error("unknown_user_id", "Nobody here is meant by the login_hint")
        message = fields.get("binding_message", "")
        if len(message) > 64 or not message.isascii() or not message.isprintable():
            raise _error("invalid_binding_message", "The binding_message is to be short and plain")
        asked = fields.get("requested_expiry", str(_APPROVAL_LIFETIME))
        if not asked.isascii() or not asked.isdigit() or len(asked) > 9 or int(asked) == 0:
            raise InvalidRequestError("The requested_expiry is to be a positive integer")
        resource = fields.get("resource", "")
        if resource and resource not in client.audiences:
            raise InvalidTargetError("This client may not call that resource")
        notify = fields.get("client_notification_token", "")
        if len(notify) > 1024 or (notify and len(notify) < 22):
            raise InvalidRequestError("The client_notification_token is to have 128 bits, in at most 1024 characters")
        opened = self.authority.open(
            client_id=client.client_id,
            client_name=client.name,
            subject=person.subject,
            scope=scope,
            resource=resource,
            details=granted_details(fields.get("authorization_details", "")),
            binding_message=message,
            lifetime=min(int(asked), _APPROVAL_LIFETIME_LIMIT),
        )
        if notify:
            now = self._clock()
            self._pings = {id_: held for id_, held in self._pings.items() if held[2] > now}
            self._pings[opened.approval.id] = (Secret(notify), Secret(opened.auth_req_id), opened.approval.expires_at)
        return JSONResponse(
            {
                "auth_req_id": opened.auth_req_id,
                "expires_in": int(opened.approval.expires_at - opened.approval.created_at),
                "interval": int(POLL_INTERVAL),
                "approval_uri": f"{self.base}/approvals/{quote(opened.approval.id, safe='')}",
            }
        )

    def _ping(self, id_: str) -> None:
        """Tell the agent that a request was decided (CIBA Core §10.2); once, and nobody waits for its answer."""
        held = self._pings.pop(id_, None)
        if held is not None:
            self._transport.spawn(self._transport.send, ping_request(f"{self.world.url}{PING_PATH}", held[0], held[1]))

    def close(self) -> None:
        """Close its connections to the agent."""
        self._transport.close()

    def _introspect(self, inbound: Inbound, client: Any) -> Response:
        """RFC 7662: an API asks about tokens that are for it, a client about its own; of others they learn nothing (§4)."""
        if client.key is None:
            raise UnauthorizedClientError("Only confidential clients may ask (RFC 7662 section 2.1)")
        for audience in filter(None, (client.api, client.client_id, *client.audiences)):
            try:
                claims = self.tokens.introspected(inbound.fields.get("token", ""), audience) or {}
            except (TokenError, OAuth2Error):
                continue
            if audience not in client.audiences or claims["client_id"] == client.client_id:
                return JSONResponse({"active": True, **claims})
        return JSONResponse({"active": False})

    def _revoke(self, inbound: Inbound, client: Any) -> Response:
        """RFC 7009: a client gives up its own tokens; a refresh token takes its whole grant with it."""
        token = inbound.fields.get("token", "")
        rows = self.world.database.read(
            "SELECT grant_id FROM refresh_tokens WHERE id = ? AND client_id = ?", (fingerprint(token), client.client_id)
        )
        if rows:
            self.tokens.revoke_grant(rows[0][0])
        else:
            for audience in (client.client_id, *client.audiences):
                try:
                    claims = self.tokens.valid(token, audience)
                except (TokenError, OAuth2Error):
                    continue
                if claims.client_id == client.client_id:
                    self.tokens.revoke(claims.jti)
        return Response(status_code=200)

    # -- pages for people --------------------------------------------------------------------------------------------

    def signed_in(self, inbound: Inbound) -> SignedIn | None:
        """Who is signed in, in this browser (the authority asks too)."""
        browser = self.people.browser(inbound.cookies.get(_COOKIE, ""))
        if browser is None or not browser.subject or self.tokens.disabled("user", browser.subject):
            return None  # a person who was disabled is signed out everywhere (casebook C5)
        return browser

    def sign_in_url(self, return_to: str) -> str:
        """The login page, to come back to a local path."""
        return f"{self.base}/login?{urlencode({'return_to': local_path(return_to)})}"

    def _page(self, name: str, status: int = 200, **values: Any) -> Response:
        return page(self._pages, name, status, base=self.base, **values)

    def _refused(self, person: SignedIn | None = None) -> Response:
        return self._page(
            "message.html", 403, person=person, title="Not sent from this page",
            text="The form did not come from this page, so nothing was done. Open it again and repeat.",
        )  # fmt: skip

    def _login(self, inbound: Inbound) -> Response:
        query = dict(inbound.query)
        return_to = local_path(inbound.fields.get("return_to") or query.get("return_to") or f"{self._path}/approvals")
        browser = self.people.browser(inbound.cookies.get(_COOKIE, ""))
        if inbound.method == "POST":
            if browser is None or not same_origin(inbound, self._origin, browser.csrf):
                return self._refused()
            username = inbound.fields.get("username", "")
            person, wait = self.people.check(username, inbound.fields.get("password", ""))
            if person is None or self.tokens.disabled("user", person.subject):
                told = "Too many attempts. Wait a minute." if wait else "The name or the password is wrong."
                return self._page(
                    "login.html", 429 if wait else 401, person=None, csrf=browser.csrf, return_to=return_to, told=told,
                    username=printable(username, limit=40),
                )  # fmt: skip
            self.people.forget(inbound.cookies.get(_COOKIE, ""))
            answer: Response = RedirectResponse(f"{self._origin}{return_to}", 303)
            self._set_cookie(answer, self.people.remember(person.subject))  # a new id at login (casebook A16)
            return answer
        cookie = "" if browser is not None else self.people.remember("")
        csrf = browser.csrf if browser is not None else self.people.browser(cookie).csrf  # type: ignore[union-attr]
        answer = self._page("login.html", person=None, csrf=csrf, return_to=return_to, told="", username="")
        if cookie:
            self._set_cookie(answer, cookie)
        return answer

    def _logout(self, inbound: Inbound) -> Response:
        browser = self.people.browser(inbound.cookies.get(_COOKIE, ""))
        if browser is None or not same_origin(inbound, self._origin, browser.csrf):
            return self._refused()
        self.people.forget(inbound.cookies.get(_COOKIE, ""))
        return RedirectResponse(f"{self.base}/login", 303)

    def _set_cookie(self, answer: Response, value: str) -> None:
        answer.set_cookie(_COOKIE, value, max_age=8 * 3600, path=self._path, httponly=True, samesite="lax")

    @property
    def _path(self) -> str:
        return urlsplit(self.base).path

    def _authorize(self, inbound: Inbound) -> Response:
        """RFC 6749 §4.1.1. Errors lead back to the client only once its redirect URI has been checked."""
        query = Inbound(**{**_fields(inbound), "method": "GET"})
        try:
            grant = self.server.get_consent_grant(query)
        except OAuth2Error as error:
            if error.redirect_uri:
                request = self.server.create_oauth2_request(query)
                answer: Response = self.server.handle_error_response(request, error)
                self.server.issuer_parameter.add_issuer_parameter(self.server, answer)
                return answer
            reason = printable(error.description or error.error, limit=300)
            return self._page(
                "message.html", 400, person=None, title="This sign-in link does not work",
                text=f"Go back to where you found it, and start again. The reason, for its maker: {reason}.",
            )  # fmt: skip
        person = self.signed_in(inbound)
        if person is None:
            parts = urlsplit(inbound.url)
            return RedirectResponse(self.sign_in_url(f"{parts.path}?{parts.query}"), 303)
        client, redirect_uri = grant.request.client, grant.redirect_uri
        if inbound.method != "POST":
            return self._page(
                "consent.html", person=person, client=client.name, scopes=_meanings(grant.request.scope),
                action=f"{self.base}/authorize?{urlencode(inbound.query)}",
                form_targets="{0.scheme}://{0.netloc}".format(urlsplit(redirect_uri)),
            )  # fmt: skip
        if not same_origin(inbound, self._origin, person.csrf):
            return self._refused(person)
        allowed = inbound.fields.get("decision") == "approve"
        if allowed:
            self.tokens.consent(person.subject, client.client_id)
        grant.request.payload = self.server.create_oauth2_request(query).payload
        response: Response = self.server.create_authorization_response(
            grant.request, person if allowed else None, grant
        )
        return response

    def _device(self, inbound: Inbound) -> Response:
        """RFC 8628 §3.3: the code is typed by hand, and the page says what is about to be connected (B14)."""
        person = self.signed_in(inbound)
        if person is None:
            return RedirectResponse(self.sign_in_url(f"{self._path}/device"), 303)
        if inbound.method != "POST":  # a code in the link is not read: whoever sent it chose it
            return self._page("device.html", person=person, told="")
        if not same_origin(inbound, self._origin, person.csrf):
            return self._refused(person)
        if self.people.locked(f"code {person.subject}"):
            return self._page(
                "device.html", 429, person=person, told="Too many wrong codes. Wait a minute, then try again."
            )
        typed = "".join(c for c in inbound.fields.get("user_code", "").upper() if c in _LETTERS)
        user_code = f"{typed[:4]}-{typed[4:]}"
        rows = self.world.database.read(
            "SELECT client_id, scope, address, created_at FROM devices"
            " WHERE user_code = ? AND state = 'pending' AND expires_at > ?",
            (user_code, self._clock()),
        )
        if not rows:
            self.people.guess(f"code {person.subject}")
            told = "That code is not known, or its time is over. Check it, or ask for a new one in the chat."
            return self._page("device.html", 400, person=person, told=told)
        client_id, scope, address, created_at = rows[0]
        decision = inbound.fields.get("decision")
        if decision not in ("approve", "deny"):
            return self._page(
                "device_confirm.html", person=person, user_code=user_code, client=self.server.clients[client_id].name,
                scopes=_meanings(scope), address=printable(address),
                asked_at=time.strftime("%H:%M:%S UTC", time.gmtime(created_at)),
            )  # fmt: skip
        with self.world.database.write() as db:
            changed = db.execute(
                "UPDATE devices SET state = ?, subject = ?, auth_time = ?"
                " WHERE user_code = ? AND state = 'pending' AND expires_at > ?",
                (
                    "approved" if decision == "approve" else "denied",
                    person.subject,
                    person.auth_time,
                    user_code,
                    self._clock(),
                ),
            )
        if changed.rowcount != 1:
            told = "This code has been used meanwhile, or its time is over. Nothing was changed."
            return self._page("device.html", 409, person=person, told=told)
        if decision == "approve":
            self.tokens.consent(person.subject, client_id)
        title, text = ("Signed in", "You can close this page and go back to the chat.")
        if decision == "deny":
            title, text = ("Declined", "The assistant was not signed in. You can close this page.")
        return self._page("message.html", person=person, title=title, text=text)


def _fields(inbound: Inbound) -> dict[str, Any]:
    return {name: getattr(inbound, name) for name in Inbound.__dataclass_fields__}


def _meanings(scope: str) -> list[str]:
    return [_MEANING.get(name, printable(name, limit=60)) for name in scope.split()]


def _error(code: str, description: str) -> OAuth2Error:
    error = OAuth2Error(description=description)
    error.error = code
    return error
