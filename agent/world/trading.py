"""The trading API: an ordinary, strict resource server.

It trusts nobody's word for what was approved. Above its own limit it wants a token whose ``authorization_details`` say
exactly what it is asked to do, and counts them once (casebook B18).
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

import httpx
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from identity.authority import Inbound, endpoint, strict_json
from identity.errors import DeputizeError, TokenError
from identity.keyring import load_client
from identity.oauth.client import authenticated
from identity.oauth.jwt import AccessTokenClaims, JwksCache, NeedsFetch, jwks_request, key_id, validate_access_token
from identity.oauth.metadata import ServerMetadata, metadata_request, process_metadata_response
from identity.oauth.wire import Request, read_json
from identity.transport import Transport

from .installation import TRADING, Installation
from .storage import fingerprint

__all__ = ["ORDER_LIMIT", "PRICES", "Order", "Trading"]

ORDER_LIMIT = Decimal("1000.00")
"""USD. An order of more than this needs the person's approval, whatever the agent asked for."""

PRICES = {"ACME": "98.40", "NOVA": "41.15", "ORBT": "12.70", "HALO": "230.00"}
_HOLDINGS = {"ACME": 12, "NOVA": 40}
_ORDER = "stock_order"
_AMOUNT = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?")


@dataclass(frozen=True, slots=True)
class Order:
    """A filled order.

    Args:
        key: the caller's idempotency key.
        subject, actor: for whom, and by which agent.
        price: USD a share, as filled.
    """

    id: str
    key: str
    subject: str
    actor: str
    symbol: str
    quantity: int
    price: str
    created_at: float


class _RefusalError(Exception):
    """An answer of RFC 6750 §3.1: a challenge with 401 and 403; it names no error to who had sent no token."""

    def __init__(self, status: int, error: str, description: str, challenge: str = "") -> None:
        super().__init__(description)
        told = f', error="{error}"' if error != "token_required" else ""
        self.answer = JSONResponse(
            {"error": error, "error_description": description},
            status,
            headers={"www-authenticate": f'Bearer realm="trading"{told}{challenge}'} if status in (401, 403) else None,
        )


class Trading:
    """The API of one installation.

    Args:
        clock: unix seconds.
        mount: replaces the network to the issuer (tests).
    """

    def __init__(
        self, world: Installation, clock: Callable[[], float], mount: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._world = world
        self._db = world.database
        self._clock = clock
        self._transport = Transport((world.url,), mount)
        self._jwks = JwksCache()
        self._server: ServerMetadata | None = None

    def close(self) -> None:
        """Close its connections to the issuer."""
        self._transport.close()

    def routes(self) -> list[Route]:
        """Everything under ``/trading``."""
        return [
            Route("/quotes/{symbol}", endpoint(self._guarded(self._quote)), methods=["GET"]),
            Route("/portfolio", endpoint(self._guarded(self._portfolio)), methods=["GET"]),
            Route("/orders", endpoint(self._guarded(self._order)), methods=["POST"]),
        ]

    @staticmethod
    def _guarded(handler: Callable[[Inbound], Response]) -> Callable[[Inbound], Response]:
        def run(inbound: Inbound) -> Response:
            try:
                return handler(inbound)
            except _RefusalError as refusal:
                return refusal.answer

        return run

    # -- what it does ------------------------------------------------------------------------------------------------

    def price(self, symbol: str) -> str | None:
        """USD a share, or ``None`` for an unknown symbol."""
        rows = self._db.read("SELECT price FROM prices WHERE id = ?", (symbol,))
        return rows[0][0] if rows else PRICES.get(symbol)

    def set_price(self, symbol: str, price: str) -> None:
        """Move the market."""
        with self._db.write() as db:
            db.execute(
                "INSERT INTO prices (id, price) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET price = excluded.price",
                (symbol, price),
            )

    def orders(self) -> list[Order]:
        """Every filled order, oldest first."""
        rows = self._db.read(
            "SELECT id, key, subject, actor, symbol, quantity, price, created_at FROM orders ORDER BY rowid"
        )
        return [Order(*row) for row in rows]

    def _quote(self, inbound: Inbound) -> Response:
        symbol = inbound.path["symbol"].upper()
        price = self.price(symbol)
        if price is None:
            raise _RefusalError(404, "unknown_symbol", f"There is no such symbol. There are: {', '.join(PRICES)}")
        return JSONResponse({"symbol": symbol, "price": price, "currency": "USD"})

    def _portfolio(self, inbound: Inbound) -> Response:
        claims = self._token(inbound, "portfolio:read")
        held = dict(_HOLDINGS)
        for order in self.orders():
            if order.subject == claims.subject:
                held[order.symbol] = held.get(order.symbol, 0) + order.quantity
        positions = [
            {"symbol": symbol, "quantity": quantity, "price": self.price(symbol)} for symbol, quantity in held.items()
        ]
        return JSONResponse({"subject": claims.subject, "positions": positions, "currency": "USD"})

    def _order(self, inbound: Inbound) -> Response:
        claims = self._token(inbound, "orders:write")
        if claims.actor is None and claims.subject == claims.client_id:
            raise _RefusalError(403, "insufficient_scope", "The token is nobody's: an order is placed for a person")
        self._require_active(inbound)
        key = inbound.headers.get("idempotency-key", "")
        if not 16 <= len(key) <= 200 or not key.isprintable():
            raise _RefusalError(400, "invalid_request", "Send an Idempotency-Key of 16 to 200 characters")
        symbol, quantity, limit = _order_of(inbound.body)
        body = fingerprint(json.dumps([claims.subject, symbol, quantity, str(limit)]))
        before = self._db.read("SELECT id, body FROM orders WHERE key = ?", (key,))
        if before:
            return self._again(before[0], body)
        # A token for one order is good for that one only, however small another would be.
        bound = any(detail.get("type") == _ORDER for detail in claims.authorization_details)
        details = self._approved(claims, symbol, quantity, limit) if bound or quantity * limit > ORDER_LIMIT else ""
        price = self.price(symbol)
        if price is None:
            raise _RefusalError(404, "unknown_symbol", f"There is no such symbol. There are: {', '.join(PRICES)}")
        if Decimal(price) > limit:
            raise _RefusalError(409, "not_filled", f"{symbol} is at {price}, above the limit of {limit}")
        id_ = secrets.token_hex(8)
        with self._db.write() as db:
            added = db.execute(
                "INSERT INTO orders (id, key, body, details, subject, actor, symbol, quantity, price, created_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (id_, key, body, details, claims.subject, claims.actor or "", symbol, quantity, price, self._clock()),
            )
        if added.rowcount != 1:  # the same key, or the same approval, a moment before
            again = self._db.read("SELECT id, body FROM orders WHERE key = ?", (key,))
            if again:
                return self._again(again[0], body)
            raise _RefusalError(403, "approval_used", "This approval has been used for an order")
        return JSONResponse(_shown(next(order for order in self.orders() if order.id == id_)), 201)

    def _again(self, found: tuple[Any, ...], body: str) -> Response:
        if found[1] != body:
            raise _RefusalError(422, "idempotency_key_reused", "This Idempotency-Key was used for another order")
        return JSONResponse(_shown(next(order for order in self.orders() if order.id == found[0])))

    def _approved(self, claims: AccessTokenClaims, symbol: str, quantity: int, limit: Decimal) -> str:
        """The digest of the approval that fits this very order; it is stored with the order, once."""
        details = [d for d in claims.authorization_details if d.get("type") == _ORDER]
        challenge = f', max_order="{ORDER_LIMIT}"'
        if len(details) != 1 or len(claims.authorization_details) != 1:
            raise _RefusalError(
                403,
                "insufficient_user_authorization",
                f"Orders above {ORDER_LIMIT} USD need the person's approval",
                challenge,
            )
        detail, asked = details[0], details[0].get("arguments")
        fits = (
            isinstance(asked, dict)
            and detail.get("locations") == [self._world.trading]
            and detail.get("actions") == ["buy_stock"]
            and set(asked) == {"symbol", "quantity", "limit"}
            and asked["symbol"] == symbol
            and type(asked["quantity"]) is int
            and asked["quantity"] == quantity
            and _decimal(asked["limit"]) == limit
        )
        if not fits or not isinstance(detail.get("digest"), str):
            raise _RefusalError(403, "insufficient_user_authorization", "What was approved is another order", challenge)
        return fingerprint(f"{claims.subject} {detail['digest']}")

    # -- tokens --------------------------------------------------------------------------------------------------------

    def _token(self, inbound: Inbound, scope: str) -> AccessTokenClaims:
        kind, _, token = inbound.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token:
            raise _RefusalError(401, "token_required", "Send an access token")
        try:
            keys = self._transport.call(self._keys, key_id(token))
            claims = validate_access_token(
                token, keys=keys, issuer=self._world.issuer, audience=self._world.trading, now=self._clock()
            )
        except TokenError as error:
            raise _RefusalError(401, "invalid_token", error.message) from None
        except DeputizeError:
            raise _RefusalError(503, "temporarily_unavailable", "The issuer's keys cannot be had") from None
        if scope not in claims.scopes:
            raise _RefusalError(403, "insufficient_scope", f"The scope {scope} is needed", f', scope="{scope}"')
        return claims

    async def _keys(self, kid: str | None) -> Any:
        found = self._jwks.lookup(kid, self._clock())
        if isinstance(found, NeedsFetch):
            self._jwks.store(await self._transport.send(jwks_request(await self._issuer())), self._clock())
            found = self._jwks.lookup(kid, self._clock())
        return found

    async def _issuer(self) -> ServerMetadata:
        if self._server is None:
            answer = await self._transport.send(metadata_request(self._world.issuer))
            self._server = process_metadata_response(self._world.issuer, answer, allow_origins=(self._world.url,))
        return self._server

    def _require_active(self, inbound: Inbound) -> None:
        """Orders are worth a question: has the token been revoked, its person or its agent disabled (RFC 7662)?"""
        token = inbound.headers["authorization"].partition(" ")[2]
        try:
            active = self._transport.call(self._introspect, token)
        except DeputizeError:
            raise _RefusalError(503, "temporarily_unavailable", "The issuer cannot be asked") from None
        if not active:
            raise _RefusalError(401, "invalid_token", "The token was revoked")

    async def _introspect(self, token: str) -> bool:
        server = await self._issuer()
        client = load_client(TRADING, self._world.folder / "trading-client.json")
        form = authenticated((("token", token),), client, server, self._clock())
        answer = await self._transport.send(Request("POST", server.endpoint("introspection_endpoint"), form))
        return read_json(answer, "The introspection endpoint").get("active") is True


def _order_of(body: bytes) -> tuple[str, int, Decimal]:
    try:
        order = strict_json(body)
        symbol, quantity, limit = order["symbol"], order["quantity"], _decimal(order["limit"])
    except (ValueError, KeyError, TypeError):
        symbol, quantity, limit = None, None, None
    if (
        not isinstance(symbol, str)
        or type(quantity) is not int
        or not 0 < quantity <= 10**9
        or limit is None
        or limit <= 0
    ):
        raise _RefusalError(
            400, "invalid_request", "Send symbol, quantity (a positive integer) and limit (a decimal in a string)"
        )
    return symbol, quantity, limit


def _decimal(value: object) -> Decimal | None:
    """An amount in plain digits: ``1E+999999`` and ``1_000`` are decimals too, but nobody's idea of a limit."""
    return Decimal(value) if isinstance(value, str) and _AMOUNT.fullmatch(value) else None


def _shown(order: Order) -> dict[str, Any]:
    return {
        **{name: value for name, value in asdict(order).items() if name not in ("key", "subject")},
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(order.created_at)),
    }
