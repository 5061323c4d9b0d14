"""The issuer's pages: what each of them holds to, and that nothing but a press of its button agrees."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from html.parser import HTMLParser

import httpx
import pytest

from tests.support import URL, Inside
from tests.world.driver import Browser, Driver, authorization_url, query_of

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
