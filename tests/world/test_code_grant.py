"""Code with PKCE at the issuer: RFC 6749 §4.1, RFC 7636, RFC 9207, RFC 9700 §2.1 and §4."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.support import URL, Inside
from tests.world.driver import (
    ISSUER,
    REDIRECT,
    VERIFIER,
    Driver,
    authorization_url,
    challenge,
    claims,
    query_of,
)

CLIENTS = ["deputize-agent", "public"]


def refused(answer: httpx.Response, error: str) -> None:
    assert (answer.status_code, answer.json()["error"]) == (400, error), answer.text


async def test_a_sign_in_brings_tokens_for_the_agent_and_for_nobody_else(driver: Driver, world: Inside) -> None:
    tokens = await driver.sign_in("bob")
    bob = world.world.installation.people["bob"]
    access, identity = claims(tokens["access_token"]), claims(tokens["id_token"])
    assert (access["sub"], access["aud"], access["may_act"]) == (
        bob.subject,
        "deputize-agent",
        {"sub": "deputize-agent"},
    )
    assert (identity["sub"], identity["aud"], identity["nonce"], identity["name"]) == (
        bob.subject,
        "deputize-agent",
        "n-1",
        bob.name,
    )
    assert "act" not in access


@pytest.mark.case("A3")
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    "changes",
    [
        {"code_challenge": "", "code_challenge_method": ""},
        {"code_challenge": ""},
        {"code_challenge": VERIFIER, "code_challenge_method": "plain"},
        {"code_challenge": VERIFIER, "code_challenge_method": ""},
        {"code_challenge_method": "s256"},
        {"code_challenge": "short"},
        {"code_challenge": challenge() + "="},
    ],
    ids=["none", "no challenge", "plain", "no method", "lower case", "short", "padded"],
)
async def test_a_sign_in_without_s256_is_refused_for_confidential_clients_too(
    driver: Driver, client: str, changes: dict[str, str]
) -> None:
    driver.register("public", public=True)
    browser = await driver.browser()
    answer = await browser.get(authorization_url(client_id=client, **changes))
    assert answer.status_code == 303
    query = dict(query_of(answer.headers["location"]))
    assert (query["error"], query["state"], query["iss"]) == ("invalid_request", "s-1", ISSUER)
    assert "code" not in query


@pytest.mark.case("A3")
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("verifier", "error"),
    [
        ("", "invalid_request"),
        ("w" * 43, "invalid_grant"),
        (challenge(), "invalid_grant"),
        ("v" * 42, "invalid_request"),
    ],
    ids=["none", "another", "the challenge itself", "short"],
)
async def test_a_code_is_redeemed_with_its_verifier_only(
    driver: Driver, client: str, verifier: str, error: str
) -> None:
    driver.register("public", public=True)
    code = (await driver.authorize(client_id=client))["code"]
    refused(await driver.redeem(code, code_verifier=verifier, client=client), error)
    assert (await driver.redeem(code, client=client)).status_code == 200  # the attempt did not use it up


@pytest.mark.case("A3")
async def test_a_verifier_for_a_code_without_challenge_is_refused(driver: Driver, world: Inside) -> None:
    """Attack (RFC 9700 §4.8.2): the challenge is stripped on the way, and the client does not notice."""
    code = (await driver.authorize())["code"]
    with world.world.installation.database.write() as db:
        db.execute("UPDATE codes SET code_challenge = ''")
    refused(await driver.redeem(code), "invalid_request")


@pytest.mark.case("A4")
async def test_a_code_used_twice_is_refused_and_takes_its_tokens_with_it(driver: Driver) -> None:
    code = (await driver.authorize())["code"]
    tokens = (await driver.redeem(code)).json()
    delegated = await driver.exchanged(tokens["access_token"])
    assert await driver.active(delegated)

    refused(await driver.redeem(code), "invalid_grant")

    assert not await driver.active(tokens["access_token"], client="deputize-agent")
    assert not await driver.active(delegated)
    refused(await driver.refresh(tokens["refresh_token"]), "invalid_grant")
    refused(await driver.exchange(tokens["access_token"]), "invalid_grant")
    assert (await driver.order(delegated)).status_code == 401


@pytest.mark.case("A4")
async def test_a_code_used_by_many_at_once_leaves_no_token_standing(driver: Driver) -> None:
    code = (await driver.authorize())["code"]
    answers = await asyncio.gather(*(driver.redeem(code) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] + [400] * 9
    (tokens,) = [answer.json() for answer in answers if answer.status_code == 200]
    assert not await driver.active(tokens["access_token"], client="deputize-agent")
    refused(await driver.refresh(tokens["refresh_token"]), "invalid_grant")


@pytest.mark.case("A4")
async def test_a_code_used_again_after_it_expired_still_takes_its_tokens_with_it(driver: Driver, world: Inside) -> None:
    code = (await driver.authorize())["code"]
    tokens = (await driver.redeem(code)).json()
    world.clock.advance(61)
    refused(await driver.redeem(code), "invalid_grant")
    refused(await driver.refresh(tokens["refresh_token"]), "invalid_grant")


async def test_a_token_made_while_its_grant_was_being_revoked_does_not_stand(driver: Driver, world: Inside) -> None:
    """Attack: the second use of a code, timed between the revocation and the first use's token."""
    issuer = world.world.issuer
    alice = world.world.installation.people["alice"].subject
    grant = issuer.tokens.new_grant("deputize-agent", alice)
    issuer.tokens.revoke_grant(grant)
    late = issuer.tokens.for_agent(alice, "deputize-agent", "openid", grant)
    assert not await driver.active(late["access_token"], client="deputize-agent")


async def test_a_code_lives_a_minute(driver: Driver, world: Inside) -> None:
    code = (await driver.authorize())["code"]
    world.clock.advance(60)
    refused(await driver.redeem(code), "invalid_grant")


async def test_a_code_is_for_its_own_client_and_redirect_uri(driver: Driver) -> None:
    driver.register("other")
    code = (await driver.authorize())["code"]
    refused(await driver.redeem(code, client="other"), "invalid_grant")
    refused(await driver.redeem(code, redirect_uri="http://127.0.0.1:10/callback"), "invalid_grant")
    refused(await driver.redeem(code, redirect_uri=""), "invalid_grant")
    refused(await driver.redeem("guessed"), "invalid_grant")
    assert (await driver.redeem(code)).status_code == 200


@pytest.mark.case("A5")
@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:9/Callback",
        "http://127.0.0.1:9/callback/",
        "http://127.0.0.1:9/callback/x",
        "http://127.0.0.1:9//callback",
        "http://127.0.0.1:9/x/../callback",
        "http://127.0.0.1:9/%63allback",
        "http://127.0.0.1:9/callback?",
        "http://127.0.0.1:9/callback?next=https://evil.example",
        "http://127.0.0.1:9/callback#fragment",
        "http://127.0.0.1:9/callback;x",
        "http://user@127.0.0.1:9/callback",
        "http://127.0.0.1:9@evil.example/callback",
        "http://127.0.0.1@evil.example:9/callback",
        "http://127.0.0.1.evil.example:9/callback",
        "http://127.0.0.1evil.example:9/callback",
        "http://localhost:9/callback",
        "http://127.0.0.2:9/callback",
        "http://2130706433:9/callback",
        "http://127.1:9/callback",
        "http://[::1%25x]:9/callback",
        "http://[::ffff:127.0.0.1]:9/callback",
        "http://127.0.0.1:009/callback",
        "http://127.0.0.1:99999/callback",
        "http://127.0.0.1:/callback",
        "http://127.0.0.1:-9/callback",
        "http://127.0.0.1:9\\@evil.example/callback",
        "HTTP://127.0.0.1:9/callback",
        "https://127.0.0.1:9/callback",
        "//127.0.0.1:9/callback",
        "javascript:alert(1)",
        " http://127.0.0.1:9/callback",
        "http://127.0.0.1:9/callback\n",
        "http://127.0.0.1:9/call\tback",
        "http://127.0.0.1:\u0669/callback",
        "",
    ],
)
async def test_a_redirect_uri_that_is_not_the_registered_one_is_refused_on_a_page_of_ours(
    driver: Driver, uri: str
) -> None:
    browser = await driver.browser()
    for url in (authorization_url(redirect_uri=uri), authorization_url(redirect_uri=uri, code_challenge="")):
        answer = await browser.get(url)
        assert answer.status_code == 400
        assert "location" not in answer.headers
        assert "This sign-in link does not work" in answer.text


@pytest.mark.case("A5")
@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1/callback",
        "http://127.0.0.1:49152/callback",
        "http://[::1]/callback",
        "http://[::1]:49152/callback",
    ],
)
async def test_the_port_of_a_loopback_redirect_may_differ(driver: Driver, uri: str) -> None:
    browser = await driver.browser()
    answer = await browser.submit(authorization_url(redirect_uri=uri), decision="approve")
    assert answer.headers["location"].startswith(f"{uri}?code=")


async def test_the_redirect_says_which_server_it_is_from_once(driver: Driver) -> None:
    """RFC 9207 §2, on success and on errors, before and after the person was asked."""
    browser = await driver.browser()
    answers = [
        await browser.submit(authorization_url(), decision="approve"),
        await browser.submit(authorization_url(), decision="deny"),
        await browser.get(authorization_url(scope="openid everything")),
        await browser.get(authorization_url(response_type="token")),
        await browser.get(authorization_url(response_type="")),
    ]
    found = [query_of(answer.headers["location"]) for answer in answers]
    assert [dict(query).get("error") for query in found] == [
        None,
        "access_denied",
        "invalid_scope",
        "unsupported_response_type",
        "unsupported_response_type",
    ]
    for query in found:
        assert [value for name, value in query if name == "iss"] == [ISSUER]
        assert [value for name, value in query if name == "state"] == ["s-1"]


async def test_nothing_is_granted_before_the_person_agrees(driver: Driver) -> None:
    browser = await driver.browser()
    page = await browser.get(authorization_url())
    assert page.status_code == 200
    assert "place orders for you" in page.text
    for decision in ("deny", "", "APPROVE"):
        answer = await browser.submit(authorization_url(), decision=decision)
        assert dict(query_of(answer.headers["location"]))["error"] == "access_denied"


async def test_an_unknown_or_disabled_client_is_told_on_a_page_of_ours(driver: Driver, world: Inside) -> None:
    browser = await driver.browser()
    world.world.issuer.tokens.disable("client", "deputize-agent")
    for client_id in ("", "nobody", "deputize-agent"):
        answer = await browser.get(authorization_url(client_id=client_id))
        assert answer.status_code == 400
        assert "location" not in answer.headers


async def test_who_is_not_signed_in_is_asked_to_and_comes_back_to_the_request(driver: Driver, world: Inside) -> None:
    await driver.browser("carol")
    answer = await driver.http.get(authorization_url())
    assert answer.status_code == 303
    assert answer.headers["location"].startswith(
        f"{ISSUER}/login?return_to=%2Fissuer%2Fauthorize%3Fresponse_type%3Dcode"
    )
    back = await world.person("alice").sign_in({"url": f"{URL}{authorization_url()}"})
    assert back.startswith(f"{REDIRECT}?code=")


@pytest.mark.case("C5")
async def test_a_person_or_client_that_was_disabled_meanwhile_gets_no_token_for_a_code(
    driver: Driver, world: Inside
) -> None:
    tokens = world.world.issuer.tokens
    codes = [(await driver.authorize(person))["code"] for person in ("alice", "bob")]
    tokens.disable("user", world.world.installation.people["alice"].subject)
    refused(await driver.redeem(codes[0]), "invalid_grant")
    tokens.disable("client", "deputize-agent")
    answer = await driver.redeem(codes[1])
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
