"""One spelling for one value: RFC 8785, and what is normalized before it."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from identity.canonical import canonical, digest, normalized
from identity.errors import UsageError
from tests.support import spelled


class Side(Enum):
    BUY = "buy"


class Text(StrEnum):
    BUY = "buy"


class Number(IntEnum):
    TWO = 2


class Order(BaseModel):
    symbol: str
    limit: Decimal


TEXT = st.text(max_size=8)  # hypothesis makes no lone surrogates
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**53 - 3, max_value=2**53 + 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**40), max_value=10**40)
    | TEXT
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=12
)
ARGUMENTS = st.dictionaries(TEXT, VALUES, max_size=5)


def test_the_bytes_are_those_of_rfc_8785_section_3_2_2() -> None:
    value = json.loads(  # its example without 1E30, which is beyond 2^53 and so a string here
        r"""{"numbers": [333333333.33333329, 4.50, 2e-3, 0.000000000000000000000000001],
             "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/", "literals": [null, true, false]}"""
    )
    expected = (
        rb'{"literals":[null,true,false],"numbers":[333333333.3333333,4.5,0.002,1e-27],'
        b'"string":"\xe2\x82\xac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert canonical(value) == expected


def test_members_are_sorted_by_utf_16_as_rfc_8785_says() -> None:
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    in_order = list(json.loads(canonical(dict.fromkeys(keys))))
    assert in_order == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


def test_the_digest_is_the_sha_256_of_these_bytes() -> None:
    expected = base64.urlsafe_b64encode(hashlib.sha256(b'{"a":1}').digest()).decode().rstrip("=")
    assert digest({"a": 1}) == expected
    assert len(expected) == 43


@pytest.mark.case("B21")
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2**53 - 1, b"9007199254740991"),
        (2**53, b'"9007199254740992"'),
        (2**53 + 1, b'"9007199254740993"'),
        (-(2**53), b'"-9007199254740992"'),
        (-(2**53) + 1, b"-9007199254740991"),
        (10**30, b'"' + b"1" + b"0" * 30 + b'"'),
        (Decimal("98.40"), b'"98.40"'),
        (Decimal("98.4"), b'"98.4"'),
        (Decimal("1E+3"), b'"1000"'),
        (Decimal("1E-7"), b'"0.0000001"'),
        (Decimal("0.1000000000000000055511151231257827"), b'"0.1000000000000000055511151231257827"'),
        (Decimal(-5), b'"-5"'),
        (float(2**53), b'"9007199254740992"'),
        (1e22, b'"1' + b"0" * 22 + b'"'),
        (0.1, b"0.1"),
        (-0.0, b"0"),
        (1.0, b"1"),
        (True, b"true"),
        (Side.BUY, b'"buy"'),
        (Text.BUY, b'"buy"'),
        (Number.TWO, b"2"),
        (UUID(int=1), b'"00000000-0000-0000-0000-000000000001"'),
        (date(2026, 1, 2), b'"2026-01-02"'),
        (datetime(2026, 1, 2, 3, 4, tzinfo=UTC), b'"2026-01-02T03:04:00+00:00"'),
        (time(3, 4), b'"03:04:00"'),
        (Order(symbol="ACME", limit=Decimal("98.40")), b'{"limit":"98.40","symbol":"ACME"}'),
        (("a", ["b"]), b'["a",["b"]]'),
    ],
    ids=lambda value: spelled(value)[:30],
)
def test_decimals_and_integers_beyond_what_javascript_holds_become_strings(value: Any, expected: bytes) -> None:
    assert canonical(value) == expected
    assert canonical({"x": [value]}) == b'{"x":[' + expected + b"]}"


@pytest.mark.case("B21")
def test_numbers_that_javascript_would_round_to_the_same_have_digests_of_their_own() -> None:
    near = [2**53, 2**53 + 1, Decimal("0.1"), Decimal("0.10000000000000000001"), Decimal("0.10"), 0.1]
    assert len({digest({"limit": value}) for value in near}) == len(near)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (float("nan"), "value.x[1]"),
        (float("inf"), "value.x[1]"),
        (Decimal("NaN"), "value.x[1]"),
        (Decimal("sNaN"), "value.x[1]"),
        (Decimal("-Infinity"), "value.x[1]"),
        (b"bytes", "value.x[1]"),
        ({"a", "b"}, "value.x[1]"),
        (object(), "value.x[1]"),
        (1j, "value.x[1]"),
        ({1: "a"}, "value.x[1]"),
        ({None: "a"}, "value.x[1]"),
        ("\ud800", "value.x[1]"),
        ({"\udfff": 1}, "a key of value.x[1]"),
        (Decimal("1E+1001"), "value.x[1]"),
        (Decimal("1E-1001"), "value.x[1]"),
        (Decimal("1E+999999999999"), "value.x[1]"),
        (Decimal("0E+999999999999"), "value.x[1]"),
        (10**1001, "value.x[1]"),
        (-(10**5000), "value.x[1]"),
    ],
    ids=lambda value: spelled(value)[:30] if not isinstance(value, int) else "int",
)
def test_what_has_no_canonical_form_is_refused_and_its_place_named(value: Any, where: str) -> None:
    with pytest.raises(UsageError) as refused:
        canonical({"x": [1, value]})
    assert refused.value.message.startswith(where + " ")


def test_nesting_ends_somewhere() -> None:
    value: Any = "core"
    for _ in range(32):
        value = [value]
    assert canonical(value) == b"[" * 32 + b'"core"' + b"]" * 32
    with pytest.raises(UsageError, match="nested deeper than 32"):
        canonical([value])
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(UsageError, match="nested deeper"):
        canonical(loop)


def reordered(value: Any) -> Any:
    """The same with every object's members in the opposite order."""
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return [reordered(item) for item in value] if isinstance(value, list) else value


@given(VALUES)
def test_the_order_of_members_changes_nothing(value: Any) -> None:
    assert canonical(reordered(value)) == canonical(value)


@given(VALUES)
def test_what_was_read_back_from_its_canonical_form_has_the_same_one(value: Any) -> None:
    spelled = canonical(value)
    assert canonical(json.loads(spelled)) == spelled
    assert canonical(json.loads(json.dumps(json.loads(spelled), indent=2))) == spelled


def same(one: Any, other: Any) -> bool:
    """Equality of JSON, where ``True`` is no 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@given(ARGUMENTS, ARGUMENTS, TEXT, VALUES, VALUES)
def test_two_arguments_share_a_digest_only_when_their_normalized_forms_are_equal(
    one: dict[str, Any], other: dict[str, Any], name: str, value: Any, changed: Any
) -> None:
    near = [one | {name: value}, one | {name: changed}, one | {name: [value]}, one | {name: str(value)}]
    for left, right in [(one, other), *((near[0], each) for each in near[1:])]:
        assert (digest(left) == digest(right)) is same(normalized(left), normalized(right))
