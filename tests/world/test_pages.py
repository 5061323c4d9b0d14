"""The issuer's pages: signing in and out, and what every page of the world holds to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from html.parser import HTMLParser

import httpx
import pytest

from tests.support import URL, Inside
from tests.world.driver import Browser, Driver, authorization_url, fields, query_of

# -- every page ----------------------------------------------------------------------------------------------------------


async def _decision(driver: Driver, browser: Browser) -> httpx.Response:
    return await browser.get((await driver.asked())["approval_uri"])


async def _decided(driver: Driver, browser: Browser) -> httpx.Response:
    return await browser.submit((await driver.asked())["approval_uri"], decision="approve")


async def _confirm(driver: Driver, browser: Browser) -> httpx.Response:
    return await browser.submit("/issuer/device", user_code=(await driver.device())["user_code"])


async def _connected(driver: Driver, browser: Browser) -> httpx.Response:
    return await browser.submit("/issuer/device", user_code=(await driver.device())["user_code"], decision="approve")


async def _refused(driver: Driver, browser: Browser) -> httpx.Response:
    return await browser.post("/issuer/device", user_code="x")


async def _inbox(driver: Driver, browser: Browser) -> httpx.Response:
    await driver.asked()
    return await browser.get("/issuer/approvals")


Page = Callable[[Driver, Browser], Awaitable[httpx.Response]]
PAGES: dict[str, tuple[int, Page]] = {
    "login": (200, lambda driver, browser: driver.http.get("/issuer/login")),
    "wrong password": (401, lambda driver, browser: browser.log_in("alice", "wrong")),
    "consent": (200, lambda driver, browser: browser.get(authorization_url())),
    "bad link": (400, lambda driver, browser: browser.get(authorization_url(client_id="nobody"))),
    "device": (200, lambda driver, browser: browser.get("/issuer/device")),
    "unknown code": (400, lambda driver, browser: browser.submit("/issuer/device", user_code="BBBB-BBBB")),
    "device confirm": (200, _confirm),
    "device done": (200, _connected),
    "empty inbox": (200, lambda driver, browser: browser.get("/issuer/approvals")),
    "inbox": (200, _inbox),
    "decision": (200, _decision),
    "decided": (200, _decided),
    "no such request": (404, lambda driver, browser: browser.get("/issuer/approvals/none")),
    "not from this page": (403, _refused),
}


class Markup(HTMLParser):
    """What a page is made of."""

    VOID = frozenset({"meta", "link", "input", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.count: dict[str, int] = {}
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        self.wrong += [f"<{tag}> is not closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.count[tag] = self.count.get(tag, 0) + 1
        self.attributes.append((tag, values))
        if tag == "input" and values.get("type") != "hidden" and "label" not in self.open:
            self.wrong.append(f"the field {values.get('name')} has no label")
        if len(values) != len(attrs):
            self.wrong.append(f"<{tag}> has an attribute twice")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> closes another element")


@pytest.mark.parametrize("name", PAGES)
async def test_a_page_is_sound_html_that_needs_no_script_and_fits_a_phone(driver: Driver, name: str) -> None:
    status, open_page = PAGES[name]
    answer = await open_page(driver, await driver.browser())
    assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8")
    assert answer.text.startswith("<!doctype html>\n<html lang=")
    markup = Markup(answer.text)
    assert markup.wrong == []
    assert {tag: markup.count.get(tag, 0) for tag in ("h1", "title", "main", "script", "style", "iframe", "img")} == {
        "h1": 1, "title": 1, "main": 1, "script": 0, "style": 0, "iframe": 0, "img": 0,
    }  # fmt: skip
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in markup.attributes
    for tag, values in markup.attributes:
        assert not [each for each in values if each.startswith("on") or each == "style"], tag
        for link in ("href", "src", "action"):
            assert (values.get(link) or URL).startswith(URL), (tag, values)


@pytest.mark.parametrize("name", PAGES)
async def test_a_page_is_not_framed_kept_or_told_to_others(driver: Driver, name: str) -> None:
    _, open_page = PAGES[name]
    answer = await open_page(driver, await driver.browser())
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy.pop("form-action") in (
        "'self'",
        "'self' http://127.0.0.1:9",
    )  # the consent page's form leads to the client
    assert policy == {
        "default-src": "'none'", "style-src": "'self'", "img-src": "'self'", "base-uri": "'none'", "frame-ancestors": "'none'",
    }  # fmt: skip
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "same-origin"  # no other origin is told the page's address
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    assert not [header for header in answer.headers if header.startswith("access-control-")]


async def test_only_the_consent_page_may_lead_to_another_origin(driver: Driver) -> None:
    browser = await driver.browser()
    consent = await browser.get(authorization_url(redirect_uri="http://127.0.0.1:4711/callback"))
    assert consent.headers["content-security-policy"].endswith("form-action 'self' http://127.0.0.1:4711")
    for url in ("/issuer/device", "/issuer/approvals", "/issuer/login"):
        assert (await browser.get(url)).headers["content-security-policy"].endswith("form-action 'self'")


async def test_the_stylesheet_is_served(driver: Driver) -> None:
    answer = await driver.http.get("/issuer/style.css")
    assert answer.headers["content-type"] == "text/css; charset=utf-8"
    assert "prefers-color-scheme: dark" in answer.text


# -- signing in ----------------------------------------------------------------------------------------------------------


@pytest.mark.case("A16")
async def test_the_session_id_changes_at_login_and_the_old_one_is_worth_nothing(driver: Driver, world: Inside) -> None:
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


async def test_a_session_id_of_the_browsers_own_choice_is_never_taken_over(driver: Driver, world: Inside) -> None:
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


async def test_a_wrong_name_and_a_wrong_password_are_answered_alike(driver: Driver, world: Inside) -> None:
    browser = driver.visitor()
    answers = [await browser.log_in(name, "wrong") for name in ("alice", "mallory")]
    assert {answer.status_code for answer in answers} == {401}
    assert answers[0].text.replace("alice", "mallory") == answers[1].text


@pytest.mark.case("B10")
async def test_a_name_that_is_typed_is_shown_escaped(driver: Driver, world: Inside) -> None:
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


async def test_logging_out_ends_the_session_everywhere_its_cookie_is(driver: Driver, world: Inside) -> None:
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


# -- agreeing ------------------------------------------------------------------------------------------------------------


@pytest.mark.case("B12")
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_opening_a_link_agrees_to_nothing(driver: Driver, world: Inside, method: str) -> None:
    browser = await driver.browser()
    csrf = await browser.csrf()
    for url in (f"{authorization_url()}&decision=approve&csrf={csrf}", f"/issuer/device?decision=approve&csrf={csrf}"):
        answer = await browser.http.request(method, url, headers={"origin": URL, "purpose": "prefetch"})
        assert answer.status_code == 200
        assert "location" not in answer.headers
    assert not world.world.issuer.tokens.consented(world.world.installation.people["alice"].subject, "deputize-agent")


@pytest.mark.case("B12")
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "http://127.0.0.1:2025"},
        {"origin": "http://localhost:2024"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {},
    ],
    ids=str,
)
async def test_a_form_of_another_origin_agrees_to_nothing(driver: Driver, headers: dict[str, str]) -> None:
    browser, device = await driver.browser(), await driver.device()
    csrf = await browser.csrf()
    form = {"csrf": csrf, "decision": "approve"}
    consent = await browser.post(authorization_url(), headers, **form)
    typed = await browser.post("/issuer/device", headers, user_code=device["user_code"], **form)
    for answer in (consent, typed):
        assert answer.status_code == 403
        assert "Not sent from this page" in answer.text


async def test_a_browser_that_sends_no_origin_says_where_the_form_is_from(driver: Driver) -> None:
    browser = await driver.browser()
    form = {"csrf": await browser.csrf(), "decision": "approve"}
    answer = await browser.post(authorization_url(), {"sec-fetch-site": "same-origin"}, **form)
    assert "code" in dict(query_of(answer.headers["location"]))
