"""Answers of others: which are one, which say no, and which say nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity.errors import DeputizeError, OAuthError, ProtocolError, TransportError
from identity.oauth.wire import Request, Response, optional_text, parameters, read_json, safe_url, seconds, text
from tests.oauth.parts import BAD_URLS, answer


def test_an_object_with_200_is_an_answer_whatever_its_content_type() -> None:
    assert read_json(answer({"a": 1}), "It") == {"a": 1}
    assert read_json(answer({"a": 1}, content_type="text/plain"), "It") == {"a": 1}
    assert read_json(Response(200, {}, b'{"a": 1}'), "It") == {"a": 1}


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404])
def test_an_oauth_error_is_one_with_any_status_below_500(status: int) -> None:
    told = answer({"error": "invalid_client", "error_description": "Unknown\r\nkey\x1b[1m"}, status)
    with pytest.raises(OAuthError) as refused:
        read_json(told, "It")
    assert (refused.value.error, refused.value.code, refused.value.status) == (
        "invalid_client",
        "invalid_client",
        status,
    )
    assert "\n" not in str(refused.value)
    assert "\x1b" not in str(refused.value)


def test_a_description_that_is_no_text_is_left_out() -> None:
    with pytest.raises(OAuthError) as refused:
        read_json(answer({"error": "invalid_client", "error_description": {"a": 1}}, 400), "It")
    assert refused.value.description == ""


@pytest.mark.case("B15")
@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 599])
@pytest.mark.parametrize("body", [b"", b"<html>", b'{"error": "access_denied"}', b'{"access_token": "at"}'])
def test_a_server_in_trouble_has_said_nothing(status: int, body: bytes) -> None:
    with pytest.raises(TransportError) as unavailable:
        read_json(answer(body, status), "It")
    assert unavailable.value.code == "unavailable"


@pytest.mark.case("B15")
@pytest.mark.parametrize("status", [200, 302, 400, 403, 404])
@pytest.mark.parametrize("kind", ["text/html", "text/html; charset=utf-8", "application/xhtml+xml"])
def test_a_web_page_instead_of_an_answer_has_said_nothing(status: int, kind: str) -> None:
    with pytest.raises(TransportError, match="web page"):
        read_json(answer(b"<!doctype html><title>Sign in</title>", status, kind), "It")


@pytest.mark.parametrize("status", [201, 204, 301, 302, 304, 307])
def test_an_object_with_another_status_than_200_is_no_answer(status: int) -> None:
    with pytest.raises(ProtocolError, match=f"HTTP {status}"):
        read_json(answer({"access_token": "at"}, status), "It")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"1",
        b"ok",
        b'{"a": 1',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 1}}',
        b'{"error": null}',
        b'{"error": 5}',
        b'{"error": ["invalid_grant"]}',
        b'{"a": "\xff"}',
        b'{"a": ' + b"9" * 5_000 + b"}",
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_is_no_object_is_no_answer(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_json(answer(body), "It")


@given(st.binary(max_size=60) | st.text(max_size=40).map(str.encode), st.integers(100, 599))
def test_whatever_comes_back_is_an_answer_or_one_of_our_errors(body: bytes, status: int) -> None:
    try:
        found = read_json(answer(body, status), "It")
    except (OAuthError, ProtocolError, TransportError):
        return
    assert status == 200
    assert "error" not in found


def test_neither_repr_shows_what_was_sent_or_answered() -> None:
    request = Request("POST", "https://issuer.example/token", (("code", "hidden"),), {"authorization": "hidden"})
    assert repr(request) == "Request(POST https://issuer.example/token)"
    assert repr(answer({"access_token": "hidden"})) == "Response(200, 26 bytes)"


def test_a_required_member_is_told_apart_from_an_optional_one() -> None:
    assert optional_text({}, "iss", "It") is None
    assert optional_text({"iss": None}, "iss", "It") is None
    assert text({"iss": "x"}, "iss", "It") == "x"
    with pytest.raises(ProtocolError, match="It answered without iss"):
        text({}, "iss", "It")


@pytest.mark.parametrize(("value", "expected"), [(None, None), (0, 0.0), (5, 5.0), (0.5, 0.5), ("30", 30.0), ("", ...)])
def test_seconds_are_numbers_or_digits(value: Any, expected: Any) -> None:
    if expected is ...:
        with pytest.raises(ProtocolError, match="no number of seconds"):
            seconds({"interval": value}, "interval", "It")
    else:
        assert seconds({"interval": value}, "interval", "It") == expected


@pytest.mark.case("C9")
@pytest.mark.parametrize("url", BAD_URLS)
def test_a_url_that_may_not_be_opened_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ProtocolError) as refused:
        safe_url(url, "page", ["http://127.0.0.1:2024", "https://issuer.example"])
    assert url not in str(refused.value)
    assert "javascript" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://issuer.example",
        "HTTPS://Issuer.Example/Page?a=b%20c&d=/../",
        "https://issuer.example:8443/page",
        "https://[2001:db8::1]:8443/page",
        "http://127.0.0.1:2024/page",
        "http://[::1]:2024/page",
    ],
)
def test_a_url_that_may_be_opened_comes_back_as_it_is(url: str) -> None:
    assert safe_url(url, "page", ["http://127.0.0.1:2024", "http://[::1]:2024/ignored"]) == url


@pytest.mark.case("C9")
@given(st.text(alphabet=st.sampled_from("https:/\\@.#?[]%1 \n\tx\u212a"), max_size=30))
def test_no_text_at_all_breaks_the_check_of_a_url(url: str) -> None:
    try:
        accepted = safe_url(url, "page", [])
    except DeputizeError:
        return
    assert accepted.lower().startswith("https://")
    assert accepted.isascii()
    assert accepted.isprintable()
    assert not set("\\@# ") & set(accepted.split("?")[0].split("/")[2])


def test_parameters_are_kept_by_name() -> None:
    assert parameters([("a", "1"), ("b", ""), ("A", "2")], "The form") == {"a": "1", "b": "", "A": "2"}
    assert parameters([("a", "x" * 16_384)], "The form")["a"]


@pytest.mark.case("A14")
@pytest.mark.parametrize(
    ("pairs", "why"),
    [
        ([("a", "1"), ("a", "2")], "twice"),
        ([("a", "1"), ("b", "1"), ("a", "1")], "twice"),
        ([("a", ""), ("a", "")], "twice"),
        ([("", "1"), ("", "2")], "twice"),
        ([("a", "x" * 16_385)], "oversized"),
    ],
)
def test_a_repeated_or_oversized_parameter_is_an_error_and_never_dropped(pairs: Any, why: str) -> None:
    with pytest.raises(ProtocolError, match=why) as refused:
        parameters(pairs, "The form")
    assert refused.value.code == "invalid_request"
