"""The whole graph over the embedded world: from an anonymous question to an approved order, and each way that it can end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from agent.tools import trading_tools
from graphs.assistant import build_assistant
from identity.asking import APPROVAL_LIFETIME
from tests.support import (
    Inside,
    Scripted,
    as_caller,
    assistant,
    calls,
    config,
    history_faults,
    last,
    requests,
    say,
    sign_in,
)

QUOTE = ("get_quote", {"symbol": "ACME"})
SMALL = ("buy_stock", {"symbol": "ACME", "quantity": 5, "limit": "100"})
LARGE = ("buy_stock", {"symbol": "ACME", "quantity": 50, "limit": "100"})


def orders_sent(world: Inside) -> int:
    """How often the trading API was asked for an order."""
    return sum(sent.method == "POST" and sent.url.endswith("/trading/orders") for sent in world.network.sent)


async def go_on(world: Inside, graph: Any, thread: str = "t1") -> dict[str, Any]:
    """For alice, once something that her thread waits for has been decided."""
    with as_caller(world, "alice"):
        state: dict[str, Any] = await world.identity.resume(graph, config(thread))
    return state


def test_the_graph_has_the_nodes_that_its_drawing_names(world: Inside) -> None:
    drawn = assistant(world).get_graph()
    assert set(drawn.nodes) == {
        *("__start__", "model", "login", "approval", "await_user", "token_exchange", "tool_call", "tidy", "settle"),
        "__end__",
    }
    led = {(e.source, e.target) for e in drawn.edges}
    assert {t for s, t in led if s == "tool_call"} == {"model"}, "the join, and nothing that would fire once per call"
    assert ("await_user", "tool_call") in led
    assert ("token_exchange", "tool_call") in led


async def test_anybody_gets_a_quote_and_nobody_is_asked_to_sign_in(world: Inside) -> None:
    model = Scripted(calls(QUOTE), "It is at 98.40.")
    state = await say(assistant(world, model=model))
    assert last(state) == "It is at 98.40."
    assert "98.40" in str(state["messages"][2].content)
    assert world.issued_tokens == []
    assert history_faults(model.heard[-1]) == []


async def test_the_portfolio_is_shown_after_the_sign_in_by_a_delegated_token(world: Inside) -> None:
    graph = assistant(world, calls("show_portfolio"), "There.")
    state = await say(graph)
    (asked,) = requests(state)
    assert asked["kind"] == "login"
    assert state["requests"] == [asked]
    await world.person("alice").sign_in(asked)
    state = await go_on(world, graph)
    assert "12 ACME" in str(state["messages"][2].content)
    assert requests(state) == []
    assert state["requests"] == []
    assert [g.rpartition(":")[2] for g in world.network.grants()] == ["device_code", "refresh_token", "token-exchange"]


async def test_a_small_order_is_made_for_the_person_and_nobody_is_asked(world: Inside) -> None:
    graph = assistant(world, calls(SMALL), "Done.")
    state = await sign_in(world, graph)
    assert requests(state) == []
    (order,) = world.orders()
    assert (order.subject, order.actor) == (world.person("alice").principal.subject, "deputize-agent")
    assert (order.symbol, order.quantity) == ("ACME", 5)


async def test_a_large_order_waits_for_its_approval_and_is_made_once(world: Inside) -> None:
    graph = assistant(world, calls(LARGE), "Done.")
    state = await sign_in(world, graph)
    (asked,) = requests(state)
    assert asked["kind"] == "approval"
    assert world.orders() == []
    page = await world.person("alice").read(asked["url"])
    assert "50" in page
    assert asked["code"] in page
    await world.person("alice").approve(asked)
    state = await go_on(world, graph)
    assert "Bought 50 ACME" in str(state["messages"][-2].content)
    assert len(world.orders()) == orders_sent(world) == 1


async def test_a_declined_order_is_told_and_not_made(world: Inside) -> None:
    graph = assistant(world, calls(LARGE), "Then not.")
    (asked,) = requests(await sign_in(world, graph))
    await world.person("alice").deny(asked)
    state = await go_on(world, graph)
    assert "declined" in str(state["messages"][-2].content)
    assert last(state) == "Then not."
    assert orders_sent(world) == 0


async def test_an_order_that_nobody_decides_about_expires_and_the_thread_goes_on(world: Inside) -> None:
    graph = assistant(world, calls(LARGE), "Nobody said yes.", calls(QUOTE), "98.40")
    (asked,) = requests(await sign_in(world, graph))
    world.clock.advance(APPROVAL_LIFETIME + 1)
    state = await go_on(world, graph)
    assert "expired" in str(state["messages"][-2].content)
    assert orders_sent(world) == 0
    with as_caller(world, "alice"):
        assert last(await say(graph)) == "98.40"
    with pytest.raises(Exception, match=r"no form|HTTP"):
        await world.person("alice").approve(asked)


async def test_a_login_that_nobody_finishes_expires_and_is_asked_for_anew_when_it_is_needed_again(
    world: Inside,
) -> None:
    graph = assistant(world, calls("show_portfolio"), "Nobody signed in.", calls("show_portfolio"), "There.")
    first = requests(await say(graph))
    world.clock.advance(1_000)
    state = await world.identity.resume(graph, config())
    assert "expired" in str(state["messages"][-2].content)
    second = requests(await say(graph))
    assert [r["kind"] for r in second] == ["login"]
    assert second[0]["id"] != first[0]["id"]


async def test_what_is_ready_runs_and_is_committed_before_anything_waits(world: Inside) -> None:
    saver = InMemorySaver()
    graph = assistant(world, calls(LARGE, QUOTE, "no_such_tool"), "Both.", saver=saver)
    state = await say(graph)
    assert [r["kind"] for r in requests(state)] == ["login"]
    held = await saver.aget_tuple(config())
    assert held is not None
    committed = [str(m.content) for m in held.checkpoint["channel_values"]["messages"]]
    assert "ACME: 98.40 USD" in committed
    assert any("There is no tool" in text for text in committed)


@pytest.mark.case("E16")
async def test_of_two_guarded_calls_in_one_turn_the_finished_one_is_not_run_again(world: Inside) -> None:
    model = Scripted(calls(SMALL, LARGE), "Both.")
    graph = assistant(world, model=model)
    (asked,) = requests(await sign_in(world, graph))
    assert (len(world.orders()), orders_sent(world)) == (1, 1)  # the small one is made while the large one waits
    with as_caller(world, "alice"):
        assert requests(await graph.ainvoke(None, config())) == [asked]  # woken too early: nothing is repeated
    await world.person("alice").approve(asked)
    state = await go_on(world, graph)
    assert (len(world.orders()), orders_sent(world)) == (2, 2)
    assert sum("Bought" in str(m.content) for m in state["messages"]) == 2
    assert history_faults(model.heard[-1]) == []


@pytest.mark.case("E16")
async def test_a_login_and_approvals_in_one_turn_are_asked_one_after_the_other_and_all_calls_run_once(
    world: Inside,
) -> None:
    other = ("buy_stock", {"symbol": "NOVA", "quantity": 40, "limit": "42"})
    graph = assistant(world, calls("show_portfolio", LARGE, other, SMALL), "All.")
    asked = requests(await sign_in(world, graph))
    assert [r["kind"] for r in asked] == ["approval", "approval"]  # in one interrupt, one action each
    alice = world.person("alice")
    await alice.approve(asked[0])
    state = await go_on(world, graph)
    assert requests(state) == [asked[1]]
    assert {(o.symbol, o.quantity) for o in world.orders()} == {("ACME", 5), ("ACME", 50)}
    await alice.deny(asked[1])
    with as_caller(world, "alice"):
        state = await go_on(world, graph)
    assert len(world.orders()) == orders_sent(world) == 2
    told = [str(m.content) for m in state["messages"] if m.type == "tool"]
    assert [sum(word in text for text in told) for word in ("12 ACME", "Bought", "declined")] == [1, 2, 1]


async def test_the_interrupt_is_a_request_that_chat_clients_know(world: Inside) -> None:
    graph = assistant(world, calls(LARGE))
    state = await sign_in(world, graph)
    (interrupted,) = state["__interrupt__"]
    (action,) = interrupted.value["action_requests"]
    assert (action["name"], action["args"]) == ("buy_stock", LARGE[1])
    assert state["requests"][0]["url"] in action["description"]
    assert interrupted.value["review_configs"] == [{"action_name": "buy_stock", "allowed_decisions": []}]


async def test_a_second_thread_of_a_person_who_signed_in_needs_no_second_login(world: Inside) -> None:
    graph = assistant(world, calls("show_portfolio"), "One.", calls("show_portfolio"), "Two.")
    await sign_in(world, graph)
    with as_caller(world, "alice"):
        state = await say(graph, thread="t2")
    assert "12 ACME" in str(state["messages"][2].content)


async def test_a_token_is_used_again_within_its_life_and_exchanged_again_after_it(world: Inside) -> None:
    graph = assistant(world, *[calls("show_portfolio"), "There."] * 3)
    await sign_in(world, graph)
    with as_caller(world, "alice"):
        await say(graph)
        assert world.network.grants().count("urn:ietf:params:oauth:grant-type:token-exchange") == 1
        world.clock.advance(301)
        await say(graph)
    assert world.network.grants().count("urn:ietf:params:oauth:grant-type:token-exchange") == 2


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (httpx.Response(400, json={"error": "invalid_target"}), "invalid_target"),
        (httpx.Response(500, text="<html>"), "Try again"),
        (httpx.ConnectError("refused"), "did not answer"),
    ],
)
async def test_a_token_that_cannot_be_had_is_told_with_the_reason_and_not_tried_in_a_loop(
    world: Inside, fault: Any, told: str
) -> None:
    tries = []

    def broken(request: httpx.Request) -> Any:
        if b"token-exchange" not in request.content:
            return None
        tries.append(request)
        return fault

    graph = assistant(world, calls("show_portfolio", SMALL), "Cannot.", calls("show_portfolio"), "There.")
    world.network.fault = broken
    state = await sign_in(world, graph)
    answers = [m for m in state["messages"] if m.type == "tool"]
    assert [m.status for m in answers] == ["error", "error"]
    assert all(told in str(m.content) for m in answers)
    assert len(tries) == 2  # one for each token that the turn needs
    world.network.fault = None
    with as_caller(world, "alice"):  # the next turn tries again
        assert "12 ACME" in str((await say(graph))["messages"][-2].content)


@pytest.mark.parametrize("endpoint", ["/issuer/bc-authorize", "/issuer/device_authorization"])
async def test_a_request_that_cannot_be_opened_is_told_with_the_reason(world: Inside, endpoint: str) -> None:
    graph = assistant(world, calls("show_portfolio"), "There.", calls(LARGE), "Cannot.")
    if "device" in endpoint:
        world.network.fault = lambda r: httpx.Response(503) if "device" in r.url.path else None
        state = await say(graph)
    else:
        await sign_in(world, graph)
        world.network.fault = lambda r: httpx.ConnectError("refused") if r.method == "POST" else None
        with as_caller(world, "alice"):
            state = await say(graph)
    assert requests(state) == []
    answer = state["messages"][-2]
    assert answer.status == "error"
    assert ("device authorization endpoint" if "device" in endpoint else "did not answer") in str(answer.content)


async def test_a_grant_that_the_issuer_revoked_ends_the_session_and_a_login_is_asked_for(world: Inside) -> None:
    graph = assistant(world, calls("show_portfolio"), "There.", calls("show_portfolio"), "Again.")
    await sign_in(world, graph)
    world.clock.advance(301)
    world.network.fault = lambda r: (
        httpx.Response(400, json={"error": "invalid_grant"}) if b"grant_type=refresh_token" in r.content else None
    )
    with as_caller(world, "alice"):
        state = await say(graph)
        assert [r["kind"] for r in requests(state)] == ["login"]
        world.network.fault = None
        await world.person("alice").sign_in(requests(state)[0])
        assert "12 ACME" in str((await go_on(world, graph))["messages"][-2].content)


# -- sync ------------------------------------------------------------------------------------------------------------


def test_a_whole_conversation_runs_by_invoke(world: Inside) -> None:
    """Sync nodes, and tools that have an async form only."""
    model = Scripted(calls(QUOTE, "show_portfolio"), "There.", calls(LARGE), "Bought.")
    graph = assistant(world, model=model)
    alice = world.person("alice")

    def say_(text: str) -> Any:
        return graph.invoke({"messages": [("user", text)]}, config())

    asked = requests(say_("quote and portfolio"))
    asyncio.run(alice.sign_in(asked[0]))
    state = world.identity.resume_sync(graph, config())
    assert [m.status for m in state["messages"] if m.type == "tool"] == ["success", "success"]
    with world.identity.caller(alice.principal):
        asked = requests(say_("buy"))
        asyncio.run(alice.approve(asked[0]))
        state = world.identity.resume_sync(graph, config())
    assert last(state) == "Bought."
    assert len(world.orders()) == orders_sent(world) == 1
    assert all(history_faults(heard) == [] for heard in model.heard)


async def test_invoke_works_where_a_loop_is_running_too(world: Inside) -> None:
    state = assistant(world, calls(QUOTE), "98.40").invoke({"messages": [("user", "quote")]}, config())
    assert "98.40" in str(state["messages"][2].content)


# -- restarts --------------------------------------------------------------------------------------------------------


@pytest.mark.case("E18")
@pytest.mark.parametrize("kind", ["login", "approval"])
async def test_a_thread_that_waits_goes_on_in_another_process(world: Inside, tmp_path: Path, kind: str) -> None:
    """Nothing is shared but the files: the first identity layer, graph and checkpointer are gone before the decision."""
    file = str(tmp_path / "checkpoints.db")
    alice = world.person("alice")
    async with AsyncSqliteSaver.from_conn_string(file) as saver:
        graph = assistant(world, calls(QUOTE, LARGE), saver=saver)
        state = await say(graph)
        if kind == "approval":
            await alice.sign_in(requests(state)[0])
            state = await go_on(world, graph)
        (asked,) = requests(state)
        assert asked["kind"] == kind
    world.identity.close()
    await (alice.sign_in if kind == "login" else alice.approve)(asked)
    identity = world.again()
    try:
        async with AsyncSqliteSaver.from_conn_string(file) as saver:
            graph = assistant(world, "Done.", saver=saver, identity=identity)
            with identity.caller(alice.principal):
                state = await identity.resume(graph, config())
                if kind == "login":
                    (asked,) = requests(state)
                    await alice.approve(asked)
                    state = await identity.resume(graph, config())
        assert last(state) == "Done."
        assert len(world.orders()) == orders_sent(world) == 1
        assert sum("98.40 USD" in str(m.content) for m in state["messages"]) == 1
    finally:
        identity.close()


async def test_a_conversation_needs_nothing_that_strict_msgpack_refuses(
    world: Inside, caplog: pytest.LogCaptureFixture
) -> None:
    saver = InMemorySaver(serde=JsonPlusSerializer(allowed_msgpack_modules=None, pickle_fallback=False))
    graph = assistant(world, calls(QUOTE, LARGE), "Done.", saver=saver)
    (asked,) = requests(await sign_in(world, graph))
    await world.person("alice").approve(asked)
    state = await go_on(world, graph)
    assert last(state) == "Done."
    assert all(isinstance(m.content, str) for m in state["messages"])
    assert not [r for r in caplog.records if "checkpoint" in r.name and r.levelname == "WARNING"]


# -- streams ---------------------------------------------------------------------------------------------------------


class Streaming(Scripted):
    """Says its turns in pieces."""

    async def _astream(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        message = self._generate(messages).generations[0].message
        assert isinstance(message, AIMessage)
        for piece in message.text:
            yield ChatGenerationChunk(message=AIMessageChunk(piece))
        called = [
            {"name": c["name"], "args": '{"symbol": "ACME"}', "id": c["id"], "index": i, "type": "tool_call_chunk"}
            for i, c in enumerate(message.tool_calls)
        ]
        yield ChatGenerationChunk(message=AIMessageChunk("", tool_call_chunks=called))


async def test_pieces_that_are_streamed_join_into_the_message_that_is_kept(world: Inside) -> None:
    model = Streaming(calls(QUOTE, content="Let me look."), "It is at 98.40.")
    graph = assistant(world, model=model)
    pieces: dict[str, str] = {}
    given = {"messages": [("user", "quote")]}
    async for message, metadata in graph.astream(given, config(), stream_mode="messages"):
        if metadata["langgraph_node"] == "model" and isinstance(message, AIMessageChunk):
            assert message.id is not None
            pieces[message.id] = pieces.get(message.id, "") + str(message.text)
    kept = {m.id: str(m.text) for m in (await graph.aget_state(config())).values["messages"] if m.type == "ai"}
    assert pieces == kept
    assert list(kept.values()) == ["Let me look.", "It is at 98.40."]


async def test_updates_tell_the_way_that_a_run_takes(world: Inside) -> None:
    graph = assistant(world, calls("show_portfolio"), "There.")
    way: list[str] = []

    async def run(given: Any) -> None:
        async for update in graph.astream(given, config(), stream_mode="updates"):
            way.extend(update)

    await run({"messages": [("user", "portfolio")]})
    assert way == ["model", "login", "__interrupt__"]
    (asked,) = (await graph.aget_state(config())).values["requests"]
    await world.person("alice").sign_in(asked)
    place = world.identity._place(graph, config())
    await world.identity.transport.acall(world.identity.asking.wait, place)
    way.clear()
    with as_caller(world, "alice"):
        await run(None)
    assert way == ["await_user", "token_exchange", "tool_call", "model"]


def test_without_a_thread_a_run_is_refused_with_what_to_do(world: Inside) -> None:
    graph = build_assistant(Scripted(), trading_tools(world.url), world.identity)
    with pytest.raises(Exception, match="Compile it with a checkpointer"):
        graph.invoke({"messages": [("user", "hi")]})
