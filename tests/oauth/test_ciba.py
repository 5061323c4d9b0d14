"""Backchannel authentication: asking a person, and polling for the decision."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity.errors import OAuthError, ProtocolError, TransportError
from identity.oauth.ciba import (
    Pending,
    backchannel_request,
    ciba_token_request,
    iss_sub_hint,
    process_backchannel_response,
    process_poll_response,
)
from identity.oauth.tokens import TokenResponse
from identity.oauth.wire import Request, Response
from identity.secret import Secret
from tests.oauth.parts import AGENT, API, BAD_URLS, ISSUER, NOW, answer, client, fields, issued, server

DETAILS = [{"type": "stock_order", "locations": [API], "digest": "d-1", "arguments": {"quantity": 40}}]


def asked(resource: str | None = API, login_hint: str = "hint") -> Request:
    return backchannel_request(
        server(),
        client(),
        login_hint=login_hint,
        scope="openid orders:write",
        binding_message="BCD-234",
        authorization_details=DETAILS,
        resource=resource,
        requested_expiry=300,
        now=NOW,
    )


def said(**changes: Any) -> Response:
    body = {"auth_req_id": "id-1", "expires_in": 300, "interval": 2, **changes}
    return answer({name: value for name, value in body.items() if value is not ...})


def test_the_request_carries_everything_that_the_approval_is_about() -> None:
    request = asked()
    sent = fields(request)
    assert (request.method, request.url) == ("POST", f"{ISSUER}/bc")
    assert json.loads(sent.pop("authorization_details")) == DETAILS
    assert sent.pop("client_assertion")
    assert sent == {
        "scope": "openid orders:write",
        "login_hint": "hint",
        "binding_message": "BCD-234",
        "requested_expiry": "300",
        "resource": API,
        "client_id": AGENT,
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
    }


def test_an_approval_for_no_api_names_no_resource() -> None:
    assert "resource" not in fields(asked(resource=None))


@pytest.mark.case("B5")
@given(st.text(min_size=1), st.text(min_size=1))
def test_whatever_is_in_a_subject_stays_that_subject_in_the_hint(issuer: str, subject: str) -> None:
    hint = fields(asked(login_hint=iss_sub_hint(issuer, subject)))["login_hint"]
    pairs = json.loads(hint, object_pairs_hook=list)
    assert pairs == [("format", "iss_sub"), ("iss", issuer), ("sub", subject)]


@pytest.mark.case("B5")
def test_quotes_in_a_subject_do_not_name_somebody_else() -> None:
    hint = iss_sub_hint(ISSUER, 'bob", "sub": "alice')
    assert json.loads(hint)["sub"] == 'bob", "sub": "alice'


def test_an_opened_request_is_read_with_an_absolute_expiry() -> None:
    found = process_backchannel_response(said(approval_uri=f"{ISSUER}/approvals/1"), now=NOW)
    assert found.auth_req_id == Secret("id-1")
    assert (found.expires_at, found.interval, found.approval_uri) == (NOW + 300, 2.0, f"{ISSUER}/approvals/1")
    assert "id-1" not in repr(found)


@pytest.mark.parametrize("interval", [..., None, 0])
def test_the_interval_is_five_seconds_unless_the_server_says_another_one(interval: Any) -> None:
    assert process_backchannel_response(said(interval=interval), now=NOW).interval == 5.0


@pytest.mark.parametrize(
    "changes",
    [
        {"auth_req_id": ...},
        {"auth_req_id": ""},
        {"auth_req_id": 5},
        {"expires_in": ...},
        {"expires_in": 0},
        {"expires_in": "never"},
        {"interval": -1},
        {"approval_uri": 5},
    ],
)
def test_an_answer_that_opens_nothing_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        process_backchannel_response(said(**changes), now=NOW)


@pytest.mark.case("C9")
@pytest.mark.parametrize("url", BAD_URLS)
def test_an_approval_page_that_is_not_https_is_never_shown(url: str) -> None:
    with pytest.raises(ProtocolError):
        process_backchannel_response(said(approval_uri=url), now=NOW, allow_origins=["http://127.0.0.1:2024"])


def test_the_poll_carries_the_handle_of_the_request() -> None:
    request = ciba_token_request(server(), client(), Secret("id-1"), now=NOW)
    sent = fields(request)
    assert request.url == f"{ISSUER}/token"
    assert sent["grant_type"] == "urn:openid:params:grant-type:ciba"
    assert (sent["auth_req_id"], sent["client_id"]) == ("id-1", AGENT)


def error(name: str, status: int = 400) -> Response:
    return answer({"error": name}, status)


def test_a_pending_poll_keeps_the_interval_and_an_answer_ends_it() -> None:
    assert process_poll_response(error("authorization_pending"), interval=5.0, now=NOW) == Pending(5.0)
    found = process_poll_response(answer(issued()), interval=5.0, now=NOW)
    assert isinstance(found, TokenResponse)
    assert found.access_token == Secret("at-1")


@pytest.mark.case("B3")
@pytest.mark.parametrize("status", [400, 403, 429, 200])
def test_slow_down_adds_five_seconds_for_good(status: int) -> None:
    interval = 2.0
    for name, expected in (
        ("authorization_pending", 2.0),
        ("slow_down", 7.0),
        ("authorization_pending", 7.0),
        ("slow_down", 12.0),
        ("slow_down", 17.0),
        ("authorization_pending", 17.0),
    ):
        told = error(name, status if name == "slow_down" else 400)
        found = process_poll_response(told, interval=interval, now=NOW)
        assert found == Pending(expected)
        assert isinstance(found, Pending)
        interval = found.interval


@pytest.mark.case("B15")
@pytest.mark.parametrize(
    "passing",
    [
        answer(b"", 500),
        answer({"error": "server_error"}, 500),
        answer({"error": "access_denied"}, 502),  # a proxy's word decides nothing
        answer(b"<html>Bad gateway", 502, "text/html"),
        answer(b"upstream timed out", 504, "text/plain"),
        answer(b"", 408),
        answer({"error": "too_many_requests"}, 429),
        answer(b"<html>Please sign in", 200, "text/html; charset=utf-8"),
        answer(b"<html>Blocked", 403, "text/html"),
    ],
    ids=lambda response: f"{response.status}-{response.body[:12]!r}",
)
def test_a_passing_failure_while_polling_decides_nothing(passing: Response) -> None:
    with pytest.raises(TransportError):
        process_poll_response(passing, interval=5.0, now=NOW)


def test_a_server_that_says_when_to_come_back_is_believed_within_an_hour() -> None:
    for told, seconds in (("7", 7.0), ("86400", 3600.0), ("-1", None), ("Wed, 21 Oct 2026 07:28:00 GMT", None)):
        with pytest.raises(TransportError) as unavailable:
            process_poll_response(answer(b"", 503, retry_after=told), interval=5.0, now=NOW)
        assert unavailable.value.retry_after == seconds


@pytest.mark.parametrize("name", ["access_denied", "expired_token", "invalid_grant", "unauthorized_client", "other"])
def test_every_other_error_ends_the_request(name: str) -> None:
    with pytest.raises(OAuthError) as ended:
        process_poll_response(error(name), interval=5.0, now=NOW)
    assert ended.value.error == name


@pytest.mark.parametrize(
    "body", [issued(token_type="DPoP"), issued(access_token=...), {"status": "approved"}, [], "ok"]
)
def test_an_answer_that_is_no_token_approves_nothing(body: Any) -> None:
    with pytest.raises(ProtocolError):
        process_poll_response(answer(body), interval=5.0, now=NOW)
