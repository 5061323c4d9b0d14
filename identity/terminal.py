"""The terminal's own sign-in: a listener on loopback that the browser comes back to (RFC 8252 §7.3)."""

from __future__ import annotations

import html
import logging
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qsl, urlsplit

from .errors import DeputizeError, SettingsError

__all__ = ["Callback"]

_log = logging.getLogger("deputize")

_LOCAL = ("127.0.0.1", "localhost")
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><body style="font:17px/1.5 system-ui,sans-serif;max-width:30rem;margin:3rem auto;padding:0 1rem">
<h1 style="font-size:1.4rem">{title}</h1><p>{text}</p></body></html>"""


class Callback:
    """Waits for the browser on 127.0.0.1::

        with Callback() as callback:
            identity = Identity(load_settings(login="browser", redirect_uri=callback.redirect_uri))
            callback.finish = lambda query: identity.transport.call(identity.asking.browser_callback, query)

    Args:
        finish: given the redirect's query; raises a :class:`DeputizeError` when it is not the answer to a login.
        at: ``http://127.0.0.1/callback``, or as the issuer knows it. With a port in it, that one; else any free one.

    Raises:
        SettingsError: that is not an address of this machine, or its port is taken.
    """

    def __init__(
        self,
        finish: Callable[[list[tuple[str, str]]], object] | None = None,
        at: str = "http://127.0.0.1/callback",
    ) -> None:
        self.finish = finish
        parts = urlsplit(at)
        if parts.scheme != "http" or parts.hostname not in _LOCAL or parts.query or parts.fragment:
            raise SettingsError(
                f"The browser cannot come back to {at}", "Set DEPUTIZE_REDIRECT_URI to http://127.0.0.1/callback"
            )
        self._host, self._path = parts.hostname, parts.path or "/"
        callback = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                with callback._answering:
                    callback._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                """The request line holds the code: it is not logged."""

        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", parts.port or 0), Handler)
        except OSError:
            raise SettingsError(
                f"The port {parts.port} of DEPUTIZE_REDIRECT_URI is taken",
                "Stop what listens there, or choose another one",
            ) from None
        self._answering = threading.Lock()
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="deputize-callback", daemon=True
        )

    @property
    def redirect_uri(self) -> str:
        """Where the browser is to come back to."""
        return f"http://{self._host}:{self._server.server_port}{self._path}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        with self._answering:  # whoever has just signed in is told so before the program ends
            pass
        self._server.server_close()
        self._thread.join(timeout=10)

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        if (
            parts.path != self._path
            or request.headers.get("host") != urlsplit(self.redirect_uri).netloc
            or self.finish is None
        ):
            self._send(request, 404, "Not found", "There is nothing here.")
            return
        try:
            self.finish(parse_qsl(parts.query, keep_blank_values=True))
        except DeputizeError as error:
            self._send(request, 400, "Not signed in", f"{error}")
        except Exception as error:
            _log.exception("A sign-in failed (%s)", type(error).__name__)
            self._send(request, 500, "Not signed in", "Something went wrong. Start again from the terminal.")
        else:
            self._send(request, 200, "Signed in", "You can close this page and go back to the terminal.")

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, status: int, title: str, text: str) -> None:
        body = _PAGE.format(title=html.escape(title), text=html.escape(text)).encode()
        request.send_response(status)
        request.send_header("content-type", "text/html; charset=utf-8")
        request.send_header("content-length", str(len(body)))
        request.send_header("cache-control", "no-store")
        request.send_header("referrer-policy", "no-referrer")
        request.send_header(
            "content-security-policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
        )
        request.end_headers()
        request.wfile.write(body)
