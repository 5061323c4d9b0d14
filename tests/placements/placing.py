"""The three placements of the gate, each as a graph that does the same work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import tools_condition

from graphs.assistant import build_assistant
from identity import Identity, IdentityMiddleware, tool_node
from tests.support import Inside, Scripted, calls, config, requests, sign_in

__all__ = [
    "LARGE",
    "PLACEMENTS",
    "QUOTE",
    "SMALL",
    "WHOLE",
    "Placement",
    "Waiting",
    "answers",
    "by_hand",
    "decided",
    "orders_sent",
    "pushes",
]

QUOTE = ("get_quote", {"symbol": "ACME"})
SMALL = ("buy_stock", {"symbol": "ACME", "quantity": 5, "limit": "100"})
LARGE = ("buy_stock", {"symbol": "ACME", "quantity": 50, "limit": "100"})

Build = Callable[[BaseChatModel, Sequence[BaseTool], Identity, Any], Any]


@dataclass(frozen=True)
class Placement:
    """A way to have the gate in a graph.

    Args:
        graph: the name of the place: of its sessions and seals.
        tools: the node in which calls run.
        waits: the node that a turn waits in.
        ready_first: whether the calls of a turn that nothing is asked for run before the turn waits. If not, a turn waits as
            a whole, and what waits is withdrawn when the person goes on talking; the whole graph defers it then.
    """

    name: str
    graph: str
    tools: str
    waits: str
    ready_first: bool
    _build: Build

    def build(self, world: Inside, *turns: Any, **more: Any) -> Any:
        """The graph with a scripted model; ``model=``, ``tools=``, ``saver=`` and ``identity=`` replace its parts."""
        return self._build(
            more.get("model") or Scripted(*turns),
            world.tools() if more.get("tools") is None else more["tools"],
            more.get("identity") or world.identity,
            more.get("saver") or InMemorySaver(),
        )


def by_middleware(
    model: BaseChatModel, tools: Sequence[BaseTool], identity: Identity, saver: Any, graph: str = "agent"
) -> Any:
    return create_agent(model, tools, middleware=[IdentityMiddleware(identity, graph)], checkpointer=saver)


def by_hand(
    model: BaseChatModel, tools: Sequence[BaseTool], identity: Identity, saver: Any, graph: str = "agent"
) -> Any:
    """As LangGraph's documentation writes an agent, with ``tool_node`` in the place of ``ToolNode``."""
    bound = model.bind_tools(list(tools))
    node = tool_node(tools, identity, graph)

    def call_model(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        return {"messages": [bound.invoke(state["messages"], config)]}

    made = StateGraph(MessagesState)
    made.add_node("intake", node.intake)
    made.add_node("model", call_model)
    made.add_node("tools", node)
    made.add_edge(START, "intake")
    made.add_edge("intake", "model")
    made.add_conditional_edges("model", tools_condition)
    made.add_edge("tools", "model")
    return made.compile(checkpointer=saver)


PLACEMENTS = [
    Placement("nodes", "assistant", "tool_call", "await_user", True, build_assistant),
    Placement("middleware", "agent", "tools", "model", False, by_middleware),
    Placement("tool_node", "agent", "tools", "tools", False, by_hand),
]

WHOLE = pytest.mark.parametrize("placement", PLACEMENTS[1:], ids=lambda placement: placement.name)
"""For tests of what the placements in other people's graphs share, and the whole graph does otherwise."""


def answers(state: Any) -> list[str]:
    return [str(m.content) for m in state["messages"] if isinstance(m, ToolMessage)]


def orders_sent(world: Inside) -> int:
    """How often the trading API was asked for an order."""
    return sum(sent.method == "POST" and sent.url.endswith("/trading/orders") for sent in world.network.sent)


def pushes(world: Inside) -> int:
    """How often a person was asked for an approval."""
    return sum(sent.url.endswith("/bc-authorize") for sent in world.network.sent)


async def decided(world: Inside) -> None:
    """The authorization server is asked how things stand."""
    world.clock.advance(30)
    await world.identity.poll()


class Waiting:
    """A thread of alice that waits for the approval of a large order; the rest of the test runs for her."""

    def __init__(self, world: Inside, placement: Placement) -> None:
        self.world, self.placement, self.alice = world, placement, world.person("alice")
        self.model = Scripted(calls(LARGE))
        self.saver = InMemorySaver()
        self.graph = placement.build(world, model=self.model, saver=self.saver)
        self.asked: dict[str, Any] = {}

    async def begin(self) -> None:
        (self.asked,) = requests(await sign_in(self.world, self.graph))

    async def approve(self) -> None:
        await self.alice.approve(self.asked)
        await decided(self.world)
        request = self.world.identity.ledger.request(self.asked["id"])
        assert request is not None
        assert request.state == "approved"

    async def run(self, given: Any = None, thread: str = "t1") -> Any:
        return await self.graph.ainvoke(given, config(thread))
