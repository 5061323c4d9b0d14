"""Where tokens must not be found: state, streams, callbacks, logs and files, whatever a tool does with the one it was lent."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain.tools import ToolRuntime
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.config import get_stream_writer
from langgraph.types import Command
from langsmith import Client
from langsmith.run_helpers import tracing_context
from pydantic import SecretStr

from identity import AccessToken, needs, resource
from tests.placements.placing import LARGE, PLACEMENTS, QUOTE, SMALL, Placement, answers
from tests.support import Inside, Scripted, as_caller, calls, config, last, requests, say, sign_in

MODES = ["values", "updates", "messages", "custom", "debug", "tasks", "checkpoints", "tools"]


class Recorder(BaseCallbackHandler):
    """Everything that callbacks are told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_"):
            told = self.told
            return lambda *args, **kwargs: told.append(repr((name, args, kwargs)))
        return super().__getattribute__(name)


async def streamed(graph: Any, given: Any, *callbacks: BaseCallbackHandler) -> list[str]:
    """Everything that a run streams, in every mode."""
    told = []
    run = {**config(), "callbacks": list(callbacks)}
    async for chunk in graph.astream(given, run, stream_mode=MODES, subgraphs=True):
        told.append(repr(chunk))
    return told


def held_by(saver: InMemorySaver) -> str:
    """Every byte that the checkpointer holds."""
    return repr((saver.storage, saver.writes, saver.blobs))


@pytest.mark.case("E11")
async def test_no_token_of_a_whole_conversation_is_in_clear_anywhere(
    world: Inside, placement: Placement, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    recorder, seen = Recorder(), []
    model = Scripted(calls(QUOTE, "show_portfolio"), "There.", calls(SMALL, LARGE), "Bought.")
    async with AsyncSqliteSaver.from_conn_string(str(tmp_path / "checkpoints.db")) as saver:
        graph = placement.build(world, model=model, saver=saver)
        alice = world.person("alice")
        seen += await streamed(graph, {"messages": [("user", "go")]}, recorder)
        await alice.sign_in((await graph.aget_state(config())).tasks[0].interrupts[0].value["requests"][0])
        assert last(await world.identity.resume(graph, {**config(), "callbacks": [recorder]})) == "There."
        with as_caller(world, "alice"):
            seen += await streamed(graph, {"messages": [("user", "buy")]}, recorder)
            await alice.approve((await graph.aget_state(config())).tasks[0].interrupts[0].value["requests"][0])
            world.clock.advance(30)
            await world.identity.poll()
            seen += await streamed(graph, None, recorder)
            state = await graph.aget_state(config())
        seen += [repr(snapshot) async for snapshot in graph.aget_state_history(config())]
    assert last(state.values) == "Bought."
    assert len(world.orders()) == 2
    assert len(world.issued_tokens) > 5
    seen += [*recorder.told, repr(model.heard), caplog.text]
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "world" not in path.parts]
    assert len(seen) > 50
    assert len(files) > 3
    for token in world.issued_tokens:
        assert not any(token in text for text in seen)
        assert not any(token.encode() in content for content in files)


class Tracer(Client):
    """Keeps what LangSmith would be sent."""

    def __init__(self) -> None:
        super().__init__(api_url="http://127.0.0.1:9", api_key="x", auto_batch_tracing=False)
        self.sent: list[str] = []

    def create_run(self, *args: Any, **kwargs: Any) -> None:
        self.sent.append(repr((args, kwargs)))

    def update_run(self, *args: Any, **kwargs: Any) -> None:
        self.sent.append(repr((args, kwargs)))


@pytest.mark.case("E11")
async def test_no_token_is_in_clear_in_a_trace_and_a_traced_run_does_the_same(
    world: Inside, placement: Placement
) -> None:
    tracer = Tracer()
    graph = placement.build(world, calls("show_portfolio"), "There.", calls(LARGE), "Bought.")
    alice = world.person("alice")
    with tracing_context(enabled=True, client=tracer):
        await alice.sign_in(requests(await say(graph))[0])
        assert last(await world.identity.resume(graph, config())) == "There."
        with as_caller(world, "alice"):
            await alice.approve(requests(await say(graph))[0])
            state = await world.identity.resume(graph, config())
    assert last(state) == "Bought."
    told = "".join(tracer.sent)
    assert "show_portfolio" in told
    assert "<coroutine object" not in told
    assert len(world.issued_tokens) > 5
    assert not any(token in told for token in world.issued_tokens)


def _returned(token: AccessToken, runtime: Any) -> Any:
    return f"the token is {token.reveal()}"


def _in_blocks(token: AccessToken, runtime: Any) -> Any:
    return [{"type": "text", "text": token.reveal()}]


def _raised(token: AccessToken, runtime: Any) -> Any:
    raise RuntimeError(f"401 for {token.reveal()}")


def _written(token: AccessToken, runtime: Any) -> Any:
    get_stream_writer()({"token": token.reveal()})
    return "written"


def _written_to_the_runtime(token: AccessToken, runtime: Any) -> Any:
    runtime.stream_writer({"token": token.reveal()})
    return "written"


def _emitted(token: AccessToken, runtime: Any) -> Any:
    runtime.emit_output_delta(token.reveal())
    return "emitted"


def _commanded(token: AccessToken, runtime: Any) -> Any:
    message = ToolMessage(token.reveal(), tool_call_id=runtime.tool_call_id)
    return Command(update={"messages": [message]})


def _hidden_in_a_command(token: AccessToken, runtime: Any) -> Any:
    message = ToolMessage("hidden", tool_call_id=runtime.tool_call_id, artifact=SecretStr(token.reveal()))
    return Command(update={"messages": [message]})


WAYS = [_returned, _in_blocks, _raised, _written, _written_to_the_runtime, _emitted, _commanded, _hidden_in_a_command]


@pytest.mark.case("E25")
@pytest.mark.parametrize("echo", WAYS, ids=lambda way: way.__name__.strip("_"))
@pytest.mark.parametrize("form", ["async", "sync"])
@pytest.mark.parametrize("placement", PLACEMENTS[1:], ids=lambda placement: placement.name)
async def test_a_tool_that_echoes_its_token_shows_it_to_nobody(
    world: Inside, placement: Placement, echo: Callable[[Any, Any], Any], form: str
) -> None:
    lent: list[str] = []
    read = resource(f"{world.url}/trading", "portfolio:read")

    if form == "async":

        @tool
        @needs(read_only=True, token=read)
        async def look(token: AccessToken, runtime: ToolRuntime) -> Any:
            """Look."""
            lent.append(token.reveal())
            return echo(token, runtime)

    else:

        @tool
        @needs(read_only=True, token=read)
        def look(token: AccessToken, runtime: ToolRuntime) -> Any:
            """Look."""
            lent.append(token.reveal())
            return echo(token, runtime)

    saver, recorder = InMemorySaver(), Recorder()
    graph = placement.build(world, calls("look"), "Seen.", calls("look"), "Seen.", tools=[look], saver=saver)
    await sign_in(world, graph)
    with as_caller(world, "alice"):
        if form == "async":
            seen = await streamed(graph, {"messages": [("user", "again")]}, recorder)
        else:
            run = {**config(), "callbacks": [recorder]}
            given = {"messages": [("user", "again")]}
            seen = [repr(chunk) for chunk in graph.stream(given, run, stream_mode=MODES, subgraphs=True)]
    state = await graph.aget_state(config())
    assert last(state.values) == "Seen."
    assert len(answers(state.values)) == 2
    assert len(lent) == 2
    assert "***" in "".join(seen) or echo is _hidden_in_a_command
    for text in (*seen, *recorder.told, held_by(saver), repr(state)):
        assert lent[1] not in text


@pytest.mark.case("E25")
async def test_what_a_tool_says_in_a_command_is_what_the_ledger_tells_when_it_is_asked_again(world: Inside) -> None:
    made: list[str] = []

    @tool
    def note(text: str, runtime: ToolRuntime) -> Any:
        """Take a note."""
        made.append(text)
        return Command(update={"messages": [ToolMessage(f"noted {text}", tool_call_id=runtime.tool_call_id)]})

    for placement in PLACEMENTS[1:]:
        made.clear()
        graph = placement.build(world, calls(("note", {"text": placement.name})), "Done.", tools=[note])
        assert answers(await say(graph, thread=placement.name)) == [f"noted {placement.name}"]
        history = [s async for s in graph.aget_state_history(config(placement.name))]
        before = next(s for s in history if [m.type for m in s.values["messages"]] == ["human", "ai"])
        assert answers(await graph.ainvoke(None, before.config)) == [f"noted {placement.name}"]
        assert made == [placement.name]


@pytest.mark.case("E15")
async def test_what_the_runtime_injects_is_not_a_models_to_choose(world: Inside) -> None:
    seen: list[Any] = []

    @tool
    @needs(read_only=True)
    def look(runtime: ToolRuntime) -> str:
        """Look."""
        seen.append(runtime.tool_call_id)
        return "seen"

    for placement in PLACEMENTS[1:]:
        model = Scripted(calls(("look", {"runtime": {"state": "forged"}}), "look"), "Done.")
        state = await say(placement.build(world, model=model, tools=[look]), thread=placement.name)
        assert sorted(answers(state)) == ["look has no argument runtime", "seen"]
        ids = {call["id"] for m in state["messages"] if m.type == "ai" for call in m.tool_calls}
        assert len(seen) == 1
        assert seen.pop() in ids
        assert requests(state) == []
