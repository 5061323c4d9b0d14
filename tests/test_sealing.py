"""Sealing: what was sealed for one place opens there, whole, and nowhere else."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwe
from joserfc.jwk import OctKey
from joserfc.registry import HeaderParameter

from identity.errors import KeyMissingError, SealError, UsageError
from identity.sealing import Context, Key, RowKeys, StateKeys, row_context, token_context
from identity.secret import Secret
from tests.oauth.parts import encoded

OLD = Key("old", Secret(encoded(b"o" * 32)), 1.0)
NEW = Key("new", Secret(encoded(b"n" * 32)), 2.0)
ROWS = RowKeys([NEW, OLD])
STATE = StateKeys([NEW, OLD])

ROW: dict[str, Any] = {
    "table": "grants",
    "tenant": "acme",
    "row": "r-1",
    "field": "refresh_token",
    "owner": "user:alice",
    "generation": 3,
    "digest": "d-1",
}
TOKEN: dict[str, Any] = {
    "tenant": "acme",
    "issuer": "https://issuer.example",
    "subject": "alice",
    "thread": "t-1",
    "graph": "assistant",
    "audience": "https://trading.example",
    "scopes": ["orders:write"],
    "purpose": "call",
}


def row(**changes: Any) -> Context:
    return row_context(**{**ROW, **changes})


def token(**changes: Any) -> Context:
    return token_context(**{**TOKEN, **changes})


@given(st.text(min_size=1))
def test_what_was_sealed_opens_in_its_context(value: str) -> None:
    assert ROWS.open(ROWS.seal(value, row()), row()).reveal() == value
    assert STATE.open(STATE.seal(value, token()), token()).reveal() == value


def test_a_seal_is_a_compact_jwe_that_tells_nothing_but_its_key_and_a_digest() -> None:
    sealed = ROWS.seal("plain-value", row())
    assert sealed.count(".") == 4
    header = json.loads(_header(sealed))
    assert set(header) == {"alg", "enc", "kid", "ctx"}
    assert (header["alg"], header["enc"], header["kid"]) == ("dir", "A256GCM", "new")
    for word in ("plain-value", "acme", "alice", "refresh_token"):
        assert word not in sealed
        assert word not in json.dumps(header)


def test_the_same_value_never_seals_to_the_same_text() -> None:
    assert len({ROWS.seal("value", row()) for _ in range(100)}) == 100


@pytest.mark.case("F1")
@pytest.mark.parametrize(
    "changes",
    [
        {"table": "requests"},
        {"tenant": "acme2"},
        {"row": "r-2"},
        {"field": "subject_token"},
        {"owner": "user:bob"},
        {"owner": ""},
        {"generation": 2},
        {"generation": 4},
        {"digest": "d-2"},
        {"digest": ""},
        {"tenant": "acmer", "row": "-1"},  # the same letters, cut elsewhere
    ],
)
def test_a_rows_value_opens_in_no_other_row_field_or_generation(changes: dict[str, Any]) -> None:
    sealed = ROWS.seal("value", row())
    with pytest.raises(SealError, match="belongs elsewhere"):
        ROWS.open(sealed, row(**changes))
    assert not ROWS.fits(sealed, row(**changes))
    assert ROWS.fits(sealed, row())


@pytest.mark.case("E13")
@pytest.mark.parametrize(
    "changes",
    [
        {"tenant": "other"},
        {"issuer": "https://issuer.example/"},
        {"subject": "bob"},
        {"thread": "t-2"},
        {"graph": "watcher"},
        {"audience": "https://trading.example/"},
        {"scopes": ["orders:write", "portfolio:read"]},
        {"scopes": []},
        {"purpose": "another"},
    ],
)
def test_a_token_opens_for_no_other_person_thread_graph_or_audience(changes: dict[str, Any]) -> None:
    sealed = STATE.seal("value", token())
    with pytest.raises(SealError, match="belongs elsewhere"):
        STATE.open(sealed, token(**changes))
    assert not STATE.fits(sealed, token(**changes))


@pytest.mark.case("F1")
def test_two_rows_whose_values_were_swapped_refuse_and_a_third_one_works() -> None:
    contexts = [row(row=name) for name in ("r-1", "r-2", "r-3")]
    first, second, third = (ROWS.seal(f"value {i}", context) for i, context in enumerate(contexts))
    for swapped, context in ((second, contexts[0]), (first, contexts[1])):
        with pytest.raises(SealError):
            ROWS.open(swapped, context)
    assert ROWS.open(third, contexts[2]).reveal() == "value 2"


@pytest.mark.case("F1")
@pytest.mark.parametrize("part", range(5), ids=["header", "key", "nonce", "ciphertext", "tag"])
def test_one_character_changed_in_any_part_refuses(part: int) -> None:
    sealed = ROWS.seal("value", row())
    parts = sealed.split(".")
    places = range(len(parts[part])) if parts[part] else [0]
    for place in places:
        for other in ("A", "B", "_", "-", "=", "!", "é", "", "AA"):
            changed = parts.copy()
            changed[part] = parts[part][:place] + other + parts[part][place + 1 :]
            text = ".".join(changed)
            if text != sealed:
                with pytest.raises(SealError):
                    ROWS.open(text, row())
    assert ROWS.open(sealed, row()).reveal() == "value"


@pytest.mark.case("F1")
@given(st.integers(min_value=0), st.integers(0, 7))
def test_one_flipped_bit_anywhere_refuses(place: int, bit: int) -> None:
    sealed = ROWS.seal("value", row())
    place %= len(sealed)
    flipped = sealed[:place] + chr(ord(sealed[place]) ^ (1 << bit)) + sealed[place + 1 :]
    with pytest.raises(SealError):
        ROWS.open(flipped, row())


@pytest.mark.case("F1")
def test_parts_of_two_seals_do_not_fit_together() -> None:
    one, other = (ROWS.seal(value, row()).split(".") for value in ("value", "other"))
    for part in (2, 3, 4):
        mixed = one.copy()
        mixed[part] = other[part]
        with pytest.raises(SealError):
            ROWS.open(".".join(mixed), row())


@pytest.mark.case("F1")
def test_a_context_written_into_the_header_by_hand_is_not_believed() -> None:
    parts = ROWS.seal("value", row()).split(".")
    header = json.loads(_header(".".join(parts))) | {"ctx": f"row:{row(row='r-2').digest}"}
    parts[0] = encoded(json.dumps(header).encode())
    forged = ".".join(parts)
    assert ROWS.fits(forged, row(row="r-2"))  # it says so
    with pytest.raises(SealError, match="was changed"):
        ROWS.open(forged, row(row="r-2"))


@pytest.mark.case("F1")
def test_state_and_rows_never_open_what_the_other_sealed_even_with_the_same_keys() -> None:
    context = row()
    with pytest.raises(SealError):
        STATE.open(ROWS.seal("value", context), context)
    with pytest.raises(SealError):
        ROWS.open(STATE.seal("value", context), context)


@pytest.mark.parametrize(
    "header",
    [
        {"enc": "A128GCM"},
        {"enc": "A256CBC-HS512"},
        {"alg": "A256KW"},
        {"alg": "A256GCMKW"},
        {"alg": "PBES2-HS256+A128KW"},
        {"zip": "DEF"},
    ],
    ids=json.dumps,
)
def test_only_the_one_algorithm_is_opened(header: dict[str, str]) -> None:
    # Somebody who got the key still cannot make us do more than decrypt: no password hashing, no decompression.
    full = {"alg": "dir", "enc": "A256GCM", "kid": "new", "ctx": f"row:{row().digest}", **header}
    size = {"A128GCM": 16, "A256CBC-HS512": 64}.get(full["enc"], 32)
    key = OctKey.import_key({"kty": "oct", "k": encoded((b"n" * 64)[:size]), "kid": "new"})
    made = jwe.encrypt_compact(full, b"value", key, registry=_lax())
    with pytest.raises(SealError):
        ROWS.open(made, row())


@pytest.mark.parametrize(
    "junk", ["", ".", "....", "a.b.c.d.e", "eyJ9....", None, 5, b"a....", ["a"], "é....", "x" * 10]
)
def test_what_is_no_seal_refuses(junk: Any) -> None:
    with pytest.raises(SealError):
        ROWS.open(junk, row())


@pytest.mark.parametrize(
    "header", [[], "kid", None, {}, {"kid": None}, {"kid": ["new"]}, {"kid": "new"}, {"kid": "gone"}]
)
def test_a_seal_with_an_odd_header_refuses_and_fits_nowhere(header: Any) -> None:
    junk = encoded(json.dumps(header).encode()) + "....AA"
    assert not ROWS.fits(junk, row())
    with pytest.raises(SealError):
        ROWS.open(junk, row())


def test_a_key_that_is_not_in_the_ring_is_told_apart() -> None:
    sealed = ROWS.seal("value", row())
    with pytest.raises(KeyMissingError, match="not in the key ring"):
        RowKeys([OLD]).open(sealed, row())
    assert not RowKeys([OLD]).fits(sealed, row())


def test_another_key_of_the_same_name_opens_nothing() -> None:
    impostor = Key("new", Secret(encoded(b"i" * 32)), 2.0)
    with pytest.raises(SealError, match="was changed"):
        RowKeys([impostor]).open(ROWS.seal("value", row()), row())


def test_the_newest_key_seals_and_the_older_ones_still_open() -> None:
    sealed = RowKeys([OLD]).seal("value", row())
    assert RowKeys([OLD, NEW]).open(sealed, row()).reveal() == "value"
    assert json.loads(_header(RowKeys([NEW, OLD]).seal("value", row())))["kid"] == "new"
    assert json.loads(_header(RowKeys([OLD, NEW]).seal("value", row())))["kid"] == "new"


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ([], "has no row key"),
        ([OLD, OLD], "names 'old' twice"),
        ([Key("short", Secret(encoded(b"s" * 31)), 1.0)], "has not 256 bits"),
        ([Key("long", Secret(encoded(b"s" * 33)), 1.0)], "has not 256 bits"),
    ],
)
def test_a_ring_that_could_not_seal_well_is_refused(keys: Iterable[Key], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        RowKeys(keys)


def test_large_values_open_again_and_what_could_not_is_refused_when_it_is_sealed() -> None:
    large = "x" * 1_000_000  # a tool's long answer, kept as an outcome
    assert ROWS.open(ROWS.seal(large, row()), row()).reveal() == large
    for value in ("", "x" * (16 << 20) + "x"):
        with pytest.raises(UsageError, match="cannot be sealed"):
            ROWS.seal(value, row())


def test_neither_a_key_nor_an_error_shows_a_secret() -> None:
    assert OLD.secret.reveal() not in repr(OLD)
    for wrong in (row(row="r-2"), row(owner="user:bob")):
        with pytest.raises(SealError) as refused:
            ROWS.open(ROWS.seal("plain-value", row()), wrong)
        assert "plain-value" not in str(refused.value)
        assert "bob" not in str(refused.value)


def _header(sealed: str) -> bytes:
    head = sealed.split(".")[0]
    return base64.urlsafe_b64decode(head + "=" * (-len(head) % 4))


def _lax() -> jwe.JWERegistry:
    """What other software might seal with."""
    return jwe.JWERegistry(
        header_registry={"ctx": HeaderParameter("x", "str"), "kid": HeaderParameter("x", "str")},
        algorithms=[
            "dir",
            "A256KW",
            "A256GCMKW",
            "PBES2-HS256+A128KW",
            "A256GCM",
            "A128GCM",
            "A256CBC-HS512",
            "DEF",
        ],
    )
