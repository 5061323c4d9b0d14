"""Token exchange at the issuer: RFC 8693, with ``act`` and ``may_act``."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from agent.world.installation import AGENT
from tests.support import Inside
from tests.world.driver import ACCESS_TOKEN, EXCHANGE, ISSUER, TRADING, Driver, claims


def refused(answer: httpx.Response, error: str, status: int = 400) -> None:
    assert (answer.status_code, answer.json()["error"]) == (status, error), answer.text


def made(world: Inside, **changes: Any) -> str:
    """A subject token of alice that the issuer itself made, with ``changes``."""
    tokens, alice = world.world.issuer.tokens, world.world.installation.people["alice"].subject
    given = {
        "subject": alice,
        "client_id": AGENT,
        "audience": AGENT,
        "scope": "openid orders:write",
        "grant_id": tokens.new_grant(AGENT, alice),
        "may_act": AGENT,
    }
    return str(tokens.access(**{**given, **changes})["access_token"])


async def test_the_new_token_is_the_persons_with_the_agent_as_actor(driver: Driver, world: Inside) -> None:
    subject = (await driver.sign_in())["access_token"]
    answer = (await driver.exchange(subject)).json()
    found = claims(answer["access_token"])
    assert (answer["issued_token_type"], answer["token_type"], answer["scope"]) == (
        ACCESS_TOKEN,
        "Bearer",
        "orders:write",
    )
    assert found["sub"] == world.world.installation.people["alice"].subject
    assert (found["act"], found["aud"], found["client_id"]) == ({"sub": AGENT}, TRADING, AGENT)
    assert found["scope"] == "orders:write"


@pytest.mark.case("C1")
@pytest.mark.parametrize("may_act", ["other", "deputize-agent ", "DEPUTIZE-AGENT"])
async def test_an_actor_that_may_act_does_not_name_is_refused(driver: Driver, world: Inside, may_act: str) -> None:
    refused(await driver.exchange(made(world, may_act=may_act)), "invalid_grant")


@pytest.mark.case("C1")
async def test_a_former_actor_is_nested_and_never_rewritten_and_decides_nothing(driver: Driver, world: Inside) -> None:
    former = {"sub": "first", "act": {"sub": "second"}}
    answer = await driver.exchange(made(world, act=former))
    assert claims(answer.json()["access_token"])["act"] == {"sub": AGENT, "act": former}
    # Only the outermost actor counts (RFC 8693 §4.1): being named inside lets nobody act.
    refused(await driver.exchange(made(world, act={"sub": AGENT}, may_act="other")), "invalid_grant")


@pytest.mark.case("C12")
async def test_without_may_act_nobody_acts(driver: Driver, world: Inside) -> None:
    refused(await driver.exchange(made(world, may_act=None)), "invalid_grant")


@pytest.mark.case("C12")
async def test_may_act_is_issued_only_while_there_is_a_consent(driver: Driver, world: Inside) -> None:
    tokens = await driver.sign_in()
    with world.world.installation.database.write() as db:
        db.execute("DELETE FROM consents")
    renewed = (await driver.refresh(tokens["refresh_token"])).json()["access_token"]
    assert "may_act" not in claims(renewed)
    refused(await driver.exchange(renewed), "invalid_grant")


@pytest.mark.case("C12")
async def test_a_consent_is_one_persons_to_one_client(driver: Driver, world: Inside) -> None:
    driver.register("other")
    await driver.sign_in("alice")
    tokens = world.world.issuer.tokens
    people = {name: person.subject for name, person in world.world.installation.people.items()}
    assert [name for name, subject in people.items() if tokens.consented(subject, AGENT)] == ["alice"]
    other = (await driver.sign_in("alice", client_id="other"))["access_token"]
    assert "may_act" not in claims(other)
    refused(await driver.exchange(other, client="other"), "invalid_grant")


@pytest.mark.case("C12")
async def test_declining_is_no_consent(driver: Driver, world: Inside) -> None:
    await driver.authorize("alice", decision="deny")
    device = await driver.device()
    browser = await driver.browser()
    await browser.submit("/issuer/device", user_code=device["user_code"], decision="deny")
    assert not world.world.issuer.tokens.consented(world.world.installation.people["alice"].subject, AGENT)


@pytest.mark.case("C12")
async def test_may_act_and_details_are_not_handed_on(driver: Driver, world: Inside) -> None:
    subject = made(world, details=[{"type": "stock_order"}])
    delegated = await driver.exchanged(subject)
    assert {"may_act", "authorization_details"}.isdisjoint(claims(delegated))
    refused(await driver.exchange(delegated), "invalid_grant")


@pytest.mark.case("C12", "A8")
async def test_the_subject_tokens_audience_is_the_client_that_exchanges_it(driver: Driver, world: Inside) -> None:
    driver.register("other")
    agents = (await driver.sign_in())["access_token"]
    refused(await driver.exchange(agents, client="other"), "invalid_grant")
    refused(await driver.exchange(made(world, audience=TRADING)), "invalid_grant")
    refused(await driver.exchange(made(world, audience="other", may_act=AGENT)), "invalid_grant")


@pytest.mark.case("A8")
async def test_only_an_access_token_of_this_issuer_is_a_subject_token(driver: Driver, world: Inside) -> None:
    tokens = await driver.sign_in()
    refused(await driver.exchange(tokens["id_token"]), "invalid_grant")
    refused(await driver.exchange(tokens["refresh_token"]), "invalid_grant")
    for kind in ("id_token", "refresh_token", "jwt", "saml2"):
        declared = f"urn:ietf:params:oauth:token-type:{kind}"
        given = tokens.get(kind, tokens["access_token"])
        refused(await driver.exchange(given, subject_token_type=declared), "invalid_request")
    refused(await driver.exchange(tokens["access_token"], subject_token_type=""), "invalid_request")

    def signed(key: ECKey, **changes: Any) -> str:
        header = {"alg": "ES256", "typ": "at+jwt", "kid": world.world.installation.signing_key.kid}
        return jwt.encode(header, {**claims(tokens["access_token"]), **changes}, key, algorithms=["ES256"])

    own = world.world.installation.signing_key
    assert (await driver.exchange(signed(own))).status_code == 200
    refused(await driver.exchange(signed(own, iss="https://evil.example")), "invalid_grant")
    refused(await driver.exchange(signed(own, iss=f"{ISSUER}/")), "invalid_grant")
    refused(await driver.exchange(signed(own, jti="not on record")), "invalid_grant")
    refused(await driver.exchange(signed(ECKey.generate_key("P-256", private=True))), "invalid_grant")


@pytest.mark.case("C2")
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"resource": "https://evil.example"}, "invalid_target"),
        ({"resource": f"{TRADING}/"}, "invalid_target"),
        ({"resource": ISSUER}, "invalid_target"),
        ({"resource": AGENT}, "invalid_target"),
        ({"resource": ""}, "invalid_target"),
        ({"audience": "https://evil.example"}, "invalid_target"),
        ({"resource": "", "audience": "https://evil.example"}, "invalid_target"),
        ({"scope": "portfolio:read"}, "invalid_scope"),
        ({"scope": "orders:write portfolio:read"}, "invalid_scope"),
        ({"scope": "everything"}, "invalid_scope"),
        ({"scope": "ORDERS:WRITE"}, "invalid_scope"),
        ({"scope": ""}, "invalid_scope"),
        ({"scope": " "}, "invalid_scope"),
    ],
)
async def test_another_audience_or_a_wider_scope_is_refused(
    driver: Driver, world: Inside, changes: dict[str, str], error: str
) -> None:
    refused(await driver.exchange(made(world), **changes), error)


async def test_the_audience_may_be_named_by_either_parameter(driver: Driver, world: Inside) -> None:
    for changes in ({"resource": "", "audience": TRADING}, {"audience": TRADING}):
        answer = await driver.exchange(made(world), **changes)
        assert claims(answer.json()["access_token"])["aud"] == TRADING


@pytest.mark.case("C2")
async def test_two_resources_in_one_request_are_refused_and_none_is_dropped(driver: Driver, world: Inside) -> None:
    driver.register("other", audiences=frozenset({TRADING, "https://second.example"}))
    subject = made(world, client_id="other", audience="other", may_act="other")
    both = {"resource": TRADING, "audience": "https://second.example"}
    refused(await driver.exchange(subject, client="other", **both), "invalid_target")
    assert (await driver.exchange(subject, client="other")).status_code == 200


@pytest.mark.case("C3")
async def test_the_new_token_never_outlives_the_subject_token(driver: Driver, world: Inside) -> None:
    subject = made(world)
    for _ in range(2):
        world.clock.advance(140)
        answer = (await driver.exchange(subject)).json()
        assert claims(answer["access_token"])["exp"] == claims(subject)["exp"]
    assert answer["expires_in"] == 20
    world.clock.advance(19.5)
    assert claims((await driver.exchange(subject)).json()["access_token"])["exp"] == claims(subject)["exp"]
    world.clock.advance(0.5)
    refused(await driver.exchange(subject), "invalid_grant")
    assert not await driver.active(answer["access_token"])


@pytest.mark.case("C4")
@pytest.mark.parametrize("token", ["", "x" * 16_385, " "], ids=["missing", "oversized", "blank"])
async def test_a_missing_or_oversized_subject_token_never_turns_into_another_grant(
    driver: Driver, world: Inside, token: str
) -> None:
    """Attack: the server falls back to client credentials, or to a code or refresh token that lies beside it."""
    query, signed_in = await driver.authorize(), await driver.sign_in()
    before = len(world.issued_tokens)
    beside = {
        "code": query["code"],
        "redirect_uri": "http://127.0.0.1:9/callback",
        "code_verifier": "v" * 43,
        "refresh_token": signed_in["refresh_token"],
        "device_code": (await driver.device())["device_code"],
        "auth_req_id": (await driver.asked())["auth_req_id"],
    }
    form = {"subject_token_type": ACCESS_TOKEN, "resource": TRADING, "scope": "orders:write", **beside}
    answer = await driver.token(EXCHANGE, **form, **({"subject_token": token} if token else {}))
    assert answer.status_code == 400
    assert answer.json()["error"] in ("invalid_request", "invalid_grant")
    assert len(world.issued_tokens) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"actor_token": "x", "actor_token_type": ACCESS_TOKEN},
        {"actor_token": "x"},
        {"actor_token_type": ACCESS_TOKEN},
        {"requested_token_type": "urn:ietf:params:oauth:token-type:refresh_token"},
        {"requested_token_type": "urn:ietf:params:oauth:token-type:id-jag"},
    ],
)
async def test_another_actor_or_another_kind_of_token_is_refused(
    driver: Driver, world: Inside, changes: dict[str, str]
) -> None:
    refused(await driver.exchange(made(world), **changes), "invalid_request")


async def test_a_client_without_a_key_or_the_grant_exchanges_nothing(driver: Driver, world: Inside) -> None:
    driver.register("public", public=True)
    driver.register("limited", grants=frozenset({"authorization_code"}))
    public = made(world, client_id="public", audience="public", may_act="public")
    refused(await driver.exchange(public, client="public"), "invalid_client", 401)
    limited = made(world, client_id="limited", audience="limited", may_act="limited")
    refused(await driver.exchange(limited, client="limited"), "unauthorized_client")


@pytest.mark.case("C5")
async def test_a_person_or_client_that_was_disabled_meanwhile_is_refused_at_once(driver: Driver, world: Inside) -> None:
    tokens = world.world.issuer.tokens
    alice, bob = await driver.sign_in("alice"), await driver.sign_in("bob")
    delegated = [await driver.exchanged(found["access_token"]) for found in (alice, bob)]
    tokens.disable("user", world.world.installation.people["alice"].subject)
    refused(await driver.exchange(alice["access_token"]), "invalid_grant")
    assert [(await driver.order(token)).status_code for token in delegated] == [401, 201]
    tokens.disable("client", AGENT)
    refused(await driver.exchange(bob["access_token"]), "invalid_client", 401)
    refused(await driver.token("client_credentials"), "invalid_client", 401)
    assert (await driver.order(delegated[1])).status_code == 401


@pytest.mark.parametrize("subject_revoked", [True, False])
async def test_a_revoked_subject_token_or_grant_is_worth_nothing(driver: Driver, subject_revoked: bool) -> None:
    signed_in = await driver.sign_in()
    gone = signed_in["access_token" if subject_revoked else "refresh_token"]
    await driver.post("revoke", {"token": gone})
    refused(await driver.exchange(signed_in["access_token"]), "invalid_grant")
