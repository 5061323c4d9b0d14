"""oidc-provider in a process of its own, with TLS of a private authority; the people who sign in there; an API that trusts it."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from identity.errors import TokenError
from identity.keyring import create_client_key
from identity.oauth.jwt import AccessTokenClaims, KeySet, key_id, validate_access_token
from identity.settings import PING_PATH

__all__ = ["API", "CLIENT_ID", "Api", "Person", "Provider", "running"]

FOLDER = Path(__file__).parent
CLIENT_ID = "the-agent"
PINGED = f"{CLIENT_ID}-pinged"
API = "https://api.example/trading"

_WANTED = "The interop tests run panva's oidc-provider: install Node.js 20.20 or newer with its npm."
_PEOPLE = {
    "alice": {"name": "Alice Archer"},
    "bob": {"name": "Bob Baker"},
    "hasty": {"name": "Hasty Harris", "patience": 1},  # whose requests live for one second
}
_GRANTS = [
    "authorization_code",
    "refresh_token",
    "urn:ietf:params:oauth:grant-type:device_code",
    "urn:ietf:params:oauth:grant-type:token-exchange",
    "urn:openid:params:grant-type:ciba",
]


@dataclass(frozen=True)
class Provider:
    """The running server, and what its client must have.

    Args:
        ca_file: the authority that signed the server's certificate.
        client_key_file: the private key whose public part is registered there.
        trust: ``ca_file``, for those who are not deputize.
    """

    issuer: str
    ca_file: Path
    client_key_file: Path
    trust: ssl.SSLContext
    log: Path
    pings: socket.socket
    tls: tuple[Path, Path]


@contextmanager
def running(folder: Path) -> Iterator[Provider]:
    """Install the pinned packages beside this file if they are not there, and run the server until the block ends."""
    _install()
    ca_file, key, certificate = _certificates(folder)
    client_key_file = folder / "client-key.json"
    client = {
        "client_id": CLIENT_ID,
        "application_type": "native",  # whose loopback redirect may have any port (RFC 8252 §7.3)
        "redirect_uris": ["http://127.0.0.1/callback"],
        "response_types": ["code"],
        "grant_types": _GRANTS,
        "token_endpoint_auth_method": "private_key_jwt",
        "token_endpoint_auth_signing_alg": "ES256",
        "backchannel_token_delivery_mode": "poll",
        "authorization_details_types": ["stock_order"],  # RFC 9396 §10
        "jwks": {"keys": [create_client_key(client_key_file)]},
    }
    pings = socket.create_server(("127.0.0.1", 0))
    settings = {
        "port": 0,
        "tls": {"key": str(key), "cert": str(certificate)},
        "people": _PEOPLE,
        "apis": {API: ["portfolio:read", "orders:write"]},
        "clients": [
            {
                **client,
                "client_id": PINGED,
                "backchannel_token_delivery_mode": "ping",
                "backchannel_client_notification_endpoint": f"https://127.0.0.1:{pings.getsockname()[1]}{PING_PATH}",
            },
            client,
        ],
    }
    configuration = folder / "config.json"
    configuration.write_text(json.dumps(settings))
    log = folder / "server.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            ["node", "server.mjs", str(configuration)],
            cwd=FOLDER,
            env={**os.environ, "NODE_EXTRA_CA_CERTS": str(ca_file)},  # for the pings that it sends
            stdin=subprocess.PIPE,  # the server ends when this closes, however we end
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    assert process.stdin is not None and process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, f"oidc-provider did not start:\n{log.read_text()[-4000:]}"
        trust = ssl.create_default_context(cafile=ca_file)
        yield Provider(json.loads(line)["issuer"], ca_file, client_key_file, trust, log, pings, (certificate, key))
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        pings.close()


def _install() -> None:
    """The packages that package.json pins, beside it. What is there already is not fetched again."""
    missing = [program for program in ("node", "npm") if shutil.which(program) is None]
    if missing:
        pytest.fail(f"{' and '.join(missing)} cannot be found. {_WANTED}", pytrace=False)
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if tuple(int(part) for part in version.removeprefix("v").split(".")[:2]) < (20, 20):
        pytest.fail(f"node is {version}, which is too old. {_WANTED}", pytrace=False)
    done = subprocess.run(["npm", "install"], cwd=FOLDER, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.fail(f"npm install failed in {FOLDER}:\n{done.stderr[-2000:]}", pytrace=False)


def _certificates(folder: Path) -> tuple[Path, Path, Path]:
    """A private authority's certificate, and the key and certificate that it gave to 127.0.0.1."""
    now = datetime.datetime.now(datetime.UTC)
    authority, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def certificate(name: str, key: ec.EllipticCurvePrivateKey, *extensions: tuple[x509.ExtensionType, bool]) -> bytes:
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "A private authority")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        )
        for extension, critical in extensions:
            made = made.add_extension(extension, critical)
        return made.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    signs = x509.KeyUsage(
        key_cert_sign=True,
        crl_sign=True,
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    files = folder / "ca.pem", folder / "server-key.pem", folder / "server.pem"
    files[0].write_bytes(
        certificate("A private authority", authority, (x509.BasicConstraints(True, 0), True), (signs, True))
    )
    files[1].write_bytes(
        server.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))])
    files[2].write_bytes(certificate("127.0.0.1", server, (x509.BasicConstraints(False, None), True), (host, False)))
    return files


class Person:
    """Somebody with a browser and a telephone."""

    def __init__(self, provider: Provider, login: str) -> None:
        self.login = login
        self._phone = f"{provider.issuer}/phone/{login}"
        self._browser = httpx.AsyncClient(verify=provider.trust, trust_env=False, timeout=20)

    async def close(self) -> None:
        await self._browser.aclose()

    async def sign_in(self, request: Mapping[str, Any]) -> str:
        """Go through every page that the link of a login request leads to, and return the text of the last one."""
        known = {"login": self.login, "password": "any", "user_code": request["code"]}
        answer = await self._browser.get(request["url"], follow_redirects=True)
        for _ in range(8):
            page = _Page(answer)
            if page.action is None:
                return page.text
            filled = {name: value or known.get(name, "") for name, value in page.fields.items()}
            answer = await self._browser.post(page.action, data=filled, follow_redirects=True)
        raise AssertionError(f"There is always one more page: {page.text}")

    async def waiting(self) -> list[dict[str, Any]]:
        """What the telephone shows."""
        shown: list[dict[str, Any]] = (await self._browser.get(self._phone)).raise_for_status().json()
        return shown

    async def decide(self, request: Mapping[str, Any], *, approve: bool, **changed: Any) -> None:
        """Press a button on the telephone. ``changed`` is what the server grants instead of what was asked."""
        decision = {"id": request["id"], "approve": approve, **changed}
        (await self._browser.post(self._phone, json=decision)).raise_for_status()


class _Page(HTMLParser):
    def __init__(self, answer: httpx.Response) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}
        self.text = ""
        self._url = str(answer.url)
        self._hidden = False
        self.feed(answer.text)
        assert answer.is_success, f"{urlsplit(self._url).path} answered {answer.status_code}: {self.text}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self._hidden = tag in ("style", "script")
        if tag == "form":
            self.action = urljoin(self._url, values["action"])
        elif tag == "input":
            self.fields[values["name"]] = values.get("value", "")

    def handle_data(self, data: str) -> None:
        if data.strip() and not self._hidden:
            self.text += f"{data.strip()}\n"


class Api:
    """A trading API such as a company has: it knows its own name, its issuer and the issuer's keys, and nothing of agents.

    Nor of idempotency keys: ``orders`` is what it executed, and with what token, however often it was sent.
    """

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._keys: KeySet | None = None
        self.orders: list[tuple[dict[str, Any], AccessTokenClaims]] = []
        routes = [
            Route("/trading/quotes/{symbol}", self._quote),
            Route("/trading/portfolio", self._portfolio),
            Route("/trading/orders", self._order, methods=["POST"]),
        ]
        self.network = httpx.ASGITransport(Starlette(routes=routes))

    def claims(self, token: str, now: float) -> AccessTokenClaims:
        """What a token says, validated as RFC 9068 §4 has it."""
        if self._keys is None or key_id(token) not in self._keys:
            with httpx.Client(verify=self._provider.trust, trust_env=False) as client:
                found = client.get(f"{self._provider.issuer}/.well-known/openid-configuration").json()
                self._keys = KeySet.of(client.get(found["jwks_uri"]).json())
        return validate_access_token(token, keys=self._keys, issuer=self._provider.issuer, audience=API, now=now)

    async def _quote(self, request: Request) -> JSONResponse:
        return JSONResponse({"symbol": request.path_params["symbol"], "price": "98.40", "currency": "EUR"})

    async def _portfolio(self, request: Request) -> JSONResponse:
        claims = self._authorized(request, "portfolio:read")
        if isinstance(claims, JSONResponse):
            return claims
        return JSONResponse({"positions": [{"symbol": f"of {claims.subject}", "quantity": 12, "price": "98.40"}]})

    async def _order(self, request: Request) -> JSONResponse:
        claims = self._authorized(request, "orders:write")
        if isinstance(claims, JSONResponse):
            return claims
        order = await request.json()
        approved = [detail.get("arguments") for detail in claims.authorization_details]
        if order["quantity"] * float(order["limit"]) > 1_000 and order not in approved:
            return JSONResponse({"error_description": "an order of this size must have been approved"}, 403)
        self.orders.append((order, claims))
        return JSONResponse({**order, "price": "98.40", "id": len(self.orders)})

    def _authorized(self, request: Request, scope: str) -> AccessTokenClaims | JSONResponse:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        try:
            claims = self.claims(token, datetime.datetime.now(datetime.UTC).timestamp())
        except TokenError as error:
            return JSONResponse({"error_description": str(error)}, 401)
        if scope not in claims.scopes:
            return JSONResponse({"error_description": f"{scope} is missing"}, 403)
        return claims
