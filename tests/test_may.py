"""``may()`` in a whole graph: who lacks the relation is told so, nobody is asked to approve it, and nothing is called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, tool

from identity import AccessToken, Principal, Relation, approval, may, needs, resource, signed_in
from identity.calls import OpenCall
from identity.gate import Examined, Gate
from identity.needs import binding
from identity.policy import Allow, Deny, StepUp
from identity.relations import EVERYONE
from identity.sessions import Place
from tests.support import (
    Inside,
    as_caller,
    assistant,
    calls,
    config,
    last,
    requests,
    say,
    sign_in,
)
from tests.support import (
    signed_in as session_of,
)

SMALL = ("buy_stock", {"symbol": "ACME", "quantity": 5, "limit": "100"})
LARGE = ("buy_stock", {"symbol": "ACME", "quantity": 50, "limit": "100"})
REFUSED = "You may not buy ACME here (can_buy on instrument:ACME). Ask an administrator."
TRADING = Relation("group:traders#member", "can_buy", "instrument:ACME")


def answers(state: Any) -> list[str]:
    return [str(m.content) for m in state["messages"] if isinstance(m, ToolMessage)]


def sent(world: Inside, path: str) -> int:
    return sum(request.url.endswith(path) for request in world.network.sent)


def exchanges(world: Inside) -> int:
    return sum("token-exchange" in grant for grant in world.network.grants())


def take_away(world: Inside, *relations: Relation) -> None:
    world.identity.relations.delete(world.identity.settings.tenant, relations)


def member(person: Principal) -> Relation:
    return Relation(person.key, "member", "group:traders")


@pytest.mark.parametrize("order", [SMALL, LARGE], ids=["small", "large"])
async def test_who_may_not_buy_is_told_so_after_the_sign_in_and_asked_for_nothing(world: Inside, order: Any) -> None:
    graph = assistant(world, calls(order), "Sorry.")
    assert [r["kind"] for r in requests(await say(graph))] == ["login"]  # first of all: who is it?
    (asked,) = requests(await graph.ainvoke(None, config()))
    await world.person("bob").sign_in(asked)
    state = await world.identity.resume(graph, config())
    assert answers(state) == [REFUSED]
    assert state["messages"][-2].status == "error"
    assert last(state) == "Sorry."
    assert (sent(world, "/bc-authorize"), exchanges(world), sent(world, "/trading/orders")) == (0, 0, 0)


@pytest.mark.parametrize("who", ["alice", "carol"])
async def test_who_may_buy_buys(world: Inside, who: str) -> None:
    state = await sign_in(world, assistant(world, calls(SMALL)), who)
    assert "Bought 5 ACME" in answers(state)[0]
    assert [order.subject for order in world.orders()] == [world.person(who).principal.subject]


async def test_what_else_was_called_in_the_turn_is_done(world: Inside) -> None:
    state = await sign_in(world, assistant(world, calls(LARGE, ("get_quote", {"symbol": "NOVA"}))), "bob")
    assert sorted(answers(state)) == ["NOVA: 41.15 USD", REFUSED]
    assert not requests(state)


@pytest.mark.parametrize("taken", ["the relation", "the membership"])
async def test_a_relation_that_was_taken_away_since_the_approval_denies(world: Inside, taken: str) -> None:
    graph, alice = assistant(world, calls(LARGE), "Sorry."), world.person("alice")
    (asked,) = requests(await sign_in(world, graph))
    assert asked["kind"] == "approval"
    await alice.approve(asked)
    take_away(world, TRADING if taken == "the relation" else member(alice.principal))
    state = await world.identity.resume(graph, config())
    request = world.identity.ledger.request(asked["id"])
    assert request is not None
    assert request.state == "approved"
    assert answers(state) == [REFUSED]
    assert sent(world, "/trading/orders") == 0


async def test_one_that_was_taken_away_while_the_approval_waits_denies_without_waiting_on(world: Inside) -> None:
    graph = assistant(world, calls(LARGE), "Sorry.")
    assert [r["kind"] for r in requests(await sign_in(world, graph))] == ["approval"]
    take_away(world, TRADING)
    with as_caller(world, "alice"):
        state = await graph.ainvoke(None, config())
    assert not requests(state)
    assert answers(state) == [REFUSED]


@tool
@needs(may("can_read", "report:{number}"), read_only=True)
def report(number: int) -> str:
    """Read a report."""
    return f"Report {number}: as {_person()}"


def _person() -> str:
    lent = binding.get()
    assert lent is not None
    return lent.principal.subject if lent.principal else "nobody"


async def test_the_look_right_before_the_call_is_a_look_of_its_own(world: Inside) -> None:
    """Attack: what was decided at the edge is taken as decided, and the right is withdrawn in between."""
    alice = (await session_of(world)).principal
    relation = Relation(alice.key, "can_read", "report:7")
    world.identity.relations.write(alice.tenant, [relation])
    gate, call = Gate([report], "assistant", world.identity), OpenCall("m", "c", "report", {"number": 7})
    with as_caller(world, "alice"):
        (examined,) = gate.examine([call], config(), {}, {})
        assert examined.decision == Allow()
        admitted = gate.admit(call, config(), {}, {})
        assert isinstance(admitted, Examined)
        with gate.bound(admitted) as invocation:
            assert report.invoke(invocation).content == f"Report 7: as {alice.subject}"
        take_away(world, relation)
        refused = gate.admit(call, config(), {}, {})
    assert isinstance(refused, ToolMessage)
    assert refused.content == "You may not read 7 here (can_read on report:7). Ask an administrator."


async def test_an_effect_that_was_had_is_told_whatever_became_of_the_relation(world: Inside) -> None:
    graph = assistant(world, calls(SMALL))
    state = await sign_in(world, graph)
    turn = state["messages"][1]
    take_away(world, TRADING)
    gate = Gate(world.tools(), "assistant", world.identity)
    call = OpenCall(turn.id, turn.tool_calls[0]["id"], *SMALL)
    with as_caller(world, "alice"):
        told = gate.admit(call, config(), {}, {})
    assert isinstance(told, ToolMessage)
    assert "Bought 5 ACME" in str(told.content)
    assert sent(world, "/trading/orders") == 1


ODD = ["", " ", "AC ME", "ACME ", "ACME\n", "ACME#member", "ACME\u200b", "../ACME", "acme", "*", "x" * 300]


@pytest.mark.parametrize("symbol", ODD, ids=repr)
async def test_an_odd_name_reaches_nobody(world: Inside, symbol: str) -> None:
    turn = calls(("buy_stock", {**LARGE[1], "symbol": symbol}))
    state = await sign_in(world, assistant(world, turn, "Sorry."))
    assert not requests(state)
    assert "You may not buy" in answers(state)[0] or "cannot be told" in answers(state)[0]
    assert "\n" not in answers(state)[0]
    assert (sent(world, "/bc-authorize"), exchanges(world), sent(world, "/trading/orders")) == (0, 0, 0)


def transfers(world: Inside, done: list[Sequence[str]]) -> BaseTool:
    @tool
    @needs(
        may("can_pay_from", lambda accounts: [f"account:{number}" for number in accounts]),
        may("can_pay_to", "account:{to}"),
        approval(),
        token=resource(f"{world.url}/trading", "orders:write"),
    )
    def transfer(accounts: list[str], to: str, token: AccessToken) -> str:
        """Move money."""
        done.append(accounts)
        return "moved"

    return transfer


@pytest.mark.parametrize(
    ("accounts", "to", "asked"),
    [
        (["1", "2"], "9", True),
        (["1"], "9", True),
        (["1", "3"], "9", False),
        (["3"], "9", False),
        ([], "9", False),
        (["1", "2"], "8", False),
        (["1", ""], "9", False),
    ],
)
async def test_all_of_several_objects_and_conditions_must_hold(
    world: Inside, accounts: list[str], to: str, asked: bool
) -> None:
    alice = world.person("alice").principal
    done: list[Sequence[str]] = []
    held = [("can_pay_from", "1"), ("can_pay_from", "2"), ("can_pay_to", "9")]
    allowed = [Relation(alice.key, relation, f"account:{number}") for relation, number in held]
    allowed.append(Relation(world.person("bob").principal.key, "can_pay_from", "account:3"))
    world.identity.relations.write(alice.tenant, allowed)
    turn = calls(("transfer", {"accounts": accounts, "to": to}))
    graph = assistant(world, turn, tools=[transfers(world, done)])
    state = await sign_in(world, graph)
    assert [r["kind"] for r in requests(state)] == (["approval"] if asked else [])
    if asked:
        await world.person("alice").approve(requests(state)[0])
        state = await world.identity.resume(graph, config())
    assert answers(state) == ["moved"] if asked else "moved" not in answers(state)[0]
    assert done == ([accounts] if asked else [])


async def test_a_table_that_cannot_be_read_denies_and_the_thread_can_be_used_afterwards(world: Inside) -> None:
    with world.identity.database.write() as db:
        db.execute("ALTER TABLE relations RENAME TO gone")
    graph = assistant(world, calls(LARGE), "Sorry.", calls(LARGE))
    state = await sign_in(world, graph)
    assert answers(state) == [
        "Whether you may do this could not be looked up (can_buy), so it was not done. Try again later."
    ]
    assert (sent(world, "/bc-authorize"), sent(world, "/trading/orders")) == (0, 0)
    with world.identity.database.write() as db:
        db.execute("ALTER TABLE gone RENAME TO relations")
    with as_caller(world, "alice"):
        assert [r["kind"] for r in requests(await say(graph))] == ["approval"]


async def test_a_relation_of_another_tenant_or_of_a_namesake_is_not_the_persons(world: Inside) -> None:
    bob = world.person("bob").principal
    other = Principal("other", bob.issuer, bob.subject)
    namesake = Principal(bob.tenant, "https://issuer.example", bob.subject)
    world.identity.relations.write("other", [Relation(p, "can_buy", "instrument:ACME") for p in (EVERYONE, other.key)])
    world.identity.relations.write(bob.tenant, [Relation(namesake.key, "can_buy", "instrument:ACME")])
    assert answers(await sign_in(world, assistant(world, calls(SMALL)), "bob")) == [REFUSED]


def test_the_gate_denies_for_nobody_too(world: Inside) -> None:
    """Everybody who is signed in may; a visitor is asked to sign in."""
    tenant = world.identity.settings.tenant
    world.identity.relations.write(tenant, [Relation(EVERYONE, "can_read", "report:7")])
    gate, call = Gate([report], "assistant", world.identity), OpenCall("m", "c", "report", {"number": 7})
    assert gate.examine([call], config(), {}, {})[0].decision == StepUp("login")
    assert isinstance(gate.admit(call, config(), {}, {}), ToolMessage)


async def test_a_denial_says_its_code(world: Inside) -> None:
    await session_of(world)
    gate, call = Gate([report], "assistant", world.identity), OpenCall("m", "c", "report", {"number": 7})
    with as_caller(world, "alice"):
        decision = gate.examine([call], config(), {}, {})[0].decision
    assert isinstance(decision, Deny)
    assert decision.code == "forbidden"


# -- signed_in() ---------------------------------------------------------------------------------------------------------


@tool
@needs(signed_in(), read_only=True)
async def whoami() -> str:
    """Who the user is."""
    return _person()


@tool
@needs(read_only=True)
async def public() -> str:
    """For everybody."""
    return _person()


async def test_a_tool_that_needs_to_know_who_it_is_asks_for_a_login_and_for_no_token(world: Inside) -> None:
    alice = world.person("alice").principal
    graph = assistant(world, calls("whoami"), calls("public"), tools=[whoami, public])
    assert answers(await sign_in(world, graph)) == [alice.subject, alice.subject]
    assert exchanges(world) == 0


async def test_a_public_tool_runs_for_nobody_before_that(world: Inside) -> None:
    assert answers(await say(assistant(world, calls("public"), tools=[whoami, public]))) == ["nobody"]


async def test_a_session_that_has_ended_is_nobodys(world: Inside) -> None:
    graph = assistant(
        world, calls("whoami"), "Done.", calls("public"), "Done.", calls("whoami"), tools=[whoami, public]
    )
    await sign_in(world, graph)
    session = world.identity.sessions.of(Place(world.identity.settings.tenant, "assistant", "t1"))
    assert session is not None
    world.identity.sessions.end(session, world.clock())
    with as_caller(world, "alice"):
        assert answers(await say(graph))[-1] == "nobody"
        assert [r["kind"] for r in requests(await say(graph))] == ["login"]
