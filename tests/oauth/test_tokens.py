"""Token requests and responses, whatever the grant."""

from __future__ import annotations

from typing import Any

import pytest

from identity.errors import OAuthError, ProtocolError, TransportError
from identity.oauth.tokens import (
    client_credentials_request,
    process_revocation_response,
    process_token_response,
    refresh_request,
    revocation_request,
)
from identity.secret import Secret
from tests.oauth.parts import AGENT, ISSUER, NOW, answer, client, fields, issued, server


def test_a_token_response_is_read_with_an_absolute_expiry() -> None:
    details = [{"type": "stock_order"}]
    found = process_token_response(
        answer(issued(token_type="bEaReR", refresh_token="rt-1", id_token="a.b.c", authorization_details=details)),
        now=NOW,
    )
    assert found.access_token == Secret("at-1")
    assert found.refresh_token == Secret("rt-1")
    assert found.id_token == Secret("a.b.c")
    assert (found.token_type, found.expires_at, found.scope) == ("Bearer", NOW + 300, "orders:write")
    assert found.authorization_details == ({"type": "stock_order"},)


@pytest.mark.case("F9")
@pytest.mark.parametrize("absent", [..., None])
def test_an_answer_without_expiry_scope_and_refresh_token_says_so_and_is_used(absent: Any) -> None:
    found = process_token_response(
        answer(issued(expires_in=absent, scope=absent, refresh_token=absent, id_token=absent)), now=NOW
    )
    assert found.access_token == Secret("at-1")
    assert (found.expires_at, found.scope, found.refresh_token, found.id_token) == (None, None, None, None)
    assert found.authorization_details is None


@pytest.mark.parametrize(
    ("said", "seconds"), [(0, 0.0), (1, 1.0), (299.5, 299.5), ("3600", 3600.0), (99_999_999_999, 99_999_999_999.0)]
)
def test_an_expiry_is_counted_from_now(said: Any, seconds: float) -> None:
    assert process_token_response(answer(issued(expires_in=said)), now=NOW).expires_at == NOW + seconds


@pytest.mark.parametrize(
    "changes",
    [
        {"access_token": ...},
        {"access_token": None},
        {"access_token": ""},
        {"access_token": 7},
        {"access_token": ["at-1"]},
        {"access_token": "a" * 16_385},
        {"access_token": "at-1\r\nX-Evil: yes"},
        {"access_token": "at\u00e9"},
        {"access_token": "at\x7f"},
        {"refresh_token": ""},
        {"refresh_token": {"value": "rt"}},
        {"refresh_token": "rt\nrt"},
        {"id_token": 1},
        {"token_type": ...},
        {"token_type": "DPoP"},
        {"token_type": "mac"},
        {"token_type": "N_A"},
        {"token_type": ["Bearer"]},
        {"expires_in": -1},
        {"expires_in": True},
        {"expires_in": "soon"},
        {"expires_in": "-5"},
        {"expires_in": "٣"},
        {"expires_in": [300]},
        {"expires_in": 1e11},
        {"expires_in": 10**400},
        {"scope": ["orders:write"]},
        {"scope": 1},
        {"authorization_details": {"type": "stock_order"}},
        {"authorization_details": "[]"},
        {"authorization_details": [["type"]]},
        {"issued_token_type": 1},
    ],
)
def test_a_malformed_member_spoils_the_whole_answer(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        process_token_response(answer(issued(**changes)), now=NOW)


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_an_expiry_that_is_no_number_of_json_is_refused(word: str) -> None:
    body = b'{"access_token": "at-1", "token_type": "Bearer", "expires_in": ' + word.encode() + b"}"
    with pytest.raises(ProtocolError):
        process_token_response(answer(body), now=NOW)


def test_its_repr_shows_no_token() -> None:
    found = process_token_response(
        answer(issued(access_token="hidden-1", refresh_token="hidden-2", id_token="hidden-3")), now=NOW
    )
    assert "hidden" not in repr(found)


def test_a_refusal_keeps_its_error_and_an_outage_is_none() -> None:
    with pytest.raises(OAuthError) as refused:
        process_token_response(answer({"error": "invalid_grant", "error_description": "used"}, 400), now=NOW)
    assert (refused.value.error, refused.value.description) == ("invalid_grant", "used")
    with pytest.raises(TransportError):
        process_token_response(answer({"error": "invalid_grant"}, 500), now=NOW)


@pytest.mark.parametrize("scope", [None, "portfolio:read"])
def test_a_refresh_carries_the_refresh_token_and_a_narrower_scope_only_when_asked(scope: str | None) -> None:
    request = refresh_request(server(), client(), Secret("rt-1"), scope=scope, now=NOW)
    sent = fields(request)
    assert request.url == f"{ISSUER}/token"
    assert (sent["grant_type"], sent["refresh_token"], sent["client_id"]) == ("refresh_token", "rt-1", AGENT)
    assert sent.get("scope") == scope
    assert "client_assertion" in sent


@pytest.mark.parametrize("scope", ["", "orders:write"])
@pytest.mark.parametrize("resource", [None, "https://trading.example"])
def test_client_credentials_leave_out_what_is_not_asked_for(scope: str, resource: str | None) -> None:
    sent = fields(client_credentials_request(server(), client(), scope=scope, resource=resource, now=NOW))
    assert sent["grant_type"] == "client_credentials"
    assert sent.get("scope") == (scope or None)
    assert sent.get("resource") == resource


def test_a_revocation_names_the_token_and_what_it_is() -> None:
    request = revocation_request(server(), client(), Secret("rt-1"), hint="refresh_token", now=NOW)
    sent = fields(request)
    assert request.url == f"{ISSUER}/revoke"
    assert (sent["token"], sent["token_type_hint"]) == ("rt-1", "refresh_token")
    assert "rt-1" not in repr(request)


def test_a_revocation_is_done_with_200_whatever_its_body_and_refused_or_unavailable_otherwise() -> None:
    for body in (b"", b"<html>", b"{}", b'{"error": "ignored"}'):
        process_revocation_response(answer(body))
    with pytest.raises(TransportError):
        process_revocation_response(answer(b"", 503))
    with pytest.raises(OAuthError, match="unsupported_token_type"):
        process_revocation_response(answer({"error": "unsupported_token_type"}, 400))


def test_a_server_without_a_revocation_endpoint_is_told_apart() -> None:
    with pytest.raises(ProtocolError, match="has no revocation_endpoint"):
        revocation_request(server(revocation_endpoint=None), client(), Secret("rt-1"), hint="refresh_token", now=NOW)
