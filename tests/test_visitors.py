"""Visitors: ids that are minted here, travel sealed, and end."""

from __future__ import annotations

from pathlib import Path

import pytest

from identity.keyring import KeyRing
from identity.sealing import token_context
from identity.visitors import Visitors
from tests.support import Clock, stored


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    database, ring = stored(tmp_path)
    database.close()
    return ring


@pytest.fixture
def visitors(ring: KeyRing, clock: Clock) -> Visitors:
    return Visitors("default", ring.state, clock)


@pytest.mark.case("E19")
def test_each_visitor_has_an_id_of_its_own_that_the_cookie_does_not_show(visitors: Visitors) -> None:
    cookies = [visitors.mint() for _ in range(100)]
    known = [visitors.known(cookie) for cookie in cookies]
    assert None not in known
    assert len(set(known)) == 100
    assert all(visitor is not None and visitor.id not in cookie for visitor, cookie in zip(known, cookies, strict=True))
    assert visitors.known(cookies[0]) == known[0]


@pytest.mark.case("E19")
def test_nobody_chooses_an_id(visitors: Visitors, ring: KeyRing, clock: Clock) -> None:
    cookie = visitors.mint()
    other = Visitors("other", ring.state, clock)  # another organization, with the same keys
    elsewhere = ring.state.seal(
        '{"id": "chosen", "expires_at": 9e9}',
        token_context(
            tenant="default", issuer="i", subject="s", thread="t", graph="g", audience="a", scopes=(), purpose="call"
        ),
    )
    head, *rest = cookie.split(".")
    forged = [
        "",
        "chosen",
        cookie[:-1],
        cookie + "A",
        cookie.upper(),
        ".".join([head, *reversed(rest)]),
        "x" * 5000,
        elsewhere,
    ]
    assert [visitors.known(value) for value in forged] == [None] * len(forged)
    assert other.known(cookie) is None
    assert visitors.known(other.mint()) is None


def test_an_id_ends_after_its_lifetime(visitors: Visitors, clock: Clock) -> None:
    cookie = visitors.mint()
    clock.advance(Visitors.lifetime - 1)
    assert visitors.known(cookie) is not None
    clock.advance(1)
    assert visitors.known(cookie) is None
