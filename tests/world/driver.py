"""Drives the embedded world by raw HTTP, as a client, a browser or an attacker would."""

from __future__ import annotations

import json
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Mapping
from hashlib import sha256
from html import unescape
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import httpx
from joserfc import jwt
from joserfc.jwk import ECKey

from agent.world.server import Registration
from tests.support import URL, Inside

__all__ = [
    "AGENT_ID",
    "ASSERTION",
    "CIBA",
    "CODE",
    "CREDENTIALS",
    "DEVICE",
    "EXCHANGE",
    "ISSUER",
    "REDIRECT",
    "REFRESH",
    "SCOPE",
    "TRADING",
    "Browser",
    "Driver",
    "authorization_url",
    "challenge",
    "claims",
    "fields",
    "order_details",
    "query_of",
]

ISSUER = f"{URL}/issuer"
TRADING = f"{URL}/trading"
REDIRECT = "http://127.0.0.1:9/callback"
AGENT_ID = "deputize-agent"
SCOPE = "openid profile offline_access portfolio:read orders:write"

ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
CODE = "authorization_code"
REFRESH = "refresh_token"
CREDENTIALS = "client_credentials"
DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
CIBA = "urn:openid:params:grant-type:ciba"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"

VERIFIER = "v" * 43

Form = Mapping[str, str] | Iterable[tuple[str, str]]


def challenge(verifier: str = VERIFIER) -> str:
    """The S256 challenge of a verifier (RFC 7636 §4.2)."""
    return urlsafe_b64encode(sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def claims(token: str) -> dict[str, Any]:
    """What a JWT says; its signature is not looked at."""
    payload = token.split(".")[1]
    found: dict[str, Any] = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return found


def order_details(
    symbol: str = "ACME", quantity: int = 50, limit: str = "100.00", **changes: Any
) -> list[dict[str, Any]]:
    """``authorization_details`` of one order, as the agent sends them; ``changes`` replace members, ``None`` removes one."""
    detail = {
        "type": "stock_order",
        "locations": [TRADING],
        "actions": ["buy_stock"],
        "digest": secrets.token_urlsafe(16),
        "arguments": {"symbol": symbol, "quantity": quantity, "limit": limit},
        **changes,
    }
    return [{name: value for name, value in detail.items() if value is not None}]


class Driver:
    """A client of the issuer and of the trading API, with the agent's own key unless it is told otherwise."""

    def __init__(self, world: Inside) -> None:
        self.world = world
        self.http = httpx.AsyncClient(transport=world.network, base_url=URL, follow_redirects=False, trust_env=False)
        self._keys = {
            "deputize-agent": ECKey.import_key(json.loads((world.home / "world" / "agent-client.json").read_text())),
            "trading-api": ECKey.import_key(json.loads((world.home / "world" / "trading-client.json").read_text())),
        }
        self._browsers: dict[str, Browser] = {}
        self._visitors: list[Browser] = []

    async def close(self) -> None:
        await self.http.aclose()
        for browser in self._visitors:
            await browser.http.aclose()

    def register(self, client_id: str, *, public: bool = False, **more: Any) -> None:
        """Another client of the issuer. It may use every grant that the agent may."""
        clients = self.world.world.issuer.server.clients
        agent = clients["deputize-agent"]
        if not public:
            self._keys[client_id] = ECKey.generate_key("P-256", private=True, auto_kid=True)
        clients[client_id] = Registration(
            client_id,
            client_id,
            key=None if public else self._keys[client_id].as_dict(private=False),
            **{"grants": agent.grants, "redirect_uris": agent.redirect_uris, "audiences": agent.audiences, **more},
        )

    # -- the client's side -------------------------------------------------------------------------------------------

    def assertion(self, client_id: str = "deputize-agent", **changes: Any) -> str:
        """A client assertion; ``changes`` replace claims, ``None`` removes one."""
        now = int(self.world.clock())
        given = {"iss": client_id, "sub": client_id, "aud": ISSUER, "jti": secrets.token_urlsafe(16), "iat": now}
        values = {**given, "exp": now + 60, **changes}
        key = self._keys[client_id]
        header = {"alg": "ES256", "typ": "JWT", "kid": key.kid}
        return jwt.encode(header, {n: v for n, v in values.items() if v is not None}, key, algorithms=["ES256"])

    def authenticated(self, client_id: str = "deputize-agent", assertion: str | None = None) -> dict[str, str]:
        """The fields by which a client says who it is."""
        if client_id not in self._keys:
            return {"client_id": client_id}
        assertion = self.assertion(client_id) if assertion is None else assertion
        return {"client_id": client_id, "client_assertion_type": ASSERTION, "client_assertion": assertion}

    async def post(
        self, path: str, form: Form = (), *, client: str = "deputize-agent", **headers: str
    ) -> httpx.Response:
        """An authenticated request to an endpoint of the issuer; a repeated or empty field is sent as it is given."""
        fields = [*(form.items() if isinstance(form, Mapping) else form), *self.authenticated(client).items()]
        return await self.raw(path, urlencode(fields), **headers)

    async def raw(self, path: str, body: str, **headers: str) -> httpx.Response:
        """A form as it stands."""
        kind = {"content-type": "application/x-www-form-urlencoded"}
        return await self.http.post(f"/issuer/{path}", content=body, headers=kind | headers)

    async def token(self, grant_type: str, *, client: str = "deputize-agent", **form: str) -> httpx.Response:
        return await self.post("token", {"grant_type": grant_type, **form}, client=client)

    async def refresh(self, refresh_token: str, **form: str) -> httpx.Response:
        return await self.token(REFRESH, refresh_token=refresh_token, **form)

    async def exchange(self, subject_token: str, *, client: str = "deputize-agent", **changes: str) -> httpx.Response:
        """RFC 8693 for the trading API; an empty string in ``changes`` leaves a field out."""
        form = {
            "subject_token": subject_token,
            "subject_token_type": ACCESS_TOKEN,
            "resource": TRADING,
            "scope": "orders:write",
            **changes,
        }
        return await self.token(EXCHANGE, client=client, **{name: value for name, value in form.items() if value})

    async def exchanged(self, subject_token: str, scope: str = "orders:write") -> str:
        answer = await self.exchange(subject_token, scope=scope)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    async def redeem(self, code: str, **changes: str) -> httpx.Response:
        """A code for tokens; an empty string in ``changes`` leaves a field out."""
        form = {"code": code, "redirect_uri": REDIRECT, "code_verifier": VERIFIER, **changes}
        client = form.pop("client", "deputize-agent")
        return await self.token(CODE, client=client, **{name: value for name, value in form.items() if value})

    async def device(self, scope: str = SCOPE, client: str = "deputize-agent") -> dict[str, Any]:
        """A device authorization (RFC 8628 §3.2)."""
        answer = await self.post("device_authorization", {"scope": scope}, client=client)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def ask(self, details: list[dict[str, Any]] | None = None, **changes: str) -> httpx.Response:
        """A backchannel authentication request for alice; an empty string in ``changes`` leaves a field out."""
        form = {
            "scope": "openid orders:write",
            "login_hint": "alice",
            "binding_message": "BCD-234",
            "resource": TRADING,
            "authorization_details": json.dumps(order_details() if details is None else details),
            **changes,
        }
        client = form.pop("client", "deputize-agent")
        return await self.post("bc-authorize", {name: value for name, value in form.items() if value}, client=client)

    async def asked(self, details: list[dict[str, Any]] | None = None, **changes: str) -> dict[str, Any]:
        answer = await self.ask(details, **changes)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def collect(self, auth_req_id: str, client: str = "deputize-agent") -> httpx.Response:
        """One poll for the token of an approval (CIBA Core §10.1)."""
        return await self.token(CIBA, client=client, auth_req_id=auth_req_id)

    async def approved(self, details: list[dict[str, Any]] | None = None, **changes: str) -> str:
        """The access token of something that alice approved."""
        asked = await self.asked(details, **changes)
        await self.world.person("alice").approve({"url": asked["approval_uri"]})
        answer = await self.collect(asked["auth_req_id"])
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    async def active(self, token: str, client: str = "trading-api") -> bool:
        """Whether a token stands, as the API is told (RFC 7662)."""
        answer = await self.post("introspect", {"token": token}, client=client)
        assert answer.status_code == 200, answer.text
        return bool(answer.json()["active"])

    # -- the trading API's side --------------------------------------------------------------------------------------

    async def order(
        self, token: str, symbol: str = "ACME", quantity: Any = 5, limit: Any = "100.00", key: str = "", **more: Any
    ) -> httpx.Response:
        """An order at the API. ``key`` is the idempotency key, a new one each time when not given."""
        body = {"symbol": symbol, "quantity": quantity, "limit": limit, **more}
        headers = {"authorization": f"Bearer {token}", "idempotency-key": key or secrets.token_urlsafe(16)}
        return await self.http.post("/trading/orders", json=body, headers=headers)

    async def portfolio(self, token: str) -> httpx.Response:
        return await self.http.get("/trading/portfolio", headers={"authorization": f"Bearer {token}"})

    # -- people's side -----------------------------------------------------------------------------------------------

    async def browser(self, username: str = "alice") -> Browser:
        """A signed-in browser of one of the people, the same one each time."""
        if username not in self._browsers:
            self._browsers[username] = self.visitor()
            await self._browsers[username].sign_in(username)
        return self._browsers[username]

    def visitor(self) -> Browser:
        """A new browser, in which nobody is signed in."""
        self._visitors.append(Browser(self.world))
        return self._visitors[-1]

    async def authorize(self, username: str = "alice", decision: str = "approve", **changes: str) -> dict[str, str]:
        """The authorization code flow up to the redirect; its query. An empty string in ``changes`` leaves a field out."""
        browser = await self.browser(username)
        url = authorization_url(**changes)
        answer = await browser.submit(url, decision=decision)
        assert answer.status_code == 303, answer.text
        return {name: values[0] for name, values in parse_qs(urlsplit(answer.headers["location"]).query).items()}

    async def sign_in(self, username: str = "alice", scope: str = SCOPE, **changes: str) -> dict[str, Any]:
        """The tokens of a whole sign-in."""
        query = await self.authorize(username, scope=scope, **changes)
        answer = await self.redeem(query["code"], client=changes.get("client_id", "deputize-agent"))
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def trading_token(self, username: str = "alice", scope: str = "orders:write") -> str:
        """A delegated token for the trading API."""
        return await self.exchanged((await self.sign_in(username))["access_token"], scope)


def authorization_url(**changes: str) -> str:
    """An authorization request of the agent; an empty string in ``changes`` leaves a field out."""
    form = {
        "response_type": "code",
        "client_id": "deputize-agent",
        "redirect_uri": REDIRECT,
        "scope": SCOPE,
        "state": "s-1",
        "nonce": "n-1",
        "code_challenge": challenge(),
        "code_challenge_method": "S256",
        **changes,
    }
    return f"/issuer/authorize?{urlencode({name: value for name, value in form.items() if value})}"


class Browser:
    """A browser: cookies, and forms that are submitted with the headers that browsers send."""

    def __init__(self, world: Inside) -> None:
        self.world = world
        self.http = httpx.AsyncClient(transport=world.network, base_url=URL, follow_redirects=False, trust_env=False)

    @property
    def cookie(self) -> str:
        return self.http.cookies.get("deputize_world") or ""

    async def get(self, url: str, **headers: str) -> httpx.Response:
        return await self.http.get(url, headers=headers)

    async def post(self, url: str, headers: Mapping[str, str] | None = None, **form: str) -> httpx.Response:
        """A form that is sent from a page of the issuer, unless ``headers`` say something else."""
        sent = {"origin": URL} if headers is None else headers
        return await self.http.post(url, data=form, headers=sent)

    async def csrf(self, url: str = "/issuer/login") -> str:
        """The token in the forms of this browser."""
        return fields((await self.get(url)).text)["csrf"]

    async def submit(self, url: str, **values: str) -> httpx.Response:
        """Open a page, fill in its form and send it."""
        page = await self.get(url)
        assert page.status_code == 200, page.text
        return await self.post(action(page.text), **{**fields(page.text), **values})

    async def log_in(self, username: str, password: str) -> httpx.Response:
        return await self.submit("/issuer/login", username=username, password=password)

    async def sign_in(self, username: str = "alice") -> None:
        answer = await self.log_in(username, self.world.world.installation.people[username].password)
        assert answer.status_code == 303, answer.text


def fields(page: str) -> dict[str, str]:
    """The inputs of a page with what they hold."""
    found = {}
    for tag in re.findall(r"<input[^>]*>", page):
        values = dict(re.findall(r'([a-z]+)="([^"]*)"', tag))
        found[values["name"]] = unescape(values.get("value", ""))
    return found


def action(page: str) -> str:
    """Where the page's form leads."""
    return unescape(re.findall(r'<form[^>]*action="([^"]*)"', page)[0])


def query_of(url: str) -> list[tuple[str, str]]:
    """A redirect's parameters, in order, repeated ones too."""
    return parse_qsl(urlsplit(url).query, keep_blank_values=True)
