"""From an anonymous question to an approved order, and each way that it can end: the same in every placement."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from identity import approval, needs
from identity.asking import APPROVAL_LIFETIME
from identity.sessions import Place
from tests.placements.placing import (
    LARGE,
    QUOTE,
    SMALL,
    WHOLE,
    Placement,
    Waiting,
    answers,
    decided,
    orders_sent,
    pushes,
)
from tests.support import (
    Inside,
    Scripted,
    as_caller,
    calls,
    config,
    history_faults,
    last,
    requests,
    say,
    sign_in,
)

EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"


def sound(model: Scripted) -> bool:
    """Whether every history that the model was shown is one that it would take."""
    assert model.heard
    return [history_faults(heard) for heard in model.heard] == [[]] * len(model.heard)


async def go_on(world: Inside, graph: Any, thread: str = "t1") -> dict[str, Any]:
    state: dict[str, Any] = await world.identity.resume(graph, config(thread))
    return state


async def test_anybody_gets_a_quote_and_nobody_is_asked_to_sign_in(world: Inside, placement: Placement) -> None:
    model = Scripted(calls(QUOTE), "It is at 98.40.")
    state = await say(placement.build(world, model=model))
    assert last(state) == "It is at 98.40."
    assert answers(state) == ["ACME: 98.40 USD"]
    assert world.issued_tokens == []
    assert sound(model)


async def test_from_a_login_to_an_approved_order_in_one_conversation(world: Inside, placement: Placement) -> None:
    model = Scripted(calls("show_portfolio"), "There.", calls(SMALL), "Bought.", calls(LARGE), "Bought too.")
    graph = placement.build(world, model=model)
    alice = world.person("alice")

    (asked,) = requests(await say(graph, "Show my portfolio"))
    assert asked["kind"] == "login"
    await alice.sign_in(asked)
    state = await go_on(world, graph)
    assert "12 ACME" in answers(state)[0]
    assert world.network.grants().count(EXCHANGE) == 1

    with as_caller(world, "alice"):
        state = await say(graph, "Buy 5")
        assert requests(state) == []
        (order,) = world.orders()
        assert (order.subject, order.actor) == (alice.principal.subject, "deputize-agent")

        (asked,) = requests(await say(graph, "Buy 50"))
        assert asked["kind"] == "approval"
        assert len(world.orders()) == 1
        page = await alice.read(asked["url"])
        assert "50" in page
        assert asked["code"] in page
        await alice.approve(asked)
        state = await go_on(world, graph)
    assert "Bought 50 ACME" in answers(state)[-1]
    assert last(state) == "Bought too."
    assert len(world.orders()) == orders_sent(world) == 2
    assert sound(model)
    assert history_faults(state["messages"]) == []


async def test_a_declined_order_is_told_and_not_made(waiting: Waiting) -> None:
    await waiting.alice.deny(waiting.asked)
    state = await go_on(waiting.world, waiting.graph)
    assert "declined" in answers(state)[0]
    assert last(state) == "Done."
    assert orders_sent(waiting.world) == 0
    assert sound(waiting.model)


async def test_an_order_that_nobody_decides_about_expires_and_the_thread_goes_on(waiting: Waiting) -> None:
    waiting.world.clock.advance(APPROVAL_LIFETIME + 31)
    state = await go_on(waiting.world, waiting.graph)
    assert "expired" in answers(state)[0]
    assert orders_sent(waiting.world) == 0
    waiting.model.turns = [calls(QUOTE), "98.40"]
    assert last(await say(waiting.graph)) == "98.40"


async def test_a_login_that_nobody_finishes_expires_and_is_asked_for_anew_when_it_is_needed_again(
    world: Inside, placement: Placement
) -> None:
    graph = placement.build(world, calls("show_portfolio"), "Nobody signed in.", calls("show_portfolio"), "There.")
    (first,) = requests(await say(graph))
    world.clock.advance(1_000)
    state = await go_on(world, graph)
    assert "expired" in answers(state)[0]
    (second,) = requests(await say(graph))
    assert (second["kind"], second["id"] != first["id"]) == ("login", True)


@pytest.mark.case("E16")
async def test_of_two_guarded_calls_in_one_turn_each_is_made_once_though_one_waits(
    world: Inside, placement: Placement
) -> None:
    model = Scripted(calls(QUOTE, SMALL, LARGE), "All.")
    graph = placement.build(world, model=model)
    (asked,) = requests(await sign_in(world, graph))
    before = 1 if placement.ready_first else 0  # elsewhere a turn waits as a whole, and nothing can be told wrongly
    assert len(world.orders()) == orders_sent(world) == before
    with as_caller(world, "alice"):
        assert requests(await graph.ainvoke(None, config())) == [asked]  # woken too early: nothing is repeated
        await world.person("alice").approve(asked)
        state = await go_on(world, graph)
    assert len(world.orders()) == orders_sent(world) == 2
    told = sorted(answers(state))
    assert [text[:9] for text in told] == ["ACME: 98.", "Bought 5 ", "Bought 50"]
    assert sound(model)


@pytest.mark.case("E16")
async def test_several_approvals_of_one_turn_are_asked_in_one_interrupt_and_decided_one_by_one(
    world: Inside, placement: Placement
) -> None:
    other = ("buy_stock", {"symbol": "NOVA", "quantity": 40, "limit": "42"})
    model = Scripted(calls("show_portfolio", LARGE, other), "All.")
    graph = placement.build(world, model=model)
    state = await sign_in(world, graph)
    assert [r["kind"] for r in requests(state)] == ["approval", "approval"]
    assert len(state["__interrupt__"]) == 1
    alice = world.person("alice")
    with as_caller(world, "alice"):
        await alice.approve(requests(state)[0])
        state = await go_on(world, graph)
        assert len(requests(state)) == 1
        await alice.deny(requests(state)[0])
        state = await go_on(world, graph)
    assert [sum(word in text for text in answers(state)) for word in ("12 ACME", "Bought", "declined")] == [1, 1, 1]
    assert len(world.orders()) == orders_sent(world) == 1
    assert pushes(world) == 2
    assert sound(model)


async def test_the_interrupt_is_a_request_that_chat_clients_know(waiting: Waiting) -> None:
    state = await waiting.run()
    (interrupted,) = state["__interrupt__"]
    (action,) = interrupted.value["action_requests"]
    assert (action["name"], action["args"]) == ("buy_stock", LARGE[1])
    assert waiting.asked["url"] in action["description"]
    assert interrupted.value["review_configs"] == [{"action_name": "buy_stock", "allowed_decisions": []}]


async def test_a_second_thread_of_a_person_who_signed_in_needs_no_second_login(
    world: Inside, placement: Placement
) -> None:
    graph = placement.build(world, calls("show_portfolio"), "One.", calls("show_portfolio"), "Two.")
    await sign_in(world, graph)
    with as_caller(world, "alice"):
        assert "12 ACME" in answers(await say(graph, thread="t2"))[0]


async def test_a_token_is_used_again_within_its_life_and_exchanged_again_after_it(
    world: Inside, placement: Placement
) -> None:
    graph = placement.build(world, *(turn for _ in range(3) for turn in (calls("show_portfolio"), "There.")))
    await sign_in(world, graph)
    with as_caller(world, "alice"):
        await say(graph)
        assert world.network.grants().count(EXCHANGE) == 1
        world.clock.advance(301)
        assert "12 ACME" in answers(await say(graph))[-1]
    assert world.network.grants().count(EXCHANGE) == 2


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (httpx.Response(400, json={"error": "invalid_target"}), "invalid_target"),
        (httpx.Response(500, text="<html>"), "Try again"),
        (httpx.ConnectError("refused"), "did not answer"),
    ],
)
async def test_a_token_that_cannot_be_had_is_told_with_the_reason_and_not_tried_in_a_loop(
    world: Inside, placement: Placement, fault: Any, told: str
) -> None:
    tries = []

    def broken(request: httpx.Request) -> Any:
        if b"token-exchange" not in request.content:
            return None
        tries.append(request)
        return fault

    graph = placement.build(world, calls("show_portfolio", SMALL), "Cannot.", calls("show_portfolio"), "There.")
    world.network.fault = broken
    state = await sign_in(world, graph)
    assert [m.status for m in state["messages"] if m.type == "tool"] == ["error", "error"]
    assert all(told in text for text in answers(state))
    assert len(tries) == 2  # one for each token that the turn needs
    world.network.fault = None
    with as_caller(world, "alice"):  # the next turn tries again
        assert "12 ACME" in answers(await say(graph))[-1]


@pytest.mark.parametrize("endpoint", ["/issuer/bc-authorize", "/issuer/device_authorization"])
async def test_a_request_that_cannot_be_opened_is_told_with_the_reason(
    world: Inside, placement: Placement, endpoint: str
) -> None:
    graph = placement.build(world, calls("show_portfolio"), "There.", calls(LARGE), "Cannot.")
    if "device" in endpoint:
        world.network.fault = lambda r: httpx.Response(503) if "device" in r.url.path else None
        state = await say(graph)
    else:
        await sign_in(world, graph)
        world.network.fault = lambda r: httpx.ConnectError("refused") if r.method == "POST" else None
        with as_caller(world, "alice"):
            state = await say(graph)
    assert requests(state) == []
    assert state["messages"][-2].status == "error"
    assert ("device authorization endpoint" if "device" in endpoint else "did not answer") in answers(state)[-1]


async def test_a_grant_that_the_issuer_revoked_ends_the_session_and_a_login_is_asked_for(
    world: Inside, placement: Placement
) -> None:
    graph = placement.build(world, calls("show_portfolio"), "There.", calls("show_portfolio"), "Again.")
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
        assert "12 ACME" in answers(await go_on(world, graph))[-1]


async def test_after_the_session_has_ended_the_tokens_that_were_kept_open_nothing(
    world: Inside, placement: Placement
) -> None:
    graph = placement.build(world, calls("show_portfolio"), "There.", calls("show_portfolio"))
    await sign_in(world, graph)
    session = world.identity.sessions.of(_place(world, placement))
    assert session is not None
    world.identity.sessions.end(session, world.clock())
    world.identity.vault.delete(world.identity.vault.grant(session.grant_id, session.principal))  # type: ignore[arg-type]
    with as_caller(world, "alice"):
        state = await say(graph)
    assert [r["kind"] for r in requests(state)] == ["login"]
    assert len(answers(state)) == 1


def _place(world: Inside, placement: Placement, thread: str = "t1") -> Place:
    return Place(world.identity.settings.tenant, placement.graph, thread)


# -- people go on talking ------------------------------------------------------------------------------------------------


@pytest.mark.case("E17")
async def test_a_message_while_a_login_is_open_withdraws_the_call_and_is_answered(
    world: Inside, placement: Placement
) -> None:
    model = Scripted(calls("show_portfolio"), "Never mind then.")
    graph = placement.build(world, model=model)
    assert len(requests(await say(graph))) == 1
    state = await say(graph, "Forget it")
    assert last(state) == "Never mind then."
    assert [m.type for m in state["messages"]] == ["human", "ai", "tool", "human", "ai"]
    assert "Withdrawn" in answers(state)[0]
    assert requests(state) == []
    assert sound(model)


@pytest.mark.case("E17")
@WHOLE
async def test_a_message_while_an_approval_is_open_withdraws_it_and_a_later_yes_does_nothing(waiting: Waiting) -> None:
    waiting.model.turns = ["Withdrawn.", calls(QUOTE), "98.40"]
    state = await say(waiting.graph, "Wait, what is it at?")
    assert "Withdrawn" in answers(state)[0]
    await waiting.alice.approve(waiting.asked)  # the page of the issuer is still there
    await decided(waiting.world)
    request = waiting.world.identity.ledger.request(waiting.asked["id"])
    assert request is not None
    assert request.state == "withdrawn"
    await waiting.run()
    assert last(await say(waiting.graph, "And the quote?")) == "98.40"
    assert waiting.world.orders() == []
    assert sound(waiting.model)


@pytest.mark.case("E17")
@WHOLE
async def test_what_was_withdrawn_stays_so_though_a_yes_came_just_before_the_message(waiting: Waiting) -> None:
    before = (await waiting.graph.aget_state(config())).config
    await waiting.approve()
    waiting.model.turns = ["Withdrawn."]
    state = await say(waiting.graph, "No, stop")
    assert "Withdrawn" in answers(state)[0]
    again = await waiting.graph.ainvoke(None, before)
    assert "Withdrawn" in answers(again)[0]
    assert waiting.world.orders() == []


@pytest.mark.case("E17")
@WHOLE
async def test_a_turn_that_waited_as_a_whole_is_withdrawn_as_a_whole(world: Inside, placement: Placement) -> None:
    """Nothing of it was done, and that is what is told."""
    model = Scripted(calls(SMALL, LARGE, QUOTE), "None of it.")
    graph = placement.build(world, model=model)
    await sign_in(world, graph)
    with as_caller(world, "alice"):
        state = await say(graph, "What happened?")
    assert ["Withdrawn" in text for text in answers(state)] == [True, True, True]
    assert world.orders() == []
    assert sound(model)


@pytest.mark.case("E17")
@WHOLE
async def test_several_messages_in_a_row_while_something_waits_leave_a_sound_history(waiting: Waiting) -> None:
    waiting.model.turns = [calls(LARGE, QUOTE), calls(LARGE), "Enough."]
    for text in ("Hm", "Hm?", "Stop"):
        state = await say(waiting.graph, text)
    assert last(state) == "Enough."
    assert requests(state) == []
    assert waiting.world.identity.ledger.pending(_place(waiting.world, waiting.placement)) == []
    assert sound(waiting.model)
    assert history_faults(state["messages"]) == []


@pytest.mark.case("E17")
@WHOLE
async def test_the_thread_goes_on_with_a_new_order_after_one_was_withdrawn(waiting: Waiting) -> None:
    waiting.model.turns = [calls(("buy_stock", {**LARGE[1], "quantity": 40})), "Bought."]
    (second,) = requests(await say(waiting.graph, "Make it 40"))
    assert second["id"] != waiting.asked["id"]
    await waiting.alice.approve(second)
    state = await go_on(waiting.world, waiting.graph)
    assert last(state) == "Bought."
    assert [o.quantity for o in waiting.world.orders()] == [40]
    assert sound(waiting.model)


async def test_an_effect_whose_outcome_nobody_saw_is_told_as_unknown(world: Inside, placement: Placement) -> None:
    made: list[str] = []

    @tool
    def order() -> str:
        """Order."""
        made.append("order")
        raise KeyboardInterrupt

    model = Scripted(calls("order"), "Please check.")
    graph = placement.build(world, model=model, tools=[order])
    with contextlib.suppress(KeyboardInterrupt):
        graph.invoke({"messages": [("user", "go")]}, config())
    state = await say(graph, "Did it work?")
    assert "nobody saw its outcome" in answers(state)[0]
    assert made == ["order"]
    assert sound(model)


@WHOLE
async def test_what_a_tool_would_defer_is_waited_for_and_withdrawn_like_anything_else(
    world: Inside, placement: Placement
) -> None:
    """Nothing would tell its outcome later: only the whole graph has the node for that."""

    @tool
    @needs(approval(wait="defer"))
    def order() -> str:
        """Order."""
        return "ordered"

    model = Scripted(calls("order"), "Ordered.", calls("order"), "Withdrawn.")
    graph = placement.build(world, model=model, tools=[order])
    (asked,) = requests(await sign_in(world, graph))
    await world.person("alice").approve(asked)
    with as_caller(world, "alice"):
        assert answers(await go_on(world, graph)) == ["ordered"]
        assert len(requests(await say(graph))) == 1
        assert "Withdrawn" in answers(await say(graph, "No"))[-1]


# -- sync, restarts, checkpointers ---------------------------------------------------------------------------------------


def test_a_whole_conversation_runs_by_invoke(world: Inside, placement: Placement) -> None:
    """Sync hooks and nodes, and tools that have an async form only."""
    model = Scripted(calls(QUOTE, "show_portfolio"), "There.", calls(LARGE, QUOTE), "Bought.", "Never mind.")
    graph = placement.build(world, model=model)
    alice = world.person("alice")

    def say_(text: str) -> Any:
        return graph.invoke({"messages": [("user", text)]}, config())

    (asked,) = requests(say_("quote and portfolio"))
    asyncio.run(alice.sign_in(asked))
    state = world.identity.resume_sync(graph, config())
    assert [m.status for m in state["messages"] if m.type == "tool"] == ["success", "success"]
    with world.identity.caller(alice.principal):
        (asked,) = requests(say_("buy"))
        asyncio.run(alice.approve(asked))
        state = world.identity.resume_sync(graph, config())
        assert last(state) == "Bought."
        model.turns = [calls(LARGE), "Never mind."]
        assert len(requests(say_("again"))) == 1
        state = say_("No, forget it")
    assert last(state) == "Never mind."
    assert ("Asked for" if placement.ready_first else "Withdrawn") in answers(state)[-1]
    assert len(world.orders()) == orders_sent(world) == 1
    assert sound(model)


@pytest.mark.case("E18")
@pytest.mark.parametrize("kind", ["login", "approval"])
async def test_a_thread_that_waits_goes_on_in_another_process(
    world: Inside, placement: Placement, tmp_path: Path, kind: str
) -> None:
    """Nothing is shared but the files: the first identity layer, graph and checkpointer are gone before the decision."""
    file = str(tmp_path / "checkpoints.db")
    alice = world.person("alice")
    async with AsyncSqliteSaver.from_conn_string(file) as saver:
        graph = placement.build(world, calls(QUOTE, LARGE), saver=saver)
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
            graph = placement.build(world, "Done.", saver=saver, identity=identity)
            if kind == "login":
                state = await identity.resume(graph, config())  # nobody had been asked, and alice signed in
                (asked,) = requests(state)
                await alice.approve(asked)
            with identity.caller(alice.principal):
                state = await identity.resume(graph, config())
        assert last(state) == "Done."
        assert len(world.orders()) == orders_sent(world) == 1
        assert sorted(text[:6] for text in answers(state)) == ["ACME: ", "Bought"]
    finally:
        identity.close()


def test_a_sync_checkpointer_works_too(world: Inside, placement: Placement, tmp_path: Path) -> None:
    with SqliteSaver.from_conn_string(str(tmp_path / "checkpoints.db")) as saver:
        graph = placement.build(world, calls(LARGE), "Bought.", saver=saver)
        asked = requests(graph.invoke({"messages": [("user", "buy")]}, config()))
        asyncio.run(world.person("alice").sign_in(asked[0]))
        asked = requests(world.identity.resume_sync(graph, config()))
        asyncio.run(world.person("alice").approve(asked[0]))
        with as_caller(world, "alice"):
            state = world.identity.resume_sync(graph, config())
    assert last(state) == "Bought."
    assert len(world.orders()) == 1


async def test_a_conversation_needs_nothing_that_strict_msgpack_refuses(
    world: Inside, placement: Placement, caplog: pytest.LogCaptureFixture
) -> None:
    saver = InMemorySaver(serde=JsonPlusSerializer(allowed_msgpack_modules=None, pickle_fallback=False))
    graph = placement.build(world, calls(QUOTE, LARGE), "Done.", saver=saver)
    (asked,) = requests(await sign_in(world, graph))
    await world.person("alice").approve(asked)
    with as_caller(world, "alice"):
        state = await go_on(world, graph)
    assert last(state) == "Done."
    assert not [r for r in caplog.records if "checkpoint" in r.name and r.levelname == "WARNING"]


async def test_without_a_thread_a_run_is_refused_with_what_to_do(world: Inside, placement: Placement) -> None:
    graph = placement.build(world, calls(QUOTE), "98.40")
    graph.checkpointer = None
    with pytest.raises(Exception, match="Compile it with a checkpointer"):
        await graph.ainvoke({"messages": [("user", "hi")]})


async def test_a_tool_without_needs_claims_its_effect_and_runs_for_anybody(world: Inside, placement: Placement) -> None:
    made: list[str] = []

    @tool
    def note(text: str) -> str:
        """Take a note."""
        made.append(text)
        return "noted"

    @tool
    @needs(read_only=True)
    def look() -> str:
        """Look."""
        return "seen"

    graph = placement.build(world, calls(("note", {"text": "x"}), "look"), "Done.", tools=[note, look])
    state = await say(graph)
    assert answers(state) == ["noted", "seen"]
    assert made == ["x"]
    assert world.identity.database.read("SELECT count(*) FROM effects")[0][0] == 1
