"""``Identity``: one deployment's identity layer, from settings. What applications hold."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx

from .asking import Asking
from .broker import Broker
from .inbound import Inbound
from .keyring import create_keyring, load_client, load_keyring
from .ledger import Ledger, Request
from .principal import WAKE, Caller, Principal, Visitor, caller_of
from .relations import Relations
from .secret import Secret
from .sessions import Place, Sessions
from .settings import Settings, load_settings
from .store import Database
from .transport import Transport
from .vault import Vault, verify_keyring
from .visitors import Visitors

if TYPE_CHECKING:
    from langchain_core.documents import Document
    from langchain_core.language_models import BaseChatModel
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.runnables import RunnableConfig
    from langchain_core.tools import BaseTool
    from langgraph.graph.state import CompiledStateGraph

    from .documents import PermittedRetriever
    from .nodes import Nodes

__all__ = ["Identity"]

_caller: ContextVar[Caller | None] = ContextVar("deputize_caller", default=None)


@dataclass(frozen=True, slots=True)
class _Parts:
    database: Database
    vault: Vault
    ledger: Ledger
    sessions: Sessions
    inbound: Inbound
    relations: Relations
    visitors: Visitors
    broker: Broker
    asking: Asking


class Identity:
    """The identity layer of one deployment.

    Nothing is opened before it is needed, so that a module may make one at import time.

    Args:
        settings: where everything is; from the environment when not given.
        clock: unix seconds (replaced in tests).
        mount: replaces the network (an in-process ASGI application in tests).
        pause: waits between polls (replaced in tests).

    Raises:
        SettingsError: there are no settings, or they contradict each other.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        clock: Callable[[], float] = time.time,
        mount: httpx.AsyncBaseTransport | None = None,
        pause: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        self.settings = settings if settings is not None else load_settings()
        self.transport = Transport(self.settings.allow_origins, mount, self.settings.ca_file)
        self.clock = clock
        self._pause = pause
        self._lock = threading.Lock()
        self._opened: _Parts | None = None
        self.graphs: set[str] = set()
        """The names under which graphs of this process ask: a sub-agent's need not be that of the graph that runs it."""
        self.served = False
        """Whether a LangGraph server with our ``auth`` runs the graphs: it says who is calling (:mod:`identity.server`)."""
        self._nobody: Caller | None = Visitor(self.settings.visitor) if self.settings.visitor else None

    # -- who is calling ----------------------------------------------------------------------------------------------

    @contextmanager
    def caller(self, caller: Caller) -> Iterator[None]:
        """Say for whom the graphs in this block run::

            with identity.caller(principal):
                await graph.ainvoke(…)

        It is a context variable: a client cannot send it, a checkpoint cannot hold it.
        """
        reset = _caller.set(caller)
        try:
            yield
        finally:
            _caller.reset(reset)

    def current_caller(self, config: Mapping[str, Any] | None = None, place: Place | None = None) -> Caller | None:
        """For whom this code runs; ``None`` when nobody said.

        Args:
            config: of a run: on the LangGraph server it names the user whom the server authenticated.
            place: the run's thread: a run of the waker, which nobody calls, goes on for the person whose thread it is.
        """
        named = _caller.get()
        if named is not None or not self.served or config is None:
            return named or self._nobody
        configurable = config.get("configurable") or {}
        user = configurable.get("langgraph_auth_user")
        if user is not None:
            return caller_of(user, self.settings.tenant, embedded=self.settings.embedded)
        nonce, run_id = configurable.get(WAKE), str(configurable.get("run_id") or "")
        if place is None or not isinstance(nonce, str):
            return None
        return self._owner(place) if self.ledger.redeem_wake(nonce, place, run_id, self.clock()) else None

    # -- graphs ------------------------------------------------------------------------------------------------------

    def nodes(self, model: BaseChatModel, tools: Sequence[BaseTool], graph: str) -> Nodes:
        """The nodes and edges of a graph called ``graph``. Sessions and seals name it: call the compiled graph the same.

        Raises:
            NeedsError: two tools have one name.
        """
        from .gate import Gate
        from .nodes import Nodes

        return Nodes(model, Gate(tools, graph, self, defers=True), self.transport)

    def permitted(
        self,
        retriever: BaseRetriever,
        relation: str = "can_read",
        object_of: str | Callable[[Document], str] = "document",
    ) -> PermittedRetriever:
        """``retriever`` without the documents that the signed-in person has no ``relation`` to; see :attr:`relations`.

        Args:
            object_of: the type of the objects that ``Document.id`` names, or a function from a document to ``type:id``,
                such as the one that a chunk is a part of.

        Raises:
            UsageError: the relation or the type cannot be a name.
        """
        from .documents import permitted

        return permitted(self, retriever, relation, object_of)

    async def resume(self, graph: CompiledStateGraph[Any, Any, Any, Any], config: RunnableConfig) -> Any:
        """Wait until something that the thread waits for is decided, then run the graph on; returns its state.

        Without :meth:`caller`, it goes on for the person whose thread it is if that person decided something that nobody has
        gone on with: no input is given, so nothing happens that they had not asked for. If nothing was decided, or their
        sign-in has ended, it goes on as nobody.
        """
        place = self._place(graph, config)
        parts = await asyncio.to_thread(self._parts)
        decided = await self.transport.acall(parts.asking.wait, *self._places(place))
        with self._as_owner(await asyncio.to_thread(self._signed_in, decided)):
            goes_on = (await graph.aget_state(config)).next
            given = None if goes_on else await asyncio.to_thread(self._nothing_said, place)
            state = await graph.ainvoke(given, config)
        await asyncio.to_thread(self._gone_on, decided)
        return state

    def resume_sync(self, graph: CompiledStateGraph[Any, Any, Any, Any], config: RunnableConfig) -> Any:
        """:meth:`resume` for code without an event loop."""
        place = self._place(graph, config)
        decided = self.transport.call(self.asking.wait, *self._places(place))
        with self._as_owner(self._signed_in(decided)):
            given = None if graph.get_state(config).next else self._nothing_said(place)
            state = graph.invoke(given, config)
        self._gone_on(decided)
        return state

    def _nothing_said(self, place: Place) -> dict[str, Any] | None:
        """What a thread is given where no step waits: an outcome that is still to be told starts a run of its own."""
        return {"messages": []} if self.ledger.deferred(place) else None

    def _place(self, graph: CompiledStateGraph[Any, Any, Any, Any], config: RunnableConfig) -> Place:
        return Place(self.settings.tenant, graph.name, str((config.get("configurable") or {}).get("thread_id", "")))

    def _places(self, place: Place) -> list[Place]:
        """Where something of a thread may wait: also under the name of a placement in its graph, or of a sub-agent."""
        return [replace(place, graph=name) for name in sorted({place.graph, *self.graphs})]

    def _owner(self, place: Place) -> Caller | None:
        session = self.sessions.of(place)
        if session is not None:
            return session.principal
        began = self.sessions.began(place) or ""
        return Visitor(began.removeprefix("visitor:")) if began.startswith("visitor:") else None

    def _gone_on(self, decided: Sequence[Request]) -> None:
        for request in decided:
            self.ledger.woken(request, self.clock())

    def _signed_in(self, decided: Sequence[Request]) -> Caller | None:
        sessions = (self.sessions.of(place) for place in {request.place: None for request in decided})
        return next((s.principal for s in sessions if s is not None and s.live(self.clock())), None)

    @contextmanager
    def _as_owner(self, owner: Caller | None) -> Iterator[None]:
        if owner is None or self.current_caller() is not None:
            yield
        else:
            with self.caller(owner):
                yield

    async def poll(self) -> list[Request]:
        """One round over everything that is due; returns what has been decided and whose thread has not been woken."""
        parts = await asyncio.to_thread(self._parts)
        await self.transport.acall(parts.asking.poll_due)
        return await asyncio.to_thread(parts.ledger.unwoken, self.settings.tenant, self.clock())

    # -- the LangGraph server ----------------------------------------------------------------------------------------

    async def admit(self, authorization: str | None) -> dict[str, Any]:
        """For an ``@auth.authenticate`` of your own: who a bearer token is of, to be merged into what it returns.

        The token itself goes on to the run that is created with this request, sealed in a row of its own, and nowhere else.

        Raises:
            langgraph_sdk.Auth.exceptions.HTTPException: 401, with what is wrong with the token.
            starlette.exceptions.HTTPException: 503: the issuer cannot be reached, so nobody can tell.
        """
        from .server.auth import admit

        return await admit(self, authorization)

    async def verify(self, token: Secret) -> tuple[Principal, float]:
        """Whose an inbound access token is, and until when it is good (unix seconds); see :meth:`Broker.verify`."""
        parts = self._opened if self._opened is not None else await asyncio.to_thread(self._parts)
        return await self.transport.acall(parts.broker.verify, token, self.settings.audience, self.settings.tenant)

    def arrive(
        self, thread_id: str, run_id: str, principal: Principal, was: Visitor | None, token: Secret, expires_at: float
    ) -> bool:
        """A run was created with a verified token: keep it for the run, and finish a sign-in that waited for it.

        True if the thread was a visitor's and is the person's from here on.
        """
        parts = self._parts()
        parts.inbound.keep(run_id, thread_id, principal, token, expires_at, self.clock())
        return bool(thread_id) and parts.asking.came_back(thread_id, principal, was)

    # -- parts -------------------------------------------------------------------------------------------------------

    @property
    def database(self) -> Database:
        """The open database."""
        return self._parts().database

    @property
    def vault(self) -> Vault:
        """Grants."""
        return self._parts().vault

    @property
    def ledger(self) -> Ledger:
        """Requests and effects."""
        return self._parts().ledger

    @property
    def sessions(self) -> Sessions:
        """Who a conversation belongs to."""
        return self._parts().sessions

    @property
    def inbound(self) -> Inbound:
        """The tokens that callers came with."""
        return self._parts().inbound

    @property
    def relations(self) -> Relations:
        """Who may do what with which object."""
        return self._parts().relations

    @property
    def visitors(self) -> Visitors:
        """People who have not signed in."""
        return self._parts().visitors

    @property
    def broker(self) -> Broker:
        """Tokens."""
        return self._parts().broker

    @property
    def asking(self) -> Asking:
        """Logins and approvals."""
        return self._parts().asking

    def _parts(self) -> _Parts:
        with self._lock:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    def _open(self) -> _Parts:
        settings = self.settings
        assert settings.key_file and settings.data_dir and settings.client_key_file  # completed by Settings
        if settings.embedded and not settings.key_file.exists() and not settings.database.exists():
            # A new development installation. With a database there, a missing ring is an error (casebook F3).
            create_keyring(settings.key_file, settings.data_dir, self.clock())
        ring = load_keyring(settings.key_file, settings.data_dir)
        database = Database(settings.database)
        try:
            verify_keyring(database, ring)
        except BaseException:
            database.close()
            raise
        vault, ledger, sessions = Vault(database, ring.rows), Ledger(database, ring.rows), Sessions(database, ring.rows)
        inbound = Inbound(database, ring.rows)
        client = partial(load_client, settings.client_id, settings.client_key_file)
        broker = Broker(settings.issuer, client, self.transport, vault, inbound, ring.state, self.clock)
        asking = Asking(
            broker,
            ledger,
            sessions,
            vault,
            inbound,
            tenant=settings.tenant,
            login=settings.login or "browser",
            device_for_all=settings.embedded,
            login_url=settings.login_url,
            redirect_uri=settings.redirect_uri,
            delivery=settings.delivery,
            pending_limit=settings.pending_limit,
            served=lambda: self.served,
            clock=self.clock,
            pause=self._pause,
        )
        return _Parts(
            database=database,
            vault=vault,
            ledger=ledger,
            sessions=sessions,
            inbound=inbound,
            relations=Relations(database),
            visitors=Visitors(settings.tenant, ring.state, self.clock),
            broker=broker,
            asking=asking,
        )

    def close(self) -> None:
        """Close the database and the connections. What was asked of people stays asked."""
        self.transport.close()
        with self._lock:
            if self._opened is not None:
                self._opened.database.close()
                self._opened = None
