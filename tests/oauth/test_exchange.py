"""Token exchange: the subject's token in, a token for one API out, and the client itself as the actor."""

from __future__ import annotations

from typing import Any

import pytest

from identity.errors import GateError, OAuthError, ProtocolError
from identity.oauth.exchange import exchange_request, process_exchange_response
from identity.secret import Secret
from tests.oauth.parts import AGENT, API, ISSUER, NOW, answer, client, fields, issued, server

ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"


def answered(asked: str, **changes: Any) -> Any:
    body = issued(issued_token_type=ACCESS_TOKEN, **changes)
    return process_exchange_response(answer(body), scope=asked, now=NOW)


def test_the_request_names_the_subject_the_api_and_no_actor_token() -> None:
    request = exchange_request(server(), client(), Secret("st-1"), audience_resource=API, scope="orders:write", now=NOW)
    sent = fields(request)
    assert (request.method, request.url) == ("POST", f"{ISSUER}/token")
    assert sent.pop("client_assertion")
    assert sent == {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token": "st-1",
        "subject_token_type": ACCESS_TOKEN,
        "requested_token_type": ACCESS_TOKEN,
        "resource": API,
        "scope": "orders:write",
        "client_id": AGENT,
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
    }


def test_no_scope_is_left_out_rather_than_sent_empty() -> None:
    request = exchange_request(server(), client(), Secret("st-1"), audience_resource=API, scope="", now=NOW)
    assert "scope" not in fields(request)


@pytest.mark.case("C4")
@pytest.mark.parametrize("nothing", ["", None, b"st-1", ["st-1"]])
def test_an_exchange_without_a_subject_token_cannot_be_built(nothing: Any) -> None:
    # Attack: an empty field is left out, and what remains is a grant of the agent alone.
    with pytest.raises(GateError):
        exchange_request(server(), client(), Secret(nothing), audience_resource=API, scope="orders:write", now=NOW)


@pytest.mark.parametrize("scope", [..., None, "orders:write", "portfolio:read orders:write"])
def test_a_token_with_every_scope_that_was_asked_for_is_taken(scope: Any) -> None:
    assert answered("orders:write", scope=scope).access_token == Secret("at-1")


@pytest.mark.case("B16")
@pytest.mark.parametrize("scope", ["", "portfolio:read", "orders:write:small", "ORDERS:WRITE", "orders: write"])
def test_a_token_with_fewer_scopes_than_were_asked_for_is_refused(scope: str) -> None:
    with pytest.raises(ProtocolError, match="without the scope orders:write"):
        answered("orders:write", scope=scope)


@pytest.mark.parametrize(
    "kind",
    [
        ...,
        None,
        "",
        "urn:ietf:params:oauth:token-type:refresh_token",
        "urn:ietf:params:oauth:token-type:id_token",
        "urn:ietf:params:oauth:token-type:jwt",
        "access_token",
    ],
)
def test_anything_but_an_access_token_is_refused(kind: Any) -> None:
    with pytest.raises(ProtocolError):
        process_exchange_response(answer(issued(issued_token_type=kind)), scope="orders:write", now=NOW)


@pytest.mark.parametrize("error", ["invalid_target", "invalid_scope", "invalid_request", "invalid_grant"])
def test_a_refusal_keeps_its_error(error: str) -> None:
    with pytest.raises(OAuthError) as refused:
        process_exchange_response(answer({"error": error}, 400), scope="orders:write", now=NOW)
    assert refused.value.error == error
