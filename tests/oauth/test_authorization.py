"""The authorization code flow: what a redirect brings is checked before anything is sent on."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity.errors import OAuthError, ProtocolError, UsageError
from identity.oauth.authorization import (
    AuthorizationAttempt,
    authorization_request,
    code_request,
    local_path,
    process_authorization_response,
)
from identity.oauth.pkce import Pkce
from tests.oauth.parts import AGENT, ISSUER, NOW, client, fields, server

REDIRECT = "http://127.0.0.1:9/callback"


def started(**changes: Any) -> AuthorizationAttempt:
    return authorization_request(server(**changes), AGENT, redirect_uri=REDIRECT, scope="openid orders:write")


def redirect(attempt: AuthorizationAttempt, **changes: Any) -> list[tuple[str, str]]:
    """A good redirect's query; a parameter that is changed to ``...`` is left out."""
    found = {"code": "c-1", "state": attempt.state.reveal(), "iss": ISSUER, **changes}
    return [(name, value) for name, value in found.items() if value is not ...]


def test_the_browser_is_sent_with_a_challenge_a_state_and_a_nonce() -> None:
    attempt = started(authorization_endpoint=f"{ISSUER}/authorize?tenant=one")
    where = urlsplit(attempt.url)
    assert f"{where.scheme}://{where.netloc}{where.path}" == f"{ISSUER}/authorize"
    assert parse_qs(where.query, strict_parsing=True) == {
        "tenant": ["one"],
        "response_type": ["code"],
        "client_id": [AGENT],
        "redirect_uri": [REDIRECT],
        "scope": ["openid orders:write"],
        "state": [attempt.state.reveal()],
        "nonce": [attempt.nonce.reveal()],
        "code_challenge": [Pkce.restore(attempt.pkce.verifier).challenge],
        "code_challenge_method": ["S256"],
    }
    assert attempt.pkce.verifier.reveal() not in attempt.url


def test_offline_access_is_asked_for_with_consent_and_nothing_else_is() -> None:
    for scope, prompt in (("openid offline_access", ["consent"]), ("openid", None), ("openid no_offline_access", None)):
        attempt = authorization_request(server(), AGENT, redirect_uri=REDIRECT, scope=scope)
        assert parse_qs(urlsplit(attempt.url).query).get("prompt") == prompt


def test_no_two_attempts_share_a_state_a_nonce_or_a_verifier() -> None:
    attempts = [started() for _ in range(50)]
    values = [s.reveal() for a in attempts for s in (a.state, a.nonce, a.pkce.verifier)]
    assert len(set(values)) == len(values)
    assert min(map(len, values)) >= 43  # 256 bits, base64url


@pytest.mark.case("A3")
@pytest.mark.parametrize("methods", [(), ("plain",)])
def test_no_login_starts_at_a_server_without_s256(methods: tuple[str, ...]) -> None:
    with pytest.raises(ProtocolError, match="S256"):
        started(code_challenge_methods_supported=methods)


def test_a_good_redirect_brings_the_code_and_its_verifier_redeems_it() -> None:
    attempt = started()
    code = process_authorization_response(server(), attempt, redirect(attempt))
    request = code_request(server(), client(), code, now=NOW)
    sent = fields(request)
    assert (request.method, request.url) == ("POST", f"{ISSUER}/token")
    assert {
        "grant_type": "authorization_code",
        "code": "c-1",
        "redirect_uri": REDIRECT,
        "code_verifier": attempt.pkce.verifier.reveal(),
        "client_id": AGENT,
    }.items() <= sent.items()


OTHERS = [
    "https://evil.example",
    f"{ISSUER}/",
    ISSUER.upper(),
    ISSUER.replace("https", "http"),
    f"{ISSUER}:443",
    f" {ISSUER}",
    "",
]


@pytest.mark.case("A1")
@pytest.mark.parametrize("advertised", [True, False])
@pytest.mark.parametrize("iss", OTHERS)
@pytest.mark.parametrize("outcome", [{}, {"code": ..., "error": "access_denied", "error_description": "told by evil"}])
def test_a_mismatched_iss_on_the_callback_aborts_the_login(iss: str, advertised: bool, outcome: dict[str, Any]) -> None:
    trusted = server(authorization_response_iss_parameter_supported=advertised)
    attempt = started()
    with pytest.raises(ProtocolError) as refused:
        process_authorization_response(trusted, attempt, redirect(attempt, iss=iss, **outcome))
    assert "evil" not in str(refused.value)
    assert "access_denied" not in str(refused.value)


@pytest.mark.case("A1")
@pytest.mark.parametrize("outcome", [{}, {"code": ..., "error": "access_denied"}])
def test_a_missing_iss_aborts_the_login_when_the_server_says_that_it_sends_one(outcome: dict[str, Any]) -> None:
    attempt = started()
    with pytest.raises(ProtocolError, match="which server"):
        process_authorization_response(server(), attempt, redirect(attempt, iss=..., **outcome))


def test_a_server_that_never_sends_iss_needs_none() -> None:
    silent = server(authorization_response_iss_parameter_supported=False)
    attempt = started()
    code = process_authorization_response(silent, attempt, redirect(attempt, iss=...))
    assert code.value.reveal() == "c-1"


@pytest.mark.case("A1")
def test_a_code_is_not_sent_to_another_server_than_the_one_that_was_asked() -> None:
    attempt = started()
    code = process_authorization_response(server(), attempt, redirect(attempt))
    with pytest.raises(ProtocolError, match="from another server"):
        code_request(server(issuer="https://evil.example"), client(), code, now=NOW)


@pytest.mark.parametrize("state", [..., "", "another", "\ud800", "é"])
@pytest.mark.parametrize("outcome", [{}, {"code": ..., "error": "access_denied"}])
def test_a_redirect_with_another_state_belongs_to_another_sign_in(state: Any, outcome: dict[str, Any]) -> None:
    attempt = started()
    with pytest.raises(ProtocolError) as refused:
        process_authorization_response(server(), attempt, redirect(attempt, state=state, **outcome))
    assert refused.value.code == "invalid_state"


def test_a_state_that_differs_in_its_last_character_belongs_to_another_sign_in() -> None:
    attempt = started()
    state = attempt.state.reveal()
    for other in (state[:-1], state + "A", state.swapcase(), started().state.reveal()):
        with pytest.raises(ProtocolError) as refused:
            process_authorization_response(server(), attempt, redirect(attempt, state=other))
        assert refused.value.code == "invalid_state"


@pytest.mark.case("A14")
@pytest.mark.parametrize("name", ["code", "state", "iss", "error", "anything"])
def test_a_repeated_parameter_in_the_redirect_is_refused_even_when_both_are_equal(name: str) -> None:
    attempt = started()
    query = redirect(attempt, anything="x")
    again = dict(query).get(name, "access_denied")
    twice = [*query, (name, again)] if name in dict(query) else [*query, (name, again), (name, again)]
    with pytest.raises(ProtocolError, match=f"has {name} twice") as refused:
        process_authorization_response(server(), attempt, twice)
    assert refused.value.code == "invalid_request"


@pytest.mark.case("A14")
@pytest.mark.parametrize("name", ["code", "state", "error_description", "anything"])
def test_an_oversized_parameter_in_the_redirect_is_refused(name: str) -> None:
    attempt = started()
    with pytest.raises(ProtocolError, match=f"oversized {name}") as refused:
        process_authorization_response(server(), attempt, redirect(attempt, **{name: "x" * 16_385}))
    assert refused.value.code == "invalid_request"


def test_a_refusal_of_the_right_server_is_told_with_its_error() -> None:
    attempt = started()
    query = redirect(attempt, code=..., error="access_denied", error_description="The user\x1b[2J said no")
    with pytest.raises(OAuthError) as refused:
        process_authorization_response(server(), attempt, query)
    assert refused.value.error == refused.value.code == "access_denied"
    assert "\x1b" not in str(refused.value)


def test_an_error_beside_a_code_counts_as_the_error() -> None:
    attempt = started()
    with pytest.raises(OAuthError):
        process_authorization_response(server(), attempt, redirect(attempt, error="server_error"))


@pytest.mark.parametrize("code", [..., ""])
def test_a_redirect_with_neither_a_code_nor_an_error_is_refused(code: Any) -> None:
    attempt = started()
    with pytest.raises(ProtocolError, match="neither a code nor an error"):
        process_authorization_response(server(), attempt, redirect(attempt, code=code))


def test_the_repr_of_an_attempt_and_of_its_code_show_no_secret() -> None:
    attempt = started()
    code = process_authorization_response(server(), attempt, redirect(attempt, code="code-that-nobody-sees"))
    assert "code-that-nobody-sees" not in repr(code)
    assert attempt.pkce.verifier.reveal() not in repr(code)


@pytest.mark.parametrize("path", ["/", "/chat", "/chat/7?tab=a&b=%2F%2Fc", "/a/../b", "/@somebody", "/a//b"])
def test_a_local_path_is_returned_as_it_is(path: str) -> None:
    assert local_path(path) == path


@pytest.mark.case("A6")
@pytest.mark.parametrize(
    "path",
    [
        "",
        "chat",
        "//evil.example",
        "///evil.example",
        "\\evil.example",
        "/\\evil.example",
        "/\\/evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "https://evil.example",
        "https:evil.example",
        "javascript:alert(1)",
        "/chat\r\nSet-Cookie: a=b",
        "/chat\x00",
        "/\u2028",
        "/\u202egnp",
        "/ümlaut",
        " /chat",
        "/" + "a" * 2048,
    ],
)
def test_anything_but_a_local_path_is_refused(path: str) -> None:
    with pytest.raises(UsageError):
        local_path(path)


@pytest.mark.case("A6")
@given(st.text(alphabet=st.sampled_from("/\\:@.?#%ae\t\r\n h"), max_size=12))
def test_whatever_is_accepted_stays_on_this_site_in_a_browser(path: str) -> None:
    try:
        accepted = local_path(path)
    except UsageError:
        return
    # As WHATWG browsers read it: tabs and line breaks vanish, and a backslash is a slash.
    read = accepted.translate({9: None, 10: None, 13: None}).replace("\\", "/")
    assert read.startswith("/")
    assert not read.startswith("//")
    assert accepted == path
