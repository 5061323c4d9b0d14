"""The device flow: what a person is shown, and what the client polls with."""

from __future__ import annotations

from typing import Any

import pytest

from identity.errors import OAuthError, ProtocolError, TransportError
from identity.oauth.device import device_request, device_token_request, process_device_response
from identity.secret import Secret
from tests.oauth.parts import AGENT, BAD_URLS, ISSUER, NOW, answer, client, fields, server

BODY = {
    "device_code": "dc-1",
    "user_code": "WDJB-MJHT",
    "verification_uri": f"{ISSUER}/device",
    "verification_uri_complete": f"{ISSUER}/device?user_code=WDJB-MJHT",
    "expires_in": 600,
    "interval": 7,
}


def said(**changes: Any) -> Any:
    return answer({name: value for name, value in {**BODY, **changes}.items() if value is not ...})


def test_the_request_names_the_client_and_what_it_wants() -> None:
    request = device_request(server(), client(), scope="openid offline_access", now=NOW)
    sent = fields(request)
    assert (request.method, request.url) == ("POST", f"{ISSUER}/device")
    assert (sent["scope"], sent["client_id"]) == ("openid offline_access", AGENT)
    assert "client_assertion" in sent


def test_the_answer_is_read_with_an_absolute_expiry_and_without_the_complete_link() -> None:
    found = process_device_response(said(), now=NOW)
    assert found.device_code == Secret("dc-1")
    assert (found.user_code, found.verification_uri) == ("WDJB-MJHT", f"{ISSUER}/device")
    assert (found.expires_at, found.interval) == (NOW + 600, 7.0)
    assert "dc-1" not in repr(found)
    assert "?user_code=" not in repr(found)  # a complete link, sent on, would sign its sender in as somebody else


@pytest.mark.parametrize("interval", [..., None, 0])
def test_the_interval_is_five_seconds_unless_the_server_says_another_one(interval: Any) -> None:
    assert process_device_response(said(interval=interval), now=NOW).interval == 5.0


@pytest.mark.parametrize(
    "changes",
    [
        {"device_code": ...},
        {"device_code": ""},
        {"user_code": ...},
        {"user_code": "WDJB\x1b[8m"},
        {"user_code": "WDJB\u202eMJHT"},
        {"user_code": "W" * 65},
        {"user_code": 12345678},
        {"verification_uri": ...},
        {"expires_in": ...},
        {"expires_in": 0},
        {"expires_in": -600},
        {"interval": -5},
        {"interval": "often"},
    ],
)
def test_an_answer_that_nobody_could_use_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        process_device_response(said(**changes), now=NOW)


@pytest.mark.case("C9")
@pytest.mark.parametrize("url", BAD_URLS)
def test_a_verification_uri_that_is_not_https_is_never_shown(url: str) -> None:
    with pytest.raises(ProtocolError):
        process_device_response(said(verification_uri=url), now=NOW, allow_origins=["http://127.0.0.1:2024"])


def test_an_allowed_origin_may_show_its_page() -> None:
    found = process_device_response(
        said(verification_uri="http://127.0.0.1:2024/device"), now=NOW, allow_origins=["http://127.0.0.1:2024"]
    )
    assert found.verification_uri == "http://127.0.0.1:2024/device"


def test_a_refusal_and_an_outage_are_told_apart() -> None:
    with pytest.raises(OAuthError, match="invalid_scope"):
        process_device_response(answer({"error": "invalid_scope"}, 400), now=NOW)
    with pytest.raises(TransportError):
        process_device_response(answer(b"<html>busy", 503, "text/html"), now=NOW)


def test_the_poll_carries_the_device_code() -> None:
    sent = fields(device_token_request(server(), client(), Secret("dc-1"), now=NOW))
    assert sent["grant_type"] == "urn:ietf:params:oauth:grant-type:device_code"
    assert (sent["device_code"], sent["client_id"]) == ("dc-1", AGENT)
