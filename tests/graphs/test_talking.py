"""People go on talking while something waits: open calls are answered beside their message, and histories stay sound.

Every history that a model is shown is held against the strictest public rules (:func:`tests.support.history_faults`).
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph.message import add_messages
from langgraph.types import interrupt

from identity import needs
from identity.gate import Gate
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


def sound(model: Scripted) -> bool:
    """Whether every history that the model was shown is one that it would take."""
    assert model.heard
    return [history_faults(heard) for heard in model.heard] == [[]] * len(model.heard)


def answers(state: dict[str, Any]) -> list[str]:
    return [str(m.content) for m in state["messages"] if isinstance(m, ToolMessage)]


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


async def test_a_message_while_an_approval_is_open_withdraws_it_and_a_later_yes_does_nothing(world: Inside) -> None:
    model = Scripted(calls(LARGE), "Withdrawn.", calls(QUOTE), "98.40")
    graph = assistant(world, model=model)
    (asked,) = requests(await sign_in(world, graph))
    with as_caller(world, "alice"):
        state = await say(graph, "Wait, what is it at?")
        assert "Withdrawn" in answers(state)[0]
        await world.person("alice").approve(asked)  # the page of the issuer is still there
        await polled(world)
        request = world.identity.ledger.request(asked["id"])
        assert request is not None
        assert request.state == "withdrawn"
        await graph.ainvoke(None, config())
        assert last(await say(graph, "And the quote?")) == "98.40"
    assert world.orders() == []
    assert sound(model)


async def test_a_yes_that_came_just_before_the_message_is_not_used_afterwards_either(world: Inside) -> None:
    """What was told to be withdrawn stays so: no old checkpoint makes it after all."""
    graph = assistant(world, calls(LARGE), "Withdrawn.")
    (asked,) = requests(await sign_in(world, graph))
    waiting = await graph.aget_state(config())
    await world.person("alice").approve(asked)
    assert [r.state for r in await polled(world)] == ["approved", "approved"]  # the login, and this
    with as_caller(world, "alice"):
        state = await say(graph, "No, stop")
        assert "Withdrawn" in answers(state)[0]
        again = await graph.ainvoke(None, waiting.config)
    assert "Withdrawn" in answers(again)[0]
    assert world.orders() == []


async def test_what_was_done_is_told_as_done_and_only_the_rest_is_withdrawn(world: Inside) -> None:
    model = Scripted(calls(SMALL, LARGE), "One of two.")
    graph = assistant(world, model=model)
    await sign_in(world, graph)
    with as_caller(world, "alice"):
        state = await say(graph, "What happened?")
    told = answers(state)
    assert [("Bought 5 ACME" in t, "Withdrawn" in t) for t in told] == [(True, False), (False, True)]
    assert len(world.orders()) == 1
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


async def test_several_messages_in_a_row_while_something_waits_leave_a_sound_history(world: Inside) -> None:
    model = Scripted(calls(LARGE), calls(LARGE, QUOTE), calls(LARGE), "Enough.")
    graph = assistant(world, model=model)
    await sign_in(world, graph)
    with as_caller(world, "alice"):
        for text in ("Hm", "Hm?", "Stop"):
            state = await say(graph, text)
    assert last(state) == "Enough."
    assert requests(state) == []
    assert world.identity.ledger.pending(world.identity._place(graph, config())) == []
    assert sound(model)
    assert history_faults(state["messages"]) == []


async def test_the_thread_goes_on_with_a_new_order_after_one_was_withdrawn(world: Inside) -> None:
    model = Scripted(calls(LARGE), calls(("buy_stock", {**LARGE[1], "quantity": 40})), "Bought.")
    graph = assistant(world, model=model)
    first = requests(await sign_in(world, graph))
    with as_caller(world, "alice"):
        second = requests(await say(graph, "Make it 40"))
        assert second[0]["id"] != first[0]["id"]
        await world.person("alice").approve(second[0])
        await world.identity.resume(graph, config())
    assert [o.quantity for o in world.orders()] == [40]
    assert sound(model)


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
    assert [bool(history_faults(messages)) for messages in wrong] == [True] * len(wrong)
