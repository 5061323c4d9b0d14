"""The whole graph of deputize, with a quote and a large order in one sentence: python examples/assistant.py"""

from __future__ import annotations

import asyncio

from langgraph.checkpoint.memory import InMemorySaver

from agent.offline import OfflineModel
from agent.tools import trading_tools
from agent.world import running
from graphs.assistant import build_assistant
from identity import Visitor

THREAD = {"configurable": {"thread_id": "example"}}


async def main() -> None:
    async with running() as world:  # the embedded issuer, API and people, on a free port
        graph = build_assistant(OfflineModel(), trading_tools(world.url), world.identity, InMemorySaver())
        for text in ("Show my portfolio", "What is NOVA at, and buy 50 ACME at 100"):
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
