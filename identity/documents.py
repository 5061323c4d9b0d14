"""Retrieved documents, without those that the person may not read.

The filter stands between the retriever and whatever puts documents into a prompt: a model cannot tell what it was not shown.
A document that nobody can name, or whose name another document has too, is dropped (casebook G3).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from .conditions import is_object, is_relation, is_type
from .errors import RefusedError, UsageError
from .needs import binding
from .principal import Principal

if TYPE_CHECKING:
    from .identity import Identity

__all__ = ["PermittedRetriever", "permitted"]


class PermittedRetriever(BaseRetriever):
    """A retriever that returns what the signed-in person may read. Made by :meth:`identity.Identity.permitted`.

    Inside a tool the person counts who is signed in on its thread; elsewhere the one of ``with identity.caller(principal)``.
    For nobody there are no documents, and that is an error and not an empty answer.

    Callbacks are told of this retriever's run, and not of the inner one's: that ends with everything that was found, and
    event streams go to clients.
    """

    inner: BaseRetriever
    identity: Any
    relation: str
    kind: str = ""
    object_of: Callable[[Document], str] | None = None

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        principal = self._person()
        return self._permitted(principal, self.inner.invoke(query, {"callbacks": []}))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun
    ) -> list[Document]:
        principal = self._person()
        found = await self.inner.ainvoke(query, {"callbacks": []})
        return await asyncio.to_thread(self._permitted, principal, found)

    def _person(self) -> Principal:
        lent = binding.get()
        # In a tool nothing else counts: the caller of a thread may have signed out of it.
        caller = lent.principal if lent is not None else self.identity.current_caller()
        if not isinstance(caller, Principal):
            raise RefusedError(
                "Nobody is signed in, so no document can be read",
                "Declare signed_in() for the tool, or say who is calling: with identity.caller(principal)",
                code="login_required",
            )
        return caller

    def _permitted(self, principal: Principal, documents: Sequence[Document]) -> list[Document]:
        named = [(document, self._object(document)) for document in documents]
        identity: Identity = self.identity
        allowed = identity.relations.which(principal, self.relation, [name for _, name in named])
        if self.object_of is None:
            allowed -= _ambiguous(named)
        return [document for document, name in named if name in allowed]

    def _object(self, document: Document) -> str:
        """What a document is to be asked about as; empty, which nothing is allowed on, where that cannot be told."""
        if self.object_of is None:
            name: Any = f"{self.kind}:{document.id}" if document.id else ""
        else:
            try:
                name = self.object_of(document)
            except Exception:
                return ""
        return name if isinstance(name, str) and is_object(name) else ""


def permitted(
    identity: Identity, retriever: BaseRetriever, relation: str, object_of: str | Callable[[Document], str]
) -> PermittedRetriever:
    """See :meth:`identity.Identity.permitted`."""
    if not is_relation(relation):
        raise UsageError(f"{relation!r} is not a relation", "Name it like can_read: lower case, no spaces")
    if not isinstance(object_of, str):
        return PermittedRetriever(inner=retriever, identity=identity, relation=relation, object_of=object_of)
    if not is_type(object_of):
        raise UsageError(f"{object_of!r} is not a type of objects", "Name it like document, or give a function")
    return PermittedRetriever(inner=retriever, identity=identity, relation=relation, kind=object_of)


def _ambiguous(named: Sequence[tuple[Document, str]]) -> set[str]:
    """The names that different documents have. Attack, or accident: a secret document gets a public one's id."""
    first: dict[str, Document] = {}
    return {name for document, name in named if first.setdefault(name, document) != document}
