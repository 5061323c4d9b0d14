"""Nobody is worn down by being asked: limits on what waits for a person, and rest after a refusal (casebook B11)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from identity import approval, resource
from identity.binding import Call
from identity.errors import RefusedError
from identity.ledger import Request
from identity.sessions import Place
from tests.support import (
    URL,
    Clock,
    Inside,
    as_caller,
    assistant,
    calls,
    config,
    inside,
    requests,
    say,
    sign_in,
    signed_in,
)

API = f"{URL}/trading"
CALL = Call("m1", "c1", "buy_stock", {"symbol": "ACME", "quantity": 50, "limit": Decimal(100)}, "schema", API)


def call(number: int) -> Call:
    """One call of many, each of its own turn and no two of them equal."""
    return replace(CALL, message_id=f"m{number}", arguments={**CALL.arguments, "quantity": 50 + number})


def pushed(world: Inside) -> int:
    return sum(sent.url.endswith("/bc-authorize") for sent in world.network.sent)


async def ask(world: Inside, asked: Call = CALL, username: str = "alice", thread: str = "t1") -> Request:
    identity = world.identity
    session = identity.sessions.of(Place("default", "assistant", thread)) or await signed_in(world, username, thread)
    condition = approval(type="stock_order")
    return await identity.transport.acall(
        identity.asking.approval, session.place, session, asked, condition, resource(API, "orders:write")
    )


async def refused(world: Inside, asked: Call = CALL, username: str = "alice", thread: str = "t1") -> str:
    """The code with which a person is not asked. Nothing is sent to the issuer."""
    before = pushed(world)
    with pytest.raises(RefusedError) as caught:
        await ask(world, asked, username, thread)
    assert pushed(world) == before
    assert caught.value.hint, "it says what to do"
    return caught.value.code


async def decline(world: Inside, asked: Call, username: str = "alice", thread: str = "t1") -> None:
    request = await ask(world, asked, username, thread)
    await world.person(username).deny(request.shown())
    world.clock.advance(request.interval)
    assert await world.identity.transport.acall(world.identity.asking.poll, request)


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Inside]:
    """A world in which two approvals may wait for one person."""
    async with inside(tmp_path, Clock(), pending_limit=2) as up:
        yield up


# -- what waits ----------------------------------------------------------------------------------------------------------


@pytest.mark.case("B11")
async def test_only_so_many_approvals_wait_for_one_person_in_all_threads_together(two: Inside) -> None:
    first = await ask(two, call(1), thread="t1")
    await ask(two, call(2), thread="t2")
    assert await refused(two, call(3), thread="t3") == "too_many_pending"
    await ask(two, call(4), "bob", "t4")  # somebody else is asked all the same
    await two.person("alice").approve(first.shown())
    two.clock.advance(first.interval)
    await two.identity.transport.acall(two.identity.asking.poll, first)
    await ask(two, call(3), thread="t3")


@pytest.mark.case("B11")
async def test_what_ran_out_waits_no_more_also_before_it_was_polled(two: Inside) -> None:
    for number in (1, 2):
        request = await ask(two, call(number))
    two.clock.advance(request.expires_at - two.clock())
    await ask(two, call(3))


@pytest.mark.case("B11")
async def test_calls_that_are_asked_about_at_once_do_not_slip_past_the_limit(world: Inside) -> None:
    await signed_in(world)
    asked = await asyncio.gather(*(ask(world, call(n)) for n in range(8)), return_exceptions=True)
    assert sum(isinstance(a, Request) for a in asked) == pushed(world) == 5


@pytest.mark.case("B11")
async def test_what_is_not_asked_is_told_to_the_model_and_the_rest_of_the_turn_goes_on(two: Inside) -> None:
    orders = [("buy_stock", {"symbol": "ACME", "quantity": 50 + n, "limit": "100"}) for n in range(3)]
    graph = assistant(two, calls(*orders), "Two wait.")
    state = await sign_in(two, graph)
    assert len(requests(state)) == pushed(two) == 2
    (told,) = [m for m in state["messages"] if m.type == "tool"]
    assert told.status == "error"
    assert "2 approvals wait already" in str(told.content)
    assert "Decide those first" in str(told.content)


# -- rest ----------------------------------------------------------------------------------------------------------------


@pytest.mark.case("B11")
async def test_what_was_just_declined_is_not_asked_again_in_any_thread(world: Inside) -> None:
    await decline(world, call(1))
    declined = world.clock()
    same = replace(call(1), message_id="m7")
    assert await refused(world, same) == "declined_before"
    assert await refused(world, same, thread="t2") == "declined_before"
    await ask(world, call(2))  # something else is another question
    await ask(world, replace(same, message_id="m8"), "bob", "t3")  # and so is the same of somebody else
    world.clock.now = declined + 59
    assert await refused(world, same) == "declined_before"
    world.clock.now = declined + 60
    await ask(world, same)


@pytest.mark.case("B11")
async def test_who_declined_three_times_is_left_alone_for_ten_minutes(world: Inside) -> None:
    for number in (1, 2, 3):
        await decline(world, call(number), thread=f"t{number}")
        third = world.clock()
        world.clock.advance(100)
    assert await refused(world, call(4)) == "declined_often"
    assert await refused(world, call(4), thread="t9") == "declined_often"
    await ask(world, call(5), "bob", "t5")
    world.clock.now = third + 599
    assert await refused(world, call(4)) == "declined_often"
    world.clock.now = third + 600
    await ask(world, call(4))


@pytest.mark.case("B11")
async def test_declining_now_and_then_is_no_reason_to_stop_asking(world: Inside) -> None:
    for number in (1, 2, 3):
        await decline(world, call(number))
        world.clock.advance(301)
    await ask(world, call(4))


@pytest.mark.case("B11")
async def test_a_request_that_failed_was_not_declined(world: Inside) -> None:
    for number in (1, 2, 3):
        request = await ask(world, call(number))
        world.clock.advance(request.interval)
        world.network.fault = lambda r: (
            httpx.Response(400, json={"error": "unauthorized_client"}) if r.url.path == "/issuer/token" else None
        )
        assert await world.identity.transport.acall(world.identity.asking.poll, request)
        world.network.fault = None
        assert world.identity.ledger.request(request.id).state == "denied"  # type: ignore[union-attr]
    await ask(world, replace(call(1), message_id="m8"))


# -- once ----------------------------------------------------------------------------------------------------------------


@pytest.mark.case("B11")
async def test_runs_of_one_step_at_once_ask_the_person_once(world: Inside) -> None:
    await signed_in(world)
    asked = await asyncio.gather(*(ask(world) for _ in range(5)))
    assert len({request.id for request in asked}) == pushed(world) == 1


@pytest.mark.case("B11", "E5")
async def test_in_the_copies_of_a_thread_nobody_is_asked_about_the_same_call(world: Inside) -> None:
    await ask(world)
    for thread in ("copy 1", "copy 2"):
        with pytest.raises(RefusedError, match="another conversation"):
            await ask(world, thread=thread)
    assert pushed(world) == 1


@pytest.mark.case("B11")
async def test_resuming_asks_nobody_a_second_time(world: Inside) -> None:
    graph = assistant(world, calls(("buy_stock", {"symbol": "ACME", "quantity": 50, "limit": "100"})), "Well.")
    (asked,) = requests(await sign_in(world, graph))
    waiting: Any = await graph.aget_state(config())
    with as_caller(world, "alice"):
        for given, where in ((None, config()), ({"messages": []}, config()), (None, waiting.config)):
            assert requests(await graph.ainvoke(given, where)) == [asked]
        assert (await say(graph, "Well?"))["requests"] == [asked]
        await graph.ainvoke(None, waiting.config)
    assert pushed(world) == 1
