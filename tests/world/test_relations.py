"""What the embedded world writes into the agent's database about its people."""

from __future__ import annotations

import pytest

from agent.world import seed
from agent.world.forecasts import FORECASTS
from agent.world.trading import PRICES
from identity import Principal, Relation
from tests.support import Inside

RESTRICTED = {f"forecast:{f.id}" for f in FORECASTS if f.restricted}
ALL = {f"forecast:{f.id}" for f in FORECASTS}
INSTRUMENTS = [f"instrument:{symbol}" for symbol in PRICES]


@pytest.mark.parametrize(("who", "trades"), [("alice", True), ("carol", True), ("bob", False)])
def test_traders_buy_and_read_everything_and_an_analyst_what_is_not_restricted(
    world: Inside, who: str, trades: bool
) -> None:
    person, relations = world.person(who).principal, world.identity.relations
    assert relations.which(person, "can_buy", INSTRUMENTS) == (set(INSTRUMENTS) if trades else set())
    assert relations.which(person, "can_read", sorted(ALL)) == (ALL if trades else ALL - RESTRICTED)
    assert ALL > RESTRICTED > set()


def test_written_again_it_is_the_same_and_what_was_written_besides_stays(world: Inside) -> None:
    tenant, relations = world.identity.settings.tenant, world.identity.relations
    bob = world.person("bob").principal
    relations.write(tenant, [Relation(bob.key, "can_buy", "instrument:ACME")])
    rows = world.identity.database.read("SELECT * FROM relations ORDER BY object, relation, subject")
    seed(world.identity, world.world.installation)
    assert world.identity.database.read("SELECT * FROM relations ORDER BY object, relation, subject") == rows
    assert relations.may(bob, "can_buy", "instrument:ACME")


def test_a_namesake_of_another_issuer_has_none_of_it(world: Inside) -> None:
    alice = world.person("alice").principal
    namesake = Principal(alice.tenant, "https://issuer.example", alice.subject)
    assert world.identity.relations.which(namesake, "can_buy", INSTRUMENTS) == set()
    assert world.identity.relations.which(namesake, "can_read", sorted(ALL)) == ALL - RESTRICTED  # like everybody
