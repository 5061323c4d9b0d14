"""The demo's tools. What each needs stands above it; nothing else in them is about identity."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from urllib.parse import quote

import httpx
from langchain_core.tools import BaseTool, tool

from identity import AccessToken, Identity, approval, idempotency_key, may, needs, resource, signed_in

from .forecasts import FORECASTS, KeywordRetriever

__all__ = ["research_tools", "trading_tools"]


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
            told = _checked(await client.get(f"{api}/quotes/{quote(symbol, safe='')}"))
        return f"{told['symbol']}: {told['price']} {told['currency']}"

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
        may("can_buy", "instrument:{symbol}"),
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


def research_tools(identity: Identity) -> list[BaseTool]:
    """Tools over the agent's own documents, each person's part of them."""
    forecasts = identity.permitted(KeywordRetriever(documents=FORECASTS), "can_read", "forecast")

    @tool
    @needs(signed_in(), read_only=True)
    async def get_forecast(symbol: str) -> str:
        """What analysts expect of a stock, by its ticker symbol: the forecasts that the user may read."""
        found = await forecasts.ainvoke(symbol)
        return "\n".join(d.page_content for d in found) or f"There is no forecast for {symbol} that you may read."

    return [get_forecast]


def _checked(answer: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer; what the API says is wrong, as the sentence that the person is told."""
    try:
        body: dict[str, Any] = answer.json()
    except ValueError:
        raise RuntimeError(f"the trading API answered {answer.status_code}, and no JSON") from None
    if answer.is_error:
        raise RuntimeError(f"the trading API answered {answer.status_code}: {body.get('error_description', body)}")
    return body
