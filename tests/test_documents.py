"""The filter for retrieved documents: what the person may not read never leaves it, by whatever way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import create_retriever_tool

from identity import Principal, Relation, UsageError, Visitor, needs, signed_in
from identity.documents import PermittedRetriever
from identity.errors import RefusedError, StoreError
from identity.needs import NOTHING, Binding, binding
from identity.relations import EVERYONE
from identity.sessions import Place
from tests.support import Inside, as_caller, assistant, calls, config, last, requests, say, sign_in

SECRET = "the merger is on Friday"


class Found(BaseRetriever):
    """Finds what it was given."""

    documents: list[Document]

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return self.documents


def document(id_: str | None, text: str = "text", **metadata: Any) -> Document:
    return Document(text, id=id_, metadata=metadata)


def allow(world: Inside, who: str, *objects: str, relation: str = "can_read") -> None:
    subject = world.person(who).principal.key if who != EVERYONE else EVERYONE
    world.identity.relations.write(
        world.identity.settings.tenant, [Relation(subject, relation, name) for name in objects]
    )


def read(world: Inside, *documents: Document, **more: Any) -> list[Document]:
    """What alice is shown of these."""
    with as_caller(world, "alice"):
        return world.identity.permitted(Found(documents=list(documents)), **more).invoke("q")


async def test_only_what_the_person_may_read_comes_out_in_its_order(world: Inside) -> None:
    allow(world, "alice", "document:3", "document:1")
    allow(world, "bob", "document:2")
    found = [document("3"), document("2", SECRET), document("1"), document("4", SECRET)]
    retriever = world.identity.permitted(Found(documents=found))
    with as_caller(world, "alice"):
        assert [d.id for d in retriever.invoke("q")] == ["3", "1"]
        assert [d.id for d in await retriever.ainvoke("q")] == ["3", "1"]
    with as_caller(world, "bob"):
        assert [d.id for d in await retriever.ainvoke("q")] == ["2"]
    with as_caller(world, "carol"):
        assert retriever.invoke("q") == []


def test_what_was_taken_away_is_gone_with_the_next_question(world: Inside) -> None:
    allow(world, "alice", "document:1")
    assert len(read(world, document("1"))) == 1
    relation = Relation(world.person("alice").principal.key, "can_read", "document:1")
    world.identity.relations.delete(world.identity.settings.tenant, [relation])
    assert read(world, document("1")) == []


# -- nothing is let through by accident --------------------------------------------------------------------------------


@pytest.mark.case("G3")
@pytest.mark.parametrize(
    "id_",
    [
        None, "", " ", "1 ", " 1", "1\n", "1\x00", "1\u200b", "1\N{NO-BREAK SPACE}", "\N{FULLWIDTH DIGIT ONE}", "01", "1#member",
        "document:1", "%31", "1/", "1" * 201, "\ud800", "*",
    ],
    ids=repr,
)  # fmt: skip
def test_a_document_whose_id_is_not_exactly_the_one_that_is_allowed_is_dropped(world: Inside, id_: str | None) -> None:
    allow(world, EVERYONE, "document:1", "document:None")
    allow(world, "alice", "document:1")
    assert [d.page_content for d in read(world, document(id_, SECRET), document("1", "public"))] == ["public"]


@pytest.mark.case("G3")
def test_an_id_that_two_documents_share_lets_neither_through(world: Inside) -> None:
    allow(world, "alice", "document:1", "document:2")
    for second in (document("1", SECRET), document("1", "public", page=2)):
        assert [d.id for d in read(world, document("1", "public"), document("2"), second)] == ["2"]
        assert [d.id for d in read(world, second, document("2"), document("1", "public"))] == ["2"]


def test_a_document_that_was_found_twice_is_one_document(world: Inside) -> None:
    allow(world, "alice", "document:1")
    assert len(read(world, document("1", "a", page=1), document("1", "a", page=1))) == 2


@pytest.mark.case("G3")
def test_another_relation_to_a_document_does_not_let_it_through(world: Inside) -> None:
    allow(world, "alice", "document:1", relation="can_list")
    allow(world, "bob", "document:1")
    assert read(world, document("1", SECRET)) == []
    assert len(read(world, document("1"), relation="can_list")) == 1


@pytest.mark.case("G3")
def test_a_document_is_of_the_type_that_was_said(world: Inside) -> None:
    allow(world, "alice", "memo:1")
    assert read(world, document("1", SECRET)) == []
    assert len(read(world, document("1"), object_of="memo")) == 1


def parent(found: Document) -> str:
    return f"document:{found.metadata['of']}"


def test_the_parts_of_a_document_are_asked_about_as_what_they_are_parts_of(world: Inside) -> None:
    allow(world, "alice", "document:1")
    parts = [document("a", of="1"), document("b", of="1"), document("c", SECRET, of="2"), document(None, "d", of="1")]
    assert [d.page_content for d in read(world, *parts, object_of=parent)] == ["text", "text", "d"]


@pytest.mark.case("G3")
@pytest.mark.parametrize(
    "object_of",
    [
        parent,  # raises: the document does not say what it is a part of
        lambda found: None,
        lambda found: "",
        lambda found: "1",
        lambda found: 1,
        lambda found: True,
        lambda found: ["document:1"],
        lambda found: b"document:1",
        lambda found: "document:1 ",
        lambda found: "document:1#member",
    ],
)
def test_a_document_that_nobody_can_name_is_nobodys(world: Inside, object_of: Callable[[Document], Any]) -> None:
    allow(world, "alice", "document:1")
    assert read(world, document("1", SECRET), object_of=object_of) == []


def test_a_namesake_of_another_tenant_reads_nothing(world: Inside) -> None:
    allow(world, "alice", "document:1")
    allow(world, EVERYONE, "document:1")
    alice = world.person("alice").principal
    with world.identity.caller(Principal("other", alice.issuer, alice.subject)):
        assert world.identity.permitted(Found(documents=[document("1", SECRET)])).invoke("q") == []


async def test_a_database_that_fails_shows_nothing(world: Inside) -> None:
    allow(world, "alice", "document:1")
    with world.identity.database.write() as db:
        db.execute("DROP TABLE relations")
    retriever = world.identity.permitted(Found(documents=[document("1", SECRET)]))
    with as_caller(world, "alice"):
        for run in (lambda: retriever.invoke("q"), None):
            with pytest.raises(StoreError):
                run() if run else await retriever.ainvoke("q")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"relation": "Can read"}, "is not a relation"),
        ({"relation": ""}, "is not a relation"),
        ({"object_of": "Document"}, "is not a type"),
        ({"object_of": "document:"}, "is not a type"),
        ({"object_of": ""}, "is not a type"),
    ],
)
def test_names_that_could_never_match_are_refused_where_they_are_written(
    world: Inside, more: dict[str, Any], why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        world.identity.permitted(Found(documents=[]), **more)


# -- whose ---------------------------------------------------------------------------------------------------------------


@contextmanager
def lent(principal: Principal | None) -> Iterator[None]:
    """As inside a tool that runs on somebody's thread."""
    reset = binding.set(Binding(NOTHING, {}, "effect-1", (), principal))
    try:
        yield
    finally:
        binding.reset(reset)


async def refused(retriever: PermittedRetriever) -> None:
    with pytest.raises(RefusedError, match="Nobody is signed in") as sync:
        retriever.invoke("q")
    with pytest.raises(RefusedError, match="Nobody is signed in"):
        await retriever.ainvoke("q")
    assert sync.value.code == "login_required"


async def test_for_nobody_there_is_an_error_and_no_empty_answer(world: Inside) -> None:
    allow(world, EVERYONE, "document:1")
    retriever = world.identity.permitted(Found(documents=[document("1")]))
    await refused(retriever)
    with world.identity.caller(Visitor("somebody")):
        await refused(retriever)


async def test_inside_a_tool_the_one_who_is_signed_in_counts_and_nobody_else(world: Inside) -> None:
    allow(world, "alice", "document:1")
    retriever = world.identity.permitted(Found(documents=[document("1", SECRET)]))
    with as_caller(world, "bob"), lent(world.person("alice").principal):
        assert len(retriever.invoke("q")) == 1
        assert len(await retriever.ainvoke("q")) == 1
    with as_caller(world, "alice"), lent(world.person("bob").principal):
        assert retriever.invoke("q") == []
    with as_caller(world, "alice"), lent(None):  # she has signed out of this thread
        await refused(retriever)


def searching(world: Inside, *documents: Document) -> Any:
    retriever = world.identity.permitted(Found(documents=list(documents)))
    made = create_retriever_tool(retriever, "search", "Search.")
    return needs(signed_in(), read_only=True)(made)


async def test_a_retriever_tool_that_exists_shows_each_person_their_own_part(world: Inside) -> None:
    allow(world, "alice", "document:1", "document:2")
    allow(world, "bob", "document:1")
    search = searching(world, document("1", "public"), document("2", SECRET), document(None, "nobody's"))
    for who, told in (("bob", ["public"]), ("alice", ["public", SECRET])):
        graph = assistant(world, calls(("search", {"query": "q"})), "Done.", tools=[search])
        state = await sign_in(world, graph, who, thread=who)
        assert state["messages"][-2].text == "\n\n".join(told)
        assert last(state) == "Done."
    assert not [grant for grant in world.network.grants() if "token-exchange" in grant], "and no token was needed"


def test_the_sync_form_does_too(world: Inside) -> None:
    allow(world, "alice", "document:1")
    search = searching(world, document("1", "public"), document("2", SECRET))
    graph = assistant(world, calls(("search", {"query": "q"})), "Done.", tools=[search])
    state = graph.invoke({"messages": [{"role": "user", "content": "go"}]}, config())
    (asked,) = requests(state)
    assert asked["kind"] == "login"
    world.identity.transport.call(world.person("alice").sign_in, asked)
    state = world.identity.resume_sync(graph, config())
    assert state["messages"][-2].text == "public"


async def test_after_signing_out_the_next_search_asks_who_it_is(world: Inside) -> None:
    allow(world, "alice", "document:1")
    search = searching(world, document("1", "public"))
    turn = calls(("search", {"query": "q"}))
    graph = assistant(world, turn, "Done.", calls(("search", {"query": "q"})), "Done.", tools=[search])
    state = await sign_in(world, graph)
    assert state["messages"][-2].text == "public"
    session = world.identity.sessions.of(Place(world.identity.settings.tenant, "assistant", "t1"))
    assert session is not None
    world.identity.sessions.end(session, world.clock())
    with as_caller(world, "alice"):
        assert [r["kind"] for r in requests(await say(graph))] == ["login"]


# -- who looks on --------------------------------------------------------------------------------------------------------


class Heard(BaseCallbackHandler):
    def __init__(self) -> None:
        self.ended: list[Sequence[Document]] = []

    def on_retriever_end(self, documents: Sequence[Document], **more: Any) -> None:
        self.ended.append(documents)


class HeardLater(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.ended: list[Sequence[Document]] = []

    async def on_retriever_end(self, documents: Sequence[Document], **more: Any) -> None:
        self.ended.append(documents)


async def test_callbacks_are_told_of_what_came_out_and_of_nothing_else(world: Inside) -> None:
    """Attack: a client streams the events of a run, and the inner retriever's end holds everything that was found."""
    allow(world, "alice", "document:1")
    retriever = world.identity.permitted(Found(documents=[document("1", "public"), document("2", SECRET)]))
    heard, later = Heard(), HeardLater()
    with as_caller(world, "alice"):
        retriever.invoke("q", {"callbacks": [heard]})
        await retriever.ainvoke("q", {"callbacks": [heard, later]})
        events = [event async for event in retriever.astream_events("q")]
    assert [[d.page_content for d in end] for end in heard.ended] == [["public"]] * 2
    assert [[d.page_content for d in end] for end in later.ended] == [["public"]]
    assert "public" in repr(events)
    assert SECRET not in repr(events)


async def test_no_event_of_a_whole_run_holds_what_was_left_out(world: Inside) -> None:
    allow(world, "alice", "document:1")
    search = searching(world, document("1", "public"), document("2", SECRET))
    graph = assistant(world, calls(("search", {"query": "q"})), "Done.", tools=[search])
    await sign_in(world, graph)
    graph = assistant(world, calls(("search", {"query": "q"})), "Done.", tools=[search])
    with as_caller(world, "alice"):
        given = {"messages": [{"role": "user", "content": "go"}]}
        events = [event async for event in graph.astream_events(given, config(), version="v2")]
    assert "public" in repr(events)
    assert SECRET not in repr(events)
