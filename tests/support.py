"""What tests share: a clock that is set, a network without sockets, a scripted model, and the embedded world on them."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import BaseTool
from langgraph.checkpoint.memory import InMemorySaver
from starlette.applications import Starlette

from agent.tools import trading_tools
from agent.world import Loopback, Running, World, install
from graphs.assistant import build_assistant
from identity import Identity
from identity.settings import load_settings

__all__ = [
    "URL",
    "Clock",
    "Inside",
    "Network",
    "Scripted",
    "as_caller",
    "assistant",
    "calls",
    "config",
    "inside",
    "last",
    "requests",
    "say",
]

URL = "http://127.0.0.1:2024"


class Clock:
    """Unix seconds that stand still until they are moved."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    async def pause(self, seconds: float) -> None:
        """Instead of sleeping: the time has passed."""
        self.now += seconds
        await asyncio.sleep(0)


@dataclass(frozen=True)
class Sent:
    """A request that went over the :class:`Network`."""

    method: str
    url: str
    form: dict[str, str]
    headers: httpx.Headers


Fault = Callable[[httpx.Request], "httpx.Response | Exception | None"]


class Network(httpx.AsyncBaseTransport):
    """Everything that is sent goes to one ASGI application, is recorded, and can be made to fail.

    ``fault`` sees each request first: it returns a response to be the answer, an exception to raise, or ``None``.
    """

    def __init__(self) -> None:
        self.app: Any = None
        self.sent: list[Sent] = []
        self.fault: Fault | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        form = dict(parse_qsl(body.decode("utf-8", "replace"))) if request.method == "POST" else {}
        self.sent.append(Sent(request.method, str(request.url), form, request.headers))
        made = self.fault(request) if self.fault else None
        if isinstance(made, Exception):
            raise made
        if made is not None:
            return made
        return await httpx.ASGITransport(app=self.app).handle_async_request(request)

    def grants(self) -> list[str]:
        """The ``grant_type`` of every token request, in order."""
        return [sent.form["grant_type"] for sent in self.sent if "grant_type" in sent.form]


@dataclass
class Inside(Running):
    """The embedded world in this process, over a :class:`Network`.

    ``home`` is its folder, ``clock`` its time.
    """

    network: Network = None  # type: ignore[assignment]  # always given by inside()
    clock: Clock = None  # type: ignore[assignment]
    home: Path = None  # type: ignore[assignment]

    def tools(self) -> list[BaseTool]:
        """The demo's tools over the same network."""
        return trading_tools(self.url, self.network)

    def again(self, **settings: Any) -> Identity:
        """Another identity layer on the same files, as after a restart or in another process."""
        return Identity(_settings(self.home, **settings), clock=self.clock, mount=self.network, pause=self.clock.pause)


@contextlib.asynccontextmanager
async def inside(home: Path, clock: Clock, **settings: Any) -> AsyncIterator[Inside]:
    """The embedded world without sockets; ``settings`` are more of :class:`identity.settings.Settings`."""
    network = Network()
    world = World(install(home / "world", URL), clock, network)
    network.app = Loopback(Starlette(routes=world.routes()), URL)
    identity = Identity(_settings(home, **settings), clock=clock, mount=network, pause=clock.pause)
    up = Inside(URL, identity, world, network, network=network, clock=clock, home=home)
    try:
        yield up
    finally:
        await up.close()
        await asyncio.to_thread(world.close)


def _settings(home: Path, **more: Any) -> Any:
    return load_settings(**{"embedded": True, "url": URL, "home": home, **more})


class Scripted(BaseChatModel):
    """A model that says what it was told to, turn by turn, and then ``"Done."``."""

    turns: list[Any] = []
    bound: list[Any] = []
    heard: list[list[BaseMessage]] = []

    def __init__(self, *turns: AIMessage | str) -> None:
        super().__init__()
        self.turns, self.bound, self.heard = list(turns), [], []

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        self.bound = list(tools)
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        self.heard.append(messages)
        turn = self.turns.pop(0) if self.turns else "Done."
        return ChatResult(generations=[ChatGeneration(message=AIMessage(turn) if isinstance(turn, str) else turn)])


def calls(*made: tuple[str, dict[str, Any]] | str, content: str = "") -> AIMessage:
    """A model's turn that calls tools: names, or ``(name, arguments)``."""
    listed: Iterable[tuple[str, dict[str, Any]]] = ((m, {}) if isinstance(m, str) else m for m in made)
    return AIMessage(
        content,
        tool_calls=[
            {"type": "tool_call", "id": f"call_{uuid.uuid4().hex[:12]}", "name": name, "args": arguments}
            for name, arguments in listed
        ],
    )


def assistant(world: Inside, *turns: AIMessage | str, tools: Sequence[BaseTool] | None = None, **more: Any) -> Any:
    """The whole graph with a scripted model; with ``model=`` that one, ``saver=`` another checkpointer, ``identity=`` too."""
    return build_assistant(
        more.get("model") or Scripted(*turns),
        world.tools() if tools is None else tools,
        more.get("identity") or world.identity,
        more.get("saver") or InMemorySaver(),
    )


def config(thread: str = "t1") -> Any:
    return {"configurable": {"thread_id": thread}}


async def say(graph: Any, text: str = "go", thread: str = "t1") -> dict[str, Any]:
    """A person's message; the state that the run ends with."""
    state: dict[str, Any] = await graph.ainvoke({"messages": [{"role": "user", "content": text}]}, config(thread))
    return state


def requests(state: dict[str, Any]) -> list[dict[str, Any]]:
    """What a run ended waiting for."""
    return [request for item in state.get("__interrupt__") or () for request in item.value["requests"]]


def last(state: dict[str, Any]) -> str:
    """The text of the last message."""
    return str(state["messages"][-1].text)


@contextlib.contextmanager
def as_caller(world: Inside, username: str) -> Iterator[None]:
    """The block runs for one of the people."""
    with world.identity.caller(world.person(username).principal):
        yield
