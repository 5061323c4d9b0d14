"""The demo's model over the wire: ``ChatOpenAI`` as ``chat_model()`` builds it, against a real server on loopback that speaks
the OpenAI protocol (``POST /v1/chat/completions``, with tool calls, whole and streamed)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI

from agent.model import chat_model
from agent.offline import OfflineModel
from identity import SettingsError
from tests.support import Inside, assistant, config, history_faults, last, requests, say, sign_in

Reply = dict[str, Any]
"""The assistant's message of an answer, as the wire spells it."""


@dataclass
class Provider:
    """An OpenAI-compatible server.

    ``answer`` gets a request's JSON and returns the assistant's message, or a status to fail with; ``heard`` and ``keys`` are what
    came in.
    """

    url: str = ""
    answer: Callable[[dict[str, Any]], Reply | int] = lambda request: {"content": "Done."}
    heard: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    """A running one, that the settings name."""
    with serving(Provider()) as up:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{up.url}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-local")
        monkeypatch.setenv("OPENAI_MODEL", "local-model")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")
        yield up


@contextlib.contextmanager
def serving(provider: Provider) -> Iterator[Provider]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            provider.heard.append(body)
            provider.keys.append(self.headers.get("authorization"))
            if self.path != "/v1/chat/completions":
                self.send(404, "application/json", b"{}")
                return
            reply = provider.answer(body)
            if isinstance(reply, int):
                error = {"error": {"message": "no, for a reason", "type": "x", "code": "y"}}
                self.send(reply, "application/json", json.dumps(error).encode())
            elif body.get("stream"):
                events = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks(body, reply)]
                self.send(200, "text/event-stream", "".join([*events, "data: [DONE]\n\n"]).encode())
            else:
                self.send(200, "application/json", json.dumps(whole(body, reply)).encode())

        def send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.send_header("retry-after-ms", "1")  # the client waits for half a second otherwise
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    provider.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def whole(request: dict[str, Any], reply: Reply) -> dict[str, Any]:
    """A ``chat.completion``."""
    message = {"role": "assistant", "content": None, **reply}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": request["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": finish(reply)}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


def chunks(request: dict[str, Any], reply: Reply) -> Iterator[dict[str, Any]]:
    """The same as ``chat.completion.chunk`` objects: text word by word, arguments in two halves."""

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": request["model"],
            "choices": [choice],
        }

    yield chunk({"role": "assistant", "content": ""})
    for word in (reply.get("content") or "").split(" "):
        yield chunk({"content": f"{word} "})
    for index, call in enumerate(reply.get("tool_calls") or []):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        half = len(arguments) // 2
        begun = {
            "index": index,
            "id": call["id"],
            "type": "function",
            "function": {"name": name, "arguments": arguments[:half]},
        }
        yield chunk({"tool_calls": [begun]})
        yield chunk({"tool_calls": [{"index": index, "function": {"arguments": arguments[half:]}}]})
    yield chunk({}, finish(reply))


def finish(reply: Reply) -> str:
    return "tool_calls" if reply.get("tool_calls") else "stop"


def call(name: str, arguments: dict[str, Any] | str, id_: str = "call_1") -> Reply:
    """A turn that calls a tool; arguments as text are sent as they are."""
    spelled = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"tool_calls": [{"id": id_, "type": "function", "function": {"name": name, "arguments": spelled}}]}


def buys_and_tells(request: dict[str, Any]) -> Reply:
    """Orders what a person asked for, then repeats what the tool said."""
    message = request["messages"][-1]
    if message["role"] == "user":
        return call("buy_stock", {"symbol": "ACME", "quantity": 50, "limit": "100"})
    return {"content": f"The tool said: {message['content']}"}


async def test_a_whole_conversation_with_login_and_approval(world: Inside, provider: Provider) -> None:
    provider.answer = buys_and_tells
    graph = assistant(world, model=chat_model())
    state = await sign_in(world, graph)
    (asked,) = requests(state)
    assert asked["kind"] == "approval"
    assert len(provider.heard) == 1  # the model is not asked while people are
    alice = world.person("alice")
    await alice.approve(asked)
    with world.identity.caller(alice.principal):
        state = await world.identity.resume(graph, config())
    assert last(state).startswith("The tool said: Bought 50 ACME at 98.40")
    assert len(world.orders()) == 1
    assert history_faults(state["messages"]) == []

    first, second = provider.heard
    assert provider.keys == ["Bearer sk-local"] * 2
    assert first["model"] == "local-model"
    assert [m["role"] for m in second["messages"]] == ["user", "assistant", "tool"]
    made, answered = second["messages"][1]["tool_calls"][0], second["messages"][2]
    assert answered["tool_call_id"] == made["id"]
    assert json.loads(made["function"]["arguments"]) == {"symbol": "ACME", "quantity": 50, "limit": "100"}


@pytest.mark.case("E27")
async def test_the_wire_shows_the_tools_and_no_token(world: Inside, provider: Provider) -> None:
    provider.answer = buys_and_tells
    await sign_in(world, assistant(world, model=chat_model()))
    tools = {tool["function"]["name"]: tool["function"]["parameters"] for tool in provider.heard[0]["tools"]}
    assert {name: sorted(p["properties"]) for name, p in tools.items()} == {
        "get_quote": ["symbol"],
        "show_portfolio": [],
        "buy_stock": ["limit", "quantity", "symbol"],
    }
    assert tools["buy_stock"]["properties"]["quantity"] == {"type": "integer"}
    assert sorted(tools["buy_stock"]["required"]) == ["limit", "quantity", "symbol"]
    said = json.dumps(provider.heard)
    assert "token" not in json.dumps(provider.heard[0]["tools"]).lower()
    assert len(world.issued_tokens) > 2
    assert [token for token in world.issued_tokens if token in said] == []


async def test_a_streamed_turn_is_joined_under_one_id(world: Inside, provider: Provider) -> None:
    def quotes_and_tells(request: dict[str, Any]) -> Reply:
        if request["messages"][-1]["role"] == "user":
            return call("get_quote", {"symbol": "NOVA"})
        return {"content": "NOVA is at 41.15 dollars"}

    provider.answer = quotes_and_tells
    graph = assistant(world, model=chat_model())
    seen: dict[str, AIMessageChunk] = {}
    given = {"messages": [HumanMessage("NOVA?")]}
    async for message, metadata in graph.astream(given, config(), stream_mode="messages"):
        if isinstance(message, AIMessageChunk):
            assert metadata["langgraph_node"] == "model"
            seen[str(message.id)] = seen[str(message.id)] + message if str(message.id) in seen else message
    assert [request["stream"] for request in provider.heard] == [True, True]
    kept = [m for m in (await graph.aget_state(config())).values["messages"] if isinstance(m, AIMessage)]
    assert [m.id for m in kept] == list(seen)
    called, said = seen.values()
    assert [(c["name"], c["args"]) for c in called.tool_calls] == [("get_quote", {"symbol": "NOVA"})]
    assert said.text == kept[1].text == "NOVA is at 41.15 dollars "


@pytest.mark.parametrize("stream", [False, True])
async def test_arguments_that_are_no_json_are_answered_and_the_conversation_goes_on(
    world: Inside, provider: Provider, stream: bool
) -> None:
    def stumbles(request: dict[str, Any]) -> Reply:
        if request["messages"][-1]["role"] == "user":
            return call("get_quote", '{"symbol": "NO')
        return {"content": "Sorry."}

    provider.answer = stumbles
    graph = assistant(world, model=chat_model())
    if stream:
        async for _ in graph.astream({"messages": [HumanMessage("NOVA?")]}, config(), stream_mode="messages"):
            pass
        state = (await graph.aget_state(config())).values
    else:
        state = await say(graph)
    assert last(state).strip() == "Sorry."
    assert [m.status for m in state["messages"] if isinstance(m, ToolMessage)] == ["error"]
    assert history_faults(state["messages"]) == []
    assert last(await say(graph)).strip() == "Sorry."  # the provider takes the whole history once more


async def test_two_turns_with_one_call_id_are_two_calls(world: Inside, provider: Provider) -> None:
    def repeats(request: dict[str, Any]) -> Reply:
        if request["messages"][-1]["role"] == "user":
            return call("buy_stock", {"symbol": "HALO", "quantity": 1, "limit": "900"}, "call_always_the_same")
        return {"content": "Done."}

    provider.answer = repeats
    graph = assistant(world, model=chat_model())
    await sign_in(world, graph)
    with world.identity.caller(world.person("alice").principal):
        await say(graph)
    assert len(world.orders()) == 2
    assert len({order.key for order in world.orders()}) == 2


@pytest.mark.parametrize(
    ("status", "error", "asked"),
    [
        (401, openai.AuthenticationError, 1),
        (404, openai.NotFoundError, 1),
        (429, openai.RateLimitError, 3),
        (500, openai.InternalServerError, 3),
    ],
)
async def test_a_failing_provider_ends_the_run_and_the_thread_goes_on_afterwards(
    world: Inside, provider: Provider, status: int, error: type[Exception], asked: int
) -> None:
    graph = assistant(world, model=chat_model())
    provider.answer = lambda request: status
    with pytest.raises(error, match="no, for a reason"):
        await say(graph)
    assert len(provider.heard) == asked
    provider.answer = lambda request: {"content": "Back again."}
    assert last(await say(graph, "still there?")) == "Back again."


async def test_the_sync_form_speaks_the_same(world: Inside, provider: Provider) -> None:
    provider.answer = lambda request: {"content": "Hello."}
    graph = assistant(world, model=chat_model())
    state = await asyncio.to_thread(graph.invoke, {"messages": [HumanMessage("hi")]}, config())
    assert last(state) == "Hello."


@pytest.mark.parametrize("name", ["OPENAI_BASE_URL", "OPENAI_MODEL"])
def test_half_of_the_settings_is_an_error_and_not_the_offline_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:1/v1")
    with pytest.raises(SettingsError, match=f"{name} is set and OPENAI_API_KEY is not") as raised:
        chat_model()
    assert raised.value.exit_code == 2


def test_without_settings_it_is_the_offline_model() -> None:
    assert isinstance(chat_model(), OfflineModel)


def test_with_a_key_alone_it_is_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    model = chat_model()
    assert isinstance(model, ChatOpenAI)
    assert model.openai_api_base is None
    assert "sk-x" not in repr(model)
