"""The inbox and the decision page: they show what the server holds, and only a press of a button decides."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

import pytest

from identity.authority import Approval
from identity.authority.pages import authority_routes
from tests.support import URL, Inside
from tests.world.driver import TRADING, Driver, fields, order_details


def rows(page: str) -> list[tuple[str, str]]:
    """The terms and values that the page lists."""
    found = re.findall(r"<dt[^>]*>(.*?)</dt><dd[^>]*>(.*?)</dd>", page, re.DOTALL)
    return [(unescape(term), unescape(value)) for term, value in found]


def held(world: Inside, username: str = "alice") -> list[Approval]:
    return world.world.issuer.authority.inbox(world.world.installation.people[username].subject)


def states(world: Inside) -> list[str]:
    return [approval.state for approval in held(world)]


async def shown(driver: Driver, details: list[dict[str, Any]], **changes: str) -> str:
    asked = await driver.asked(details, **changes)
    answer = await (await driver.browser()).get(asked["approval_uri"])
    assert answer.status_code == 200
    return answer.text


# -- what is shown -------------------------------------------------------------------------------------------------------


@pytest.mark.case("B10")
async def test_the_page_shows_the_arguments_that_the_server_holds(driver: Driver, world: Inside) -> None:
    page = await shown(driver, order_details("ACME", 1_234, "100.50"))
    assert rows(page)[:7] == [
        ("Action", "Buy stock"),
        ("Symbol", "ACME"),
        ("Quantity", "1,234"),
        ("Limit", "100.50"),
        ("At", TRADING),
        ("Access", "orders:write"),
        ("For", "Alice (trader)"),
    ]
    assert "Trading assistant asks for your approval" in page
    assert "BCD-234" in page  # the code that the chat shows
    (approval,) = held(world)
    assert approval.details[0]["arguments"] == {"symbol": "ACME", "quantity": 1_234, "limit": "100.50"}


@pytest.mark.case("B10")
async def test_nothing_that_would_be_approved_is_left_off_the_page(driver: Driver) -> None:
    details = order_details(
        amount=5_000_000, privileges=["admin"], creditor={"iban": "DE00", "name": ["Mallory"]}, instant=True, note=None
    ) + order_details("NOVA", 7, locations=["https://other.example"], arguments=["sell", 3])
    page = rows(await shown(driver, details))
    for row in [
        ("Amount", "5,000,000"),
        ("Privileges", "admin"),
        ("Creditor", "iban: DE00; name: Mallory"),
        ("Instant", "yes"),
        ("At", "https://other.example"),
        ("Arguments", "sell; 3"),
    ]:
        assert row in page


@pytest.mark.case("B10")
async def test_a_request_without_details_shows_the_access_that_it_asks_for(driver: Driver) -> None:
    page = rows(await shown(driver, [], authorization_details="", scope="openid orders:write portfolio:read"))
    assert page[:2] == [("Access", "orders:write portfolio:read"), ("At", TRADING)]


HOSTILE = {
    "html": ("<script>alert(1)</script><h1>Approved</h1>", "<script>alert(1)</script><h1>Approved</h1>"),
    "attribute": ('" onmouseover="alert(1)', '" onmouseover="alert(1)'),
    "template": ("{{ 7 * 7 }}{% raw %}", "{{ 7 * 7 }}{% raw %}"),
    "ansi": ("\x1b[2J\x1b[1;1H1 share", "\\x1b[2J\\x1b[1;1H1 share"),
    "line break": ("1\r\nApproved", "1\\r\\nApproved"),
    "bidirectional": ("\u202e0005\u202c \u20665\u2069", "\\u202e0005\\u202c \\u20665\\u2069"),
    "zero width": ("AC\u200bME\u2060\ufeff\u00ad", "AC\\u200bME\\u2060\\ufeff\\xad"),
    "separator": ("a\u2028b\u2029c", "a\\u2028b\\u2029c"),
    "control": ("a\x00b\x7fc\x85d", "a\\x00b\\x7fc\\x85d"),
    "tag": ("\U000e0041", "\\U000e0041"),
}


@pytest.mark.case("B10")
@pytest.mark.parametrize("kind", HOSTILE)
async def test_text_that_misleads_is_shown_spelled_out_wherever_it_stands(driver: Driver, kind: str) -> None:
    text, spelled = HOSTILE[kind]
    arguments = {"value": text, text: 1, "list": [text], "inner": {text: text}}
    page = await shown(driver, order_details(arguments=arguments, actions=[text], locations=[text], **{text: 2}))
    found = rows(page)
    assert ("Value", spelled) in found
    assert ("List", spelled) in found
    assert ("Inner", f"{spelled}: {spelled}") in found
    assert ("At", spelled) in found
    inbox = (await (await driver.browser()).get("/issuer/approvals")).text
    for each in (page, inbox):
        assert each.replace("\n", "").isprintable()
        assert each.count("<h1") == 1
        assert "<script" not in each
        assert not re.findall(r"<[^>]*\sonmouseover", each)


@pytest.mark.case("B10")
async def test_a_hostile_name_of_a_client_is_shown_spelled_out(driver: Driver) -> None:
    asked = await driver.asked()
    world = driver.world
    with world.world.installation.database.write() as db:
        db.execute("UPDATE approvals SET client_name = ?", ("<b>Your bank</b>\u202e\x1b[0m\r\n" + "x" * 500,))
    page = (await (await driver.browser()).get(asked["approval_uri"])).text
    assert "<b>" not in page
    heading = unescape(re.findall(r"<h1[^>]*>(.*?)</h1>", page)[0])
    assert heading.startswith("<b>Your bank</b>\\u202e\\x1b[0m\\r\\nxxx")
    assert heading.endswith("x… asks for your approval")
    assert len(heading) < 250


@pytest.mark.case("B10")
async def test_overlong_text_is_cut_visibly(driver: Driver) -> None:
    page = rows(await shown(driver, order_details(arguments={"value": "x" * 9_000, "name" * 500: 1})))
    assert dict(page)["Value"] == "x" * 2_000 + "…"
    assert [term for term, _ in page if term.endswith("name…")]


async def test_the_inbox_lists_what_waits_first_and_tells_requests_apart(driver: Driver, world: Inside) -> None:
    for quantity in (1, 2, 3):
        await driver.asked(order_details(quantity=quantity))
        world.clock.advance(1)
    oldest, middle, newest = reversed(held(world))
    await world.person("alice").deny({"url": f"{URL}/issuer/approvals/{newest.id}"})
    page = (await (await driver.browser()).get("/issuer/approvals")).text
    assert re.findall(r'/approvals/([^"]+)"', page) == [middle.id, oldest.id, newest.id]
    assert re.findall(r'class="(pending|denied)"', page) == ["pending", "pending", "denied"]
    assert re.findall(r"<span>(Buy stock.*?)<br>", page) == [f"Buy stock: ACME, {n}, 100.00" for n in (2, 1, 3)]


async def test_an_id_with_odd_characters_is_one_link(driver: Driver) -> None:
    await driver.asked()
    with driver.world.world.installation.database.write() as db:
        db.execute("UPDATE approvals SET id = ?", ('a"b c?#é',))
    browser = await driver.browser()
    link = re.findall(r'href="([^"]+/approvals/[^"]+)"', (await browser.get("/issuer/approvals")).text)[0]
    assert "Buy stock" in (await browser.get(unescape(link))).text


# -- who decides, and how ------------------------------------------------------------------------------------------------


async def test_a_request_of_somebody_else_does_not_exist(driver: Driver, world: Inside) -> None:
    asked = await driver.asked()
    bob = await driver.browser("bob")
    for answer in (
        await bob.get(asked["approval_uri"]),
        await bob.post(asked["approval_uri"], csrf=await bob.csrf(), decision="approve"),
        await bob.get("/issuer/approvals/unknown"),
        await bob.post("/issuer/approvals/unknown", csrf=await bob.csrf(), decision="approve"),
    ):
        assert answer.status_code == 404
        assert "There is no such request for you" in answer.text
    assert states(world) == ["pending"]


async def test_who_is_not_signed_in_decides_nothing_and_comes_back(driver: Driver, world: Inside) -> None:
    asked = await driver.asked()
    visitor = driver.visitor()
    csrf = await visitor.csrf()
    for answer in (
        await visitor.get(asked["approval_uri"]),
        await visitor.post(asked["approval_uri"], csrf=csrf, decision="approve"),
    ):
        assert answer.status_code == 303
        assert answer.headers["location"].startswith(f"{URL}/issuer/login?return_to=%2Fissuer%2Fapprovals%2F")
    assert states(world) == ["pending"]


@pytest.mark.case("B12")
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"])
async def test_only_a_post_decides(driver: Driver, world: Inside, method: str) -> None:
    asked = await driver.asked()
    browser = await driver.browser()
    csrf = await browser.csrf()
    for headers in (
        {"origin": URL},
        {"sec-purpose": "prefetch", "purpose": "prefetch", "sec-fetch-site": "same-origin"},
    ):
        answer = await browser.http.request(
            method,
            f"{asked['approval_uri']}?decision=approve&csrf={csrf}",
            headers={**headers, "content-type": "application/x-www-form-urlencoded"},
            content=f"decision=approve&csrf={csrf}",
        )
        assert answer.status_code == (200 if method in ("GET", "HEAD") else 405)
    assert states(world) == ["pending"]


@pytest.mark.case("B12")
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "http://127.0.0.1:2025"},
        {"origin": "http://127.0.0.1"},
        {"origin": "https://127.0.0.1:2024"},
        {"origin": "http://localhost:2024"},
        {"origin": f"{URL}.evil.example"},
        {"origin": f"{URL}/"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "https://evil.example", "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"referer": f"{URL}/issuer/approvals"},
        {},
    ],
    ids=str,
)
async def test_a_form_of_another_origin_decides_nothing(driver: Driver, world: Inside, headers: dict[str, str]) -> None:
    """The attacker's page knows the person's token here: the origin alone must be enough to refuse."""
    asked = await driver.asked()
    browser = await driver.browser()
    csrf = await browser.csrf()
    for decision in ("approve", "deny"):
        answer = await browser.post(asked["approval_uri"], headers, csrf=csrf, decision=decision)
        assert answer.status_code == 403
        assert "nothing was decided" in answer.text
    assert states(world) == ["pending"]


@pytest.mark.case("B12")
async def test_a_form_without_this_browsers_token_decides_nothing(driver: Driver, world: Inside) -> None:
    asked = await driver.asked()
    browser, bob = await driver.browser(), await driver.browser("bob")
    csrf = await browser.csrf()
    for token in ("", "guessed", await bob.csrf(), csrf[:-1], f"{csrf}x", "é"):
        answer = await browser.post(asked["approval_uri"], csrf=token, decision="approve")
        assert answer.status_code == 403
    answer = await browser.post(f"{asked['approval_uri']}?csrf={csrf}", decision="approve")
    assert answer.status_code == 403
    as_json = await browser.http.post(
        asked["approval_uri"], json={"csrf": csrf, "decision": "approve"}, headers={"origin": URL}
    )
    as_text = await browser.http.post(
        asked["approval_uri"],
        content=f"csrf={csrf}&decision=approve",
        headers={"origin": URL, "content-type": "text/plain"},
    )
    assert {as_json.status_code, as_text.status_code} == {403}
    assert states(world) == ["pending"]


@pytest.mark.case("B12")
async def test_the_page_can_be_put_into_no_frame(driver: Driver) -> None:
    """Attack (clickjacking): the button of the page lies, invisible, over one of the attacker's."""
    asked = await driver.asked()
    browser = await driver.browser()
    for answer in (
        await browser.get(asked["approval_uri"]),
        await browser.submit(asked["approval_uri"], decision="maybe"),
        await browser.post(asked["approval_uri"], {}, decision="approve"),
    ):
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("decision", ["", "maybe", "APPROVE", "approve deny"])
async def test_another_word_decides_nothing(driver: Driver, world: Inside, decision: str) -> None:
    asked = await driver.asked()
    answer = await (await driver.browser()).submit(asked["approval_uri"], decision=decision)
    assert answer.status_code == 400
    assert "press one of the two buttons" in answer.text
    assert states(world) == ["pending"]


@pytest.mark.case("B9")
@pytest.mark.parametrize("second", ["approve", "deny"])
async def test_deciding_twice_has_one_effect_and_the_page_says_so(driver: Driver, world: Inside, second: str) -> None:
    asked = await driver.asked()
    browser = await driver.browser()
    csrf = fields((await browser.get(asked["approval_uri"])).text)["csrf"]
    first = await browser.post(asked["approval_uri"], csrf=csrf, decision="approve")
    assert (first.status_code, states(world)) == (200, ["approved"])
    (before,) = held(world)
    world.clock.advance(1)
    again = await browser.post(asked["approval_uri"], csrf=csrf, decision=second)
    assert again.status_code == 409
    assert "Nothing was changed" in again.text
    assert held(world) == [before]
    assert "<form" not in again.text


async def test_the_token_of_the_approval_carries_what_was_shown(driver: Driver, world: Inside) -> None:
    details = order_details(quantity=77)
    asked = await driver.asked(details)
    page = rows((await (await driver.browser()).get(asked["approval_uri"])).text)
    await world.person("alice").approve({"url": asked["approval_uri"]})
    answer = (await driver.collect(asked["auth_req_id"])).json()
    assert dict(page)["Quantity"] == str(answer["authorization_details"][0]["arguments"]["quantity"])
    assert json.loads(json.dumps(details)) == answer["authorization_details"]


def test_there_is_no_other_route_that_decides(world: Inside) -> None:
    issuer = world.world.issuer
    routes = authority_routes(issuer.authority, issuer, issuer._pages)
    assert {(route.path, method) for route in routes for method in route.methods or ()} == {
        ("/style.css", "GET"),
        ("/style.css", "HEAD"),
        ("/approvals", "GET"),
        ("/approvals", "HEAD"),
        ("/approvals/{id}", "GET"),
        ("/approvals/{id}", "HEAD"),
        ("/approvals/{id}", "POST"),
    }
