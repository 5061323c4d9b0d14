"""The demo's tools. What each needs stands above it; nothing else in them is about identity."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import httpx
from langchain_core.tools import BaseTool, tool

from identity import AccessToken, approval, idempotency_key, needs, resource

__all__ = ["trading_tools"]


def trading_tools(url: str, mount: httpx.AsyncBaseTransport | None = None) -> list[BaseTool]:
    """Tools for the trading API at ``url``/trading; ``mount`` replaces the network in tests."""
    api = f"{url}/trading"

    def _client(token: AccessToken | None = None) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=mount, auth=token, trust_env=False, timeout=20)

    @tool
    @needs(read_only=True)
    async def get_quote(symbol: str) -> str:
        """The current price of a stock, by its ticker symbol. Anybody may ask."""
        async with _client() as client:
            quote = _checked(await client.get(f"{api}/quotes/{symbol}"))
        return f"{quote['symbol']}: {quote['price']} {quote['currency']}"

    @tool
    @needs(read_only=True, token=resource(api, "portfolio:read"))
    async def show_portfolio(token: AccessToken) -> str:
        """The stocks that the user owns."""
        async with _client(token) as client:
            portfolio = _checked(await client.get(f"{api}/portfolio"))
        lines = [f"{p['quantity']} {p['symbol']} at {p['price']}" for p in portfolio["positions"]]
        return "\n".join(lines) or "Nothing yet."

    @tool
    @needs(
        approval(when=lambda quantity, limit: quantity * limit > 1_000, type="stock_order"),
        token=resource(api, "orders:write"),
    )
    async def buy_stock(symbol: str, quantity: int, limit: Decimal, token: AccessToken) -> str:
        """Buy shares at or below a limit price. Large orders need the user's approval; the gate asks for it."""
        order = {"symbol": symbol, "quantity": quantity, "limit": str(limit)}
        async with _client(token) as client:
            headers = {"idempotency-key": idempotency_key()}
            filled = _checked(await client.post(f"{api}/orders", json=order, headers=headers))
        return f"Bought {filled['quantity']} {filled['symbol']} at {filled['price']} (order {filled['id']})"

    return [get_quote, show_portfolio, buy_stock]


def _checked(answer: httpx.Response) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    if answer.is_error:
        raise RuntimeError(f"the trading API answered {answer.status_code}: {body.get('error_description', body)}")
    return body
