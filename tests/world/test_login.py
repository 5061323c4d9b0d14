"""Signing in and out at the issuer's pages: sessions, guessing, and forms of other sites."""

from __future__ import annotations

import pytest

from tests.support import URL, Inside
from tests.world.driver import Driver, authorization_url, fields


@pytest.mark.case("A16")
async def test_the_session_id_changes_at_login_and_the_old_one_is_worth_nothing(driver: Driver) -> None:
    """Attack: the victim signs in with a session id that the attacker has planted, and so shares it."""
    attacker, victim = driver.visitor(), driver.visitor()
    await attacker.get("/issuer/login")
    planted = attacker.cookie
    victim.http.cookies.set("deputize_world", planted, domain="127.0.0.1", path="/issuer")
    await victim.sign_in("alice")
    assert victim.cookie != planted
    assert (await victim.get("/issuer/approvals")).status_code == 200
    assert (await attacker.get("/issuer/approvals")).status_code == 303

    first = victim.cookie
    await victim.sign_in("bob")  # from alice to bob in the same browser
    assert victim.cookie != first
    attacker.http.cookies.set("deputize_world", first, domain="127.0.0.1", path="/issuer")
    assert (await attacker.get("/issuer/approvals")).status_code == 303


async def test_a_session_id_of_the_browsers_own_choice_is_never_taken_over(driver: Driver) -> None:
    browser = driver.visitor()
    browser.http.cookies.set("deputize_world", "chosen", domain="127.0.0.1", path="/issuer")
    answer = await browser.get("/issuer/login")
    assert "chosen" not in answer.headers["set-cookie"]


async def test_the_session_cookie_is_kept_from_scripts_and_other_sites(driver: Driver) -> None:
    answer = await driver.http.get("/issuer/login")
    attributes = {part.strip().lower().split("=")[0] for part in answer.headers["set-cookie"].split(";")}
    assert {"httponly", "samesite", "path", "max-age"} <= attributes
    assert "samesite=lax" in answer.headers["set-cookie"].lower()
    assert len(answer.headers["set-cookie"].split("=")[1].split(";")[0]) >= 43


@pytest.mark.parametrize(
    ("headers", "csrf"),
    [
        ({"origin": "https://evil.example"}, True),
        ({"origin": "http://127.0.0.1:2025"}, True),
        ({"origin": "null"}, True),
        ({"sec-fetch-site": "cross-site"}, True),
        ({}, True),
        ({"origin": URL}, False),
    ],
    ids=["foreign", "another port", "null", "cross-site", "none", "no token"],
)
async def test_nobody_is_signed_in_by_a_form_of_another_site(
    driver: Driver, world: Inside, headers: dict[str, str], csrf: bool
) -> None:
    """Attack (login CSRF): the victim works, unknowing, in a session of the attacker."""
    browser = driver.visitor()
    token = await browser.csrf()
    before = browser.cookie
    answer = await browser.post(
        "/issuer/login", headers, csrf=token if csrf else "guessed",
        username="bob", password=world.world.installation.people["bob"].password,
    )  # fmt: skip
    assert answer.status_code == 403
    assert browser.cookie == before


async def test_a_token_of_another_browser_does_not_serve(driver: Driver, world: Inside) -> None:
    mine, other = driver.visitor(), driver.visitor()
    token = await other.csrf()
    await mine.csrf()
    password = world.world.installation.people["alice"].password
    answer = await mine.post("/issuer/login", csrf=token, username="alice", password=password)
    assert answer.status_code == 403


async def test_guessing_passwords_locks_the_name_for_a_minute_even_for_the_right_one(
    driver: Driver, world: Inside
) -> None:
    password = world.world.installation.people["alice"].password
    browser = driver.visitor()
    assert [(await browser.log_in("alice", f"wrong{i}")).status_code for i in range(5)] == [401] * 5
    locked = await browser.log_in("alice", password)
    assert locked.status_code == 429
    assert "Too many attempts" in locked.text
    other = driver.visitor()
    assert (await other.log_in("alice", password)).status_code == 429
    await other.sign_in("bob")
    world.clock.advance(60)
    assert (await browser.log_in("alice", password)).status_code == 303


async def test_a_wrong_name_and_a_wrong_password_are_answered_alike(driver: Driver) -> None:
    browser = driver.visitor()
    answers = [await browser.log_in(name, "wrong") for name in ("alice", "mallory")]
    assert {answer.status_code for answer in answers} == {401}
    assert answers[0].text.replace("alice", "mallory") == answers[1].text


@pytest.mark.case("B10")
async def test_a_name_that_is_typed_is_shown_escaped(driver: Driver) -> None:
    browser = driver.visitor()
    page = (await browser.log_in('"><script>\x1b[2J\u202e', "wrong")).text
    assert "<script>" not in page
    assert fields(page)["username"] == '"><script>\\x1b[2J\\u202e'


@pytest.mark.case("A6")
@pytest.mark.parametrize(
    "target",
    [
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "https://evil.example",
        "javascript:alert(1)",
        "evil",
        "@evil.example/",
        "/issuer\r\nset-cookie: a=b",
        "/issuer\x00",
        "/é",
        "/" + "x" * 2048,
    ],
)
async def test_after_the_login_one_stays_on_this_site(driver: Driver, world: Inside, target: str) -> None:
    browser = driver.visitor()
    assert (await browser.http.get("/issuer/login", params={"return_to": target})).status_code == 400
    answer = await browser.submit(
        "/issuer/login", username="alice", password=world.world.installation.people["alice"].password, return_to=target
    )
    assert answer.status_code == 400
    assert "location" not in answer.headers


async def test_logging_out_ends_the_session_everywhere_its_cookie_is(driver: Driver) -> None:
    browser, copy = await driver.browser(), driver.visitor()
    copy.http.cookies.set("deputize_world", browser.cookie, domain="127.0.0.1", path="/issuer")
    assert (await copy.get("/issuer/approvals")).status_code == 200
    inbox = await browser.submit("/issuer/approvals")  # its only form is the button
    assert (inbox.status_code, inbox.headers["location"]) == (303, f"{URL}/issuer/login")
    assert (await copy.get("/issuer/approvals")).status_code == 303


@pytest.mark.parametrize("headers", [{"origin": "http://127.0.0.1:2025"}, {"origin": "null"}, {}])
async def test_no_other_site_logs_anybody_out(driver: Driver, headers: dict[str, str]) -> None:
    browser = await driver.browser()
    answer = await browser.post("/issuer/logout", headers, csrf=await browser.csrf())
    assert answer.status_code == 403
    assert (await browser.get("/issuer/logout")).status_code == 405
    assert (await browser.get("/issuer/approvals")).status_code == 200


async def test_a_session_ends_after_eight_hours(driver: Driver, world: Inside) -> None:
    browser = await driver.browser()
    world.clock.advance(8 * 3600 - 1)
    assert (await browser.get("/issuer/approvals")).status_code == 200
    world.clock.advance(1)
    assert (await browser.get("/issuer/approvals")).status_code == 303


@pytest.mark.case("C5")
async def test_a_person_who_was_disabled_is_signed_out_everywhere_and_cannot_sign_in(
    driver: Driver, world: Inside
) -> None:
    browser = await driver.browser()
    alice = world.world.installation.people["alice"]
    asked = await driver.asked()
    csrf = await browser.csrf()
    world.world.issuer.tokens.disable("user", alice.subject)
    for url in ("/issuer/approvals", "/issuer/device", authorization_url(), asked["approval_uri"]):
        assert (await browser.get(url)).status_code == 303, url
    decided = await browser.post(asked["approval_uri"], csrf=csrf, decision="approve")
    assert decided.status_code == 303
    assert world.world.issuer.authority.inbox(alice.subject)[0].state == "pending"
    assert (await driver.visitor().log_in("alice", alice.password)).status_code == 401
