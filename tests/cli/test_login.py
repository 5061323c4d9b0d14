"""Signing in and out at the terminal: a session like any other, in the agent's own database."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from identity import Principal, Secret, Visitor
from identity.ledger import Request
from tests.cli.desk import Desk
from tests.support import Inside, assistant, calls, requests, say


async def test_a_code_that_is_typed_elsewhere_signs_in_and_whoami_says_who(desk: Desk, world: Inside) -> None:
    signed_in = await desk.sign_in("alice")
    assert signed_in.exit_code == 0
    assert signed_in.stdout == "Signed in as Alice (trader), for 8 h 00 min.\n"
    assert f"{world.url}/issuer/device" in signed_in.stderr
    who = await desk.facts("whoami")
    assert (who["name"], who["subject"]) == ("Alice (trader)", world.person("alice").principal.subject)
    assert who["issuer"] == f"{world.url}/issuer"


async def test_waiting_in_a_pipe_is_one_line_without_control_characters(desk: Desk) -> None:
    told = (await desk.sign_in()).stderr
    assert told.count("Waiting for the code, at most 10 min 00 s. Ctrl-C stops.\n") == 1
    assert all(line.isprintable() for line in told.splitlines())


async def test_a_second_login_says_that_somebody_is_signed_in_and_asks_nobody(desk: Desk, world: Inside) -> None:
    await desk.sign_in()
    before = len(world.network.sent)
    again = await desk.facts("login")
    assert (again["ok"], again["already"], again["name"]) == (True, True, "Alice (trader)")
    assert len(world.network.sent) == before


async def test_two_users_of_one_machine_are_two_terminals(desk: Desk, world: Inside) -> None:
    await desk.sign_in()
    other = await Desk(world, user="kim").run("whoami")
    assert (other.exit_code, other.stdout) == (1, "")
    assert other.stderr == "deputize: Nobody is signed in at this terminal. Sign in: deputize login\n"


async def test_whoever_declines_is_not_signed_in(desk: Desk, world: Inside) -> None:
    async def decline(request: Request) -> None:
        alice = world.person("alice")
        page = await alice._submit(await alice._open(request.url), {"user_code": request.code})
        await alice._submit(page, {"decision": "deny"})

    desk.meanwhile = decline
    refused = await desk.run("login", "--device")
    assert refused.exit_code == 1
    assert refused.stderr.endswith("deputize: The person who was asked declined. Try again: deputize login\n")
    assert desk.session() is None


async def test_a_login_that_nobody_finishes_ends_by_itself(desk: Desk) -> None:
    expired = await desk.facts("login", "--device")
    assert (expired["ok"], expired["error"]) == (False, "expired")
    assert desk.session() is None


async def test_ctrl_c_withdraws_the_request_and_leaves_nothing(
    desk: Desk, world: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("identity.cli.people.waiting", interrupted)
    stopped = await desk.run("login", "--device", "--json")
    assert stopped.exit_code == 130
    assert json.loads(stopped.stdout) == {"ok": False, "error": "interrupted", "message": "Stopped", "hint": ""}
    assert world.identity.ledger.pending(desk.place) == []
    assert desk.session() is None
    assert world.identity.vault.grants_of(world.person("alice").principal) == []


async def test_a_login_whose_terminal_was_killed_is_replaced_by_the_next(desk: Desk, world: Inside) -> None:
    identity = world.identity
    left = await identity.transport.acall(identity.asking.login, desk.place, Visitor("terminal:sam"), "", [])
    assert left is not None
    assert (await desk.sign_in()).exit_code == 0
    withdrawn = identity.ledger.request(left.id)
    assert withdrawn is not None
    assert withdrawn.state == "withdrawn"


async def test_no_server_that_shares_the_database_is_told_to_wake_a_terminal(desk: Desk, world: Inside) -> None:
    await desk.sign_in()
    assert world.identity.ledger.unwoken("default", world.clock()) == []


async def test_a_sign_in_ends_when_its_time_is_over(desk: Desk, world: Inside) -> None:
    await desk.sign_in()
    world.clock.advance(8 * 3600)
    assert (await desk.facts("whoami"))["error"] == "not_signed_in"


async def test_a_sign_in_at_another_issuer_is_none_here_and_its_token_goes_nowhere(desk: Desk, world: Inside) -> None:
    """Attack: a deployment that changed its issuer would hand the old one's refresh tokens to the new one."""
    before, now = Principal("default", "https://before.example", "alice"), world.clock()
    grant = world.identity.vault.store_grant(
        before, refresh_token=Secret("rt-of-the-other"), scope="", expires_at=now + 3600, now=now
    )
    world.identity.sessions.start(
        desk.place, before, owner="visitor:terminal:sam", grant_id=grant.id, expires_at=now + 3600, now=now
    )
    assert (await desk.facts("whoami"))["error"] == "not_signed_in"
    assert (await desk.sign_in("bob")).stdout == "Signed in as Bob (analyst), for 8 h 00 min.\n"
    assert world.identity.vault.grants_of(before) == []
    assert not any("rt-of-the-other" in sent.form.values() for sent in world.network.sent)


# -- signing out -------------------------------------------------------------------------------------------------------


async def test_logout_revokes_at_the_issuer_wipes_here_and_says_so(desk: Desk, world: Inside) -> None:
    await desk.sign_in()
    session = desk.session()
    assert session is not None
    token = world.identity.vault.refresh_token(world.identity.vault.grants_of(session.principal)[0])
    out = await desk.run("logout")
    assert out.stdout == (
        "Signed out Alice (trader).\n"
        "  revoked at the issuer  yes\n"
        "  wiped here             yes\n"
        "  sessions ended         1\n"
    )
    assert world.identity.vault.grants_of(session.principal) == []
    sent = next(s for s in world.network.sent if s.url.endswith("/revoke"))
    assert (sent.form["token"], sent.form["token_type_hint"]) == (token.reveal(), "refresh_token")
    assert world.world.installation.database.read("SELECT 1 FROM grants WHERE revoked_at IS NULL") == []
    assert (await desk.facts("whoami"))["error"] == "not_signed_in"


async def test_after_logout_somebody_else_may_sign_in_at_the_terminal(desk: Desk) -> None:
    await desk.sign_in("alice")
    await desk.run("logout")
    assert (await desk.sign_in("bob")).stdout == "Signed in as Bob (analyst), for 8 h 00 min.\n"


async def test_logout_when_nobody_is_signed_in_is_no_failure(desk: Desk) -> None:
    assert await desk.facts("logout") == {"ok": True, "signed_out": None}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (httpx.Response(503), "The revocation endpoint is unavailable (HTTP 503)"),
        (httpx.ConnectError("down"), "127.0.0.1:2024 did not answer (ConnectError)"),
        (
            httpx.Response(400, json={"error": "unsupported_token_type"}),
            "The authorization server refused: unsupported_token_type",
        ),
    ],
)
async def test_what_the_issuer_would_not_revoke_is_wiped_all_the_same_and_the_receipt_says_why(
    desk: Desk, world: Inside, answer: Any, told: str
) -> None:
    await desk.sign_in()
    world.network.fault = lambda request: answer if request.url.path.endswith("/revoke") else None
    out = await desk.facts("logout")
    assert (out["ok"], out["revoked"], out["reason"], out["wiped"]) == (True, False, told, True)
    assert world.identity.vault.grants_of(world.person("alice").principal) == []


async def test_an_issuer_without_a_revocation_endpoint_is_named_on_the_receipt(desk: Desk, world: Inside) -> None:
    await desk.sign_in()
    metadata = {k: v for k, v in world.world.issuer.metadata().items() if k != "revocation_endpoint"}
    world.network.fault = lambda request: (
        httpx.Response(200, json=metadata) if request.url.path.endswith("/openid-configuration") else None
    )
    out = await desk.run("logout")
    assert f"revoked at the issuer  no: {world.url}/issuer has no revocation_endpoint\n" in out.stdout


async def test_logout_ends_the_conversations_that_used_the_sign_in(desk: Desk, world: Inside) -> None:
    await desk.sign_in("alice", "--scope", "portfolio:read", "--scope", "orders:write")
    graph = assistant(world, calls("show_portfolio"), "There it is.", calls("show_portfolio"))
    with world.identity.caller(world.person("alice").principal):
        shown = await say(graph)
        assert "ACME" in str(shown["messages"][-2].content), "the terminal's sign-in serves the conversation"
        assert (await desk.facts("logout"))["sessions"] == 2
        asked = await say(graph)
    assert [request["kind"] for request in requests(asked)] == ["login"]


async def test_a_sign_in_without_the_scopes_of_a_conversation_does_not_serve_it(desk: Desk, world: Inside) -> None:
    """It would be refused at each exchange, and nobody would be asked for a better one."""
    await desk.sign_in("alice")
    graph = assistant(world, calls("show_portfolio"))
    with world.identity.caller(world.person("alice").principal):
        asked = await say(graph)
    assert [request["kind"] for request in requests(asked)] == ["login"]
