"""``deputize sessions``: what a signed-in person sees and ends is their own, and a grant goes with its last session."""

from __future__ import annotations

from typing import Any

import pytest

from identity import Principal, Secret
from identity.sessions import Place
from tests.cli.desk import Desk
from tests.support import Inside


def begin(world: Inside, principal: Principal, thread: str, grant: str = "") -> str:
    """A session of a conversation, with a grant of its own if none is given; its short id."""
    now = world.clock()
    if not grant:
        grant = world.identity.vault.store_grant(
            principal, refresh_token=Secret(f"rt-{thread}"), scope="", expires_at=now + 3600, now=now
        ).id
    place = Place(principal.tenant, "assistant", thread)
    return world.identity.sessions.start(
        place, principal, owner=principal.key, grant_id=grant, expires_at=now + 3600, now=now
    ).short_id


async def signed_in(desk: Desk) -> tuple[Principal, str]:
    """Alice at the terminal: her principal, and the grant of that sign-in."""
    await desk.sign_in("alice")
    session = desk.session()
    assert session is not None
    return session.principal, session.grant_id


async def listed(desk: Desk) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await desk.facts("sessions", "list"))["sessions"]
    return found


async def test_a_person_sees_their_own_sessions_and_no_other(desk: Desk, world: Inside) -> None:
    alice, _ = await signed_in(desk)
    mine = begin(world, alice, "t1")
    begin(world, world.person("bob").principal, "t2")
    begin(world, Principal("other", alice.issuer, alice.subject), "t3")
    found = await listed(desk)
    assert [(s["graph"], s["thread"], s["here"]) for s in found] == [
        ("terminal", "sam", True),
        ("assistant", "t1", False),
    ]
    assert found[1]["id"] == mine
    shown = (await desk.run("sessions", "list")).stdout
    assert [line.split()[0] for line in shown.splitlines()] == ["ID", found[0]["id"], mine]
    assert "this terminal" in shown


async def test_ending_a_session_gives_up_a_grant_that_nothing_else_uses(desk: Desk, world: Inside) -> None:
    alice, _ = await signed_in(desk)
    mine = begin(world, alice, "t1")
    before = len(world.identity.vault.grants_of(alice))
    ended = await desk.facts("sessions", "end", mine)
    assert (ended["ended"], len(ended["grants"])) == (1, 1)
    assert len(world.identity.vault.grants_of(alice)) == before - 1
    assert [s["graph"] for s in await listed(desk)] == ["terminal"]


async def test_ending_a_session_leaves_a_grant_that_another_one_uses(desk: Desk, world: Inside) -> None:
    alice, grant = await signed_in(desk)
    mine = begin(world, alice, "t1", grant)
    ended = await desk.run("sessions", "end", mine)
    assert ended.stdout == (
        f"Ended the session {mine} (assistant/t1).\n  another session uses the same sign-in, which stays\n"
    )
    assert world.identity.vault.grant(grant, alice) is not None
    assert (await desk.facts("whoami"))["ok"]


async def test_ending_all_leaves_no_session_and_no_grant_of_the_person_and_everybody_elses(
    desk: Desk, world: Inside
) -> None:
    alice, _ = await signed_in(desk)
    bob = world.person("bob").principal
    begin(world, alice, "t1")
    begin(world, bob, "t2")
    orphan = world.identity.vault.store_grant(
        alice, refresh_token=Secret("rt-orphan"), scope="", expires_at=world.clock() + 9, now=world.clock()
    )
    ended = await desk.facts("sessions", "end", "--all")
    assert (ended["ended"], len(ended["grants"])) == (2, 3)
    assert world.identity.sessions.live_of(alice, world.clock()) == []
    assert world.identity.vault.grants_of(alice) == []
    assert world.identity.vault.grant(orphan.id, alice) is None
    assert len(world.identity.sessions.live_of(bob, world.clock())) == 1
    assert len(world.identity.vault.grants_of(bob)) == 1
    assert (await desk.facts("whoami"))["error"] == "not_signed_in"


async def test_a_session_of_the_applications_own_sign_in_ends_alone(desk: Desk, world: Inside) -> None:
    """It has no grant here; two such sessions have nothing in common."""
    alice, _ = await signed_in(desk)
    now = world.clock()
    for thread in ("t1", "t2"):
        world.identity.sessions.start(
            Place("default", "assistant", thread),
            alice,
            owner=alice.key,
            grant_id="",
            expires_at=now + 3600,
            now=now,
        )
    first = (await listed(desk))[1]["id"]
    ended = await desk.run("sessions", "end", first)
    assert ended.stdout.endswith("  it came from the application's own sign-in, of which nothing is kept here\n")
    assert [s["thread"] for s in await listed(desk)] == ["sam", "t2"]
    assert (await desk.facts("sessions", "end", "--all"))["ended"] == 2
    assert world.identity.sessions.live_of(alice, now) == []


async def test_a_session_that_was_edited_in_the_database_is_nobodys(desk: Desk, world: Inside) -> None:
    """Attack: a row that is given to alice has her end what is bob's (casebook B20)."""
    alice, _ = await signed_in(desk)
    begin(world, world.person("bob").principal, "t2")
    with world.identity.database.write() as db:
        db.execute("UPDATE sessions SET subject = ? WHERE thread = 't2'", (alice.subject,))
    assert [s["thread"] for s in await listed(desk)] == ["sam"]


async def test_a_session_of_somebody_else_cannot_be_ended(desk: Desk, world: Inside) -> None:
    await signed_in(desk)
    bob = world.person("bob").principal
    theirs = begin(world, bob, "t2")
    refused = await desk.run("sessions", "end", theirs)
    assert refused.exit_code == 2
    assert f"No sessions of yours are called '{theirs}'" in refused.stderr
    assert len(world.identity.sessions.live_of(bob, world.clock())) == 1


@pytest.mark.parametrize("arguments", [(), ("abc", "--all")])
async def test_it_has_to_be_said_which_session_ends(desk: Desk, arguments: tuple[str, ...]) -> None:
    refused = await desk.run("sessions", "end", *arguments)
    assert refused.exit_code == 2
    assert refused.stderr.startswith("deputize: Which session is to end is not clear. ")


@pytest.mark.parametrize("command", [("sessions", "list"), ("sessions", "end", "--all"), ("approvals", "list")])
async def test_whoever_is_not_signed_in_sees_and_ends_nothing(desk: Desk, command: tuple[str, ...]) -> None:
    refused = await desk.facts(*command)
    assert (refused["ok"], refused["error"]) == (False, "not_signed_in")


@pytest.mark.case("G5")
async def test_names_and_threads_of_others_are_escaped(desk: Desk, world: Inside) -> None:
    """Attack: a thread's name clears the screen, or reorders what is read (casebook G5)."""
    alice, _ = await signed_in(desk)
    begin(world, alice, "\x1b[2Jt\u202e\n1")
    shown = (await desk.run("sessions", "list")).stdout
    assert "\\x1b[2Jt\\u202e\\n1" in shown
    assert all(line.isprintable() for line in shown.splitlines())
