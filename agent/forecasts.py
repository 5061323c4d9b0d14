"""The demo's documents, and a retriever over them. It finds all that fit; who may read what is not its business."""

from __future__ import annotations

import re

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from .world.forecasts import FORECASTS as _OF_THE_WORLD

__all__ = ["FORECASTS", "KeywordRetriever"]

FORECASTS = tuple(
    Document(f"{f.symbol} ({f.analyst}): {f.text}", id=f.id, metadata={"symbol": f.symbol}) for f in _OF_THE_WORLD
)


class KeywordRetriever(BaseRetriever):
    """The documents that have a word of the query, those with more of them first."""

    documents: tuple[Document, ...]

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        wanted = _words(query)
        hits = [(len(wanted & _words(document.page_content)), document) for document in self.documents]
        return [document for count, document in sorted(hits, key=lambda hit: -hit[0]) if count]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
