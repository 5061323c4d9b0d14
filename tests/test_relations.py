"""Relations in the database: what was not written is not so, groups are one level, tenants are apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from identity import Principal, Relation, UsageError, may
from identity.relations import EVERYONE, Relations
from identity.store import Database
from tests.support import stored

ALICE = Principal("acme", "https://issuer.example", "alice", "Alice")
BOB = Principal("acme", "https://issuer.example", "bob")
DOCUMENT = "document:1"
TRADERS = "group:traders"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database, _ = stored(tmp_path)
    yield database
    database.close()


@pytest.fixture
def relations(database: Database) -> Relations:
    return Relations(database)


def write(relations: Relations, *triples: tuple[str, str, str], tenant: str = "acme") -> None:
    relations.write(tenant, [Relation(*triple) for triple in triples])


def test_what_was_not_written_is_not_so(relations: Relations) -> None:
    assert not relations.may(ALICE, "can_read", DOCUMENT)
    write(relations, (ALICE.key, "can_read", DOCUMENT))
    assert relations.may(ALICE, "can_read", DOCUMENT)
    assert not relations.may(BOB, "can_read", DOCUMENT)
    assert not relations.may(ALICE, "can_read", "document:2")
    assert not relations.may(ALICE, "can_read", "document:11")
    assert not relations.may(ALICE, "can_read", "Document:1")


@pytest.mark.case("G3")
def test_one_relation_to_an_object_says_nothing_about_another_one(relations: Relations) -> None:
    write(relations, (ALICE.key, "can_edit", DOCUMENT), (BOB.key, "can_read", DOCUMENT))
    assert not relations.may(ALICE, "can_read", DOCUMENT)
    assert not relations.may(BOB, "can_edit", DOCUMENT)
    assert not relations.may(ALICE, "can", DOCUMENT)
    assert not relations.may(ALICE, "can_%", DOCUMENT)


def test_a_group_holds_people_and_gives_them_what_its_members_may(relations: Relations) -> None:
    write(relations, (ALICE.key, "member", TRADERS), (f"{TRADERS}#member", "can_read", DOCUMENT))
    assert relations.may(ALICE, "can_read", DOCUMENT)
    assert not relations.may(BOB, "can_read", DOCUMENT)
    relations.delete("acme", [Relation(ALICE.key, "member", TRADERS)])
    assert not relations.may(ALICE, "can_read", DOCUMENT)


def test_being_related_to_a_group_is_not_being_its_member(relations: Relations) -> None:
    write(relations, (ALICE.key, "can_edit", TRADERS), (f"{TRADERS}#member", "can_read", DOCUMENT))
    assert not relations.may(ALICE, "can_read", DOCUMENT)


def test_a_relation_that_a_person_has_twice_goes_with_the_second(relations: Relations) -> None:
    direct = (ALICE.key, "can_read", DOCUMENT)
    write(relations, direct, (ALICE.key, "member", TRADERS), (f"{TRADERS}#member", "can_read", DOCUMENT))
    relations.delete("acme", [Relation(*direct)])
    assert relations.may(ALICE, "can_read", DOCUMENT)
    relations.delete("acme", [Relation(f"{TRADERS}#member", "can_read", DOCUMENT)])
    assert not relations.may(ALICE, "can_read", DOCUMENT)


def test_everyone_is_everybody_who_is_signed_in(relations: Relations) -> None:
    write(relations, (EVERYONE, "can_read", DOCUMENT))
    assert relations.may(ALICE, "can_read", DOCUMENT)
    assert relations.may(BOB, "can_read", DOCUMENT)
    assert not relations.may(Principal("other", BOB.issuer, BOB.subject), "can_read", DOCUMENT)


@pytest.mark.parametrize(
    "stranger",
    [
        Principal("other", ALICE.issuer, ALICE.subject),
        Principal("acme", "https://issuer.example/", ALICE.subject),
        Principal("acme", ALICE.issuer, "Alice"),
        Principal("acm", "ehttps://issuer.example", ALICE.subject),
    ],
)
def test_a_person_is_tenant_issuer_and_subject(relations: Relations, stranger: Principal) -> None:
    write(relations, (ALICE.key, "can_read", DOCUMENT), (ALICE.key, "member", TRADERS))
    write(relations, (f"{TRADERS}#member", "can_read", "document:2"))
    assert relations.which(ALICE, "can_read", [DOCUMENT, "document:2"]) == {DOCUMENT, "document:2"}
    assert relations.which(stranger, "can_read", [DOCUMENT, "document:2"]) == set()


@pytest.mark.case("G10")
def test_tenants_are_apart(relations: Relations) -> None:
    theirs = Principal("other", ALICE.issuer, ALICE.subject)
    write(relations, (ALICE.key, "member", TRADERS), (EVERYONE, "can_read", "document:2"))
    write(relations, (f"{TRADERS}#member", "can_read", DOCUMENT), tenant="other")
    assert relations.which(ALICE, "can_read", [DOCUMENT, "document:2"]) == {"document:2"}
    assert relations.which(theirs, "can_read", [DOCUMENT, "document:2"]) == set()
    assert relations.of("other", "document:2") == []
    relations.delete("other", [Relation(EVERYONE, "can_read", "document:2")])
    assert relations.may(ALICE, "can_read", "document:2")


def test_nobody_of_another_tenant_is_given_anything(relations: Relations) -> None:
    with pytest.raises(UsageError, match="nobody of the tenant 'acme'"):
        write(relations, (EVERYONE, "can_read", DOCUMENT), ("user:5:other3:iss3:sub", "can_read", DOCUMENT))
    assert relations.of("acme", DOCUMENT) == []  # all or none


def test_relations_are_listed_as_they_were_written_and_written_once(relations: Relations) -> None:
    triples = [(ALICE.key, "can_edit", DOCUMENT), (f"{TRADERS}#member", "can_read", DOCUMENT)]
    write(relations, *triples)
    write(relations, *triples)
    assert relations.of("acme", DOCUMENT) == [Relation(*triple) for triple in triples]
    relations.delete("acme", [Relation(BOB.key, "can_edit", DOCUMENT)])
    assert len(relations.of("acme", DOCUMENT)) == 2


def test_many_objects_are_one_question(relations: Relations, database: Database) -> None:
    names = [f"document:{n}" for n in range(1_500)]
    write(relations, *((ALICE.key, "can_read", name) for name in names[::2]))
    asked: list[str] = []
    read = database.read
    database.read = lambda sql, parameters=(): asked.append(sql) or read(sql, parameters)  # type: ignore[method-assign,func-returns-value]
    assert relations.which(ALICE, "can_read", names) == set(names[::2])
    assert len(asked) == 1


def test_the_question_is_answered_from_indexes_however_many_relations_there_are(database: Database) -> None:
    from identity.relations import _WHICH

    plan = [
        row[3] for row in database.read(f"EXPLAIN QUERY PLAN {_WHICH}", ["acme", "r", "[]", "a", "b", "acme", "a", "m"])
    ]
    looks = [step for step in plan if "relations" in step]
    assert len(looks) == 2
    assert "(tenant=? AND object=? AND relation=? AND subject=?)" in looks[0]
    assert "(tenant=? AND subject=? AND relation=?)" in looks[1]


@pytest.mark.case("G3")
@pytest.mark.parametrize(
    "name", ["", "1", "document:", "document:1 ", "document: 1", "document:1#member", "document:1\n"]
)
def test_a_name_that_is_no_object_has_no_relations_even_if_the_table_says_so(
    relations: Relations, database: Database, name: str
) -> None:
    with database.write() as db:
        db.execute("INSERT INTO relations VALUES ('acme', ?, 'can_read', ?)", (name, ALICE.key))
    assert relations.which(ALICE, "can_read", [name]) == set()


@pytest.mark.parametrize(
    ("triple", "why"),
    [
        (("user:alice", "can_read", DOCUMENT), "is no subject"),
        (("alice", "can_read", DOCUMENT), "is no subject"),
        (("", "can_read", DOCUMENT), "is no subject"),
        (("visitor:1", "can_read", DOCUMENT), "is no subject"),
        (("user:4:acme3:iss", "can_read", DOCUMENT), "is no subject"),
        (("user:4:acme3:iss3:subX", "can_read", DOCUMENT), "is no subject"),
        (("user:9:acme3:iss3:sub", "can_read", DOCUMENT), "is no subject"),
        (("user:*#member", "can_read", DOCUMENT), "is no subject"),
        (("group:traders", "can_read", DOCUMENT), "is no subject"),
        (("group:traders#owner", "can_read", DOCUMENT), "is no subject"),
        (("#member", "can_read", DOCUMENT), "is no subject"),
        (("group:a b#member", "can_read", DOCUMENT), "is no subject"),
        ((ALICE.key, "can read", DOCUMENT), "is not a relation"),
        ((ALICE.key, "", DOCUMENT), "is not a relation"),
        ((ALICE.key, "can_read", "1"), "is not an object"),
        ((ALICE.key, "can_read", "document:1#member"), "is not an object"),
        ((EVERYONE, "member", TRADERS), "cannot be a member"),
        (("group:juniors#member", "member", TRADERS), "cannot be a member"),
    ],
    ids=repr,
)
def test_a_relation_that_could_never_hold_is_refused(triple: tuple[str, str, str], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Relation(*triple)


# -- what a call is asked ----------------------------------------------------------------------------------------------

BUY = may("can_buy", "instrument:{symbol}")
EACH = may("can_buy", lambda symbols: [f"instrument:{symbol}" for symbol in symbols])


@pytest.fixture
def trading(relations: Relations) -> Relations:
    write(relations, *((ALICE.key, "can_buy", f"instrument:{symbol}") for symbol in ("ACME", "NOVA")))
    return relations


@pytest.mark.parametrize(
    ("conditions", "arguments", "state", "told"),
    [
        ([BUY], {"symbol": "ACME"}, "holds", ""),
        ([BUY], {"symbol": "HALO"}, "missing", "You may not buy HALO"),
        ([BUY], {"symbol": "acme"}, "missing", "You may not buy acme"),
        ([BUY], {"symbol": ""}, "unknown", "cannot be told"),
        ([BUY], {"symbol": "AC ME"}, "unknown", "cannot be told"),
        ([EACH], {"symbols": ["ACME", "NOVA"]}, "holds", ""),
        ([EACH], {"symbols": ["ACME", "HALO"]}, "missing", "You may not buy HALO"),
        ([EACH], {"symbols": ["ACME", "a b"]}, "unknown", "cannot be told"),
        ([EACH], {"symbols": []}, "unknown", "cannot be told"),
        ([BUY, EACH], {"symbol": "ACME", "symbols": ["HALO"]}, "missing", "You may not buy HALO"),
        ([BUY, may("can_sell", "instrument:{symbol}")], {"symbol": "ACME"}, "missing", "You may not sell ACME"),
    ],
)
def test_a_call_is_for_whoever_has_every_relation_that_it_takes(
    trading: Relations, conditions: list[Any], arguments: dict[str, Any], state: str, told: str
) -> None:
    found, why = trading.check(ALICE, conditions, arguments)
    assert found == state
    assert told in why
    assert trading.check(BOB, conditions, arguments)[0] != "holds"


def test_a_database_that_fails_is_a_no(
    trading: Relations, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with database.write() as db:
        db.execute("DROP TABLE relations")
    state, told = trading.check(ALICE, [BUY], {"symbol": "ACME"})
    assert state == "unknown"
    assert told == "Whether you may do this could not be looked up (can_buy), so it was not done. Try again later."
    assert "can_buy could not be looked up" in caplog.text
