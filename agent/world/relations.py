"""Who may do what in the embedded world: relations in the agent's own database, by the principals of its people."""

from __future__ import annotations

from identity import Identity, Principal, Relation
from identity.relations import EVERYONE

from .forecasts import FORECASTS
from .installation import Installation
from .trading import PRICES

__all__ = ["seed"]

_TRADERS = "group:traders"
_IN_IT = ("alice", "carol")


def seed(identity: Identity, installation: Installation) -> None:
    """Write the world's relations; those that are there stay, and one that was taken away is there again.

    Traders (alice and carol) may buy everything and read every forecast; everybody may read those that are not restricted. bob,
    an analyst, may buy nothing.
    """
    tenant = identity.settings.tenant
    known = installation.people
    people = [Principal(tenant, installation.issuer, known[name].subject) for name in _IN_IT if name in known]
    traders = f"{_TRADERS}#member"
    identity.relations.write(
        tenant,
        [Relation(person.key, "member", _TRADERS) for person in people]
        + [Relation(traders, "can_buy", f"instrument:{symbol}") for symbol in PRICES]
        + [Relation(traders if f.restricted else EVERYONE, "can_read", f"forecast:{f.id}") for f in FORECASTS],
    )
