"""Backchannel authentication at the issuer (CIBA Core 1.0, RFC 9396): who may ask whom, polling, and the token of a yes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from identity.authority.service import GRACE
from tests.support import Inside
from tests.world.driver import CIBA, ISSUER, TRADING, Driver, claims, order_details


def refused(answer: httpx.Response, error: str, status: int = 400) -> None:
    assert (answer.status_code, answer.json()["error"]) == (status, error), answer.text


def subject(world: Inside, username: str) -> str:
    return world.world.installation.people[username].subject


async def test_the_token_of_an_approval_says_who_for_whom_and_exactly_what(driver: Driver, world: Inside) -> None:
    details = order_details()
    asked = await driver.asked(details)
    assert set(asked) == {"auth_req_id", "expires_in", "interval", "approval_uri"}
    refused(await driver.collect(asked["auth_req_id"]), "authorization_pending")
    await world.person("alice").approve({"url": asked["approval_uri"]})
    answer = (await driver.collect(asked["auth_req_id"])).json()
    found = claims(answer["access_token"])
    assert (found["sub"], found["act"], found["aud"]) == (subject(world, "alice"), {"sub": "deputize-agent"}, TRADING)
    assert found["authorization_details"] == answer["authorization_details"] == details
    assert found["scope"] == "openid orders:write"
    assert "may_act" not in found
    assert "refresh_token" not in answer
    identity = claims(answer["id_token"])
    assert (identity["sub"], identity["aud"]) == (subject(world, "alice"), "deputize-agent")
    assert identity["urn:openid:params:jwt:claim:auth_req_id"] == asked["auth_req_id"]


@pytest.mark.case("B1")
async def test_an_auth_req_id_is_long_random_its_own_clients_and_not_on_the_page(driver: Driver, world: Inside) -> None:
    driver.register("other")
    found = [await driver.asked() for _ in range(20)]
    ids = {asked["auth_req_id"] for asked in found}
    assert len(ids) == 20
    assert min(map(len, ids)) >= 43  # 256 bits, base64url
    asked = found[0]
    page_id = asked["approval_uri"].rsplit("/", 1)[1]
    assert page_id not in asked["auth_req_id"]
    assert asked["auth_req_id"] not in await world.person("alice").read(asked["approval_uri"])

    await world.person("alice").approve({"url": asked["approval_uri"]})
    for guess in ("guessed", page_id, asked["auth_req_id"][:-1], asked["auth_req_id"] + "x"):
        refused(await driver.collect(guess), "invalid_grant")
    refused(await driver.collect(asked["auth_req_id"], client="other"), "invalid_grant")
    assert (await driver.collect(asked["auth_req_id"])).status_code == 200


@pytest.mark.case("B2")
async def test_an_approval_redeemed_twice_is_refused_and_its_token_revoked(driver: Driver, world: Inside) -> None:
    asked = await driver.asked()
    await world.person("alice").approve({"url": asked["approval_uri"]})
    token = (await driver.collect(asked["auth_req_id"])).json()["access_token"]
    assert await driver.active(token)

    refused(await driver.collect(asked["auth_req_id"]), "invalid_grant")

    assert not await driver.active(token)
    assert (await driver.order(token, quantity=50)).status_code == 401
    assert world.orders() == []
    issued = [found for found in map(claims, world.issued_tokens) if found.get("authorization_details")]
    assert not [found for found in issued if world.world.issuer.tokens.active(found["jti"])]


@pytest.mark.case("B2")
async def test_an_approval_redeemed_by_many_at_once_leaves_no_token_standing(driver: Driver, world: Inside) -> None:
    asked = await driver.asked()
    await world.person("alice").approve({"url": asked["approval_uri"]})
    answers = await asyncio.gather(*(driver.collect(asked["auth_req_id"]) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] + [400] * 9
    issued = [found for found in map(claims, world.issued_tokens) if found.get("authorization_details")]
    assert len(issued) == 10
    assert not [found for found in issued if world.world.issuer.tokens.active(found["jti"])]


@pytest.mark.case("B3")
async def test_polling_too_fast_slows_down_by_five_seconds_for_good(driver: Driver, world: Inside) -> None:
    asked = await driver.asked()
    assert asked["interval"] == 1
    for wait, error in [
        (0, "authorization_pending"),
        (0.5, "slow_down"),  # now 6
        (5.5, "slow_down"),  # now 11
        (11, "authorization_pending"),
        (10.5, "slow_down"),  # now 16
        (16, "authorization_pending"),
    ]:
        world.clock.advance(wait)
        refused(await driver.collect(asked["auth_req_id"]), error)


@pytest.mark.case("B5")
@pytest.mark.parametrize(
    "hint",
    [
        '{"format":"iss_sub","iss":"%(iss)s","sub":"%(bob)s","sub":"%(alice)s"}',
        '{"format":"iss_sub","iss":"%(iss)s","sub":"x","sub":"%(alice)s"}',
        '{"format":"iss_sub","iss":"%(iss)s","sub":"%(alice)s","name":"Bob"}',
        '{"format":"iss_sub","iss":"%(iss)s","sub":"%(alice)s","acr_values":"0"}',
        '{"format":"iss_sub","iss":"https://evil.example","sub":"%(alice)s"}',
        '{"format":"iss_sub","sub":"%(alice)s"}',
        '{"format":"email","iss":"%(iss)s","sub":"%(alice)s"}',
        '{"format":"iss_sub","iss":"%(iss)s","sub":["%(alice)s"]}',
        '{"format":"iss_sub","iss":"%(iss)s","sub":""}',
        '{"format":"iss_sub","iss":"%(iss)s","sub":"x\\" OR \\"1\\"=\\"1"}',
        '{"format":"iss_sub","iss":"%(iss)s","sub":"%(alice)s"',
        "{}",
        "%(alice)s",
        'alice" OR "1"="1',
        "alice' --",
        "alice bob",
        "ALICE",
        " alice",
        "alice\x00",
    ],
)
async def test_a_hint_means_one_person_exactly_or_nobody(driver: Driver, world: Inside, hint: str) -> None:
    filled = hint % {"iss": ISSUER, "alice": subject(world, "alice"), "bob": subject(world, "bob")}
    refused(await driver.ask(login_hint=filled), "unknown_user_id")
    for person in ("alice", "bob", "carol"):
        assert world.world.issuer.authority.inbox(subject(world, person)) == []


@pytest.mark.case("B5")
async def test_parameters_that_are_not_known_are_never_merged(driver: Driver, world: Inside) -> None:
    asked = await driver.asked(
        sub=subject(world, "bob"),
        subject=subject(world, "bob"),
        user_id="bob",
        client_name="Your bank",
        state="approved",
    )
    approval = world.world.issuer.authority.inbox(subject(world, "alice"))[0]
    assert (approval.client_name, approval.state) == ("Trading assistant", "pending")
    assert world.world.issuer.authority.inbox(subject(world, "bob")) == []
    refused(await driver.token(CIBA, auth_req_id=asked["auth_req_id"], decision="approve"), "authorization_pending")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"login_hint": ""}, "invalid_request"),
        ({"id_token_hint": "x"}, "invalid_request"),
        ({"login_hint_token": "x"}, "invalid_request"),
        ({"login_hint": "", "id_token_hint": "x"}, "invalid_request"),
        ({"scope": "orders:write"}, "invalid_request"),
        ({"scope": ""}, "invalid_request"),
        ({"scope": "openid everything"}, "invalid_scope"),
        ({"resource": "https://evil.example"}, "invalid_target"),
        ({"resource": f"{TRADING}/"}, "invalid_target"),
        ({"requested_expiry": "0"}, "invalid_request"),
        ({"requested_expiry": "-1"}, "invalid_request"),
        ({"requested_expiry": "1.5"}, "invalid_request"),
        ({"requested_expiry": "٣"}, "invalid_request"),
        ({"requested_expiry": "9" * 5_000}, "invalid_request"),
        ({"login_hint": "mallory"}, "unknown_user_id"),
    ],
)
async def test_a_request_that_breaks_the_specification_is_refused(
    driver: Driver, changes: dict[str, str], error: str
) -> None:
    refused(await driver.ask(**changes), error)


@pytest.mark.case("B10")
@pytest.mark.parametrize(
    "message",
    ["x" * 65, "a\x1b[2J", "a\r\nb", "a\u202eb", "a\u200bb", "é", "\x7f", "a\tb"],
    ids=["overlong", "ansi", "line break", "bidirectional", "zero width", "not ascii", "delete", "tab"],
)
async def test_a_binding_message_is_short_and_plain(driver: Driver, message: str) -> None:
    refused(await driver.ask(binding_message=message), "invalid_binding_message")


@pytest.mark.case("B10")
@pytest.mark.parametrize(
    "details",
    [
        "no json",
        "{}",
        "[1]",
        "[{}]",
        '[{"type": 1}]',
        '[{"type": "unknown"}]',
        '[{"type": "stock_order", "actions": "buy_stock"}]',
        '[{"type": "stock_order", "actions": [1]}]',
        '[{"type": "stock_order", "locations": {"a": 1}}]',
        '[{"type": "stock_order", "arguments": {"limit": NaN}}]',
        '[{"type": "stock_order", "arguments": {"quantity": 5, "quantity": 5000}}]',
        '[{"type": "stock_order", "arguments": ' + "[" * 40 + "]" * 40 + "}]",
        '[{"type": "stock_order", "arguments": ' + "[" * 7_000 + "]" * 7_000 + "}]",
        '[{"type": "stock_order", "arguments": {"symbol": "\\ud800"}}]',
    ],
    ids=lambda details: details[:60],
)
async def test_details_that_cannot_be_shown_or_say_two_things_are_refused(
    driver: Driver, world: Inside, details: str
) -> None:
    answer = await driver.ask(authorization_details=details)
    assert answer.status_code == 400
    assert answer.json()["error"] in ("invalid_authorization_details", "invalid_request")
    assert world.world.issuer.authority.inbox(subject(world, "alice")) == []


@pytest.mark.case("B6")
async def test_a_public_client_may_not_ask_and_one_that_is_not_registered_for_it_neither(
    driver: Driver, world: Inside
) -> None:
    driver.register("public", public=True)
    driver.register("limited", grants=frozenset({"authorization_code"}))
    for client in ("public", "limited", "trading-api"):
        refused(await driver.ask(client=client), "unauthorized_client")
    assert world.world.issuer.authority.inbox(subject(world, "alice")) == []
    asked = await driver.asked()
    await world.person("alice").approve({"url": asked["approval_uri"]})
    refused(await driver.collect(asked["auth_req_id"], client="public"), "invalid_client", 401)
    refused(await driver.collect(asked["auth_req_id"], client="limited"), "unauthorized_client")


@pytest.mark.case("C5")
async def test_a_person_who_was_disabled_between_request_and_redemption_is_refused(
    driver: Driver, world: Inside
) -> None:
    asked = await driver.asked()
    await world.person("alice").approve({"url": asked["approval_uri"]})
    world.world.issuer.tokens.disable("user", subject(world, "alice"))
    refused(await driver.collect(asked["auth_req_id"]), "invalid_grant")
    refused(await driver.ask(), "unknown_user_id")


@pytest.mark.case("C5")
async def test_a_client_that_was_disabled_between_request_and_redemption_is_refused(
    driver: Driver, world: Inside
) -> None:
    asked = await driver.asked()
    await world.person("alice").approve({"url": asked["approval_uri"]})
    world.world.issuer.tokens.disable("client", "deputize-agent")
    refused(await driver.collect(asked["auth_req_id"]), "invalid_client", 401)
    refused(await driver.ask(), "invalid_client", 401)


@pytest.mark.case("B9")
async def test_a_decision_after_the_expiry_is_none(driver: Driver, world: Inside) -> None:
    asked = await driver.asked(requested_expiry="60")
    assert asked["expires_in"] == 60
    browser = await driver.browser()
    csrf = await browser.csrf()
    world.clock.advance(60)
    answer = await browser.post(asked["approval_uri"], csrf=csrf, decision="approve")
    assert answer.status_code == 409
    assert "Expired" in answer.text
    refused(await driver.collect(asked["auth_req_id"]), "expired_token")


async def test_an_approval_that_was_not_collected_in_time_is_worth_nothing_later(driver: Driver, world: Inside) -> None:
    first, second = await driver.asked(requested_expiry="60"), await driver.asked(requested_expiry="60")
    world.clock.advance(59)
    for asked in (first, second):
        await world.person("alice").approve({"url": asked["approval_uri"]})
    world.clock.advance(GRACE)
    assert (await driver.collect(first["auth_req_id"])).status_code == 200
    world.clock.advance(1)
    refused(await driver.collect(second["auth_req_id"]), "expired_token")
    refused(await driver.collect(first["auth_req_id"]), "invalid_grant")  # a second use is still noticed


async def test_a_person_has_ten_minutes_at_most(driver: Driver) -> None:
    assert (await driver.asked(requested_expiry="999999999"))["expires_in"] == 600
    assert (await driver.asked())["expires_in"] == 300


async def test_declining_ends_it(driver: Driver, world: Inside) -> None:
    asked = await driver.asked()
    await world.person("alice").deny({"url": asked["approval_uri"]})
    for _ in range(2):
        refused(await driver.collect(asked["auth_req_id"]), "access_denied")


async def test_without_a_resource_the_token_is_for_the_client_itself(driver: Driver) -> None:
    token = await driver.approved(resource="", authorization_details="")
    assert claims(token)["aud"] == "deputize-agent"
    assert "authorization_details" not in claims(token)
    refused(await driver.exchange(token), "invalid_grant")  # an approval is no consent: no may_act


@pytest.mark.parametrize("handle", ["", "x" * 1025])
async def test_a_missing_or_oversized_auth_req_id_is_refused(driver: Driver, handle: str) -> None:
    refused(await driver.collect(handle), "invalid_request")


async def test_the_hint_by_issuer_and_subject_means_that_person(driver: Driver, world: Inside) -> None:
    hint: dict[str, Any] = {"format": "iss_sub", "iss": ISSUER, "sub": subject(world, "bob")}
    await driver.asked(login_hint=json.dumps(hint))
    assert len(world.world.issuer.authority.inbox(subject(world, "bob"))) == 1
