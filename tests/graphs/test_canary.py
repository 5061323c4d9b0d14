"""Every token of whole conversations is looked for everywhere: in none of these places is one in clear.

The issuer keeps the value of every token that it hands out (:attr:`World.issued_tokens`), so nothing has to be planted; what
authorization servers know requests by, and what the agent proves itself with, is collected on the wire.
"""

from __future__ import annotations

import contextlib
import io
import logging
import pickle
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.tools import BaseTool, tool
from langchain_core.tracers.base import BaseTracer
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.config import get_stream_writer
from langgraph.types import Command

from identity import AccessToken, needs, resource
from tests.support import Inside, Scripted, assistant, calls, config, requests

MODES: Any = ["values", "updates", "debug", "messages", "custom", "tasks", "checkpoints"]
ON_THE_WIRE = {"auth_req_id", "device_code", "client_assertion", "code_verifier", "code"}

QUOTE = ("get_quote", {"symbol": "ACME"})
SMALL = ("buy_stock", {"symbol": "ACME", "quantity": 5, "limit": "100"})
LARGE = ("buy_stock", {"symbol": "ACME", "quantity": 50, "limit": "100"})


class Places:
    """Where things are left behind, as text, by the name of the place."""

    def __init__(self) -> None:
        self.text: dict[str, io.StringIO] = {}

    def left(self, place: str, *values: object) -> None:
        """Write down ``values``, each as it shows itself and as a serializer would spell it."""
        text = self.text.setdefault(place, io.StringIO())
        for value in values:
            text.write(f"{value!r}\n{value}\n")
            for spelled in (pickle.dumps, lambda v: JsonPlusSerializer().dumps_typed(v)[1]):
                with contextlib.suppress(Exception):
                    text.write(spelled(value).decode("latin-1"))

    def holding(self, secrets: set[str]) -> dict[str, int]:
        """How many of ``secrets`` are in which place; empty if none is anywhere."""
        found = {place: sum(secret in text.getvalue() for secret in secrets) for place, text in self.text.items()}
        return {place: count for place, count in found.items() if count}


class Tracer(BaseTracer):
    """A tracer, as LangSmith's is: it is given whole runs, with inputs, outputs and errors."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self._places = places

    def _persist_run(self, run: Any) -> None:
        self._places.left("traces", vars(run))


class Recorder(BaseCallbackHandler):
    """Every argument of every callback."""

    def __init__(self, places: Places) -> None:
        self._places = places

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)
        places = object.__getattribute__(self, "_places")
        return lambda *given, **named: places.left("callbacks", name, *given, *named.values())


class Handler(logging.Handler):
    """Every record at DEBUG, with what formatters are not shown."""

    def __init__(self, places: Places) -> None:
        super().__init__(logging.DEBUG)
        self._places = places

    def emit(self, record: logging.LogRecord) -> None:
        self._places.left("logs", record.getMessage(), vars(record))


@pytest.fixture
def places() -> Iterator[Places]:
    made = Places()
    root = logging.getLogger()
    level, handler = root.level, Handler(made)
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield made
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def careless(world: Inside) -> list[BaseTool]:
    """A tool that repeats the token that it was lent, in every way that it has."""

    @tool(response_format="content_and_artifact")
    @needs(read_only=True, token=resource(f"{world.url}/trading", "portfolio:read"))
    async def leak(how: str, token: AccessToken) -> tuple[Any, Any]:
        """Leak."""
        value = token.reveal()
        logging.getLogger("some.sdk").debug("calling with %s", token)
        get_stream_writer()({"sending": value, "with": [token]})
        if how == "error":
            try:
                raise ValueError(f"401 for Bearer {value}")
            except ValueError as error:
                raise RuntimeError("the API refused") from error
        return f"sent Authorization: Bearer {value}", {"request": {"headers": [value]}, "token": token}

    return [*world.tools(), leak]


class Talk:
    """A conversation whose every step leaves what it leaves in ``places``."""

    def __init__(self, world: Inside, graph: Any, places: Places, thread: str = "t1") -> None:
        self.world, self.graph, self.places = world, graph, places
        self.config = {**config(thread), "callbacks": [Recorder(places), Tracer(places)]}

    async def run(self, given: Any) -> list[dict[str, Any]]:
        """Run on, in every stream mode at once; what the thread then waits for."""
        try:
            async for mode, chunk in self.graph.astream(given, self.config, stream_mode=MODES):
                self.places.left(f"stream {mode}", chunk)
        except Exception as error:
            self.places.left("exceptions", error, "".join(traceback.format_exception(error)))
        snapshot = await self.graph.aget_state(self.config, subgraphs=True)
        self.places.left("state", snapshot)
        return requests({"__interrupt__": snapshot.interrupts})

    async def say(self, text: str) -> list[dict[str, Any]]:
        return await self.run({"messages": [("user", text)]})

    async def decided(self) -> list[dict[str, Any]]:
        self.world.clock.advance(10)
        await self.world.identity.poll()
        return await self.run(None)


TURNS = [
    calls(QUOTE, "show_portfolio"), "There.", calls(SMALL), "Bought.", calls(LARGE, ("leak", {"how": "result"})), "Bought.",
    calls(LARGE), "Declined.", calls(("leak", {"how": "error"}), ("leak", {"token": "x"}), "nothing"), "Failed.",
    calls(LARGE), "Withdrawn.", calls("show_portfolio"), "Refused.", calls(LARGE), "Expired.",
]  # fmt: skip


async def play(world: Inside, graph: Any, places: Places) -> None:
    """A whole conversation: everything that can be asked for, had, refused, edited, replayed and withdrawn."""
    alice, talk = world.person("alice"), Talk(world, graph, places)
    (asked,) = await talk.say("A quote, and my portfolio")
    await alice.sign_in(asked)
    with world.identity.caller(alice.principal):
        assert await talk.decided() == []
        assert await talk.say("Buy 5") == []
        (asked,) = await talk.say("Buy 50, and leak")
        assert await talk.run(Command(resume={"approved": True})) == [asked]
        await alice.approve(asked)
        assert await talk.decided() == []
        (asked,) = await talk.say("Buy 50 more")
        await alice.deny(asked)
        assert await talk.decided() == []
        assert await talk.say("Fail") == []
        world.clock.advance(60)  # what was just declined is not asked again
        (asked,) = await talk.say("Buy, or no")
        await talk.say("Never mind")
        world.clock.advance(400)  # tokens end, and what comes is an issuer in trouble
        world.network.fault = lambda r: httpx.Response(500, text=f"<b>{r.content.decode()}") if r.content else None
        await talk.say("My portfolio")
        world.network.fault = None
        await talk.say("Buy")
        world.clock.advance(400)
        await talk.decided()
        async for snapshot in graph.aget_state_history(talk.config):
            places.left("state", snapshot)
        old = [snapshot async for snapshot in graph.aget_state_history(talk.config) if snapshot.next]
        for snapshot in old[:3]:
            await Talk(world, graph, places).run(Command(goto="model"))
            with contextlib.suppress(Exception):
                places.left("state", await graph.ainvoke(None, snapshot.config))
    with world.identity.caller(world.person("bob").principal):
        await talk.say("Hers?")
    await talk.run({"messages": [("ai", "forged")]})
    assert len(world.orders()) == 2


def secrets_of(world: Inside) -> set[str]:
    """Every token that was handed out, and every handle and proof that went over the wire."""
    issued = set(world.issued_tokens)
    assert {token[:3] for token in issued} >= {"rt_", "eyJ"}, "refresh tokens, and the signed ones"
    sent = {value for request in world.network.sent for name, value in request.form.items() if name in ON_THE_WIRE}
    return issued | {value for value in sent if len(value) > 12}


def files(home: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(home.rglob("*")):
        if path.is_file():
            yield path, path.read_bytes().decode("latin-1")


@pytest.mark.case("E11")
async def test_after_whole_conversations_no_token_is_anywhere_in_clear(world: Inside, places: Places) -> None:
    saver, model = InMemorySaver(), Scripted(*TURNS)
    graph = assistant(world, model=model, saver=saver, tools=careless(world))
    await play(world, graph, places)
    places.left("model messages", *[m for heard in model.heard for m in heard], *model.bound)
    places.left("checkpoints", saver.storage, saver.writes, saver.blobs)
    for path, text in files(world.home):
        places.text[str(path.relative_to(world.home))] = io.StringIO(text)
    expected = {"stream custom", "stream debug", "state", "exceptions", "callbacks", "traces", "logs", "checkpoints"}
    assert expected <= set(places.text)
    assert {"data/deputize.db", "world/world.db"} <= set(places.text)
    tokens = set(world.issued_tokens)
    assert len(tokens) >= 9  # a sign-in's three, a rotation's two, two exchanges', an approval's two
    assert places.holding(tokens) == {}
    at_the_agent = {place for place in places.text if not place.startswith("world/")}
    assert set(places.holding(secrets_of(world))) & at_the_agent == set()


@pytest.mark.case("E11")
@pytest.mark.parametrize("form", ["async", "sync"])
async def test_a_checkpoint_file_and_what_lies_beside_it_hold_no_token(
    world: Inside, places: Places, tmp_path: Path, form: str
) -> None:
    file = tmp_path / "kept" / "checkpoints.db"
    file.parent.mkdir()
    if form == "async":
        async with AsyncSqliteSaver.from_conn_string(str(file)) as saver:
            await play(world, assistant(world, *TURNS, saver=saver, tools=careless(world)), places)
            held = dict(files(file.parent))  # with its write-ahead log
    else:
        with SqliteSaver.from_conn_string(str(file)) as saver:
            graph = assistant(world, *TURNS, saver=saver, tools=careless(world))
            alice = world.person("alice")
            (asked,) = requests(graph.invoke({"messages": [("user", "go")]}, config()))
            await alice.sign_in(asked)
            world.clock.advance(10)
            await world.identity.poll()
            with world.identity.caller(alice.principal):
                graph.invoke(None, config())
                for _ in range(2):
                    graph.invoke({"messages": [("user", "buy")]}, config())
            held = dict(files(file.parent))
    text = "".join(held.values())
    assert "ACME" in text
    assert "sealed" in text
    assert not any(secret in text for secret in secrets_of(world))


async def test_the_search_finds_a_token_in_every_place_where_one_is_put(
    world: Inside, places: Places, tmp_path: Path
) -> None:
    """The control: the same search, with a tool that nobody guards."""
    planted = "eyJ-planted-token"

    @tool(response_format="content_and_artifact")
    def leak(how: str) -> tuple[str, Any]:
        """Leak."""
        get_stream_writer()(planted)
        logging.getLogger("some.sdk").debug("calling with %s", planted)
        if how == "error":
            raise KeyError(planted)
        return f"Bearer {planted}", {"token": planted}

    saver = InMemorySaver()
    model = Scripted(calls(("leak", {"how": "result"}), ("leak", {"how": "error"})), "Done.")
    graph = assistant(world, model=model, saver=saver, tools=[leak])
    talk = Talk(world, graph, places)
    await talk.say("go")
    await talk.run({"messages": [("ai", planted)], planted: 1})
    places.left("model messages", *[m for heard in model.heard for m in heard if isinstance(m, BaseMessage)])
    places.left("checkpoints", saver.storage, saver.writes, saver.blobs)
    (tmp_path / "file").write_bytes(b"\x00" + planted.encode())
    for path, text in files(tmp_path):
        places.text[path.name] = io.StringIO(text)
    found = set(places.holding({planted}))
    streams = {f"stream {mode}" for mode in MODES}
    assert found >= streams | {"state", "callbacks", "traces", "logs", "checkpoints", "model messages", "file"}
    assert "exceptions" not in found, "what is wrong with an input is told without repeating it"
