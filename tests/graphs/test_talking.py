"""People go on talking while something waits: open calls are answered beside their message, and histories stay sound.

Every history that a model is shown is held against the strictest public rules (:func:`tests.support.history_faults`).
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph.message import add_messages
from langgraph.types import interrupt

from identity import AccessToken, approval, needs, resource
from identity.asking import APPROVAL_LIFETIME
from identity.authority import service
from identity.calls import OpenCall
from identity.gate import Gate
from identity.sessions import Place
from tests.support import (
    URL,
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
    signed_in,
)

QUOTE = ("get_quote", {"symbol": "ACME"})
SMALL = ("buy_stock", {"symbol": "ACME", "quantity": 5, "limit": "100"})
LARGE = ("buy_stock", {"symbol": "ACME", "quantity": 50, "limit": "100"})


def sound(model: Scripted) -> bool:
    """Whether every history that the model was shown is one that it would take."""
    assert model.heard
    return [history_faults(heard) for heard in model.heard] == [[]] * len(model.heard)


def answers(state: dict[str, Any]) -> list[str]:
    return [str(m.content) for m in state["messages"] if isinstance(m, ToolMessage)]


def pushed(world: Inside) -> int:
    """How often somebody was asked for an approval."""
    return sum(sent.url.endswith("/bc-authorize") for sent in world.network.sent)


async def polled(world: Inside) -> list[Any]:
    """What was decided, by the next poll."""
    world.clock.advance(30)
    return await world.identity.poll()


async def test_a_message_while_a_login_is_open_withdraws_the_call_and_is_answered(world: Inside) -> None:
    model = Scripted(calls("show_portfolio"), "Never mind then.")
    graph = assistant(world, model=model)
    asked = requests(await say(graph))
    assert len(asked) == 1
    state = await say(graph, "Forget it")
    assert last(state) == "Never mind then."
    assert [m.type for m in state["messages"]] == ["human", "ai", "tool", "human", "ai"]
    assert "Withdrawn" in answers(state)[0]
    assert state["requests"] == []
    assert sound(model)


@pytest.mark.case("E17")
async def test_a_message_while_an_approval_is_open_keeps_it_and_a_later_yes_brings_the_outcome(world: Inside) -> None:
    model = Scripted(calls(LARGE), "It waits for you.", "Bought.")
    graph = assistant(world, model=model)
    (asked,) = requests(await sign_in(world, graph))
    with as_caller(world, "alice"):
        state = await say(graph, "Wait, what is it at?")
        assert last(state) == "It waits for you."
        assert answers(state) == [f"Asked for approval (#{asked['id'][:6]}). It goes on when that is decided."]
        assert requests(state) == []
        assert state["requests"] == [asked], "clients can still show where it is decided"
        await world.person("alice").approve(asked)
        before = state["messages"]
        state = await world.identity.resume(graph, config())
    assert [o.quantity for o in world.orders()] == [50]
    assert state["requests"] == []
    added = state["messages"][len(before) :]
    assert state["messages"][: len(before)] == before
    assert [m.type for m in added] == ["ai", "tool", "ai"], "no word in a person's or the system's name"
    assert [(c["name"], c["args"]) for c in added[0].tool_calls] == [LARGE]
    assert "Bought 50 ACME" in str(added[1].content)
    assert sound(model)
    assert history_faults(state["messages"]) == []
    with as_caller(world, "alice"):
        again = await graph.ainvoke({"messages": []}, config())
    assert again["messages"] == state["messages"]
    assert len(world.orders()) == 1


async def test_what_a_deferred_call_came_to_is_told_in_one_update(world: Inside) -> None:
    graph = assistant(world, calls(LARGE), "It waits.", "Bought.")
    (asked,) = requests(await sign_in(world, graph))
    with as_caller(world, "alice"):
        await say(graph, "Hm")
        await world.person("alice").approve(asked)
        await polled(world)
        steps = [s async for s in graph.astream({"messages": []}, config(), stream_mode="updates")]
    assert [list(step) for step in steps] == [["settle"], ["model"]]
    assert [m.type for m in steps[0]["settle"]["messages"]] == ["ai", "tool"]


@pytest.mark.parametrize(
    ("decide", "told"),
    [("deny", "declined"), ("expire", "Nobody decided in time")],
)
async def test_a_deferred_call_that_is_not_approved_is_told_with_the_reason(
    world: Inside, decide: str, told: str
) -> None:
    model = Scripted(calls(LARGE), "It waits.", "Then not.")
    graph = assistant(world, model=model)
    (asked,) = requests(await sign_in(world, graph))
    waiting = await graph.aget_state(config())
    with as_caller(world, "alice"):
        await say(graph, "Hm")
        if decide == "deny":
            await world.person("alice").deny(asked)
        else:
            world.clock.advance(APPROVAL_LIFETIME + 60)
        state = await world.identity.resume(graph, config())
        assert last(state) == "Then not."
        assert told in answers(state)[1]
        again = await graph.ainvoke(None, waiting.config)
        assert told in answers(again)[0]
    assert world.orders() == []
    assert sound(model)


async def test_a_yes_that_came_just_before_the_message_counts(world: Inside) -> None:
    """Who pressed Approve agreed to this very call. It would have been made a moment later without the message."""
    model = Scripted(calls(LARGE), "Bought.")
    graph = assistant(world, model=model)
    (asked,) = requests(await sign_in(world, graph))
    await world.person("alice").approve(asked)
    await polled(world)
    with as_caller(world, "alice"):
        state = await say(graph, "Well?")
    assert [m.type for m in state["messages"]] == ["human", "ai", "tool", "human", "ai", "tool", "ai"]
    assert "Bought 50 ACME" in answers(state)[1]
    assert len(world.orders()) == 1
    assert sound(model)


async def test_a_no_that_came_just_before_the_message_is_told_as_such(world: Inside) -> None:
    model = Scripted(calls(LARGE), "Then not.")
    graph = assistant(world, model=model)
    (asked,) = requests(await sign_in(world, graph))
    await world.person("alice").deny(asked)
    await polled(world)
    with as_caller(world, "alice"):
        state = await say(graph, "Well?")
    assert answers(state) == ["The person who was asked declined."]
    assert sound(model)


async def test_what_was_done_is_told_as_done_and_what_waits_is_told_as_waiting(world: Inside) -> None:
    model = Scripted(calls(SMALL, LARGE), "One of two.")
    graph = assistant(world, model=model)
    await sign_in(world, graph)
    with as_caller(world, "alice"):
        state = await say(graph, "What happened?")
    told = answers(state)
    assert [("Bought 5 ACME" in t, "Asked for approval" in t) for t in told] == [(True, False), (False, True)]
    assert len(world.orders()) == 1
    assert sound(model)


@pytest.mark.case("E4", "E17")
async def test_an_old_checkpoint_and_the_settled_call_have_one_effect_and_one_outcome(world: Inside) -> None:
    graph = assistant(world, calls(LARGE), "It waits.", "Bought.", "And once more.")
    (asked,) = requests(await sign_in(world, graph))
    waiting = await graph.aget_state(config())
    with as_caller(world, "alice"):
        await say(graph, "Hm")
        deferred = await graph.aget_state(config())
        await world.person("alice").approve(asked)
        state = await world.identity.resume(graph, config())
        outcome = answers(state)[1]
        assert "Bought 50 ACME" in outcome
        for given, old in ((None, waiting), ({"messages": []}, deferred)):
            again = await graph.ainvoke(given, old.config)
            assert history_faults(again["messages"]) == []
            assert answers(again)[-1] == outcome
    assert len(world.orders()) == 1


async def test_a_deferred_call_whose_process_died_after_the_effect_is_told_as_unknown_and_not_made_again(
    world: Inside,
) -> None:
    made: list[str] = []

    @tool
    @needs(approval(wait="defer"))
    def order() -> str:
        """Order."""
        made.append("order")
        if len(made) == 1:
            raise KeyboardInterrupt
        return "ordered"

    model = Scripted(calls("order"), "It waits.", "Please check.")
    graph = assistant(world, model=model, tools=[order])
    state = await sign_in(world, graph)
    assert requests(state) == []
    await world.person("alice").approve(state["requests"][0])
    await polled(world)
    with as_caller(world, "alice"):
        with pytest.raises(KeyboardInterrupt):
            graph.invoke({"messages": []}, config())
        state = await graph.ainvoke(None, config())
    assert "nobody saw its outcome" in answers(state)[1]
    assert made == ["order"]
    assert sound(model)


async def test_an_effect_whose_step_was_discarded_is_told_from_the_ledger(world: Inside) -> None:
    """A tool interrupts beside a finished order: LangGraph drops the order's result with the step, and we do not."""
    made: list[str] = []

    @tool
    def order() -> str:
        """Order."""
        made.append("order")
        return "ordered #7"

    @tool
    @needs(read_only=True)
    def ask() -> str:
        """Ask."""
        return str(interrupt("?"))

    model = Scripted(calls("order", "ask"), "There.")
    graph = assistant(world, model=model, tools=[order, ask])
    state = await graph.ainvoke({"messages": [("user", "go")]}, config())
    assert state["__interrupt__"]
    state = await say(graph, "Well?")
    assert answers(state)[0] == "ordered #7"
    assert "Withdrawn" in answers(state)[1]
    assert made == ["order"]
    assert sound(model)


async def test_an_effect_whose_outcome_nobody_saw_is_told_as_unknown(world: Inside) -> None:
    made: list[str] = []

    @tool
    def order() -> str:
        """Order."""
        made.append("order")
        raise KeyboardInterrupt

    model = Scripted(calls("order"), "Please check.")
    graph = assistant(world, model=model, tools=[order])
    with pytest.raises(KeyboardInterrupt):
        graph.invoke({"messages": [("user", "go")]}, config())
    state = await say(graph, "Did it work?")
    assert "nobody saw its outcome" in answers(state)[0]
    assert made == ["order"]
    assert sound(model)


@pytest.mark.case("B22")
async def test_an_order_that_is_asked_for_again_and_again_is_one_request_and_one_order(world: Inside) -> None:
    model = Scripted(calls(LARGE), calls(LARGE, QUOTE), calls(LARGE), "Enough.", "Bought.")
    graph = assistant(world, model=model)
    (asked,) = requests(await sign_in(world, graph))
    with as_caller(world, "alice"):
        state = await say(graph, "Hm")
        assert last(state) == "Enough."
        same = f"The same was asked for before (#{asked['id'][:6]}): it is one request and is done once. Asked for"
        assert [t for t in answers(state) if t.startswith("The same")] == [f"{same} 2 x.", f"{same} 3 x."]
        assert pushed(world) == 1
        await world.person("alice").approve(asked)
        state = await world.identity.resume(graph, config())
        assert last(state) == "Bought."
        assert len(world.orders()) == 1
        async for old in graph.aget_state_history(config()):
            if old.next:  # wherever it starts from again, the ones that were answered by reference never run
                await graph.ainvoke(None, old.config)
    assert len(world.orders()) == 1
    assert sound(model)


@pytest.mark.case("B22")
async def test_equal_calls_of_one_turn_are_one_request_and_one_order(world: Inside) -> None:
    spelled = ("buy_stock", {"symbol": "ACME", "quantity": "50", "limit": 100})
    model = Scripted(calls(LARGE, LARGE, spelled), "Bought.")
    graph = assistant(world, model=model)
    (asked,) = requests(await sign_in(world, graph))
    assert pushed(world) == 1
    await world.person("alice").approve(asked)
    with as_caller(world, "alice"):
        state = await world.identity.resume(graph, config())
    told = answers(state)
    assert sum("Bought 50 ACME" in t for t in told) == 1
    assert sum("it is one request and is done once" in t for t in told) == 2
    assert any("Asked for 3 x." in t for t in told)
    assert len(world.orders()) == 1
    assert sound(model)


@pytest.mark.case("B22")
async def test_calls_that_differ_are_asked_about_each_for_itself(world: Inside) -> None:
    more = ("buy_stock", {**LARGE[1], "quantity": 51})
    graph = assistant(world, calls(LARGE, more), "Bought.")
    asked = requests(await sign_in(world, graph))
    assert len(asked) == pushed(world) == 2


async def test_once_it_is_decided_the_same_can_be_asked_for_anew(world: Inside) -> None:
    graph = assistant(world, calls(LARGE), "Bought.", calls(LARGE), "Bought again.")
    (first,) = requests(await sign_in(world, graph))
    with as_caller(world, "alice"):
        await world.person("alice").approve(first)
        await world.identity.resume(graph, config())
        (second,) = requests(await say(graph))
        assert second["id"] != first["id"]
        await world.person("alice").approve(second)
        await world.identity.resume(graph, config())
    assert len(world.orders()) == 2


@pytest.mark.case("E17")
async def test_another_order_beside_one_that_waits_is_decided_for_itself(world: Inside) -> None:
    model = Scripted(calls(LARGE), calls(("buy_stock", {**LARGE[1], "quantity": 40})), "Bought 40.", "Bought 50.")
    graph = assistant(world, model=model)
    (first,) = requests(await sign_in(world, graph))
    with as_caller(world, "alice"):
        state = await say(graph, "Make it 40")
        second, shown = requests(state)
        assert shown == first, "what the turn does not wait for is shown as well"
        assert len(state["__interrupt__"][0].value["action_requests"]) == 1
        await world.person("alice").approve(second)
        state = await world.identity.resume(graph, config())
        assert last(state) == "Bought 40."
        assert state["requests"] == [first]
        await world.person("alice").approve(first)
        state = await world.identity.resume(graph, config())
    assert last(state) == "Bought 50."
    assert [o.quantity for o in world.orders()] == [40, 50]
    assert sound(model)


@pytest.mark.case("E17")
@pytest.mark.parametrize("both", [False, True])
async def test_a_yes_for_the_deferred_order_is_not_kept_waiting_by_another_that_is_open(
    world: Inside, both: bool
) -> None:
    model = Scripted(calls(LARGE), calls(("buy_stock", {**LARGE[1], "quantity": 40})), "Well.", "Well!")
    graph = assistant(world, model=model)
    (first,) = requests(await sign_in(world, graph))
    with as_caller(world, "alice"):
        second, _ = requests(await say(graph, "Make it 40"))
        await world.person("alice").approve(first)
        if both:
            await world.person("alice").approve(second)
            await polled(world)
            state = await graph.ainvoke(None, config())
            assert sorted(o.quantity for o in world.orders()) == [40, 50]
        else:
            state = await world.identity.resume(graph, config())
            assert [o.quantity for o in world.orders()] == [50]
            assert [r["id"] for r in state["requests"]] == [second["id"]]
            await world.person("alice").approve(second)
            state = await world.identity.resume(graph, config())
            assert [o.quantity for o in world.orders()] == [50, 40]
        assert requests(state) == state["requests"] == []
        await say(graph, "Thanks")
    assert world.identity.ledger.deferred(Place("default", "assistant", "t1")) == []
    assert history_faults(state["messages"]) == []
    assert sound(model)


# -- approval(wait="defer") --------------------------------------------------------------------------------------------


def deferring(world: Inside, **more: Any) -> list[Any]:
    """The demo's tools, with large orders that nobody waits for."""
    asks = approval(when=lambda quantity, limit: quantity * limit > 1_000, type="stock_order", wait="defer")
    return [needs(asks, **more)(t) if t.name == "buy_stock" else t for t in world.tools()]


async def test_a_call_whose_approval_is_deferred_interrupts_nothing_and_is_made_after_the_yes(world: Inside) -> None:
    model = Scripted(calls(LARGE, SMALL), "I asked you.", "98.40", "Bought.")
    graph = assistant(world, model=model, tools=deferring(world))
    state = await sign_in(world, graph)
    assert requests(state) == []
    assert last(state) == "I asked you."
    assert ["Asked for approval" in t for t in sorted(answers(state))] == [True, False]
    (asked,) = state["requests"]
    assert len(world.orders()) == 1
    with as_caller(world, "alice"):
        assert last(await say(graph, "What is it at?")) == "98.40"
        await world.person("alice").approve(asked)
        state = await world.identity.resume(graph, config())
    assert last(state) == "Bought."
    assert [o.quantity for o in world.orders()] == [5, 50]
    assert state["requests"] == []
    assert sound(model)


def test_a_deferred_call_is_made_by_invoke_too(world: Inside) -> None:
    model = Scripted(calls(LARGE), "I asked you.", "Bought.")
    graph = assistant(world, model=model, tools=deferring(world))
    asked = requests(graph.invoke({"messages": [("user", "go")]}, config()))
    asyncio.run(world.person("alice").sign_in(asked[0]))
    state = world.identity.resume_sync(graph, config())
    asyncio.run(world.person("alice").approve(state["requests"][0]))
    with as_caller(world, "alice"):
        state = world.identity.resume_sync(graph, config())
    assert last(state) == "Bought."
    assert len(world.orders()) == 1
    assert sound(model)


async def test_a_deferred_call_gets_the_other_tokens_that_it_needs_when_it_is_made(world: Inside) -> None:
    @tool
    @needs(
        approval(type="stock_order", wait="defer"),
        token=resource(f"{URL}/trading", "orders:write"),
        reader=resource(f"{URL}/trading", "portfolio:read"),
    )
    def both(token: AccessToken, reader: AccessToken) -> str:
        """Both."""
        return f"{token.resource.scopes} {reader.resource.scopes} {token.reveal() != reader.reveal()}"

    graph = assistant(world, calls("both"), "I asked you.", "There.", tools=[both])
    state = await sign_in(world, graph)
    exchange = "urn:ietf:params:oauth:grant-type:token-exchange"
    assert exchange not in world.network.grants()
    await world.person("alice").approve(state["requests"][0])
    with as_caller(world, "alice"):
        state = await world.identity.resume(graph, config())
    assert answers(state)[1] == "('orders:write',) ('portfolio:read',) True"
    assert world.network.grants().count(exchange) == 1


@pytest.mark.parametrize("lost", ["session", "evidence", "token"])
async def test_an_approved_call_that_cannot_be_made_any_more_is_told_and_never_made_later(
    world: Inside, lost: str
) -> None:
    made: list[str] = []

    @tool
    @needs(
        approval(wait="defer"),
        token=resource(f"{URL}/trading", "orders:write"),
        reader=resource(f"{URL}/trading", "portfolio:read"),
    )
    def order(token: AccessToken, reader: AccessToken) -> str:
        """Order."""
        made.append("order")
        return "ordered"

    model = Scripted(calls("order"), "I asked you.", "Sorry.")
    graph = assistant(world, model=model, tools=[order])
    state = await sign_in(world, graph)
    alice, identity = world.person("alice"), world.identity
    await alice.approve(state["requests"][0])
    await polled(world)
    if lost == "session":
        session = identity.sessions.of(Place("default", "assistant", "t1"))
        assert session is not None
        identity.sessions.end(session, world.clock())
    elif lost == "evidence":
        world.clock.advance(3600)
    else:
        world.network.fault = lambda r: httpx.ConnectError("refused") if b"token-exchange" in r.content else None
    with as_caller(world, "alice"):
        state = await graph.ainvoke({"messages": []}, config())
        assert last(state) == "Sorry."
        assert state["messages"][-2].status == "error"
        world.network.fault = None
        async for old in graph.aget_state_history(config()):
            if old.next:
                again = await graph.ainvoke(None, old.config)
                for asked in requests(again):
                    if asked["kind"] == "login":
                        await alice.sign_in(asked)
                        await identity.resume(graph, config())
    assert made == []
    assert sound(model)


async def test_the_outcome_of_a_deferred_call_is_told_by_the_next_turn_when_no_wake_came(world: Inside) -> None:
    model = Scripted(calls(LARGE), "I asked you.", "Bought.")
    graph = assistant(world, model=model, tools=deferring(world))
    state = await sign_in(world, graph)
    await world.person("alice").approve(state["requests"][0])
    await polled(world)
    with as_caller(world, "alice"):
        state = await say(graph, "And?")
    assert [m.type for m in state["messages"]][-4:] == ["human", "ai", "tool", "ai"]
    assert last(state) == "Bought."
    assert sound(model)


def _as_made(call: OpenCall) -> Any:
    return {"type": "tool_call", "id": call.id, "name": call.name, "args": dict(call.arguments)}


async def test_an_arrangement_without_the_node_that_tells_outcomes_waits_for_every_approval(world: Inside) -> None:
    """In the other placements: nothing is answered with a promise that nobody keeps."""
    gate = Gate(deferring(world), "assistant", world.identity)
    await signed_in(world)
    call = OpenCall("m1", "c1", *LARGE)
    with as_caller(world, "alice"):
        (unasked,) = gate.examine([call], config(), {}, {})
        await world.identity.transport.acall(gate.ask, config(), unasked)
        (asked,) = gate.examine([call], config(), {}, {})
        assert asked.waits
        history = gate.answer_open([HumanMessage("go"), AIMessage("", id="m1", tool_calls=[_as_made(call)])], config())
    assert "Withdrawn" in str(history[-1].content)


async def test_ids_that_a_provider_uses_again_in_each_turn_are_told_apart(world: Inside) -> None:
    def called(name: str, **arguments: Any) -> AIMessage:
        return AIMessage("", tool_calls=[{"type": "tool_call", "id": "call_0", "name": name, "args": arguments}])

    model = Scripted(called(*QUOTE[:1], **QUOTE[1]), "98.40", called("show_portfolio"), "Never mind.")
    graph = assistant(world, model=model)
    await say(graph)
    assert [r["kind"] for r in requests(await say(graph))] == ["login"]
    state = await say(graph, "Forget it")
    assert last(state) == "Never mind."
    assert "Withdrawn" in answers(state)[1]
    assert sound(model)


async def test_an_empty_input_withdraws_nothing(world: Inside) -> None:
    """What the waker sends when no step is pending any more."""
    graph = assistant(world, calls(LARGE), "Bought.")
    asked = requests(await sign_in(world, graph))
    with as_caller(world, "alice"):
        state = await graph.ainvoke({"messages": []}, config())
        assert requests(state) == asked
        await world.person("alice").approve(asked[0])
        await polled(world)
        state = await graph.ainvoke({"messages": []}, config())
    assert last(state) == "Bought."
    assert len(world.orders()) == 1


def histories() -> list[Any]:
    human, system = HumanMessage("hi", id="h1"), SystemMessage("be kind", id="s1")
    more = HumanMessage("and?", id="h2")
    two = AIMessage("", id="a1", tool_calls=[{"id": c, "name": "get_quote", "args": {}} for c in ("x", "y")])
    again = AIMessage("", id="a2", tool_calls=[{"id": "x", "name": "get_quote", "args": {}}])
    x, y, z = (ToolMessage(c, tool_call_id=c, id=f"t{c}") for c in "xyz")
    return [
        pytest.param([human, two], id="none answered"),
        pytest.param([human, two, x], id="one answered"),
        pytest.param([human, two, y, x], id="in another order"),
        pytest.param([human, two, more, x, y], id="a message in between"),
        pytest.param([human, two, x, more, y], id="a message between two answers"),
        pytest.param([human, two, x, y, y.model_copy(update={"id": "t4"})], id="answered twice"),
        pytest.param([human, z, two, x, y, z.model_copy(update={"id": "t5"})], id="answers to nothing"),
        pytest.param([x.model_copy(update={"id": "t6"}), system, human, two, x], id="an answer before everything"),
        pytest.param([human, two, x, y, again, more], id="an id again in a later turn"),
        pytest.param([human, two, again, AIMessage("well", id="a3"), more], id="assistant after assistant"),
        pytest.param([], id="empty"),
    ]


@pytest.mark.parametrize("messages", histories())
def test_any_history_comes_out_sound_with_every_answer_beside_its_call(world: Inside, messages: list[Any]) -> None:
    gate = Gate(world.tools(), "assistant", world.identity)
    history: Any = add_messages([], gate.answer_open(messages, config()))  # type: ignore[arg-type]
    assert history_faults(history) == []
    assert [m for m in history if m.type != "tool"] == [m for m in messages if m.type != "tool"]
    called = [call["id"] for m in messages if m.type == "ai" for call in m.tool_calls]
    assert sorted(m.tool_call_id for m in history if m.type == "tool") == sorted(called)
    kept = {m.id for m in messages if m.type == "tool"} & {"tx", "ty"}
    assert kept <= {m.id for m in history}


def test_the_validator_sees_each_kind_of_fault() -> None:
    sound_ones = [HumanMessage("hi", id="1"), calls(QUOTE)]
    call = sound_ones[1].tool_calls[0]["id"]  # type: ignore[attr-defined]
    sound_ones[1].id = "2"
    answer = ToolMessage("98.40", tool_call_id=call, id="3")
    assert history_faults([*sound_ones, answer]) == []
    wrong: list[list[Any]] = [
        sound_ones,  # open at the end
        [*sound_ones, HumanMessage("and?", id="4"), answer],  # something in between
        [*sound_ones, answer, answer.model_copy(update={"id": "5"})],  # twice
        [sound_ones[0], answer],  # an answer to nothing
        [*sound_ones, answer.model_copy(update={"id": "1"})],  # ids that are not unique
        [*sound_ones, answer.model_copy(update={"id": None})],
        [sound_ones[0], AIMessage("", id="2", tool_calls=[{"id": call, "name": "get quote", "args": {}}]), answer],
        [
            sound_ones[0],
            AIMessage("", id="2", tool_calls=[{"id": call, "name": n, "args": {}} for n in "ab"]),
            answer,
        ],  # equal ids
    ]
    wrong += [
        [sound_ones[0], AIMessage("", id="2")],
        [
            sound_ones[0],
            AIMessage("", id="2", tool_calls=[{"id": "c" * 41, "name": "get_quote", "args": {}}]),
            ToolMessage("98.40", tool_call_id="c" * 41, id="3"),
        ],
    ]
    assert [bool(history_faults(messages)) for messages in wrong] == [True] * len(wrong)


@pytest.mark.case("B21", "B4")
@pytest.mark.parametrize("wait", ["interrupt", "defer"])
@pytest.mark.parametrize("answer", ["denied", "none"])
async def test_a_condition_that_stops_asking_overrules_no_answer_and_no_silence(
    world: Inside, wait: Any, answer: str
) -> None:
    """The market moves, a limit is raised: what a person was asked about is theirs to decide all the same."""
    limit, done = [1], []

    @tool
    @needs(
        approval(when=lambda quantity: quantity > limit[0], wait=wait), token=resource(f"{URL}/trading", "orders:write")
    )
    async def order(quantity: int, token: AccessToken) -> str:
        """Order something."""
        done.append(quantity)
        return "Ordered."

    await signed_in(world)
    graph = assistant(world, calls(("order", {"quantity": 5})), tools=[order])
    with as_caller(world, "alice"):
        await say(graph)
        (asked,) = world.identity.ledger.pending_of(world.person("alice").principal, world.clock())
        limit[0] = 100
        if answer == "denied":
            await world.person("alice").deny({"url": asked.url})
            await polled(world)
        for given in (None, {"messages": []}):
            await graph.ainvoke(given, config())
    assert done == []


@pytest.mark.case("E6", "E24")
async def test_what_was_settled_meanwhile_makes_no_second_turn_of_a_run_that_is_started_again(world: Inside) -> None:
    """A run ends without a trace in its checkpoints, a deferred call is decided, and the server starts the run again."""
    done = []

    @tool
    @needs(
        approval(when=lambda quantity: quantity > 10, wait="defer"), token=resource(f"{URL}/trading", "orders:write")
    )
    async def order(quantity: int, token: AccessToken) -> str:
        """Order something."""
        done.append(quantity)
        return "Ordered."

    await signed_in(world)
    large, small = calls(("order", {"quantity": 50})), calls(("order", {"quantity": 2}))
    run = {"configurable": {"thread_id": "t1", "run_id": "r1"}}
    with as_caller(world, "alice"):
        graph = assistant(world, large, "Asked.", small, "Done.", small, "Done.", tools=[order])
        asked = requests_of(await say(graph))
        before = (await graph.aget_state(config())).config
        await graph.ainvoke({"messages": [{"role": "user", "content": "two"}]}, run)
        assert done == [2]
        await world.person("alice").approve(asked)
        await polled(world)
        again = {"configurable": {**before["configurable"], "run_id": "r1"}}
        await graph.ainvoke({"messages": [{"role": "user", "content": "two"}]}, again)
    assert sorted(done) == [2, 50]


def requests_of(state: dict[str, Any]) -> dict[str, Any]:
    (asked,) = state["requests"]
    return asked


async def test_a_graph_that_is_called_several_times_in_one_run_hears_several_messages(world: Inside) -> None:
    done = []

    @tool
    async def order(name: str) -> str:
        """Order something."""
        done.append(name)
        return "Ordered."

    turns = (calls(("order", {"name": "Ann"})), "Done.", calls(("order", {"name": "Ben"})), "Done.")
    inner = assistant(world, *turns, tools=[order])
    for thread in ("t1", "t2"):
        nested = {"thread_id": thread, "run_id": "r1", "checkpoint_ns": "parent:1"}
        await inner.ainvoke({"messages": [{"role": "user", "content": "go"}]}, {"configurable": nested})
    assert done == ["Ann", "Ben"]


@pytest.mark.case("B9")
async def test_an_approval_that_is_fetched_long_after_its_time_is_not_used(
    world: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody looked meanwhile, and a server hands it out all the same."""
    monkeypatch.setattr(service, "GRACE", 1e9)
    await signed_in(world)
    with as_caller(world, "alice"):
        (asked,) = requests(await say(assistant(world, calls(LARGE))))
    await world.person("alice").approve(asked)
    world.clock.advance(APPROVAL_LIFETIME + 45)
    await world.identity.poll()
    found = world.identity.ledger.request(asked["id"])
    assert found is not None
    assert found.state == "expired"


@pytest.mark.case("B10")
async def test_what_a_page_could_not_show_whole_is_not_asked_about(world: Inside) -> None:
    done = []

    @tool
    @needs(approval(), token=resource(f"{URL}/trading", "orders:write"))
    async def write(text: str, token: AccessToken) -> str:
        """Write something."""
        done.append(text)
        return "Written."

    await signed_in(world)
    long = "Dear all, " + "x" * 2_000 + " PS: and one more thing"
    with as_caller(world, "alice"):
        state = await say(assistant(world, calls(("write", {"text": long})), tools=[write]))
    assert (pushed(world), done) == (0, [])
    assert "too long to be shown whole" in answers(state)[0]


@pytest.mark.case("B21")
async def test_an_approval_serves_once_though_its_condition_does_not_ask_any_more(world: Inside) -> None:
    limit, done = [1], []

    @tool
    @needs(approval(when=lambda quantity: quantity > limit[0]), read_only=True)
    async def look(quantity: int) -> str:
        """Look at something."""
        done.append(quantity)
        return "Seen."

    await signed_in(world)
    graph = assistant(world, calls(("look", {"quantity": 5})), tools=[look])
    with as_caller(world, "alice"):
        (asked,) = requests(await say(graph))
        before = (await graph.aget_state(config())).config
        await world.person("alice").approve(asked)
        await polled(world)
        limit[0] = 100
        for _ in range(2):
            await graph.ainvoke(None, before)
    assert done == [5]
