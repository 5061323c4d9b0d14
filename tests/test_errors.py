"""The error tree: drawn once, one line each, printable as it stands."""

from __future__ import annotations

import re

import pytest

from identity import errors
from identity.errors import DeputizeError, InputError, NeedsError, OAuthError, SettingsError, TransportError, UsageError

KINDS = [getattr(errors, name) for name in errors.__all__]


def drawn() -> dict[str, str]:
    """``{class: its base}`` as the module's docstring draws it."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([│ ├└─]*)(\w+Error)\b", line)
        if not match:
            continue
        depth, name = len(match[1]), match[2]
        path = [(at, above) for at, above in path if at < depth]
        found[name] = path[-1][1] if path else "Exception"
        path.append((depth, name))
    return found


def test_the_drawn_tree_is_the_real_one() -> None:
    assert drawn() == {kind.__name__: kind.__bases__[0].__name__ for kind in KINDS}


def test_every_kind_has_a_code_of_its_own() -> None:
    codes = [kind.code for kind in KINDS]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes)


def test_the_exit_code_is_2_for_what_was_asked_wrongly_and_1_for_what_failed() -> None:
    assert {kind for kind in KINDS if kind.exit_code == 2} == {UsageError, SettingsError, NeedsError, InputError}
    assert {kind.exit_code for kind in KINDS} == {1, 2}


def test_an_error_says_what_happened_and_what_to_do_next() -> None:
    error = UsageError("The port 80 is taken", "Choose another one", code="port_taken")
    assert (error.message, error.hint, error.code) == ("The port 80 is taken", "Choose another one", "port_taken")
    assert str(error) == "The port 80 is taken. Choose another one"
    assert str(DeputizeError("It broke")) == "It broke"
    assert UsageError.code == "usage"  # one error's own code changes no other one


@pytest.mark.case("G5")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not OAuthError])
def test_what_came_from_elsewhere_is_escaped_in_message_and_hint(kind: type[DeputizeError]) -> None:
    error = kind("The host evil\r\nINFO all is well\x1b[2J said no", "Look at \u202egnp.exe")
    told = f"{error} {error!r} {error.args}"
    assert "\n" not in told
    assert "\r" not in told
    assert "\x1b" not in told
    assert "\u202e" not in told
    assert r"evil\r\nINFO" in str(error)
    assert len(str(kind("x" * 100_000, "y" * 100_000))) < 1_300


@pytest.mark.case("G5")
def test_an_oauth_error_keeps_the_wires_words_escaped_and_short() -> None:
    error = OAuthError("invalid_grant", "The code\r\nwas used", status=401, hint="Start again")
    assert (error.error, error.code, error.status) == ("invalid_grant", "invalid_grant", 401)
    assert str(error) == r"The authorization server refused: invalid_grant: The code\r\nwas used. Start again"
    hostile = OAuthError("x\x1b" * 1_000, "y\u200b" * 1_000)
    assert len(hostile.code) <= 101
    assert len(str(hostile)) < 600
    assert hostile.code.isprintable()
    assert str(OAuthError("access_denied")) == "The authorization server refused: access_denied"


def test_an_unavailable_server_may_say_when_to_come_back() -> None:
    assert TransportError("No answer").retry_after is None
    assert TransportError("No answer", retry_after=7.0).retry_after == 7.0
