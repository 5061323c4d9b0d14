"""Text from elsewhere: what is shown of it cannot move, hide or pretend anything."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity.text import printable

# Everything that moves the cursor, turns the reading direction, splits a line, or takes no room at all.
DANGEROUS = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
FILLERS = ["\u034f", "\u115f", "\u1160", "\u17b4", "\u17b5", "\u180b", "\u180f", "\u3164", "\uffa0", "\U000e0100"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Buy 5 ACME",
        "Zażółć gęślą jaźń",
        "日本語",
        "שלום",
        "ü",
        "e\u0301",
        "5 €",
        "☀\ufe0f",
        "a\u00a0b",
        "\\x1b",
        "<b>",
    ],
)
def test_printable_text_of_any_script_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.case("G5", "B10")
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("\x1b]8;;https://evil.example\x1b\\x", r"\x1b]8;;https://evil.example\x1b\x"),
        ("\x9b31m", r"\x9b31m"),
        ("ok\r\nINFO forged", r"ok\r\nINFO forged"),
        ("a\tb\vc\fd\be\0f\x7fg", r"a\tb\x0bc\x0cd\x08e\x00f\x7fg"),
        ("a\u2028b\u2029c\u0085d", r"a\u2028b\u2029c\x85d"),
        ("pay \u202e001\u202c", r"pay \u202e001\u202c"),
        ("\u2066x\u2069\u200e\u200f\u061c", r"\u2066x\u2069\u200e\u200f\u061c"),
        ("al\u200bice\u200d\u2060\ufeff\u00ad", r"al\u200bice\u200d\u2060\ufeff\xad"),
        ("a\U000e0041\U000e007f", r"a\U000e0041\U000e007f"),
        ("al\u3164ice\u034f", r"al\u3164ice\u034f"),
        ("\ud800\ue000\U0010ffff", r"\ud800\ue000\U0010ffff"),
    ],
    ids=ascii,
)
def test_what_would_move_reorder_or_hide_text_is_spelled_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.case("G5", "B10")
def test_every_control_bidirectional_and_zero_width_character_is_spelled_out() -> None:
    for character in [*DANGEROUS, *FILLERS]:
        assert printable(f"a{character}b") == "a" + character.encode("unicode_escape").decode() + "b"


@pytest.mark.case("G5", "B10")
@given(st.text(st.characters(exclude_categories=()) | st.sampled_from(DANGEROUS + FILLERS)), st.integers(0, 80))
def test_no_text_gets_a_dangerous_character_through_or_is_longer_than_allowed(text: str, limit: int) -> None:
    shown = printable(text, limit=limit)
    assert not set(shown) & {*DANGEROUS, *FILLERS}
    assert len(shown.splitlines()) <= 1
    assert len(shown.removesuffix("…")) <= limit
    assert printable(shown, limit=limit + 1) == shown
    shown.encode()  # no lone surrogate is left


@pytest.mark.case("B10")
@pytest.mark.parametrize(
    ("text", "limit", "shown"),
    [
        ("abcde", 5, "abcde"),
        ("abcdef", 5, "abcde…"),
        ("abcd\n", 6, r"abcd\n"),
        ("abcd\n", 5, "abcd…"),  # an escape is never cut in two
        ("é" * 6, 5, "é" * 5 + "…"),
        ("x" * 1_000_000, 200, "x" * 200 + "…"),
        ("\u200b" * 1_000_000, 200, r"\u200b" * 33 + "…"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_overlong_is_cut_and_says_so(text: str, limit: int, shown: str) -> None:
    assert printable(text, limit=limit) == shown
