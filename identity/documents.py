"""Retrieved documents, without those that the person may not read.

The filter stands between the retriever and whatever puts documents into a prompt: a model cannot tell what it was not shown.
A document without an id, or with one that cannot be asked about, is dropped (casebook G3).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from .errors import RefusedError
from .needs import binding
from .principal import Principal

if TYPE_CHECKING:
    from .identity import Identity

__all__ = ["PermittedRetriever"]


class PermittedRetriever(BaseRetriever):
    """A retriever that returns what the signed-in person may read. Made by :meth:`identity.Identity.permitted`.

    Use it inside a tool with ``@needs(signed_in())`` or a token, or inside ``with identity.caller(principal)``: for nobody
    there are no documents, and that is an error and not an empty answer.
    """

    inner: BaseRetriever
    identity: Any
    relation: str
    object_of: Callable[[Document], str]

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        principal = self._person()
        return self._permitted(principal, self.inner.invoke(query, {"callbacks": run_manager.get_child()}))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun
    ) -> list[Document]:
        principal = self._person()
        found = await self.inner.ainvoke(query, {"callbacks": run_manager.get_child()})
        return await asyncio.to_thread(self._permitted, principal, found)

    def _person(self) -> Principal:
        lent = binding.get()
        caller = (lent.principal if lent else None) or self.identity.current_caller()
        if not isinstance(caller, Principal):
            raise RefusedError("Nobody is signed in, so no document may be read", "Sign in first", code="login_required")
        return caller

    def _permitted(self, principal: Principal, documents: Sequence[Document]) -> list[Document]:
        named = [(document, self._object(document)) for document in documents]
        identity: Identity = self.identity
        allowed = identity.relations.which(principal, self.relation, [name for _, name in named if name])
        return [document for document, name in named if name in allowed]

    def _object(self, document: Document) -> str:
        try:
            name = self.object_of(document)
        except Exception:  # a document that nobody can name is nobody's
            return ""
        return name if isinstance(name, str) else ""


def object_of_id(kind: str) -> Callable[[Document], str]:
    """``document.id`` as an object of one type; a document without an id has none."""

    def name(document: Document) -> str:
        return f"{kind}:{document.id}" if document.id else ""

    return name
