"""Relations: who may do what with which object. Direct ones, and one level of groups.

A relation is a triple (subject, relation, object), such as ``("group:traders#member", "can_buy", "instrument:ACME")``. A
subject is a person (:attr:`identity.principal.Principal.key`) or the members of a group; who is a member is a relation too:
``(alice.key, "member", "group:traders")``. What was not written is not so.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .conditions import May, is_object, is_relation
from .errors import UsageError
from .policy import RelationState
from .principal import Principal
from .store import Database

__all__ = ["EVERYONE", "Relation", "Relations"]

EVERYONE = "user:*"
"""A subject that stands for everybody who is signed in."""

MEMBER = "member"

_log = logging.getLogger("deputize")

# One statement, so that membership and relation are those of one moment.
_WHICH = """
    SELECT DISTINCT object FROM relations
    WHERE tenant = ? AND relation = ? AND object IN (SELECT value FROM json_each(?)) AND subject IN (
        SELECT ? UNION ALL SELECT ? UNION ALL
        SELECT object || '#member' FROM relations WHERE tenant = ? AND subject = ? AND relation = ?
    )
"""


@dataclass(frozen=True, slots=True)
class Relation:
    """One triple.

    Args:
        subject: ``Principal.key``, ``group:NAME#member``, or :data:`EVERYONE`.
        relation: lower case, such as ``can_buy``.
        object: ``type:id``, such as ``instrument:ACME``.

    Raises:
        UsageError: one of them cannot be what it should be, so that the relation would never hold.
    """

    subject: str
    relation: str
    object: str

    def __post_init__(self) -> None:
        if not is_relation(self.relation):
            raise UsageError(f"{self.relation!r} is not a relation", "Name it like can_buy: lower case, no spaces")
        if not is_object(self.object):
            raise UsageError(f"{self.object!r} is not an object", "Name it by type and id, like instrument:ACME")
        if self.subject != EVERYONE and not _tenant_of(self.subject) and not _is_group(self.subject):
            raise UsageError(f"{self.subject!r} is no subject", "Give a principal's key, group:NAME#member or user:*")
        if self.relation == MEMBER and not _tenant_of(self.subject):
            raise UsageError(
                f"{self.subject!r} cannot be a member", "Groups hold people; groups in groups are not read"
            )


def _is_group(subject: str) -> bool:
    group, _, members = subject.rpartition("#")
    return members == MEMBER and is_object(group) and not group.startswith("user:")


def _tenant_of(subject: str) -> str:
    """The tenant of a principal's key; empty for any other text."""
    rest, parts = subject.removeprefix("user:"), []
    while rest and subject.startswith("user:"):
        length = re.match(r"([1-9][0-9]{0,8}):", rest)
        if length is None or len(rest) < length.end() + int(length[1]):
            return ""
        parts.append(rest[length.end() : length.end() + int(length[1])])
        rest = rest[length.end() + int(length[1]) :]
    return parts[0] if len(parts) == 3 else ""


class Relations:
    """The table of relations; every question and every change is about one tenant's (casebook G10)."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def write(self, tenant: str, relations: Iterable[Relation]) -> None:
        """Add relations, all or none; those that are there stay.

        Raises:
            UsageError: a subject is somebody of another tenant.
        """
        rows = [(tenant, r.object, r.relation, r.subject) for r in relations]
        for *_, subject in rows:
            if _tenant_of(subject) not in ("", tenant):
                raise UsageError(f"{subject!r} is nobody of the tenant {tenant!r}", "Write it for their own tenant")
        with self._db.write() as db:
            db.executemany(
                "INSERT INTO relations (tenant, object, relation, subject) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                rows,
            )

    def delete(self, tenant: str, relations: Iterable[Relation]) -> None:
        """Remove relations; those that are not there are passed over. The next look at a call, and the call itself, see it."""
        with self._db.write() as db:
            db.executemany(
                "DELETE FROM relations WHERE tenant = ? AND object = ? AND relation = ? AND subject = ?",
                [(tenant, r.object, r.relation, r.subject) for r in relations],
            )

    def of(self, tenant: str, object_: str) -> list[Relation]:
        """Every relation to an object, as it was written: groups are not resolved."""
        rows = self._db.read(
            "SELECT subject, relation, object FROM relations WHERE tenant = ? AND object = ? ORDER BY relation, subject",
            (tenant, object_),
        )
        return [Relation(*row) for row in rows]

    def may(self, principal: Principal, relation: str, object_: str) -> bool:
        """Whether the person has the relation to the object, directly or through a group."""
        return object_ in self.which(principal, relation, [object_])

    def check(
        self, principal: Principal, conditions: Sequence[May], arguments: Mapping[str, Any]
    ) -> tuple[RelationState, str]:
        """Whether the person has every relation that a call with these arguments takes; if not, a sentence about why.

        Whatever goes wrong here is a no (casebook G1).
        """
        for condition in conditions:
            objects = condition.objects(arguments)
            if not objects:
                return "unknown", (
                    f"It cannot be told from its arguments what this call is about ({condition.relation} is needed on it),"
                    " so it was not made."
                )
            try:
                held = self.which(principal, condition.relation, objects)
            except Exception as error:
                _log.warning("The relation %s could not be looked up: %s", condition.relation, error)
                return "unknown", (
                    f"Whether you may do this could not be looked up ({condition.relation}), so it was not done."
                    " Try again later."
                )
            for name in objects:
                if name not in held:
                    return "missing", condition.refusal(name)
        return "holds", ""

    def which(self, principal: Principal, relation: str, objects: Sequence[str]) -> set[str]:
        """Those of ``objects`` to which the person has the relation: one look-up, however many there are."""
        asked = json.dumps([name for name in objects if is_object(name)])
        person = principal.key
        rows = self._db.read(
            _WHICH, (principal.tenant, relation, asked, person, EVERYONE, principal.tenant, person, MEMBER)
        )
        return {row[0] for row in rows}
