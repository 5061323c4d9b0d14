"""Relations: who may do what with which object. Direct ones, and one level of groups.

A relation is a triple (subject, relation, object), such as ``("group:traders#member", "can_buy", "instrument:ACME")``. A
subject is a person (:attr:`identity.principal.Principal.key`) or the members of a group; who is a member is a relation too:
``(alice, "member", "group:traders")``. What was not written is not so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .errors import UsageError
from .principal import Principal
from .store import Database

__all__ = ["EVERYONE", "Relation", "Relations"]

EVERYONE = "user:*"
"""A subject that stands for everybody who is signed in."""

MEMBER = "member"

_OBJECT = re.compile(r"[a-z][a-z0-9_-]{0,49}:[^\s#]{1,200}")
_RELATION = re.compile(r"[a-z][a-z0-9_]{0,49}")
_MANY = 500


@dataclass(frozen=True, slots=True)
class Relation:
    """One triple.

    Args:
        subject: ``Principal.key``, ``group:NAME#member``, or :data:`EVERYONE`.
        relation: lower case, such as ``can_buy``.
        object: ``type:id``, such as ``instrument:ACME``.
    """

    subject: str
    relation: str
    object: str

    def __post_init__(self) -> None:
        if not _RELATION.fullmatch(self.relation):
            raise UsageError(f"{self.relation!r} is not a relation", "Name it like can_buy: lower case, no spaces")
        if not is_object(self.object):
            raise UsageError(f"{self.object!r} is not an object", "Name it by type and id, like instrument:ACME")
        if not self.subject.startswith("user:") and not (
            self.subject.endswith(f"#{MEMBER}") and is_object(self.subject.removesuffix(f"#{MEMBER}"))
        ):
            raise UsageError(f"{self.subject!r} is no subject", "Give a principal's key, group:NAME#member or user:*")


def is_object(name: str) -> bool:
    """Whether ``name`` is a ``type:id`` that can be asked about. Anything else has no relations at all."""
    return bool(_OBJECT.fullmatch(name)) and name.isprintable()


class Relations:
    """The table of relations of one tenant each."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def write(self, tenant: str, relations: Iterable[Relation]) -> None:
        """Add relations; those that are there stay."""
        with self._db.write() as db:
            db.executemany(
                "INSERT INTO relations (tenant, object, relation, subject) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                [(tenant, r.object, r.relation, r.subject) for r in relations],
            )

    def delete(self, tenant: str, relations: Iterable[Relation]) -> None:
        """Remove relations; those that are not there are passed over."""
        with self._db.write() as db:
            db.executemany(
                "DELETE FROM relations WHERE tenant = ? AND object = ? AND relation = ? AND subject = ?",
                [(tenant, r.object, r.relation, r.subject) for r in relations],
            )

    def of(self, tenant: str, object_: str) -> list[Relation]:
        """Every relation to an object."""
        rows = self._db.read(
            "SELECT subject, relation, object FROM relations WHERE tenant = ? AND object = ? ORDER BY relation, subject",
            (tenant, object_),
        )
        return [Relation(*row) for row in rows]

    def may(self, principal: Principal, relation: str, object_: str) -> bool:
        """Whether the person has the relation to the object, directly or through a group."""
        return object_ in self.which(principal, relation, [object_])

    def which(self, principal: Principal, relation: str, objects: Sequence[str]) -> set[str]:
        """Those of ``objects`` to which the person has the relation. One look-up for up to 500 of them."""
        subjects = [principal.key, EVERYONE, *self._groups(principal)]
        asked = sorted({name for name in objects if is_object(name)})
        found: set[str] = set()
        for start in range(0, len(asked), _MANY):
            part = asked[start : start + _MANY]
            rows = self._db.read(
                "SELECT DISTINCT object FROM relations WHERE tenant = ? AND relation = ?"
                f" AND object IN ({_marks(part)}) AND subject IN ({_marks(subjects)})",  # noqa: S608 - question marks
                (principal.tenant, relation, *part, *subjects),
            )
            found |= {row[0] for row in rows}
        return found

    def _groups(self, principal: Principal) -> list[str]:
        """The person's own groups as subjects. One level: groups of groups are not looked through."""
        rows = self._db.read(
            "SELECT object FROM relations WHERE tenant = ? AND subject = ? AND relation = ? LIMIT 1000",
            (principal.tenant, principal.key, MEMBER),
        )
        return [f"{row[0]}#{MEMBER}" for row in rows]


def _marks(values: Sequence[str]) -> str:
    return ", ".join("?" * len(values))
