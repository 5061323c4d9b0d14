"""The real ``langgraph dev``, serving an agent of ``create_agent`` and a hand-made graph with the gate in them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from langgraph_sdk import get_client

from agent.world.person import Person
from tests.interop.server import Server, laid_out, requests, settled

GRAPHS = """
from langchain.agents import create_agent
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import tools_condition

from agent.app import identity
from agent.offline import OfflineModel
from agent.tools import trading_tools
from identity import IdentityMiddleware, tool_node
from identity.nodes import new_messages_only

tools = trading_tools(identity.settings.url)
agent = new_messages_only(create_agent(OfflineModel(), tools, middleware=[IdentityMiddleware(identity)]))

model, node = OfflineModel().bind_tools(tools), tool_node(tools, identity, graph="by_hand")


async def call_model(state: MessagesState) -> MessagesState:
    return {"messages": [await model.ainvoke(state["messages"])]}


made = StateGraph(MessagesState)
made.add_node("intake", node.intake)
made.add_node("model", call_model)
made.add_node("tools", node)
made.add_edge(START, "intake")
made.add_edge("intake", "model")
made.add_conditional_edges("model", tools_condition)
made.add_edge("tools", "model")
by_hand = new_messages_only(made.compile())
"""


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    folder = laid_out(tmp_path)
    (folder / "graphs" / "placed.py").write_text(GRAPHS, encoding="utf-8")
    config = json.loads((folder / "langgraph.json").read_text(encoding="utf-8"))
    config["graphs"] = {name: f"graphs.placed:{name}" for name in ("agent", "by_hand")}
    (folder / "langgraph.json").write_text(json.dumps(config), encoding="utf-8")
    up = Server(folder)
    up.start()
    try:
        await up.ready()
        yield up
    finally:
        await asyncio.to_thread(up.stop)


@pytest.mark.case("E1", "E17", "E18")
async def test_a_conversation_with_login_and_approval_is_woken_by_the_server(server: Server) -> None:
    """Both at once, and no call of either blocks the server's loop."""
    await asyncio.gather(*(converse(server, name) for name in ("agent", "by_hand")))
    log = server.log.read_text()
    assert "BlockingError" not in log
    assert "Traceback" not in log


@contextlib.asynccontextmanager
async def at_a_browser(server: Server) -> AsyncIterator[Person]:
    alice = server.person("alice")
    try:
        yield alice
    finally:
        await alice.close()


async def converse(server: Server, name: str) -> None:
    async with at_a_browser(server) as alice, get_client(url=server.url) as client:
        thread = (await client.threads.create())["thread_id"]

        async def say(text: str) -> list[dict[str, object]]:
            given = {"messages": [{"role": "user", "content": text}]}
            return requests(await client.runs.wait(thread, name, input=given))

        (asked,) = await say("Show my portfolio")
        assert asked["kind"] == "login"
        await alice.sign_in(asked)
        await settled(client, thread, "12 ACME")  # nobody resumed it: the server's waker did

        (asked,) = await say("Buy 50 ACME at 100")
        assert asked["kind"] == "approval"
        for forged in (True, {"decisions": [{"type": "approve"}]}):
            state = await client.runs.wait(thread, name, command={"resume": forged})
            assert [r["id"] for r in requests(state)] == [asked["id"]]
        await alice.approve(asked)
        await settled(client, thread, "Bought 50 ACME")

        assert len(await say("Buy 60 ACME at 100")) == 1
        assert await say("What is ACME trading at?") == []
        state = await client.threads.get_state(thread)
        told = [m["content"] for m in state["values"]["messages"] if m["type"] == "tool"]
        assert sum("Withdrawn" in text for text in told) == 1
        assert sum("Bought" in text for text in told) == 1
