"""The trading API as a strict resource server: tokens, its own limit, idempotency (RFC 6750, RFC 9068 §4, RFC 9396)."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from tests.support import Inside
from tests.world.driver import ISSUER, TRADING, Driver, claims, order_details

KEY = "an-idempotency-key"


def refused(answer: httpx.Response, status: int, error: str) -> None:
    assert (answer.status_code, answer.json()["error"]) == (status, error), answer.text


async def test_quotes_are_public(driver: Driver) -> None:
    answer = await driver.http.get("/trading/quotes/acme")
    assert answer.json() == {"symbol": "ACME", "price": "98.40", "currency": "USD"}
    refused(await driver.http.get("/trading/quotes/%3Cscript%3E"), 404, "unknown_symbol")


async def test_a_small_order_is_filled_for_the_person_by_the_agent(driver: Driver, world: Inside) -> None:
    answer = await driver.order(await driver.trading_token(), quantity=10, limit="100.00")
    assert answer.status_code == 201
    (order,) = world.orders()
    assert (order.subject, order.actor) == (world.world.installation.people["alice"].subject, "deputize-agent")
    assert (order.symbol, order.quantity, order.price) == ("ACME", 10, "98.40")
    portfolio = await driver.portfolio(await driver.trading_token(scope="portfolio:read"))
    held = {position["symbol"]: position["quantity"] for position in portfolio.json()["positions"]}
    assert held == {"ACME": 22, "NOVA": 40}


async def test_who_sends_no_token_is_told_so_and_no_error(driver: Driver) -> None:
    """RFC 6750 §3.1: without a token the challenge names no error."""
    for headers in ({}, {"authorization": "Basic eDp5"}, {"authorization": "Bearer"}, {"authorization": "Bearer "}):
        answer = await driver.http.get("/trading/portfolio", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == 'Bearer realm="trading"'
    answer = await driver.http.get("/trading/portfolio?access_token=" + await driver.trading_token())
    assert answer.status_code == 401


async def test_a_missing_scope_is_named_in_the_challenge(driver: Driver, world: Inside) -> None:
    orders, portfolio = await driver.trading_token(), await driver.trading_token(scope="portfolio:read")
    answer = await driver.portfolio(orders)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (
        403,
        'Bearer realm="trading", error="insufficient_scope", scope="portfolio:read"',
    )
    refused(await driver.order(portfolio), 403, "insufficient_scope")
    assert world.orders() == []


def _not_ours(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda found: {**found, **changes}


@pytest.mark.case("A8")
@pytest.mark.parametrize(
    ("header", "change"),
    [
        ({}, _not_ours(aud="deputize-agent")),
        ({}, _not_ours(aud=f"{TRADING}/")),
        ({}, _not_ours(aud=["https://other.example"])),
        ({}, _not_ours(iss=f"{ISSUER}/")),
        ({}, _not_ours(iss="https://evil.example")),
        ({}, _not_ours(exp=1_800_000_000 - 61)),
        ({}, _not_ours(nbf=1_800_000_000 + 61)),
        ({}, _not_ours(sub="")),
        ({}, _not_ours(jti="unknown to the issuer")),
        ({"typ": "JWT"}, _not_ours()),
        ({"typ": None}, _not_ours()),
        ({"kid": "another"}, _not_ours()),
        ({"kid": "../../issuer-key"}, _not_ours()),
    ],
    ids=lambda value: None if callable(value) else str(value),
)
async def test_a_token_that_is_not_for_this_api_is_refused(
    driver: Driver, world: Inside, header: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    key = world.world.installation.signing_key
    good = claims(await driver.trading_token())
    head = {"alg": "ES256", "typ": "at+jwt", "kid": key.kid, **header}
    head = {name: value for name, value in head.items() if value is not None}
    refused(await driver.order(jwt.encode(head, change(good), key, algorithms=["ES256"])), 401, "invalid_token")
    assert world.orders() == []


@pytest.mark.case("A8")
async def test_an_id_token_or_refresh_token_or_anothers_signature_opens_nothing(driver: Driver, world: Inside) -> None:
    tokens = await driver.sign_in()
    forged = jwt.encode(
        {"alg": "ES256", "typ": "at+jwt", "kid": world.world.installation.signing_key.kid},
        claims(await driver.trading_token()),
        ECKey.generate_key("P-256", private=True),
        algorithms=["ES256"],
    )
    for token in (tokens["id_token"], tokens["refresh_token"], tokens["access_token"], forged, "x", "a.b.c", "é"):
        headers = {"authorization": f"Bearer {token}".encode(), "idempotency-key": KEY}
        refused(await driver.http.post("/trading/orders", headers=headers), 401, "invalid_token")
        answer = await driver.http.get("/trading/portfolio", headers=headers)
        assert answer.headers["www-authenticate"] == 'Bearer realm="trading", error="invalid_token"'


@pytest.mark.case("B18")
async def test_above_the_limit_an_order_needs_its_approval_and_then_counts_once(driver: Driver, world: Inside) -> None:
    refused(await driver.order(await driver.trading_token(), quantity=50), 403, "insufficient_user_authorization")
    token = await driver.approved(order_details(quantity=50))
    assert (await driver.order(token, quantity=50)).status_code == 201
    refused(await driver.order(token, quantity=50), 403, "approval_used")
    assert [order.quantity for order in world.orders()] == [50]


@pytest.mark.case("B18")
@pytest.mark.parametrize(
    ("quantity", "limit", "needs"),
    [
        (10, "100.00", False),
        (10, "100.01", True),
        (11, "98.40", True),
        (1, "1000.000000", False),
        (1, "1000.000001", True),
        (10**9, "999999999999.999999", True),
    ],
)
async def test_the_limit_is_the_apis_own(driver: Driver, quantity: int, limit: str, needs: bool) -> None:
    answer = await driver.order(await driver.trading_token(), quantity=quantity, limit=limit)
    assert answer.status_code == (403 if needs else 201)


@pytest.mark.case("B18", "B4")
@pytest.mark.parametrize(
    "details",
    [
        [],
        order_details(quantity=51),
        order_details(quantity=49),
        order_details(quantity=5_000),
        order_details(limit="100.01"),
        order_details(limit="99.99"),
        order_details(symbol="NOVA"),
        order_details(symbol="acme"),
        order_details(locations=["https://other.example"]),
        order_details(locations=[TRADING, "https://other.example"]),
        order_details(locations=None),
        order_details(actions=["sell_stock"]),
        order_details(actions=["buy_stock", "sell_stock"]),
        order_details(actions=None),
        order_details(type="tool_call"),
        order_details(arguments={"symbol": "ACME", "quantity": 50, "limit": "100.00", "account": "other"}),
        order_details(arguments={"symbol": "ACME", "quantity": 50}),
        order_details(arguments={"symbol": "ACME", "quantity": "50", "limit": "100.00"}),
        order_details(arguments={"symbol": "ACME", "quantity": 50.0, "limit": "100.00"}),
        order_details(arguments={"symbol": "ACME", "quantity": 50, "limit": 100}),
        order_details(arguments={"symbol": "ACME", "quantity": True, "limit": "100.00"}),
        order_details(arguments=["ACME", 50, "100.00"]),
        order_details(arguments=None),
        order_details(digest=None),
        order_details(digest=1),
        order_details() + order_details(),
        order_details() + order_details(type="tool_call"),
    ],
    ids=lambda details: str([{**detail, "digest": "…"} for detail in details])[:110],
)
async def test_details_that_are_not_exactly_this_order_buy_nothing(
    driver: Driver, world: Inside, details: list[dict[str, Any]]
) -> None:
    token = await driver.approved(details)
    refused(await driver.order(token, quantity=50, limit="100.00"), 403, "insufficient_user_authorization")
    assert world.orders() == []


@pytest.mark.case("B18")
async def test_a_token_for_one_order_buys_no_other_however_small(driver: Driver, world: Inside) -> None:
    token = await driver.approved(order_details(quantity=50))
    refused(await driver.order(token, quantity=1), 403, "insufficient_user_authorization")
    refused(await driver.order(token, symbol="ORBT", quantity=1), 403, "insufficient_user_authorization")
    assert (await driver.order(token, quantity=50)).status_code == 201
    assert len(world.orders()) == 1


@pytest.mark.case("B18")
async def test_the_same_approval_in_two_tokens_counts_once(driver: Driver) -> None:
    details = order_details()
    tokens = [await driver.approved(details), await driver.approved(details)]
    assert [(await driver.order(token, quantity=50)).status_code for token in tokens] == [201, 403]


@pytest.mark.case("B18")
async def test_an_approval_spent_by_many_at_once_fills_one_order(driver: Driver, world: Inside) -> None:
    token = await driver.approved(order_details())
    answers = await asyncio.gather(*(driver.order(token, quantity=50) for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [201] + [403] * 19
    assert len(world.orders()) == 1


@pytest.mark.case("B18")
async def test_an_idempotency_key_is_one_order(driver: Driver, world: Inside) -> None:
    token = await driver.trading_token()
    first = await driver.order(token, key=KEY)
    again = await driver.order(token, key=KEY)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    for changes in ({"quantity": 6}, {"limit": "99.00"}, {"symbol": "ORBT"}):
        refused(await driver.order(token, key=KEY, **changes), 422, "idempotency_key_reused")
    bobs = await driver.trading_token("bob")
    refused(await driver.order(bobs, key=KEY), 422, "idempotency_key_reused")
    assert len(world.orders()) == 1


@pytest.mark.case("B18")
async def test_an_approved_order_can_be_asked_about_again_by_its_key(driver: Driver) -> None:
    token = await driver.approved(order_details())
    first = await driver.order(token, quantity=50, key=KEY)
    again = await driver.order(token, quantity=50, key=KEY)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    refused(await driver.order(token, quantity=500, key=KEY), 422, "idempotency_key_reused")


async def test_one_key_sent_by_many_at_once_fills_one_order(driver: Driver) -> None:
    token = await driver.trading_token()
    answers = await asyncio.gather(*(driver.order(token, key=KEY) for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1


@pytest.mark.parametrize("key", ["short", "x" * 201, "x" * 16 + "\x7f", ""])
async def test_an_order_without_a_usable_key_is_refused(driver: Driver, key: str) -> None:
    headers = {"authorization": f"Bearer {await driver.trading_token()}"} | ({"idempotency-key": key} if key else {})
    body = {"symbol": "ACME", "quantity": 5, "limit": "100.00"}
    refused(await driver.http.post("/trading/orders", json=body, headers=headers), 400, "invalid_request")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'"ACME"',
        b'{"symbol": "ACME", "quantity": 5}',
        b'{"symbol": "ACME", "quantity": 5, "limit": 100}',
        b'{"symbol": "ACME", "quantity": 5, "limit": "1E+999999"}',
        b'{"symbol": "ACME", "quantity": 1000000000, "limit": "9E+999999"}',
        b'{"symbol": "ACME", "quantity": 5, "limit": "NaN"}',
        b'{"symbol": "ACME", "quantity": 5, "limit": "-1"}',
        b'{"symbol": "ACME", "quantity": 5, "limit": "0"}',
        b'{"symbol": "ACME", "quantity": 5, "limit": "1_000"}',
        b'{"symbol": "ACME", "quantity": 5, "limit": " 100"}',
        b'{"symbol": "ACME", "quantity": 5, "limit": "\\u0661"}',
        b'{"symbol": "ACME", "quantity": 5.0, "limit": "100"}',
        b'{"symbol": "ACME", "quantity": true, "limit": "100"}',
        b'{"symbol": "ACME", "quantity": "5", "limit": "100"}',
        b'{"symbol": "ACME", "quantity": 0, "limit": "100"}',
        b'{"symbol": "ACME", "quantity": -5, "limit": "100"}',
        b'{"symbol": "ACME", "quantity": 1000000001, "limit": "100"}',
        b'{"symbol": ["ACME"], "quantity": 5, "limit": "100"}',
        b'{"symbol": "ACME", "quantity": 5, "quantity": 10, "limit": "100"}',
        b'{"symbol": "ACME", "quantity": ' + b"9" * 5_000 + b', "limit": "100"}',
        b"[" * 60_000,
        b"\xff",
    ],
    ids=lambda body: str(body[:70]),
)
@pytest.mark.case("A14")
async def test_a_body_that_is_no_order_is_refused(driver: Driver, world: Inside, body: bytes) -> None:
    headers = {"authorization": f"Bearer {await driver.trading_token()}", "idempotency-key": KEY}
    refused(await driver.http.post("/trading/orders", content=body, headers=headers), 400, "invalid_request")
    assert world.orders() == []


async def test_an_order_is_filled_at_the_price_and_never_above_its_limit(driver: Driver, world: Inside) -> None:
    token = await driver.trading_token()
    world.world.trading.set_price("ACME", "100.01")
    refused(await driver.order(token, limit="100.00", key=KEY), 409, "not_filled")
    refused(await driver.order(token, symbol="NONE"), 404, "unknown_symbol")
    world.world.trading.set_price("ACME", "99.99")
    assert (await driver.order(token, limit="100.00", key=KEY)).json()["price"] == "99.99"


async def test_a_revoked_token_places_no_order(driver: Driver, world: Inside) -> None:
    token = await driver.trading_token()
    await driver.post("revoke", {"token": token})
    refused(await driver.order(token), 401, "invalid_token")
    assert world.orders() == []


async def test_while_the_issuer_cannot_be_asked_no_order_is_filled(driver: Driver, world: Inside) -> None:
    token = await driver.trading_token()
    world.network.fault = lambda request: httpx.Response(500) if "introspect" in str(request.url) else None
    refused(await driver.order(token), 503, "temporarily_unavailable")
    world.network.fault = lambda request: httpx.ReadTimeout("") if "introspect" in str(request.url) else None
    refused(await driver.order(token, key=secrets.token_hex(8)), 503, "temporarily_unavailable")
    assert world.orders() == []
    world.network.fault = None
    assert (await driver.order(token)).status_code == 201
