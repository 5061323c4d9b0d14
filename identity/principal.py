"""Who is asking: the principal, and the visitor that is not one yet.

A principal is (tenant, issuer, subject), everywhere: seals, rows, policy, audit (casebook G10). ``subject`` alone
names nobody, since two issuers may use the same one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .errors import UsageError

__all__ = ["WAKE", "Caller", "Principal", "Visitor", "caller_of"]


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


WAKE = "deputize_wake"
"""The key of ``configurable`` in which a woken run on the server carries its nonce. Clients cannot send it."""

Caller = Principal | Visitor
"""Who a run is for. Code that was told nothing has ``None`` instead: nobody, who owns nothing."""


def caller_of(user: Any, tenant: str, *, embedded: bool) -> Caller | None:
    """The caller that a LangGraph server's user stands for; ``None`` for anybody who was not admitted by deputize.

    Args:
        user: what the server keeps of the dictionary that ``authenticate`` returned.
    """
    issuer, subject, name = (_field(user, n) for n in ("deputize_issuer", "deputize_subject", "display_name"))
    if issuer and subject:
        return Principal(tenant, issuer, subject, "" if name == subject else name)
    if visitor := _field(user, "deputize_visitor"):
        return Visitor(visitor)
    if embedded and _field(user, "kind") == "StudioUser":
        # LangGraph Studio on this machine's own development world; it begins as a visitor like everybody (casebook E19).
        return Visitor("studio")
    return None


def _field(user: Any, name: str) -> str:
    try:
        found = user[name]
    except (KeyError, TypeError, AttributeError, IndexError):
        found = getattr(user, name, "")
    return found if isinstance(found, str) else ""
