"""The agent's own credential."""

from __future__ import annotations

from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey

from identity.oauth.ciba import backchannel_request, ciba_token_request
from identity.oauth.client import ASSERTION_TYPE, Client, authenticated, client_assertion
from identity.oauth.device import device_request, device_token_request
from identity.oauth.exchange import exchange_request
from identity.oauth.tokens import client_credentials_request, refresh_request, revocation_request
from identity.oauth.wire import Request
from identity.secret import Secret
from tests.oauth.parts import AGENT, API, ISSUER, NOW, client, ec, fields, okp, rsa, server


def opened(assertion: str, signer: Client | None = None) -> Any:
    signer = signer or client()
    return jwt.decode(assertion, signer.key, algorithms=[signer.alg])


def test_an_assertion_says_who_the_client_is_for_one_use_within_a_minute() -> None:
    found = opened(client_assertion(client(), server(), NOW + 0.9))
    jti = found.claims.pop("jti")
    assert len(jti) >= 22  # 128 bits
    assert found.claims == {
        "iss": AGENT,
        "sub": AGENT,
        "aud": ISSUER,
        "iat": int(NOW),
        "nbf": int(NOW),
        "exp": int(NOW) + 60,
    }
    assert found.header == {"alg": "ES256", "typ": "JWT", "kid": "agent-key"}


def test_no_two_assertions_share_a_jti() -> None:
    assert len({opened(client_assertion(client(), server(), NOW)).claims["jti"] for _ in range(50)}) == 50


def _requests(lying: Any) -> list[Request]:
    agent, secret = client(), Secret("s")
    backchannel = backchannel_request(
        lying,
        agent,
        login_hint="h",
        scope="openid",
        binding_message="m",
        authorization_details=[],
        resource=None,
        requested_expiry=300,
        now=NOW,
    )
    return [
        backchannel,
        ciba_token_request(lying, agent, secret, now=NOW),
        device_request(lying, agent, scope="openid", now=NOW),
        device_token_request(lying, agent, secret, now=NOW),
        exchange_request(lying, agent, secret, audience_resource=API, scope="", now=NOW),
        refresh_request(lying, agent, secret, now=NOW),
        client_credentials_request(lying, agent, scope="", now=NOW),
        revocation_request(lying, agent, secret, hint="access_token", now=NOW),
    ]


@pytest.mark.case("A19")
def test_the_audience_of_an_assertion_is_the_issuer_however_the_metadata_lies_about_endpoints() -> None:
    collector = "https://evil.example/collect"
    lying = server(
        token_endpoint=collector,
        device_authorization_endpoint=collector,
        backchannel_authentication_endpoint=collector,
        revocation_endpoint=collector,
    )
    for request in _requests(lying):
        assert request.url == collector
        # Whoever collects this can show it nowhere: the true server's own endpoint is not what it is for, and
        # the true server's issuer would have to be the liar's.
        assert opened(fields(request)["client_assertion"]).claims["aud"] == ISSUER


def test_every_request_carries_an_assertion_of_its_own() -> None:
    sent = [fields(request) for request in _requests(server())]
    assert {form["client_assertion_type"] for form in sent} == {ASSERTION_TYPE}
    assert {form["client_id"] for form in sent} == {AGENT}
    assert len({form["client_assertion"] for form in sent}) == len(sent)


def test_the_form_comes_first_and_keeps_names_that_repeat() -> None:
    form = authenticated((("resource", "a"), ("resource", "b")), client(), server(), NOW)
    assert form[:2] == (("resource", "a"), ("resource", "b"))


@pytest.mark.parametrize(
    ("key", "alg"), [(ec("P-384", "k"), "ES384"), (rsa("k"), "RS256"), (rsa("k"), "PS256"), (okp(kid="k"), "Ed25519")]
)
def test_other_kinds_of_keys_sign_too(key: ECKey | RSAKey | OKPKey, alg: str) -> None:
    signer = Client(AGENT, key, alg)
    assert opened(client_assertion(signer, server(), NOW), signer).header["alg"] == alg


def test_a_key_without_a_name_is_not_given_one() -> None:
    nameless = Client(AGENT, ECKey.generate_key("P-256"))
    assert "kid" not in opened(client_assertion(nameless, server(), NOW), nameless).header


def test_its_repr_shows_no_key() -> None:
    assert repr(client()) == f"Client({AGENT!r})"
