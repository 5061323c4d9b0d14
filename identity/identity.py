"""``Identity``: one deployment's identity layer, from settings. What applications hold."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx

from .asking import Asking
from .broker import Broker
from .keyring import create_keyring, load_client, load_keyring
from .ledger import Ledger, Request
from .principal import Caller, Visitor
from .sessions import Place, Sessions
from .settings import Settings, load_settings
from .store import Database
from .transport import Transport
from .vault import Vault, verify_keyring

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.runnables import RunnableConfig
    from langchain_core.tools import BaseTool
    from langgraph.graph.state import CompiledStateGraph

    from .nodes import Nodes

__all__ = ["Identity"]

_caller: ContextVar[Caller | None] = ContextVar("deputize_caller", default=None)


@dataclass(frozen=True, slots=True)
class _Parts:
    database: Database
    vault: Vault
    ledger: Ledger
    sessions: Sessions
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

    def current_caller(self) -> Caller | None:
        """For whom this code runs; ``None`` when nobody said."""
        return _caller.get() or self._nobody

    # -- graphs ------------------------------------------------------------------------------------------------------

    def nodes(self, model: BaseChatModel, tools: Sequence[BaseTool], graph: str) -> Nodes:
        """The nodes and edges of a graph called ``graph``. Sessions and seals name it: call the compiled graph the same.

        Raises:
            NeedsError: two tools have one name.
        """
        from .gate import Gate
        from .nodes import Nodes

        return Nodes(model, Gate(tools, graph, self), self.transport)

    async def resume(self, graph: CompiledStateGraph[Any, Any, Any, Any], config: RunnableConfig) -> Any:
        """Wait until something that the thread waits for is decided, then run the graph on; returns its state.

        Without :meth:`caller`, it goes on for the person whose thread it is: no input is given, so nothing happens that
        this person had not asked for.
        """
        place = self._place(graph, config)
        parts = await asyncio.to_thread(self._parts)
        await self.transport.acall(parts.asking.wait, place)
        with self._as_owner(await asyncio.to_thread(self._owner, place)):
            return await graph.ainvoke(None, config)

    def resume_sync(self, graph: CompiledStateGraph[Any, Any, Any, Any], config: RunnableConfig) -> Any:
        """:meth:`resume` for code without an event loop."""
        place = self._place(graph, config)
        self.transport.call(self.asking.wait, place)
        with self._as_owner(self._owner(place)):
            return graph.invoke(None, config)

    def _place(self, graph: CompiledStateGraph[Any, Any, Any, Any], config: RunnableConfig) -> Place:
        return Place(self.settings.tenant, graph.name, str((config.get("configurable") or {}).get("thread_id", "")))

    def _owner(self, place: Place) -> Caller | None:
        session = self.sessions.of(place)
        return session.principal if session else None

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
        vault, ledger, sessions = Vault(database, ring.rows), Ledger(database, ring.rows), Sessions(database)
        client = partial(load_client, settings.client_id, settings.client_key_file)
        broker = Broker(settings.issuer, client, self.transport, vault, ring.state, self.clock)
        asking = Asking(
            broker,
            ledger,
            sessions,
            vault,
            tenant=settings.tenant,
            login=settings.login,
            redirect_uri=settings.redirect_uri,
            clock=self.clock,
            pause=self._pause,
        )
        return _Parts(database, vault, ledger, sessions, broker, asking)

    def close(self) -> None:
        """Close the database and the connections. What was asked of people stays asked."""
        self.transport.close()
        with self._lock:
            if self._opened is not None:
                self._opened.database.close()
                self._opened = None
