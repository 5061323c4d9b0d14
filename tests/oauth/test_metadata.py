"""Discovery: what a server says about itself is believed only as far as the specification allows."""

from __future__ import annotations

from typing import Any

import pytest

from identity.errors import ProtocolError, TransportError
from identity.oauth.jwt import jwks_request
from identity.oauth.metadata import metadata_request, process_metadata_response
from tests.oauth.parts import BAD_URLS, ISSUER, answer, server

DOCUMENT = {
    "issuer": ISSUER,
    "token_endpoint": f"{ISSUER}/token",
    "jwks_uri": f"{ISSUER}/jwks",
    "authorization_endpoint": f"{ISSUER}/authorize",
    "device_authorization_endpoint": f"{ISSUER}/device",
    "backchannel_authentication_endpoint": f"{ISSUER}/bc",
    "revocation_endpoint": f"{ISSUER}/revoke",
    "introspection_endpoint": f"{ISSUER}/introspect",
    "code_challenge_methods_supported": ["S256"],
    "authorization_response_iss_parameter_supported": True,
}
ENDPOINTS = [name for name in DOCUMENT if name.endswith(("_endpoint", "_uri"))]


def document(**changes: Any) -> Any:
    return answer({**DOCUMENT, **changes})


@pytest.mark.parametrize("issuer", [ISSUER, f"{ISSUER}/tenant", f"{ISSUER}/tenant/"])
def test_discovery_asks_at_the_issuers_own_url(issuer: str) -> None:
    request = metadata_request(issuer)
    assert (request.method, request.url) == ("GET", issuer.rstrip("/") + "/.well-known/openid-configuration")


def test_a_document_is_taken_over_under_its_wire_names() -> None:
    assert process_metadata_response(ISSUER, answer(DOCUMENT)) == server()


def test_a_server_may_have_a_token_endpoint_and_nothing_else() -> None:
    few = {"issuer": ISSUER, "token_endpoint": f"{ISSUER}/token"}
    found = process_metadata_response(ISSUER, answer(few))
    assert found.code_challenge_methods_supported == ()
    assert found.authorization_response_iss_parameter_supported is False
    with pytest.raises(ProtocolError, match="has no jwks_uri"):
        jwks_request(found)
    with pytest.raises(ProtocolError, match="names no token_endpoint"):
        process_metadata_response(ISSUER, answer({"issuer": ISSUER}))


@pytest.mark.case("A13")
@pytest.mark.parametrize(
    "said",
    [
        "https://issuer.example/",
        "https://ISSUER.example",
        "https://issuer.example:443",
        "https://issuer.example.evil.example",
        "https://evil.example",
        "http://issuer.example",
        " https://issuer.example",
        "",
        None,
        [ISSUER],
        {"issuer": ISSUER},
        1,
    ],
)
def test_a_document_for_another_issuer_is_refused(said: Any) -> None:
    with pytest.raises(ProtocolError):
        process_metadata_response(ISSUER, document(issuer=said))


@pytest.mark.case("C9")
@pytest.mark.parametrize("url", BAD_URLS)
@pytest.mark.parametrize("name", ENDPOINTS)
def test_an_endpoint_that_is_not_https_is_refused_with_the_whole_document(name: str, url: str) -> None:
    with pytest.raises(ProtocolError):
        process_metadata_response(
            ISSUER, document(**{name: url}), allow_origins=["http://127.0.0.1:2024", "https://issuer.example"]
        )


@pytest.mark.parametrize("name", ENDPOINTS)
@pytest.mark.parametrize("value", [1, True, [f"{ISSUER}/x"], {"url": f"{ISSUER}/x"}, "", f"{ISSUER}/{'x' * 20_000}"])
def test_an_endpoint_that_is_no_text_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ProtocolError):
        process_metadata_response(ISSUER, document(**{name: value}))


@pytest.mark.case("C9")
def test_an_allowed_origin_needs_no_https_and_its_neighbours_do() -> None:
    issuer = "http://127.0.0.1:2024/issuer"

    def found(endpoint: str) -> str:
        body = {"issuer": issuer, "token_endpoint": endpoint}
        return process_metadata_response(issuer, answer(body), allow_origins=["http://127.0.0.1:2024"]).token_endpoint

    assert found("http://127.0.0.1:2024/issuer/token") == "http://127.0.0.1:2024/issuer/token"
    for neighbour in ("http://127.0.0.1:2025/token", "http://127.0.0.1/token", "http://localhost:2024/token"):
        with pytest.raises(ProtocolError, match="not an https URL"):
            found(neighbour)


@pytest.mark.parametrize("said", ["true", 1, "yes", None, [True]])
def test_support_for_iss_is_believed_when_it_is_said_as_true(said: Any) -> None:
    found = process_metadata_response(ISSUER, document(authorization_response_iss_parameter_supported=said))
    assert found.authorization_response_iss_parameter_supported is False


@pytest.mark.parametrize("said", ["S256", {"S256": True}, [["S256"]], [1, None], None])
@pytest.mark.case("A3")
def test_a_malformed_list_of_challenge_methods_supports_nothing(said: Any) -> None:
    found = process_metadata_response(ISSUER, document(code_challenge_methods_supported=said))
    assert "S256" not in found.code_challenge_methods_supported


def test_no_document_is_no_metadata() -> None:
    for refused in (answer({"error": "not_found"}, 404), answer([DOCUMENT]), answer(b"", 200), answer(DOCUMENT, 201)):
        with pytest.raises(ProtocolError):
            process_metadata_response(ISSUER, refused)
    for unavailable in (answer(b"<html>", 200, "text/html"), answer(DOCUMENT, 503), answer(b"", 429)):
        with pytest.raises(TransportError):
            process_metadata_response(ISSUER, unavailable)
