"""``may()`` and ``signed_in()``: what a call is about, and that a doubt names nothing."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity import may, signed_in
from identity.conditions import SignedIn, is_object
from identity.errors import NeedsError
from tests.support import spelled

INSTRUMENT = may("can_buy", "instrument:{symbol}")
ID = UUID("6f0d8c5e-6b0b-5d3c-9a53-2b1f0f2f7c11")


class Exchange(StrEnum):
    NYSE = "nyse"


class Desk(Enum):
    EQUITIES = "equities"
    NONE = None


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("ACME", "instrument:ACME"),
        ("a/b.c:d@e", "instrument:a/b.c:d@e"),
        ("Zürich", "instrument:Zürich"),
        (7, "instrument:7"),
        (-7, "instrument:-7"),
        (ID, f"instrument:{ID}"),
        (Exchange.NYSE, "instrument:nyse"),
        (Desk.EQUITIES, "instrument:equities"),
        ("x" * 200, f"instrument:{'x' * 200}"),
    ],
    ids=spelled,
)
def test_a_template_is_filled_with_text_whole_numbers_and_uuids(value: Any, named: str) -> None:
    assert INSTRUMENT.objects({"symbol": value}) == (named,)


@pytest.mark.parametrize(
    "value",
    [
        None, "", " ", "A B", "ACME ", "ACME\n", "ACME\t", "ACME#member", "ACME\x00", "ACME\u200b", "ACME\u2028",
        "ACME\N{NO-BREAK SPACE}", "\ud800", "x" * 201, True, False, 1.0, Decimal(1), b"ACME", ["ACME"], {"ACME": 1}, object(),
        Desk.NONE,
    ],
    ids=spelled,
)  # fmt: skip
def test_an_argument_that_is_no_name_leaves_nothing_to_ask_about(value: Any) -> None:
    assert INSTRUMENT.objects({"symbol": value}) == ()


def test_an_argument_that_is_not_there_does_too() -> None:
    assert INSTRUMENT.objects({}) == ()
    assert may("can_buy", lambda symbol: "instrument:ACME").objects({}) == ()


def test_a_template_without_parameters_is_one_object() -> None:
    assert may("can_trade", "desk:equities").objects({"anything": 1}) == ("desk:equities",)


SLOT = may("can_book", "slot:{room}/at/{hour}:00")


def test_several_parameters_are_filled_in() -> None:
    assert SLOT.objects({"room": "blue", "hour": 9}) == ("slot:blue/at/9:00",)


@pytest.mark.parametrize(("room", "hour"), [("blue/at/9", "1"), ("blue", "9/at/1"), ("a", "1"), ("t", 1)])
def test_no_argument_reads_like_the_separator_and_the_next_one(room: Any, hour: Any) -> None:
    assert SLOT.objects({"room": room, "hour": hour}) == ()


@given(room=st.text("ab/t", min_size=1, max_size=8), hour=st.text("ab/t", min_size=1, max_size=8))
def test_two_pairs_of_arguments_never_name_one_object(room: str, hour: str) -> None:
    pair = may("can_book", "slot:{room}/{hour}")
    for name in pair.objects({"room": room, "hour": hour}):
        assert tuple(name.removeprefix("slot:").split("/")) == (room, hour)


def fails(symbol: str) -> str:
    raise KeyError(symbol)


@pytest.mark.parametrize(
    ("returned", "named"),
    [
        ("instrument:ACME", ("instrument:ACME",)),
        (["instrument:ACME", "instrument:NOVA"], ("instrument:ACME", "instrument:NOVA")),
        (("instrument:ACME",), ("instrument:ACME",)),
        ({"instrument:ACME"}, ("instrument:ACME",)),
        (frozenset({"instrument:ACME"}), ("instrument:ACME",)),
        # Nothing, or not a name: nothing can be asked about, so the call is denied.
        ("", ()),
        ([], ()),
        (None, ()),
        (True, ()),
        ("ACME", ()),
        (["instrument:ACME", None], ()),
        (["instrument:ACME", "NOVA"], ()),
        ({"instrument:ACME": True}, ()),
        (iter(["instrument:ACME"]), ()),
        ([f"instrument:{n}" for n in range(1_001)], ()),
    ],
    ids=lambda value: spelled(value)[:40],
)
def test_a_function_names_one_object_or_several_and_any_doubt_names_none(returned: Any, named: tuple[str, ...]) -> None:
    assert may("can_buy", lambda symbol: returned).objects({"symbol": "ACME"}) == named


def test_a_function_that_fails_names_none() -> None:
    assert may("can_buy", fails).objects({"symbol": "ACME"}) == ()


@pytest.mark.parametrize(
    ("relation", "object_", "why"),
    [
        ("Can buy", "instrument:{symbol}", "is not a relation"),
        ("", "instrument:{symbol}", "is not a relation"),
        ("can_buy\n", "instrument:{symbol}", "is not a relation"),
        ("can_buy", "", "is not an object"),
        ("can_buy", "instrument", "is not an object"),
        ("can_buy", "instrument:", "is not an object"),
        ("can_buy", "{kind}:{symbol}", "is not an object"),  # else a model would choose what it is asked about
        ("can_buy", "{object}", "is not an object"),
        ("can_buy", "Instrument:{symbol}", "is not an object"),
        ("can_buy", "instrument:{symbol} {quantity}", "is not an object"),
        ("can_buy", "instrument:{symbol}#member", "is not an object"),
        ("can_buy", "instrument:{symbol}{quantity}", "run into each other"),
        ("can_buy", "instrument:{symbol", "is not a template"),
        ("can_buy", "instrument:{symbol}}", "is not a template"),
        ("can_buy", "instrument:{}", "more than names"),
        ("can_buy", "instrument:{0}", "more than names"),
        ("can_buy", "instrument:{symbol.__class__}", "more than names"),
        ("can_buy", "instrument:{symbol[0]}", "more than names"),
        ("can_buy", "instrument:{symbol!r}", "more than names"),
        ("can_buy", "instrument:{symbol:>9}", "more than names"),
        ("can_buy", "instrument:{{symbol}}", "more than names"),
        ("can_buy", "instrument:x}}{symbol}", "run into each other"),
        ("can_buy", lambda *symbols: "x:y", "must name the parameters"),
        ("can_buy", lambda **arguments: "x:y", "must name the parameters"),
        ("can_buy", 7, "takes a function"),
        ("can_buy", None, "takes a function"),
    ],
    ids=spelled,
)
def test_what_cannot_be_asked_about_is_refused_where_it_is_written(relation: str, object_: Any, why: str) -> None:
    with pytest.raises(NeedsError, match=why):
        may(relation, object_)


def test_a_function_that_would_have_to_be_waited_for_is_refused() -> None:
    async def later(symbol: str) -> str:
        return f"instrument:{symbol}"

    with pytest.raises(NeedsError, match="without waiting"):
        may("can_buy", later)


@pytest.mark.parametrize(
    ("condition", "object_", "told"),
    [
        (
            INSTRUMENT,
            "instrument:NOVA",
            "You may not buy NOVA here (can_buy on instrument:NOVA). Ask an administrator.",
        ),
        (
            may("can_pay_from", "account:{a}"),
            "account:7",
            "You may not pay from 7 here (can_pay_from on account:7). Ask an administrator.",
        ),
        (may("owner", "a:{a}"), "a:7", "You may not do this here (owner on a:7). Ask an administrator."),
    ],
)
def test_a_refusal_is_a_plain_sentence_with_what_an_administrator_needs(
    condition: Any, object_: str, told: str
) -> None:
    assert condition.refusal(object_) == told


@given(name=st.text(max_size=30))
def test_whatever_is_an_object_can_be_printed_and_has_one_reading(name: str) -> None:
    if is_object(name):
        kind, colon, id_ = name.partition(":")
        assert kind
        assert colon
        assert id_
        assert name.isprintable()
        assert "#" not in name
        assert name.split() == [name]


def test_signed_in_is_a_condition_that_looks_at_nothing() -> None:
    made: Callable[[], SignedIn] = signed_in
    assert made() == SignedIn()
