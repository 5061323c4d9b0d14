"""The demo's tools: what each declares, and what it sends to the trading API."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import httpx
import pytest
from langchain_core.messages import ToolMessage
from langchain_core.utils.function_calling import convert_to_openai_tool

from agent.offline import OfflineModel
from agent.tools import research_tools, trading_tools
from identity import DeputizeError
from identity.needs import needs_of
from tests.support import URL, Inside, as_caller, assistant, calls, config, last, requests, say, sign_in

TOOLS = {tool.name: tool for tool in trading_tools(URL)}


def told(state: dict[str, Any]) -> list[ToolMessage]:
    return [message for message in state["messages"] if isinstance(message, ToolMessage)]


def sent(world: Inside, path: str) -> list[Any]:
    return [request for request in world.network.sent if request.url.startswith(f"{URL}/trading{path}")]


@pytest.mark.case("E27")
def test_models_are_shown_no_token_parameter() -> None:
    shown = {name: convert_to_openai_tool(tool)["function"] for name, tool in TOOLS.items()}
    assert {name: sorted(f["parameters"]["properties"]) for name, f in shown.items()} == {
        "get_quote": ["symbol"],
        "show_portfolio": [],
        "buy_stock": ["limit", "quantity", "symbol"],
    }
    assert "token" not in json.dumps(shown).lower()


@pytest.mark.case("E27")
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("show_portfolio", {}), ("buy_stock", {"symbol": "ACME", "quantity": 1, "limit": "1"})],
)
async def test_a_guarded_tool_that_is_called_outside_a_graph_refuses(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(DeputizeError, match="outside its gate"):
        await TOOLS[name].ainvoke(arguments)


def test_each_tool_asks_for_the_least_that_it_needs() -> None:
    declared = {
        name: [(p, r.audience, r.scopes) for p, r in needs_of(tool).tokens.items()] for name, tool in TOOLS.items()
    }
    assert declared == {
        "get_quote": [],
        "show_portfolio": [("token", f"{URL}/trading", ("portfolio:read",))],
        "buy_stock": [("token", f"{URL}/trading", ("orders:write",))],
    }
    assert {name for name, tool in TOOLS.items() if needs_of(tool).read_only} == {"get_quote", "show_portfolio"}


@pytest.mark.parametrize(
    ("quantity", "limit", "asks"),
    [(10, "100", False), (10, "100.01", True), (1, "1000", False), (1, "1000.01", True), (50, "100", True)],
)
def test_an_order_of_more_than_a_thousand_needs_a_yes(quantity: int, limit: str, asks: bool) -> None:
    arguments = {"symbol": "ACME", "quantity": quantity, "limit": Decimal(limit)}
    assert (needs_of(TOOLS["buy_stock"]).approval_for(arguments) is not None) is asks


async def test_anybody_may_ask_for_a_quote_and_no_token_is_sent(world: Inside) -> None:
    state = await say(assistant(world, calls(("get_quote", {"symbol": "ACME"}))))
    assert not requests(state)
    assert [m.text for m in told(state)] == ["ACME: 98.40 USD"]
    (request,) = sent(world, "/quotes")
    assert "authorization" not in request.headers
    assert world.issued_tokens == []


@pytest.mark.parametrize("symbol", ["../portfolio", "ACME/../../issuer", "ACME?x=1", "ACME#x", "%2e%2e", "", "Tesla"])
async def test_a_symbol_is_one_segment_of_the_path_whatever_a_model_writes(world: Inside, symbol: str) -> None:
    state = await say(assistant(world, calls(("get_quote", {"symbol": symbol}))))
    assert [m.status for m in told(state)] == ["error"]
    for request in world.network.sent:
        assert request.url.startswith(f"{URL}/trading/quotes/")
        assert request.url.count("/") == f"{URL}/trading/quotes/".count("/")
        assert "?" not in request.url


async def test_an_order_carries_a_delegated_token_and_the_effects_own_key(world: Inside) -> None:
    graph = assistant(world, calls(("buy_stock", {"symbol": "ACME", "quantity": 5, "limit": "100"})))
    state = await sign_in(world, graph)
    (order,) = world.orders()
    assert (order.subject, order.actor) == (world.person("alice").principal.subject, "deputize-agent")
    (request,) = sent(world, "/orders")
    assert request.headers["authorization"].removeprefix("Bearer ") in world.issued_tokens
    assert request.headers["idempotency-key"] == order.key
    assert f"(order {order.id})" in told(state)[0].text


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (httpx.Response(502, html="<h1>Bad gateway</h1>"), "answered 502, and no JSON"),
        (httpx.Response(200, html="<h1>Welcome to the hotel's network</h1>"), "answered 200, and no JSON"),
        (httpx.Response(503, json={"error_description": "closed for lunch"}), "answered 503: closed for lunch"),
        (httpx.Response(500, json={}), "answered 500: {}"),
        (httpx.ConnectError("refused"), "ConnectError"),
    ],
)
async def test_what_is_wrong_with_the_api_is_told_in_one_line(
    world: Inside, answer: httpx.Response | Exception, expected: str
) -> None:
    world.network.fault = lambda request: answer if "/trading/quotes" in str(request.url) else None
    state = await say(assistant(world, calls(("get_quote", {"symbol": "ACME"}))))
    (message,) = told(state)
    assert message.status == "error"
    assert expected in message.text
    assert "\n" not in message.text
    assert "<h1>" not in message.text


def forecasts(state: dict[str, Any]) -> list[str]:
    (message,) = told(state)
    return message.text.splitlines()


async def test_a_forecast_needs_a_sign_in_and_no_token(world: Inside) -> None:
    (tool,) = research_tools(world.identity)
    assert sorted(convert_to_openai_tool(tool)["function"]["parameters"]["properties"]) == ["symbol"]
    graph = assistant(world, calls(("get_forecast", {"symbol": "NOVA"})), tools=[tool])
    state = await sign_in(world, graph)
    assert len(forecasts(state)) == 2
    assert not [grant for grant in world.network.grants() if "token-exchange" in grant]


@pytest.mark.parametrize(
    ("who", "symbol", "analysts"),
    [
        ("alice", "NOVA", ["R. Ng", "D. Okoye"]),
        ("carol", "ACME", ["R. Ng", "D. Okoye"]),
        ("alice", "ORBT", ["P. Silva"]),
        ("bob", "NOVA", ["R. Ng"]),
        ("bob", "ACME", ["R. Ng"]),
        ("bob", "HALO", ["P. Silva"]),
    ],
)
async def test_each_person_is_shown_the_forecasts_that_they_may_read(
    world: Inside, who: str, symbol: str, analysts: list[str]
) -> None:
    graph = assistant(world, calls(("get_forecast", {"symbol": symbol})), tools=research_tools(world.identity))
    lines = forecasts(await sign_in(world, graph, who))
    assert [line.partition(": ")[0] for line in lines] == [f"{symbol} ({analyst})" for analyst in analysts]


@pytest.mark.parametrize("symbol", ["ORBT", "TSLA", "", "NOVA'; --", "traders only"])
async def test_what_may_not_be_read_is_told_like_what_is_not_there(world: Inside, symbol: str) -> None:
    graph = assistant(world, calls(("get_forecast", {"symbol": symbol})), tools=research_tools(world.identity))
    lines = forecasts(await sign_in(world, graph, "bob"))
    if symbol.startswith("NOVA"):
        assert lines == ["NOVA (R. Ng): growing with its market, 45 USD in a year"]
    else:
        assert lines == [f"There is no forecast for {symbol} that you may read."]


async def test_the_offline_model_asks_for_forecasts_and_tells_that_bob_may_not_buy(world: Inside) -> None:
    graph = assistant(world, model=OfflineModel(), tools=[*world.tools(), *research_tools(world.identity)])
    (asked,) = requests(await say(graph, "What do analysts say about NOVA?"))
    await world.person("bob").sign_in(asked)
    state = await world.identity.resume(graph, config())
    assert last(state) == "NOVA (R. Ng): growing with its market, 45 USD in a year"
    with as_caller(world, "bob"):
        assert last(await say(graph, "Buy 50 NOVA at 42")) == (
            "Buying 50 NOVA at up to 42 was not done: You may not buy NOVA here (can_buy on instrument:NOVA)."
            " Ask an administrator."
        )
    assert world.orders() == []


async def test_the_offline_model_carries_the_whole_conversation(world: Inside) -> None:
    graph = assistant(world, model=OfflineModel())
    assert "98.40" in last(await say(graph, "What is ACME trading at?"))
    assert [r["kind"] for r in requests(await say(graph, "Show my portfolio"))] == ["login"]
    alice = world.person("alice")
    (asked,) = requests(await graph.ainvoke(None, config()))
    await alice.sign_in(asked)
    assert "You own:\n12 ACME" in last(await world.identity.resume(graph, config()))
    with world.identity.caller(alice.principal):
        assert "Bought 5 ACME" in last(await say(graph, "Buy 5 shares of ACME"))
        (asked,) = requests(await say(graph, "Buy 50 ACME at 100 and quote NOVA"))
        await alice.deny(asked)
        state = await world.identity.resume(graph, config())
    assert last(state).splitlines() == [
        "Buying 50 ACME at up to 100 was not done: The person who was asked declined.",
        "NOVA: 41.15 USD",
    ]
    assert len(world.orders()) == 1
