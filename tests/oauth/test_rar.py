"""Authorization details: what was granted must be what was asked for."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity.errors import ProtocolError
from identity.oauth.rar import require_granted, same_details

ORDER: dict[str, Any] = {
    "type": "stock_order",
    "locations": ["https://trading.example"],
    "actions": ["buy_stock"],
    "digest": "d-1",
    "arguments": {"symbol": "ACME", "quantity": 40, "limit": "98.40", "notes": None, "partial": False},
}


def changed(path: tuple[Any, ...], value: object) -> list[dict[str, Any]]:
    """The order with one place in it set to another value; ``...`` takes the place away."""
    order = copy.deepcopy([ORDER])
    place: Any = order
    for step in (0, *path[:-1]):
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return order


def test_what_was_asked_for_may_come_back_in_any_order_of_members() -> None:
    granted = json.loads(json.dumps(ORDER, sort_keys=True))
    require_granted([ORDER], [dict(reversed(granted.items()))])


@pytest.mark.case("B16")
@pytest.mark.parametrize(
    "granted",
    [
        None,
        [],
        [ORDER, ORDER],
        [ORDER, {"type": "withdrawal"}],
        changed(("type",), "stock_orders"),
        changed(("locations",), ["https://trading.example/"]),
        changed(("locations",), []),
        changed(("actions",), ["buy_stock", "sell_stock"]),
        changed(("digest",), ...),
        changed(("digest",), "D-1"),
        changed(("amount",), 1),
        changed(("arguments", "quantity"), 41),
        changed(("arguments", "quantity"), "40"),
        changed(("arguments", "limit"), "98.4"),
        changed(("arguments", "limit"), 98.4),
        changed(("arguments", "symbol"), "ACME "),
        changed(("arguments", "notes"), ...),
        changed(("arguments", "notes"), ""),
        changed(("arguments", "partial"), 0),
        changed(("arguments", "partial"), None),
        changed(("arguments", "symbol"), "\ud800"),
        changed(("arguments", "symbol"), {"deep": [[[]]]}),
    ],
)
def test_anything_else_than_was_asked_for_is_refused(granted: Any) -> None:
    with pytest.raises(ProtocolError, match="Something else was approved"):
        require_granted([ORDER], granted)


def test_details_that_have_no_canonical_form_are_the_same_as_nothing() -> None:
    endless: dict[str, Any] = {"type": "x"}
    for _ in range(100):
        endless = {"type": "x", "in": endless}
    assert not same_details([endless], [endless])


@pytest.mark.case("B16")
@given(
    st.sampled_from(["symbol", "quantity", "limit", "notes", "partial"]),
    st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers()),
)
def test_one_argument_that_differs_is_always_noticed(name: str, value: object) -> None:
    granted = changed(("arguments", name), value)
    unchanged = type(value) is type(ORDER["arguments"][name]) and value == ORDER["arguments"][name]
    assert same_details([ORDER], granted) is unchanged
