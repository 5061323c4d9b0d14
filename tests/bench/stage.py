"""What the gates play on: a user who is signed in, an issuer without a network, and two graphs that do the same work.

The one graph is LangGraph's own shape, ``model → ToolNode → model``; the other is ``build_assistant``. Both have the same model
stub, a tool that does the same, and an ``AsyncSqliteSaver`` each, with a write-ahead log that is synced at every commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from graphs.assistant import build_assistant
from identity import AccessToken, Identity, Principal, Secret, needs, resource
from identity.keyring import create_client_key
from identity.sessions import Place
from identity.settings import load_settings

__all__ = ["Issuer", "Stage", "Stub", "bare_tool", "config", "guarded_tool", "saver", "stage", "turn"]

_URL = "http://127.0.0.1:2024"
_LONG = 365 * 86_400.0


class Issuer(httpx.AsyncBaseTransport):
    """An issuer that answers token requests after ``seconds``, and lists their grant types in ``asked``."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.asked: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        issuer = f"{_URL}/issuer"
        if request.method == "GET":
            return httpx.Response(200, json={"issuer": issuer, "token_endpoint": f"{issuer}/token"})
        self.asked.append(parse_qs((await request.aread()).decode())["grant_type"][0].rpartition(":")[2])
        if self.seconds:
            await asyncio.sleep(self.seconds)
        answer = {
            "access_token": uuid.uuid4().hex * 22,  # as long as a signed one with the claims of RFC 9068
            "refresh_token": uuid.uuid4().hex,
            "token_type": "Bearer",
            "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "expires_in": 300,
        }
        return httpx.Response(200, json=answer)


class Stub(BaseChatModel):
    """Calls the tool once for each message of a person, then is done; takes the same time however long the history is."""

    @property
    def _llm_type(self) -> str:
        return "stub"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        message = AIMessage("Done.")
        if isinstance(messages[-1], HumanMessage):
            message = AIMessage("", tool_calls=[_call()])
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return self._generate(messages)


def _call() -> Any:
    return {"type": "tool_call", "id": f"call_{uuid.uuid4().hex}", "name": "order", "args": {"symbol": "ACME"}}


@tool("order")
async def bare_tool(symbol: str) -> str:
    """Order something."""
    return f"Ordered {symbol}."


# Not read-only: it claims its effect before, and stores the outcome after.
@tool("order")
@needs(token=resource("https://api.example/orders", "orders:write"))
async def guarded_tool(symbol: str, token: AccessToken) -> str:
    """Order something."""
    return f"Ordered {symbol}."


def _toolnode_graph(saver: AsyncSqliteSaver) -> Any:
    model = Stub()

    async def call_model(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", call_model)
    graph.add_node("tools", ToolNode([bare_tool]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    return graph.compile(checkpointer=saver)


@dataclass
class Stage:
    """Everything that is set up.

    Args:
        quick: whether gates may do with fewer samples.
        bare: LangGraph's own shape.
        ours: the assistant.
        now: the identity layer's time, unix seconds.
    """

    quick: bool
    issuer: Issuer
    identity: Identity
    alice: Principal
    bare: Any
    ours: Any
    now: float = 0.0
    _grant_id: str = ""

    def samples(self, full: int) -> int:
        """How often to measure."""
        return max(full // 5, 5) if self.quick else full

    def sign_in(self) -> None:
        """alice's standing grant: what a login leaves behind."""
        self._grant_id = self.identity.vault.store_grant(
            self.alice, refresh_token=Secret("rt"), scope="", expires_at=self.now + _LONG, now=self.now
        ).id

    def join(self, thread: str, graph: str = "assistant") -> None:
        """alice's session on a thread: what the login of a thread leaves behind."""
        place = Place(self.identity.settings.tenant, graph, thread)
        self.identity.sessions.start(
            place, self.alice, owner=self.alice.key, grant_id=self._grant_id, expires_at=self.now + _LONG, now=self.now
        )

    async def thread(self, turns: int = 0) -> str:
        """A new thread of alice's in both graphs, with a history of that many turns."""
        thread = uuid.uuid4().hex
        await asyncio.to_thread(self.join, thread)
        if turns:
            history = [message for _ in range(turns) for message in _turn_of_messages()]
            for graph in (self.bare, self.ours):
                await graph.aupdate_state(config(thread), {"messages": history}, as_node="model")
        return thread


def _turn_of_messages() -> list[AnyMessage]:
    call = _call()
    asked, told = HumanMessage("go", id=uuid.uuid4().hex), AIMessage("Done.", id=uuid.uuid4().hex)
    answer = ToolMessage("Ordered ACME.", name="order", tool_call_id=call["id"], id=uuid.uuid4().hex)
    return [asked, AIMessage("", tool_calls=[call], id=uuid.uuid4().hex), answer, told]


def config(thread: str) -> Any:
    return {"configurable": {"thread_id": thread}}


async def turn(graph: Any, thread: str) -> None:
    """One message of a person, one call of the tool, one answer."""
    state = await graph.ainvoke({"messages": [{"role": "user", "content": "go"}]}, config(thread))
    told = [message.text for message in state["messages"][-2:]]
    if told != ["Ordered ACME.", "Done."]:
        raise RuntimeError(f"The turn that is measured went wrong: {told}")


@contextlib.asynccontextmanager
async def stage(home: Path, *, quick: bool = False) -> AsyncIterator[Stage]:
    """Set everything up in ``home``, with alice calling for the length of the block."""
    settings = load_settings(embedded=True, url=_URL, home=home)
    assert settings.client_key_file is not None  # by the embedded world
    create_client_key(settings.client_key_file)
    issuer = Issuer()
    async with saver(home / "bare.db") as bare, saver(home / "ours.db") as ours:
        on = Stage(quick, issuer, None, None, _toolnode_graph(bare), None, time.time())  # type: ignore[arg-type]
        on.identity = Identity(settings, clock=lambda: on.now, mount=issuer)
        on.alice = Principal(settings.tenant, settings.issuer, "usr_alice")
        on.ours = build_assistant(Stub(), [guarded_tool], on.identity, ours)
        try:
            await asyncio.to_thread(on.sign_in)
            with on.identity.caller(on.alice):
                yield on
        finally:
            await asyncio.to_thread(on.identity.close)


@contextlib.asynccontextmanager
async def saver(path: Path) -> AsyncIterator[AsyncSqliteSaver]:
    """A checkpointer with a write-ahead log that is synced at every commit."""
    async with AsyncSqliteSaver.from_conn_string(str(path)) as saver:
        await saver.setup()
        await saver.conn.execute("PRAGMA synchronous = FULL")
        async with saver.conn.execute("PRAGMA journal_mode") as answer:
            mode = await answer.fetchone()
        if mode is None or mode[0] != "wal":
            raise RuntimeError(f"The bench needs a file system with a write-ahead log, not {mode}")
        yield saver
