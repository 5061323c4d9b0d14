"""What tests share: a clock that is set, a network without sockets, a scripted model, and the embedded world on them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, convert_to_openai_messages
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import BaseTool
from langgraph.checkpoint.memory import InMemorySaver
from starlette.applications import Starlette

from agent.tools import trading_tools
from agent.world import Loopback, Running, World, install, seed
from graphs.assistant import build_assistant
from identity import Identity
from identity.keyring import KeyRing, create_keyring, load_keyring
from identity.sessions import Place, Session
from identity.settings import load_settings
from identity.store import Database

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
    "history_faults",
    "inside",
    "last",
    "requests",
    "say",
    "sign_in",
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
        await asyncio.to_thread(seed, identity, world.installation)
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


# -- answers that are not what the world would say, and servers on real sockets ----------------------------------------


def answered(
    world: Inside, grant: str, change: Callable[[dict[str, Any]], Any], *, path: str = "/issuer/token"
) -> None:
    """From here on ``change`` edits what the issuer answers at ``path`` to requests of the grant type ``grant``.

    ``change`` gets the JSON object of a successful answer and returns what is answered instead; ``grant`` may be empty for
    requests that have none. The real answer has been made: a code, a refresh token or an approval is spent.
    """
    send = world.network.handle_async_request

    async def changed(request: httpx.Request) -> httpx.Response:
        answer = await send(request)
        if request.url.path != path or answer.status_code != 200:
            return answer
        form = dict(parse_qsl((await request.aread()).decode()))
        if not form.get("grant_type", "").endswith(grant):
            return answer
        return httpx.Response(200, json=change(json.loads(await answer.aread())))

    world.network.handle_async_request = changed  # type: ignore[method-assign]


@contextlib.contextmanager
def listening(status: int = 200, body: str = "{}", **headers: str) -> Iterator[tuple[str, list[str]]]:
    """For tests that say ``real``: a server on loopback that answers everything alike; its origin, and what came in."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.requestline)
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(status)
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            for name, value in {"content-type": "application/json", **named}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_CONNECT = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def stored(folder: Path) -> tuple[Database, KeyRing]:
    """An empty database below ``folder``, and its key ring. Called again, the same ones, as another process has them."""
    ring = folder / "keys" / "keyring.json"
    if not ring.exists():
        create_keyring(ring, folder / "data", 0.0)
    return Database(folder / "data" / "deputize.db"), load_keyring(ring, folder / "data")


__all__ += ["answered", "listening", "stored"]


async def sign_in(world: Inside, graph: Any, username: str = "alice", thread: str = "t1") -> dict[str, Any]:
    """A message that needs a user, that person's sign-in, and what the run then ended with."""
    asked = requests(await say(graph, thread=thread))
    assert [request["kind"] for request in asked] == ["login"]
    await world.person(username).sign_in(asked[0])
    state: dict[str, Any] = await world.identity.resume(graph, config(thread))
    return state


def history_faults(messages: Sequence[BaseMessage]) -> list[str]:
    """What an OpenAI-style model would refuse in a history, by the strictest public rules; empty if it is sound.

    Every call of an assistant's message is answered exactly once, by the ``tool`` messages directly behind it and nowhere
    else; ids are there and unique; ids, names and arguments are spelled as the wire wants them; nobody says nothing.
    """
    faults = []
    ids = [message.id for message in messages]
    if None in ids or len(set(ids)) != len(ids):
        faults.append(f"message ids are missing or not unique: {ids}")
    open_ids: list[str] = []
    for place, message in enumerate(convert_to_openai_messages(list(messages))):
        here = f"message {place} ({message['role']})"
        if message["role"] == "tool":
            if message["tool_call_id"] not in open_ids:
                faults.append(f"{here} answers {message['tool_call_id']!r}, which is not open")
            else:
                open_ids.remove(message["tool_call_id"])
            continue
        if open_ids:
            faults.append(f"{here} stands before the answers to {open_ids}")
        called = message.get("tool_calls") or []
        open_ids = [call["id"] for call in called]
        if not all(open_ids) or len(set(open_ids)) != len(open_ids):
            faults.append(f"{here} has calls without ids, or with equal ones: {open_ids}")
        elif not all(re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", id_) for id_ in open_ids):
            faults.append(f"{here} has calls whose ids some providers refuse: {open_ids}")
        if message["role"] == "assistant" and not called and not message["content"]:
            faults.append(f"{here} says nothing and calls nothing")
        for call in called:
            function = call["function"]
            if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", function["name"]):
                faults.append(f"{here} calls {function['name']!r}")
            if not isinstance(json.loads(function["arguments"]), dict):
                faults.append(f"{here} calls {function['name']} with {function['arguments']!r}")
    if open_ids:
        faults.append(f"the history ends without the answers to {open_ids}")
    return faults


async def signed_in(
    world: Inside, username: str = "alice", thread: str = "t1", identity: Identity | None = None
) -> Session:
    """A session of one of the people in a thread of the assistant, by the device login on the real pages."""
    identity, person = identity or world.identity, world.person(username)
    place = Place(identity.settings.tenant, "assistant", thread)
    scopes = ("portfolio:read", "orders:write")
    request = await identity.transport.acall(identity.asking.login, place, person.principal, "m-login", scopes)
    if request is not None:
        await person.sign_in(request.shown())
        world.clock.advance(request.interval)
        assert await identity.transport.acall(identity.asking.poll, request)
    session = identity.sessions.of(place)
    assert session is not None
    return session


__all__ += ["signed_in"]


def spelled(value: object) -> str:
    """``repr`` as the name of a test, the same in every process: no addresses, sets in order."""
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(spelled, value))) + "}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


__all__ += ["spelled"]
