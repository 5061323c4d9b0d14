"""The device flow at the issuer (RFC 8628): polling, and the page where a code is typed."""

from __future__ import annotations

import httpx
import pytest

from tests.support import URL, Inside
from tests.world.driver import DEVICE, Driver, claims, fields


async def poll(driver: Driver, device_code: str, client: str = "deputize-agent") -> httpx.Response:
    return await driver.token(DEVICE, client=client, device_code=device_code)


def refused(answer: httpx.Response, error: str) -> None:
    assert (answer.status_code, answer.json()["error"]) == (400, error), answer.text


@pytest.mark.case("A18")
async def test_the_answer_has_a_code_of_high_entropy_and_no_complete_link(driver: Driver) -> None:
    found = [await driver.device() for _ in range(20)]
    for device in found:
        assert set(device) == {"device_code", "user_code", "verification_uri", "expires_in", "interval"}
        assert len(device["device_code"]) >= 43  # 256 bits
        assert len(device["user_code"].replace("-", "")) == 8
        assert set(device["user_code"]) <= set("BCDFGHJKLMNPQRSTVWXZ-")  # no vowels, no digits that look like letters
    assert len({device["device_code"] for device in found} | {device["user_code"] for device in found}) == 40


async def test_a_typed_code_signs_the_device_in_once(driver: Driver, world: Inside) -> None:
    device = await driver.device()
    refused(await poll(driver, device["device_code"]), "authorization_pending")
    page = await world.person("carol").sign_in({"url": device["verification_uri"], "code": device["user_code"]})
    assert "Signed in" in page
    answer = await poll(driver, device["device_code"])
    found = claims(answer.json()["access_token"])
    assert found["sub"] == world.world.installation.people["carol"].subject
    assert found["may_act"] == {"sub": "deputize-agent"}
    refused(await poll(driver, device["device_code"]), "invalid_grant")


@pytest.mark.case("B3")
async def test_polling_too_fast_slows_down_by_five_seconds_for_good(driver: Driver, world: Inside) -> None:
    device = await driver.device()
    assert device["interval"] == 1
    for wait, error in [
        (0, "authorization_pending"),
        (0.5, "slow_down"),  # now 6
        (5.5, "slow_down"),  # now 11
        (10.5, "slow_down"),  # now 16
        (16, "authorization_pending"),
        (15.5, "slow_down"),  # now 21, and so on
        (21, "authorization_pending"),
    ]:
        world.clock.advance(wait)
        refused(await poll(driver, device["device_code"]), error)


async def test_a_device_code_is_its_own_clients_and_expires(driver: Driver, world: Inside) -> None:
    driver.register("other")
    device = await driver.device()
    assert (await poll(driver, device["device_code"], client="other")).status_code == 400
    refused(await poll(driver, "guessed"), "invalid_grant")
    refused(await poll(driver, device["user_code"]), "invalid_grant")
    world.clock.advance(device["expires_in"])
    refused(await poll(driver, device["device_code"]), "expired_token")


async def test_a_code_that_was_approved_but_not_collected_expires_too(driver: Driver, world: Inside) -> None:
    device = await driver.device()
    await world.person("alice").sign_in({"url": device["verification_uri"], "code": device["user_code"]})
    world.clock.advance(device["expires_in"])
    refused(await poll(driver, device["device_code"]), "expired_token")


async def test_declining_ends_it(driver: Driver) -> None:
    browser, device = await driver.browser(), await driver.device()
    page = await browser.submit("/issuer/device", user_code=device["user_code"], decision="deny")
    assert "Declined" in page.text
    refused(await poll(driver, device["device_code"]), "access_denied")
    again = await browser.submit("/issuer/device", user_code=device["user_code"], decision="approve")
    assert again.status_code == 400
    refused(await poll(driver, device["device_code"]), "access_denied")


@pytest.mark.case("B14")
@pytest.mark.parametrize("name", ["user_code", "code", "user-code"])
async def test_a_code_in_the_link_is_neither_filled_in_nor_approved(driver: Driver, name: str) -> None:
    browser, device = await driver.browser(), await driver.device()
    for link in (
        f"/issuer/device?{name}={device['user_code']}",
        f"/issuer/device?{name}={device['user_code']}&decision=approve&csrf={await browser.csrf()}",
    ):
        page = await browser.get(link)
        assert page.status_code == 200
        assert device["user_code"] not in page.text
        assert fields(page.text)["user_code"] == ""
    refused(await poll(driver, device["device_code"]), "authorization_pending")


@pytest.mark.case("A18", "B14")
async def test_a_typed_code_is_confirmed_on_a_page_that_says_who_asks_from_where_and_for_what(driver: Driver) -> None:
    browser, device = await driver.browser(), await driver.device(scope="openid orders:write")
    page = await browser.submit("/issuer/device", user_code=device["user_code"].lower().replace("-", " "))
    assert page.status_code == 200
    for shown in (
        "Trading assistant",
        "place orders for you",
        device["user_code"],
        "127.0.0.1",
        "Alice",
        "08:00:00 UTC",
    ):
        assert shown in page.text
    refused(await poll(driver, device["device_code"]), "authorization_pending")


@pytest.mark.case("B14")
async def test_guessing_codes_locks_out_for_a_minute_even_with_the_right_one(driver: Driver, world: Inside) -> None:
    browser, device = await driver.browser(), await driver.device()

    async def typed(code: str) -> int:
        return (await browser.submit("/issuer/device", user_code=code, decision="approve")).status_code

    assert [await typed(f"BBBB-BBB{letter}") for letter in "BCDFG"] == [400] * 5
    for _ in range(3):
        assert await typed(device["user_code"]) == 429
        world.clock.advance(19)
    refused(await poll(driver, device["device_code"]), "authorization_pending")

    bob = await driver.browser("bob")
    other = await driver.device()
    assert (await bob.submit("/issuer/device", user_code=other["user_code"], decision="deny")).status_code == 200

    world.clock.advance(4)
    assert await typed(device["user_code"]) == 200
    assert (await poll(driver, device["device_code"])).status_code == 200


@pytest.mark.case("B14")
async def test_a_new_browser_does_not_give_new_guesses(driver: Driver) -> None:
    browsers = [driver.visitor() for _ in range(6)]
    for browser in browsers:
        await browser.sign_in("alice")
    statuses = [(await browser.submit("/issuer/device", user_code="BBBB-BBBB")).status_code for browser in browsers]
    assert statuses == [400] * 5 + [429]


async def test_the_page_is_for_people_who_are_signed_in(driver: Driver) -> None:
    device = await driver.device()
    for answer in (
        await driver.http.get("/issuer/device"),
        await driver.http.post("/issuer/device", data={"user_code": device["user_code"], "decision": "approve"}),
    ):
        assert (answer.status_code, answer.headers["location"]) == (
            303,
            f"{URL}/issuer/login?return_to=%2Fissuer%2Fdevice",
        )
    refused(await poll(driver, device["device_code"]), "authorization_pending")


async def test_a_device_authorization_needs_a_client_that_may_and_known_scopes(driver: Driver) -> None:
    driver.register("limited", grants=frozenset({"authorization_code"}))
    refused(await driver.post("device_authorization", {"scope": "openid"}, client="limited"), "unauthorized_client")
    refused(await driver.post("device_authorization", {"scope": "openid everything"}), "invalid_scope")
    assert (await driver.post("device_authorization", client="nobody")).status_code == 401


@pytest.mark.case("C5")
async def test_a_person_or_client_that_was_disabled_meanwhile_gets_no_token(driver: Driver, world: Inside) -> None:
    tokens = world.world.issuer.tokens
    devices = [await driver.device(), await driver.device()]
    for person, device in zip(("alice", "bob"), devices, strict=True):
        await world.person(person).sign_in({"url": device["verification_uri"], "code": device["user_code"]})
    tokens.disable("user", world.world.installation.people["alice"].subject)
    refused(await poll(driver, devices[0]["device_code"]), "invalid_grant")
    tokens.disable("client", "deputize-agent")
    assert (await poll(driver, devices[1]["device_code"])).status_code == 401
    assert (await driver.post("device_authorization", {"scope": "openid"})).status_code == 401
