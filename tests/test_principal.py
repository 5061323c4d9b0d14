"""Who is asking."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity.errors import UsageError
from identity.principal import Principal, Visitor

PART = st.text(alphabet=st.sampled_from("ab1:|/"), min_size=1, max_size=6)
ALICE = {"tenant": "acme", "issuer": "https://issuer.example", "subject": "alice"}


@pytest.mark.parametrize("part", ALICE)
def test_somebody_with_another_tenant_issuer_or_subject_is_somebody_else(part: str) -> None:
    alice, other = Principal(**ALICE), Principal(**{**ALICE, part: ALICE[part] + "x"})
    assert alice != other
    assert alice.key != other.key


def test_the_name_decides_nothing() -> None:
    named = Principal(**ALICE, name="Alice")
    assert named == Principal(**ALICE, name="Mallory")
    assert named.key == Principal(**ALICE).key
    assert "Alice" not in named.key


@pytest.mark.parametrize("part", ALICE)
@pytest.mark.parametrize("nothing", ["", None])
def test_a_principal_needs_all_three(part: str, nothing: Any) -> None:
    with pytest.raises(UsageError, match=f"needs a {part}"):
        Principal(**{**ALICE, part: nothing})


def test_a_visitor_needs_an_id() -> None:
    with pytest.raises(UsageError):
        Visitor("")


@given(st.tuples(PART, PART, PART), st.tuples(PART, PART, PART))
def test_two_people_share_a_key_only_if_they_are_one(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    assert (Principal(*one).key == Principal(*other).key) is (one == other)
    # The same letters cut elsewhere: a subject that an issuer lets people choose must not reach into its neighbours.
    whole = "".join(one)
    for cut in range(1, len(whole) - 1):
        moved = Principal(whole[:cut], whole[cut : cut + 1], whole[cut + 1 :])
        assert (moved.key == Principal(*one).key) is (moved == Principal(*one))


@given(PART, PART, PART, st.text(min_size=1))
def test_no_visitor_has_the_key_of_a_person(tenant: str, issuer: str, subject: str, visitor: str) -> None:
    person = Principal(tenant, issuer, subject)
    assert Visitor(visitor).key != person.key
    assert Visitor(person.key).key != person.key
