"""Who is asking: the principal, and the visitor that is not one yet.

A principal is (tenant, issuer, subject), everywhere: seals, rows, policy, audit (casebook G10). ``subject`` alone
names nobody, since two issuers may use the same one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import UsageError

__all__ = ["Caller", "Principal", "Visitor"]


@dataclass(frozen=True, slots=True)
class Principal:
    """A person that an issuer has vouched for.

    Args:
        tenant: the organization in whose deployment this happens.
        issuer: the issuer identifier, compared as a string (RFC 9207 §2.4).
        subject: ``sub`` as the issuer wrote it.
        name: what to call the person on screens. Never used to decide anything.
    """

    tenant: str
    issuer: str
    subject: str
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for part in ("tenant", "issuer", "subject"):
            if not getattr(self, part):
                raise UsageError(f"A principal needs a {part}")

    @property
    def key(self) -> str:
        """This principal as the owner of rows. Unambiguous: the length of each part leads it."""
        return "user:" + "".join(f"{len(part)}:{part}" for part in (self.tenant, self.issuer, self.subject))


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who has not signed in, known by an id that the application minted. May chat and use public tools."""

    id: str

    def __post_init__(self) -> None:
        if not self.id:
            raise UsageError("A visitor needs an id")

    @property
    def key(self) -> str:
        """This visitor as the owner of rows."""
        return f"visitor:{self.id}"


Caller = Principal | Visitor
"""Who a run is for. Code that was told nothing has ``None`` instead: nobody, who owns nothing."""
