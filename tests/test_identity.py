"""``Identity``: who is calling, going on after a decision, closing and opening again, and two of them on one database."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from identity import Identity, Principal, RefusedError, Secret, SettingsError, Visitor
from identity.settings import load_settings
from identity.store import Database
from tests.support import URL, Inside, as_caller, assistant, calls, config, last, requests, say, signed_in

ALICE = Principal("default", "https://issuer.example", "alice")
BOB = Principal("default", "https://issuer.example", "bob")
ORDER = ("buy_stock", {"symbol": "ACME", "quantity": 50, "limit": "100"})
CIBA = "urn:openid:params:grant-type:ciba"


def embedded(home: Path, **more: Any) -> Identity:
    return Identity(load_settings(embedded=True, url=URL, home=home, **more))


# -- who is calling ------------------------------------------------------------------------------------------------------


def test_a_caller_is_named_for_a_block_and_nobody_is_left_behind(tmp_path: Path) -> None:
    identity = embedded(tmp_path)
    assert identity.current_caller() is None
    with identity.caller(ALICE):
        assert identity.current_caller() == ALICE
        with contextlib.suppress(RuntimeError), identity.caller(BOB):
            assert identity.current_caller() == BOB
            raise RuntimeError
        assert identity.current_caller() == ALICE
    assert identity.current_caller() is None


async def test_callers_of_tasks_and_threads_that_run_side_by_side_do_not_mix(tmp_path: Path) -> None:
    identity, met = embedded(tmp_path), asyncio.Barrier(2)

    async def run(caller: Principal) -> tuple[object, object]:
        with identity.caller(caller):
            await met.wait()
            return identity.current_caller(), await asyncio.to_thread(identity.current_caller)

    assert await asyncio.gather(run(ALICE), run(BOB)) == [(ALICE, ALICE), (BOB, BOB)]
    with identity.caller(ALICE), ThreadPoolExecutor(1) as threads:
        assert threads.submit(identity.current_caller).result() is None, "a thread that was told nothing knows nobody"
        assert threads.submit(contextvars.copy_context().run, identity.current_caller).result() == ALICE


def test_everybody_whom_nobody_named_is_the_visitor_of_the_settings(tmp_path: Path) -> None:
    identity = embedded(tmp_path, visitor="local")
    assert identity.current_caller() == Visitor("local")
    with identity.caller(ALICE):
        assert identity.current_caller() == ALICE


# -- opening and closing -----------------------------------------------------------------------------------------------


def test_nothing_is_opened_or_made_before_it_is_needed(tmp_path: Path) -> None:
    identity = embedded(tmp_path / "home")
    with identity.caller(ALICE):
        pass
    identity.close()
    assert list(tmp_path.iterdir()) == []


def test_threads_that_need_it_first_at_once_get_the_same_parts(tmp_path: Path) -> None:
    identity = embedded(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: identity.ledger, range(32)))
    assert len({id(ledger) for ledger in found}) == 1
    identity.close()


async def test_what_was_asked_of_people_stays_asked_when_the_identity_is_closed(world: Inside) -> None:
    graph = assistant(world, calls("show_portfolio"), "Here it is.")
    asked = requests(await say(graph))
    await asyncio.to_thread(world.identity.close)
    await asyncio.to_thread(world.identity.close)  # twice does no harm
    await world.person("alice").sign_in(asked[0])
    assert last(await world.identity.resume(graph, config())) == "Here it is."


# -- the key ring (casebook F3) ------------------------------------------------------------------------------------------


def _store_something(identity: Identity) -> None:
    identity.vault.store_grant(ALICE, refresh_token=Secret("rt"), scope="", expires_at=9e9, now=0.0)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _remove(ring: Path) -> None:
    ring.unlink()


def _remove_folder(ring: Path) -> None:
    ring.unlink()
    ring.parent.rmdir()


def _empty(ring: Path) -> None:
    ring.write_text("")


def _other(ring: Path) -> None:
    ring.write_text(ring.read_text().replace('"k": "', '"k": "AAAA', 1))


def _another_installations(ring: Path) -> None:
    other = embedded(ring.parents[2] / "other")
    _store_something(other)
    other.close()
    ring.write_text((ring.parents[2] / "other" / "keys" / "keyring.json").read_text())


def _row_key_removed(ring: Path) -> None:
    held = json.loads(ring.read_text())
    held["keys"] = [key for key in held["keys"] if key["use"] != "row"]
    ring.write_text(json.dumps(held))


@pytest.mark.case("F3")
@pytest.mark.parametrize("harm", [_remove, _remove_folder, _empty, _other, _another_installations, _row_key_removed])
def test_without_its_own_key_ring_the_database_is_refused_and_nothing_is_made_or_changed(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    home = tmp_path / "home"
    identity = embedded(home)
    _store_something(identity)
    identity.close()
    ring = home / "keys" / "keyring.json"
    backup = ring.read_text()
    harm(ring)
    before = _files(home)
    for _ in range(2):
        with pytest.raises(SettingsError) as refused:
            _ = embedded(home).vault
        assert "Restore" in refused.value.hint
    assert _files(home) == before
    ring.parent.mkdir(mode=0o700, exist_ok=True)
    ring.write_text(backup)
    ring.chmod(0o600)
    identity = embedded(home)
    grant = identity.vault.live_grant(ALICE, 1.0)
    assert grant is not None
    assert identity.vault.refresh_token(grant).reveal() == "rt"
    identity.close()


@pytest.mark.case("F3")
def test_a_deployment_never_makes_a_key_ring_by_itself_not_even_for_a_new_database(tmp_path: Path) -> None:
    settings = load_settings(
        issuer="https://issuer.example",
        client_id="agent",
        client_key_file=tmp_path / "client.json",
        data_dir=tmp_path / "data",
        key_file=tmp_path / "keys" / "keyring.json",
    )
    with pytest.raises(SettingsError, match=r"The key ring .* is missing"):
        _ = Identity(settings).vault
    assert list(tmp_path.iterdir()) == []


# -- going on --------------------------------------------------------------------------------------------------------------


async def test_a_thread_goes_on_when_it_was_decided_and_not_before(world: Inside) -> None:
    await signed_in(world)
    alice, loop = world.person("alice"), asyncio.get_running_loop()
    with as_caller(world, "alice"):
        graph = assistant(world, calls(ORDER), "Bought.")
        asked = requests(await say(graph))
        pauses = 0

        async def pause(seconds: float) -> None:
            nonlocal pauses
            pauses += 1
            assert world.orders() == []
            if pauses == 3:
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(alice.approve(asked[0]), loop))
            await world.clock.pause(seconds)

        world.identity.asking._pause = pause
        state = await world.identity.resume(graph, config())
    assert pauses >= 3
    assert last(state) == "Bought."
    assert len(world.orders()) == 1


async def test_code_without_an_event_loop_goes_on_too(world: Inside) -> None:
    graph = assistant(world, calls("get_quote", "show_portfolio"), "Here it is.", tools=_sync_tools())
    given = {"messages": [{"role": "user", "content": "go"}]}
    asked = requests(await asyncio.to_thread(graph.invoke, given, config()))
    await world.person("alice").sign_in(asked[0])
    state = await asyncio.to_thread(world.identity.resume_sync, graph, config())
    assert last(state) == "Here it is."
    assert [m.text for m in state["messages"] if m.type == "tool"] == ["98.40", "12 ACME"]


def _sync_tools() -> list[Any]:
    from langchain_core.tools import tool

    from identity import AccessToken, needs, resource

    @tool
    @needs(read_only=True)
    def get_quote() -> str:
        """A price."""
        return "98.40"

    @tool
    @needs(read_only=True, token=resource(f"{URL}/trading", "portfolio:read"))
    def show_portfolio(token: AccessToken) -> str:
        """What somebody owns."""
        assert token.reveal()
        return "12 ACME"

    return [get_quote, show_portfolio]


@pytest.mark.case("E13")
async def test_a_thread_goes_on_for_its_own_person_whoever_says_nothing_and_for_nobody_else(world: Inside) -> None:
    await signed_in(world)
    with as_caller(world, "alice"):
        graph = assistant(world, calls(ORDER), "Bought.")
        asked = requests(await say(graph))
    await world.person("alice").approve(asked[0])
    with as_caller(world, "bob"), pytest.raises(RefusedError, match="belongs to somebody"):
        await world.identity.resume(graph, config())
    assert world.orders() == []
    assert last(await world.identity.resume(graph, config())) == "Bought."
    assert [order.subject for order in world.orders()] == [world.person("alice").principal.subject]


async def test_a_round_of_polling_tells_what_was_decided_until_its_thread_was_woken(world: Inside) -> None:
    graph = assistant(world, calls("show_portfolio"))
    asked = requests(await say(graph))
    world.clock.advance(1)
    assert await world.identity.poll() == []
    await world.person("alice").sign_in(asked[0])
    world.clock.advance(1)
    (decided,) = await world.identity.poll()
    assert decided.id == asked[0]["id"]
    assert [r.id for r in await world.identity.poll()] == [decided.id], "its process may have died before it woke it"
    assert world.identity.ledger.woken(decided, world.clock())
    assert await world.identity.poll() == []


# -- restarts and neighbours -------------------------------------------------------------------------------------------------


@pytest.mark.case("E18")
async def test_a_conversation_goes_on_in_another_process_after_the_first_one_is_gone(world: Inside) -> None:
    saver = InMemorySaver()
    first = assistant(world, calls("show_portfolio"), "Here it is.", calls(ORDER), saver=saver)
    asked = requests(await say(first))
    await asyncio.to_thread(world.identity.close)  # while the login waits
    second = world.again()
    third: Identity | None = None
    try:
        await world.person("alice").sign_in(asked[0])
        graph = assistant(world, "Here it is.", calls(ORDER), saver=saver, identity=second)
        assert last(await second.resume(graph, config())) == "Here it is."
        with second.caller(world.person("alice").principal):
            asked = requests(await say(graph))
        assert [r["kind"] for r in asked] == ["approval"]
        await asyncio.to_thread(second.close)  # while the approval waits
        third = world.again()
        await world.person("alice").approve(asked[0])
        graph = assistant(world, "Bought.", saver=saver, identity=third)
        assert last(await third.resume(graph, config())) == "Bought."
    finally:
        await asyncio.to_thread(second.close)
        if third is not None:
            await asyncio.to_thread(third.close)
    assert len(world.orders()) == 1


async def test_of_two_processes_that_poll_at_once_one_redeems_each_approval(world: Inside) -> None:
    other = world.again()
    try:
        with as_caller(world, "alice"):
            for number in range(5):
                await signed_in(world, thread=f"t{number}")
                asked = requests(await say(assistant(world, calls(ORDER)), thread=f"t{number}"))
                await world.person("alice").approve(asked[0])
        world.clock.advance(2)
        await asyncio.gather(world.identity.poll(), other.poll(), world.identity.poll(), other.poll())
        states = world.identity.database.read("SELECT state FROM requests WHERE kind = 'approval'")
        assert states == [("approved",)] * 5
        assert world.network.grants().count(CIBA) == 5
    finally:
        await asyncio.to_thread(other.close)


@pytest.mark.case("F2")
async def test_after_a_whole_conversation_no_token_is_in_clear_in_any_file_of_the_deployment(world: Inside) -> None:
    graph = assistant(world, calls("show_portfolio"), "Here it is.", calls(ORDER), "Bought.")
    await world.person("alice").sign_in(requests(await say(graph))[0])
    await world.identity.resume(graph, config())
    with as_caller(world, "alice"):
        await world.person("alice").approve(requests(await say(graph))[0])
        assert last(await world.identity.resume(graph, config())) == "Bought."
        world.clock.advance(250)
        await say(assistant(world, calls("show_portfolio")), thread="t2")  # and a refresh token that was rotated twice
    kinds = {token[:3] for token in world.issued_tokens}
    assert kinds == {"eyJ", "rt_"}
    folder = world.home / "data"
    assert {path.name for path in folder.iterdir()} >= {"deputize.db", "deputize.db-wal"}

    def in_clear() -> list[str]:
        held = {path.name: path.read_bytes() for path in folder.iterdir()}
        return [name for name, data in held.items() for token in world.issued_tokens if token.encode() in data]

    assert in_clear() == []
    await asyncio.to_thread(world.identity.close)
    assert in_clear() == []
    held = Database(folder / "deputize.db")
    assert held.read("SELECT count(*) FROM grants WHERE generation > 1") == [(1,)]
    held.close()
