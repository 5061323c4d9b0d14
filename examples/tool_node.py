"""A hand-made graph that acts for the person who is talking: python examples/tool_node.py"""

from __future__ import annotations

import asyncio
from decimal import Decimal

import httpx
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import tools_condition

from agent.offline import OfflineModel
from agent.world import running
from identity import AccessToken, Visitor, approval, idempotency_key, needs, resource, tool_node

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
        tools = trading_tools(f"{world.url}/trading")
        model = OfflineModel().bind_tools(tools)

        async def call_model(state: MessagesState) -> MessagesState:
            return {"messages": [await model.ainvoke(state["messages"])]}

        builder = StateGraph(MessagesState)
        builder.add_node("model", call_model)
        node = tool_node(tools, world.identity)
        builder.add_node("tools", node)
        builder.add_node("intake", node.intake)
        builder.add_edge(START, "intake")
        builder.add_edge("intake", "model")
        builder.add_conditional_edges("model", tools_condition)
        builder.add_edge("tools", "model")
        graph = builder.compile(checkpointer=InMemorySaver())
        for text in ("What is ACME at?", "Buy 50 ACME at 100"):
            print(">", text)
            with world.identity.caller(Visitor("somebody")):  # for whom this runs: nobody known, so far
                state = await graph.ainvoke({"messages": [("user", text)]}, THREAD)
                while "__interrupt__" in state:  # the run has ended; the thread waits for a person
                    request = state["__interrupt__"][0].value["requests"][0]
                    print(".", request["kind"], request["url"], request["code"])
                    await world.person("alice").decide(request)
                    state = await world.identity.resume(graph, THREAD)
            print("<", state["messages"][-1].text)


asyncio.run(main())
