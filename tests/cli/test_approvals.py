"""``deputize approvals``: what waits for the signed-in person. The page decides, the terminal never does (casebook B25)."""

from __future__ import annotations

from typing import Any

import pytest

from identity.cli import main
from tests.cli.desk import Desk, ask_for
from tests.support import Inside, assistant, calls

LARGE = ("buy_stock", {"symbol": "ACME", "quantity": 50, "limit": "100"})
SCOPES = ("--scope", "portfolio:read", "--scope", "orders:write")


async def waiting(desk: Desk, *people: str) -> list[dict[str, Any]]:
    """Large orders of some people, each signed in at a terminal of their own; what ``desk``'s person is shown."""
    for person in people:
        their = desk if person == people[0] else Desk(desk.world, user=person)
        await their.sign_in(person, *SCOPES)
        await ask_for(desk.world, assistant(desk.world, calls(LARGE)), person, thread=f"of-{person}")
    found: list[dict[str, Any]] = (await desk.facts("approvals", "list"))["approvals"]
    return found


async def test_a_person_sees_what_waits_for_them_and_nothing_of_others(desk: Desk, world: Inside) -> None:
    found = await waiting(desk, "alice", "bob")
    assert [(a["tool"], a["graph"], a["thread"]) for a in found] == [("buy_stock", "assistant", "of-alice")]
    assert found[0]["url"].startswith(f"{world.url}/issuer/approvals/")
    shown = (await desk.run("approvals", "list")).stdout.splitlines()
    assert shown[0].split() == ["ID", "TOOL", "WHERE", "CODE", "LEFT", "PAGE"]
    assert shown[1].split()[:4] == [found[0]["id"], "buy_stock", "assistant/of-alice", found[0]["code"]]
    assert found[0]["url"] in shown[1]
    assert len(shown) == 2


async def test_nothing_waits_says_so(desk: Desk) -> None:
    await desk.sign_in()
    assert (await desk.run("approvals", "list")).stdout == "Nothing waits for you.\n"


async def test_what_has_expired_is_not_listed(desk: Desk, world: Inside) -> None:
    await waiting(desk, "alice")
    world.clock.advance(301)
    assert (await desk.facts("approvals", "list"))["approvals"] == []


async def test_open_opens_the_page_and_decides_nothing(desk: Desk, world: Inside) -> None:
    (asked,) = await waiting(desk, "alice")
    before = len(world.network.sent)
    opened = await desk.run("approvals", "open", asked["id"][:4])
    assert opened.stdout.splitlines()[1] == f"  {asked['url']}"
    assert asked["code"] in opened.stdout
    assert desk.opened == [asked["url"]]
    assert len(world.network.sent) == before, "nothing was sent to anybody"
    (pending,) = world.identity.ledger.pending_of(world.person("alice").principal, world.clock())
    assert pending.state == "pending"
    assert world.orders() == []


async def test_the_page_wants_a_sign_in_of_its_own(desk: Desk, world: Inside) -> None:
    """The terminal's stored sign-in is no ticket to it."""
    (asked,) = await waiting(desk, "alice")
    await desk.run("approvals", "open", asked["id"])
    stranger = world.person("bob")._browser
    answer = await stranger.get(desk.opened[0])
    assert (answer.status_code, "/login?" in answer.headers["location"]) == (303, True)


def test_there_is_no_command_that_decides() -> None:
    group: Any = main.commands["approvals"]
    assert sorted(group.commands) == ["list", "open"]


async def test_without_a_browser_the_link_is_shown(desk: Desk) -> None:
    (asked,) = await waiting(desk, "alice")
    shown = await desk.facts("approvals", "open", asked["id"], "--no-browser")
    assert (shown["url"], shown["opened"]) == (asked["url"], False)
    assert desk.opened == []


async def test_the_request_of_somebody_else_is_not_opened(desk: Desk, world: Inside) -> None:
    await waiting(desk, "alice", "carol")
    (theirs,) = world.identity.ledger.pending_of(world.person("carol").principal, world.clock())
    refused = await desk.facts("approvals", "open", theirs.short_id)
    assert (refused["ok"], refused["error"]) == (False, "usage")
    assert desk.opened == []


@pytest.mark.parametrize("url", ["http://evil.example/approve", "javascript:alert(1)", "file:///etc/passwd"])
async def test_a_page_that_was_put_into_the_database_is_not_opened(desk: Desk, world: Inside, url: str) -> None:
    (asked,) = await waiting(desk, "alice")
    with world.identity.database.write() as db:
        db.execute("UPDATE requests SET url = ? WHERE kind = 'approval'", (url,))
    refused = await desk.run("approvals", "open", asked["id"])
    assert refused.exit_code == 1
    assert url not in refused.output
    assert desk.opened == []


async def test_an_issuer_without_a_page_is_told_as_it_is(desk: Desk, world: Inside) -> None:
    (asked,) = await waiting(desk, "alice")
    with world.identity.database.write() as db:
        db.execute("UPDATE requests SET url = '' WHERE kind = 'approval'")
    refused = await desk.run("approvals", "open", asked["id"])
    assert "The issuer asks on a channel of its own" in refused.stderr
