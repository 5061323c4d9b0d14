"""A turn's id: the same for the same turn whenever and wherever it is run again, and for no other one."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage

from identity.sessions import Place
from identity.turn import Held, turn_id

HERE = Place("t", "agent", "thread")
COPY = Place("t", "agent", "copy")
ASKED = HumanMessage("Buy 5", id="b5a1bd20-0f2b-4c47-9a0e-0b7a3f7a2c11")
AGAIN = HumanMessage("Buy 5", id="1c2f5a5e-62a4-4d52-8f6c-9d3f0a1b2c3d")
CHOSEN = HumanMessage("Buy 5", id="1")
CALL = {"type": "tool_call", "id": "call_0", "name": "buy_stock", "args": {}}
TURN = AIMessage("", id="chatcmpl-0", tool_calls=[CALL])  # type: ignore[list-item]
DONE = ToolMessage("Bought.", tool_call_id="call_0", id="t1")
SAID = AIMessage("Well.", id="a9")

_HISTORIES: dict[str, tuple[Place, list[AnyMessage]]] = {
    "a message": (HERE, [ASKED]),
    "the same words in another message": (HERE, [ASKED, SAID, AGAIN]),
    "a message of the same id with other words": (HERE, [HumanMessage("Buy 6", id=ASKED.id)]),
    "after one answer": (HERE, [ASKED, TURN, DONE]),
    "after another answer": (HERE, [ASKED, TURN, DONE.model_copy(update={"id": "t2"})]),
    "after two answers": (HERE, [ASKED, TURN, DONE, TURN, DONE.model_copy(update={"id": "t2"})]),
    "after a turn that nobody answered": (HERE, [ASKED, TURN]),
    "another tenant": (Place("other", "agent", "thread"), [ASKED]),
    "another graph": (Place("t", "other", "thread"), [ASKED]),
    "an id that a client chose": (HERE, [CHOSEN]),
    "an id that a client chose, in another thread": (COPY, [CHOSEN]),
    "an id that a client chose, again": (HERE, [CHOSEN, SAID, CHOSEN]),
    "a message without an id": (HERE, [HumanMessage("Buy 5")]),
    "a message without an id, again": (HERE, [HumanMessage("Buy 5"), SAID, HumanMessage("Buy 5")]),
    "no person's message": (HERE, []),
    "no person's message, in another thread": (COPY, []),
}


def test_different_turns_have_different_ids() -> None:
    ids = {name: turn_id(place, messages, len(messages)) for name, (place, messages) in _HISTORIES.items()}
    assert len(set(ids.values())) == len(ids), ids


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([ASKED], id="a copy of the thread"),
        pytest.param([HumanMessage("Hi", id="x"), SAID, ASKED], id="another history before the message"),
        pytest.param([ASKED, AIMessage("Let me see.", id="anything")], id="a message of the model without calls"),
    ],
)
def test_a_turn_is_known_by_the_persons_message_and_the_answers_since(messages: list[AnyMessage]) -> None:
    assert turn_id(COPY, messages, len(messages)) == turn_id(HERE, [ASKED], 1)


def test_ids_that_a_provider_chooses_change_nothing() -> None:
    other = TURN.model_copy(update={"id": "another", "tool_calls": [{**CALL, "id": "call_9"}]})
    histories: list[list[AnyMessage]] = [
        [ASKED, TURN, DONE],
        [ASKED, other, DONE.model_copy(update={"tool_call_id": "call_9"})],
    ]
    assert len({turn_id(HERE, messages, 3) for messages in histories}) == 1


def test_only_what_stands_before_the_turn_counts() -> None:
    assert turn_id(HERE, [ASKED, TURN, DONE, SAID, AGAIN], 1) == turn_id(HERE, [ASKED], 1)


@pytest.mark.parametrize(
    "stored", [None, "x", 5, [], {"tokens": "x"}, {"failures": ["x"]}, {"tokens": None}, {"waits": 5}]
)
def test_what_a_client_left_in_the_channel_is_nothing(stored: Any) -> None:
    assert Held.of(stored) == Held()


def test_what_is_held_comes_back_as_it_was_stored() -> None:
    held = Held({"a": {"sealed": "x"}}, {"login": {"message_id": "m", "reason": "r"}}, "a turn")
    assert Held.of(held.stored()) == held
