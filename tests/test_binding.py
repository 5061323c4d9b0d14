"""What an approval is for: one digest over everything that must not change between the question and the call."""

from __future__ import annotations

from dataclasses import fields, replace
from decimal import Decimal
from typing import Any

import pytest

from identity import Principal, binding
from identity.binding import Call, binding_digest
from identity.sessions import Place, Session

CALL = Call(
    message_id="lc_run--1",
    id="call_1",
    tool="buy_stock",
    arguments={"symbol": "ACME", "quantity": 50, "limit": Decimal(100)},
    schema_digest="schema",
    audience="https://trading.example",
)

_ALICE = Principal("acme", "https://issuer.example", "alice")
_PLACE = Place("acme", "assistant", "t1")
_SESSION = Session("s1", _PLACE, _ALICE, _ALICE.key, "g1", 0.0, 9e9)
_BOUND: dict[str, Any] = {
    "call": CALL,
    "place": _PLACE,
    "session": _SESSION,
    "actor": "agent",
    "nonce": "nonce",
    "expires_at": 1_800_000_300,
}
_OTHER_VALUE = {
    "message_id": "lc_run--2",
    "id": "call_2",
    "tool": "buy_stocks",
    "schema_digest": "schemb",
    "audience": "https://trading.example/",
}


def _with_arguments(**changed: Any) -> dict[str, Any]:
    arguments = {k: v for k, v in {**CALL.arguments, **changed}.items() if v is not ...}
    return {**_BOUND, "call": replace(CALL, arguments=arguments)}


_CHANGED: dict[str, dict[str, Any]] = {
    **{f"call.{name}": {**_BOUND, "call": replace(CALL, **{name: value})} for name, value in _OTHER_VALUE.items()},
    "call.arguments: one letter": _with_arguments(symbol="ACMF"),
    "call.arguments: its case": _with_arguments(symbol="ACMe"),
    "call.arguments: a blank": _with_arguments(symbol="ACME "),
    "call.arguments: one more": _with_arguments(quantity=51),
    "call.arguments: one digit": _with_arguments(limit=Decimal("100.01")),
    "call.arguments: its sign": _with_arguments(quantity=-50),
    "call.arguments: null": _with_arguments(limit=None),
    "call.arguments: one less": _with_arguments(limit=...),
    "call.arguments: an extra one": _with_arguments(note=""),
    "call.arguments: another name": _with_arguments(symbol=..., Symbol="ACME"),
    "place.tenant": {**_BOUND, "place": replace(_PLACE, tenant="acmf")},
    "place.graph": {**_BOUND, "place": replace(_PLACE, graph="assistanu")},
    "place.thread": {**_BOUND, "place": replace(_PLACE, thread="t2")},
    "principal.issuer": {
        **_BOUND,
        "session": replace(_SESSION, principal=replace(_ALICE, issuer="https://issuer.exampld")),
    },
    "principal.subject": {**_BOUND, "session": replace(_SESSION, principal=replace(_ALICE, subject="alicf"))},
    "actor": {**_BOUND, "actor": "agenu"},
    "nonce": {**_BOUND, "nonce": "noncf"},
    "expires_at": {**_BOUND, "expires_at": 1_800_000_301},
}


def test_the_table_changes_every_field_of_a_call_and_a_place() -> None:
    named = {name.split(":")[0] for name in _CHANGED}
    assert named >= {f"call.{f.name}" for f in fields(Call)} | {f"place.{f.name}" for f in fields(Place)}


@pytest.mark.case("B4")
@pytest.mark.parametrize("field", sorted(_CHANGED))
def test_one_byte_in_any_field_of_the_binding_makes_another_digest(field: str) -> None:
    assert binding_digest(**_BOUND) == binding_digest(**_BOUND)
    assert binding_digest(**_CHANGED[field]) != binding_digest(**_BOUND)


@pytest.mark.case("B4")
def test_no_two_of_the_changes_have_the_same_digest() -> None:
    digests = {binding_digest(**changed) for changed in _CHANGED.values()}
    assert len(digests) == len(_CHANGED)


@pytest.mark.case("B4")
@pytest.mark.parametrize(("constant", "value"), [("_BINDING_VERSION", 2), ("_POLICY_VERSION", "tools/2")])
def test_an_approval_of_an_older_policy_or_binding_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, constant: str, value: Any
) -> None:
    before = binding_digest(**_BOUND)
    monkeypatch.setattr(binding, constant, value)
    assert binding_digest(**_BOUND) != before
