"""The one place that sends.

Every request that deputize makes by itself goes through one :class:`Transport`: an event loop of its own in a thread of
its own, with one pooled client. So sync and async callers, any number of event loops, and the server's own loop share
connections and single flights, and no handler of the same process can deadlock with us over an executor.

What it refuses: any URL that is neither ``https`` nor of an origin named in ``allow_origins`` (casebook C9), redirects,
proxies from the environment, cookies, bodies over 1 MiB, answers that take longer than ``DEADLINE``.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from .errors import DeputizeError, NeedsError, ProtocolError, SettingsError, TransportError, UsageError
from .needs import origin_of
from .oauth.wire import Request, Response

__all__ = ["DEADLINE", "Transport"]

_T = TypeVar("_T")
_log = logging.getLogger("deputize")
_BODY_LIMIT = 1 << 20
_TIMEOUT = httpx.Timeout(10.0, connect=5.0)

DEADLINE = 20.0
"""Seconds for one request and its whole answer, however slowly it drips."""


class Transport:
    """One I/O thread and one pooled HTTP client.

    Args:
        allow_origins: origins beside ``https`` ones that may be spoken to: the embedded world's, exactly.
        mount: replaces the network (an in-process ASGI application in tests).
        ca_file: certificates of authorities that are trusted beside the public ones.
    """

    def __init__(
        self,
        allow_origins: Collection[str] = (),
        mount: httpx.AsyncBaseTransport | None = None,
        ca_file: Path | None = None,
    ) -> None:
        self._allowed = frozenset(origin_of(origin) for origin in allow_origins)
        self._mount = mount
        self._ca_file = ca_file
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def allow_origins(self) -> frozenset[str]:
        """The origins that need no https."""
        return self._allowed

    # -- running coroutines on the I/O thread ------------------------------------------------------------------------

    def call(self, function: Callable[..., Coroutine[Any, Any, _T]], *args: Any) -> _T:
        """Run ``await function(*args)`` on the I/O thread and wait for it. For code that has no event loop."""
        loop = self._running()
        running = asyncio.run_coroutine_threadsafe(function(*args), loop)
        try:
            return running.result()
        except BaseException:
            running.cancel()  # Ctrl-C: nobody waits for it any more
            raise

    async def acall(self, function: Callable[..., Coroutine[Any, Any, _T]], *args: Any) -> _T:
        """Run ``await function(*args)`` on the I/O thread and await it, from any event loop."""
        loop = self._running()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(function(*args), loop))

    def spawn(self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> None:
        """Run ``await function(*args)`` on the I/O thread, without waiting for it; a failure is logged."""
        asyncio.run_coroutine_threadsafe(function(*args), self._running()).add_done_callback(_logged)

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._thread is not None and not self._thread.is_alive():
                # Threads do not survive a fork: what is handed to this one would wait for ever.
                raise UsageError(
                    "The I/O thread was started before this process was forked",
                    "Make the Identity in the process that uses it",
                )
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="deputize-io", daemon=True)
                self._thread.start()
            return self._loop

    def close(self) -> None:
        """Close the connections and stop the thread. The transport can be used again; it then starts anew."""
        with self._lock:
            loop, thread, client = self._loop, self._thread, self._client
            self._loop = self._thread = self._client = None
        if loop is None or thread is None or not thread.is_alive():  # a fork's child has no such thread to stop
            return

        async def wind_down() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=5)
            if client is not None:
                await client.aclose()
            await loop.shutdown_asyncgens()
            await loop.shutdown_default_executor()

        asyncio.run_coroutine_threadsafe(wind_down(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()

    # -- sending -----------------------------------------------------------------------------------------------------

    def permits(self, url: str) -> bool:
        """Whether this transport would speak to ``url``: https, or an origin that was allowed exactly."""
        try:
            origin = origin_of(url)
        except NeedsError:
            return False
        return origin.startswith("https://") or origin in self._allowed

    async def send(self, request: Request) -> Response:
        """Send ``request`` and return the whole answer. Runs on the I/O thread only (see :meth:`acall`).

        Raises:
            ProtocolError: the URL may not be spoken to, or the answer is too large.
            TransportError: nothing came back.
        """
        if not self.permits(request.url):
            raise ProtocolError(
                f"{request.url} is not an https URL", "Only https is spoken; correct the issuer or what it advertises"
            )
        host = urlsplit(request.url).netloc
        try:
            async with asyncio.timeout(DEADLINE):
                answer, body = await self._whole_answer(request, host)
        except (httpx.HTTPError, TimeoutError) as error:
            raise TransportError(
                f"{host} did not answer ({type(error).__name__})", "Check the address and the network, then try again"
            ) from None
        except (httpx.InvalidURL, UnicodeError):  # names that DNS could not hold
            raise ProtocolError(f"{host} is not a host that can be spoken to", "Check the URL") from None
        return Response(answer.status_code, {k.lower(): v for k, v in answer.headers.items()}, bytes(body))

    async def _whole_answer(self, request: Request, host: str) -> tuple[httpx.Response, bytearray]:
        pool = self._pool()
        outgoing = pool.build_request(
            request.method, request.url, data=_form(request) or None, json=request.json, headers=dict(request.headers)
        )
        answer = await pool.send(outgoing, stream=True)
        pool.cookies.clear()  # one person's answer leaves nothing that goes with another person's request
        try:
            body = bytearray()
            async for chunk in answer.aiter_bytes():
                body += chunk
                if len(body) > _BODY_LIMIT:
                    raise ProtocolError(f"{host} answered with more than 1 MiB", "Check that this is the right URL")
        finally:
            await answer.aclose()
        return answer, body

    def _pool(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                transport=self._mount,
                verify=_trusted(self._ca_file),
                timeout=_TIMEOUT,
                follow_redirects=False,
                trust_env=False,  # a proxy from the environment would read every token
                limits=httpx.Limits(max_connections=100, max_keepalive_connections=20),
                headers={"accept": "application/json", "user-agent": "deputize"},
            )
        return self._client


def _logged(done: Future[Any]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        _log.info(
            "What nobody waited for failed: %s", error if isinstance(error, DeputizeError) else type(error).__name__
        )


def _form(request: Request) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for name, value in request.form:  # repeated names are legal (RFC 8693 §2.1: resource, audience)
        fields.setdefault(name, []).append(value)
    return fields


def _trusted(ca_file: Path | None) -> ssl.SSLContext | bool:
    """Whose word for a host's name is taken: the public authorities', and that of the ones in ``ca_file``."""
    if ca_file is None:
        return True
    context = httpx.create_ssl_context(trust_env=False)
    try:
        context.load_verify_locations(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one too
        raise SettingsError(
            f"DEPUTIZE_CA_FILE: {ca_file} holds no certificates that can be used ({type(error).__name__})",
            "Give a file in PEM form that this user may read",
        ) from None
    return context
