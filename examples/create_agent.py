"""An agent of LangChain's create_agent that acts for the person who is talking: python examples/create_agent.py"""

from __future__ import annotations

import asyncio
from decimal import Decimal

import httpx
from langchain.agents import create_agent
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver

from agent.offline import OfflineModel
from agent.world import running
from identity import AccessToken, IdentityMiddleware, Visitor, approval, idempotency_key, needs, resource

THREAD = {"configurable": {"thread_id": "example"}}


def trading_tools(api: str) -> list[BaseTool]:
    @tool
    async def get_quote(symbol: str) -> str:
        """The current price of a stock."""
        async with httpx.AsyncClient() as client:
            return (await client.get(f"{api}/quotes/{symbol}")).text

    @tool
    @needs(approval(lambda quantity, limit: quantity * limit > 1_000, type="stock_order"))
    @needs(token=resource(api, "orders:write"))
    async def buy_stock(symbol: str, quantity: int, limit: Decimal, token: AccessToken) -> str:
        """Buy shares at or below a limit price."""
        order = {"symbol": symbol, "quantity": quantity, "limit": str(limit)}
        headers = {"idempotency-key": idempotency_key()}
        async with httpx.AsyncClient(headers=headers, auth=token) as client:
            return (await client.post(f"{api}/orders", json=order)).text

    return [get_quote, buy_stock]


async def main() -> None:
    async with running() as world:  # an API that wants to know who is calling, on a free port
        agent = create_agent(
            OfflineModel(),
            trading_tools(f"{world.url}/trading"),
            middleware=[IdentityMiddleware(world.identity)],
            checkpointer=InMemorySaver(),
        )
        for text in ("What is ACME at?", "Buy 50 ACME at 100"):
            print(">", text)
            with world.identity.caller(Visitor("somebody")):  # for whom this runs: nobody known, so far
                state = await agent.ainvoke({"messages": [("user", text)]}, THREAD)
                while "__interrupt__" in state:  # the run has ended; the thread waits for a person
                    request = state["__interrupt__"][0].value["requests"][0]
                    print(".", request["kind"], request["url"], request["code"])
                    await world.person("alice").decide(request)
                    state = await world.identity.resume(agent, THREAD)
            print("<", state["messages"][-1].text)


asyncio.run(main())
