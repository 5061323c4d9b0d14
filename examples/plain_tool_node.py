"""A hand-made graph that does not know for whom it acts: python examples/plain_tool_node.py"""

from __future__ import annotations

import asyncio
from decimal import Decimal
from uuid import uuid4

import httpx
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from agent.offline import OfflineModel
from agent.world import running

THREAD = {"configurable": {"thread_id": "example"}}


def trading_tools(api: str) -> list[BaseTool]:
    @tool
    async def get_quote(symbol: str) -> str:
        """The current price of a stock."""
        async with httpx.AsyncClient() as client:
            return (await client.get(f"{api}/quotes/{symbol}")).text

    @tool
    async def buy_stock(symbol: str, quantity: int, limit: Decimal) -> str:
        """Buy shares at or below a limit price."""
        order = {"symbol": symbol, "quantity": quantity, "limit": str(limit)}
        headers = {"idempotency-key": uuid4().hex}
        async with httpx.AsyncClient(headers=headers) as client:
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
        node = ToolNode(tools)
        builder.add_node("tools", node)
        builder.add_edge(START, "model")
        builder.add_conditional_edges("model", tools_condition)
        builder.add_edge("tools", "model")
        graph = builder.compile(checkpointer=InMemorySaver())
        for text in ("What is ACME at?", "Buy 50 ACME at 100"):
            print(">", text)
            state = await graph.ainvoke({"messages": [("user", text)]}, THREAD)
            print("<", state["messages"][-1].text)


asyncio.run(main())
