"""Refresh tokens at the issuer: rotation, reuse, and an end that rotation does not move (RFC 6749 §6, RFC 9700 §4.14)."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from agent.world.tokens import REFRESH_LIFETIME
from tests.support import Inside
from tests.world.driver import SCOPE, Driver, claims


def refused(answer: httpx.Response, error: str = "invalid_grant") -> None:
    assert (answer.status_code, answer.json()["error"]) == (400, error), answer.text


async def test_each_use_brings_the_next_one_for_the_same_person_and_scope(driver: Driver) -> None:
    tokens = await driver.sign_in()
    renewed = (await driver.refresh(tokens["refresh_token"])).json()
    assert renewed["refresh_token"] != tokens["refresh_token"]
    assert renewed["scope"] == SCOPE
    first, second = claims(tokens["access_token"]), claims(renewed["access_token"])
    assert {**first, "jti": ""} == {**second, "jti": ""}
    assert first["jti"] != second["jti"]


@pytest.mark.case("A7")
@pytest.mark.parametrize("stolen", [0, 1], ids=["the first", "a later one"])
async def test_a_refresh_token_used_again_kills_the_whole_family_with_its_access_tokens(
    driver: Driver, stolen: int
) -> None:
    answers = [await driver.sign_in()]
    for _ in range(3):
        answers.append((await driver.refresh(answers[-1]["refresh_token"])).json())
    delegated = await driver.exchanged(answers[-1]["access_token"])
    assert await driver.active(delegated)

    refused(await driver.refresh(answers[stolen]["refresh_token"]))

    for answer in answers:  # the thief's and the owner's: nobody knows which is which
        refused(await driver.refresh(answer["refresh_token"]))
        refused(await driver.exchange(answer["access_token"]))
        assert not await driver.active(answer["access_token"], client="deputize-agent")
    assert not await driver.active(delegated)
    assert (await driver.order(delegated)).status_code == 401


@pytest.mark.case("A7")
async def test_a_refresh_token_used_by_many_at_once_leaves_no_token_standing(driver: Driver) -> None:
    token = (await driver.sign_in())["refresh_token"]
    answers = await asyncio.gather(*(driver.refresh(token) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] + [400] * 9
    (renewed,) = [answer.json() for answer in answers if answer.status_code == 200]
    assert not await driver.active(renewed["access_token"], client="deputize-agent")
    refused(await driver.refresh(renewed["refresh_token"]))


@pytest.mark.case("A7")
async def test_another_sign_in_of_the_same_person_is_another_family(driver: Driver) -> None:
    one, other = await driver.sign_in(), await driver.sign_in()
    await driver.refresh(one["refresh_token"])
    refused(await driver.refresh(one["refresh_token"]))
    assert (await driver.refresh(other["refresh_token"])).status_code == 200


async def test_a_refresh_token_is_its_own_clients(driver: Driver) -> None:
    driver.register("other")
    driver.register("public", public=True)
    token = (await driver.sign_in())["refresh_token"]
    for client in ("other", "public"):
        refused(await driver.refresh(token, client=client))
    assert (await driver.refresh(token)).status_code == 200  # the attempts did not use it up


@pytest.mark.parametrize("token", ["", "rt_guessed", "x" * 16_000])
async def test_what_is_no_refresh_token_is_refused(driver: Driver, token: str) -> None:
    refused(await driver.refresh(token))


async def test_an_access_token_or_id_token_is_no_refresh_token(driver: Driver) -> None:
    tokens = await driver.sign_in()
    refused(await driver.refresh(tokens["access_token"]))
    refused(await driver.refresh(tokens["id_token"]))


async def test_the_scope_may_shrink_for_one_access_token_and_never_grow(driver: Driver) -> None:
    tokens = await driver.sign_in(scope="openid offline_access portfolio:read")
    refused(await driver.refresh(tokens["refresh_token"], scope="openid orders:write"), "invalid_scope")
    refused(await driver.refresh(tokens["refresh_token"], scope="everything"), "invalid_scope")
    narrow = (await driver.refresh(tokens["refresh_token"], scope="openid")).json()
    assert claims(narrow["access_token"])["scope"] == "openid"
    wide = (await driver.refresh(narrow["refresh_token"])).json()
    assert claims(wide["access_token"])["scope"] == "openid offline_access portfolio:read"


async def test_without_offline_access_there_is_none(driver: Driver) -> None:
    assert "refresh_token" not in await driver.sign_in(scope="openid profile")


async def test_rotation_does_not_lengthen_the_sign_in(driver: Driver, world: Inside) -> None:
    token = (await driver.sign_in())["refresh_token"]
    for _ in range(7):
        world.clock.advance(3600)
        token = (await driver.refresh(token)).json()["refresh_token"]
    world.clock.advance(REFRESH_LIFETIME - 7 * 3600 - 1)
    token = (await driver.refresh(token)).json()["refresh_token"]
    world.clock.advance(1)
    refused(await driver.refresh(token))


@pytest.mark.case("C5")
async def test_a_person_or_client_that_was_disabled_meanwhile_is_refused_at_once(driver: Driver, world: Inside) -> None:
    tokens = world.world.issuer.tokens
    alice, bob = await driver.sign_in("alice"), await driver.sign_in("bob")
    tokens.disable("user", world.world.installation.people["alice"].subject)
    refused(await driver.refresh(alice["refresh_token"]))
    assert not await driver.active(alice["access_token"], client="deputize-agent")
    assert await driver.active(bob["access_token"], client="deputize-agent")
    tokens.disable("client", "deputize-agent")
    answer = await driver.refresh(bob["refresh_token"])
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
